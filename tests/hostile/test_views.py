"""What a link says of how its experiment is shown, broken on purpose: a view, or left out, or a sentence."""

from __future__ import annotations

import json
import math
import random
import time

import pytest

from interp import Unsuitable
from interp.experiment import Call, Experiment
from interp.samples import Image, Prompt
from pages.ui import labels
from pages.ui.bench import Bench, viewed
from tests.hostile import files, fuzz
from tests.hostile.texts import PROMPTS

NAMES = (
    "signed", "opacity", "threshold", "colours", "view", "second", "position", "layer", "keep", "node", "pin", "group",
    "beside", "side", "feature", "of", "shown", "between", "colour", "rank", "dial", "draw", "off", "labels", "check",
    "x",
)  # fmt: skip
GOOD = (
    "0.5",
    "1",
    "3",
    "z.0.1@2",
    "mlp_post.1@3#5",
    "mine:z.0.1@2,mlp_out.0",
    "grey",
    "patches",
    "embed>2",
    "table",
    "before",
)


def shown(arrived: dict[str, list[str]], on: Experiment) -> Bench | None:
    begun = time.process_time()
    try:
        found = viewed(on, arrived)
    except Unsuitable as reason:
        assert 0 < len(str(reason)) < 700
        return None
    assert time.process_time() - begun < 2
    hash((found.look, found.view))
    for number in (found.look.opacity, found.look.threshold, found.view.keep):
        assert math.isfinite(number) and 0 <= number <= 1, arrived
    assert len(found.view.pins) <= 200 and len(found.view.groups) <= 20 and len(found.chips) <= 100
    return found


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_views_that_are_broken(seed: int) -> None:
    draw = random.Random(seed)
    both = (
        Experiment("stories", Prompt("The cat"), Call("logit_lens"), (Call("skip_layer"),)),
        Experiment("photos", Image.gallery("cat_motorcycle"), Call("grad_cam")),
    )
    words = (*fuzz.NASTY, *PROMPTS.values(), *GOOD, *GOOD, *GOOD)
    read = 0
    for _ in range(500 if seed == 0 else 20_000):
        arrived = {
            name: [draw.choice(words) for _ in range(draw.choice((1, 1, 1, 30)))]
            for name in draw.sample(NAMES, draw.randint(1, 6))
        }
        read += shown(arrived, draw.choice(both)) is not None
    assert read > 100


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999", "-1", "2", "0x1", "", "\ud800"])
def test_numbers_of_a_view_stay_within_their_bounds(word: str) -> None:
    on = Experiment("photos", Image.gallery("cat_motorcycle"), Call("grad_cam"))
    assert shown({"opacity": [word], "threshold": [word], "keep": [word], "position": [word], "rank": [word]}, on)


def test_labels_that_are_broken() -> None:
    draw = random.Random(0)
    good = json.dumps({"stories/resid_post.2": {"705": ["a label", "a note"]}})
    for text in (*files.LABELS.values(), *(fuzz.broken(draw, good) for _ in range(300))):
        try:
            found = labels.from_json(text)
        except Unsuitable:
            continue
        json.dumps(found, ensure_ascii=False).encode()
        assert all(len(label) <= 60 and len(note) <= 600 for each in found.values() for label, note in each.values())
