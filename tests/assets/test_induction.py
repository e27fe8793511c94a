"""The model set by hand does what its card says, and the two known heads, and they alone, top every attribution."""

from __future__ import annotations

import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import zoo
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.reading.attention_pattern import attention_pattern
from interp.methods.reading.next_tokens import next_tokens
from interp.model import LanguageModel, gradient
from interp.samples import Prompt, TextSet
from interp.sites import Site

HEADS = {(0, 1), (1, 2)}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    found = zoo.load("induction")
    assert isinstance(found, LanguageModel)
    return found


def prompts(number: int) -> list[tuple[Prompt, str]]:
    """Random characters, each once, that begin again and stop somewhere: what comes next is known."""
    rng = random.Random(0)
    found = []
    for _ in range(number):
        once = rng.sample(string.ascii_letters + string.digits + string.punctuation, rng.randint(5, 40))
        stop = rng.randrange(1, len(once))
        found.append((Prompt("".join(once + once[:stop])), once[stop]))
    return found


def test_it_copies_what_came_next(model: LanguageModel) -> None:
    for prompt, answer in prompts(50):
        table = next_tokens(model, prompt)
        assert table.rows[0] == answer and table.values[0, 0] > 0.99
    table = next_tokens(model, Prompt("abcdef"), top=98)
    assert table.values[:, 0].max() < 0.012, "where nothing repeats, everything is equally likely"


def test_its_heads_look_where_the_card_says(model: LanguageModel) -> None:
    prompt = Prompt("The cat sat. The c")
    before = attention_pattern(model, prompt, layer=0).sheet("head 1")
    np.testing.assert_allclose(np.diag(before, -1), 1, atol=1e-6)
    match = attention_pattern(model, prompt, layer=1).sheet("head 2")[-1]
    assert match[6] == pytest.approx(1, abs=1e-6)  # the a of "cat", behind the only c before


def test_the_two_heads_alone_top_every_attribution_of_heads(model: LanguageModel) -> None:
    """By zero, mean and resample ablation, by gradient x activation, and by what a gradient gives at every z."""
    texts = TextSet(tuple(prompt.text for prompt, _ in prompts(8)))
    for prompt, answer in prompts(5):
        index, ids = model.tokenizer.convert_tokens_to_ids(answer), model.inputs(prompt)
        whole = model(ids)[0, -1].log_softmax(0)[index]
        scores: dict[str, np.ndarray] = {}
        for by in ("zero", "mean", "resample"):
            effect = np.zeros((2, 4))
            for layer in range(2):
                for head in range(4):
                    with ablate_heads(model, prompt, heads=((layer, head),), by=by, texts=texts):
                        effect[layer, head] = float(whole - model(ids)[0, -1].log_softmax(0)[index])
            scores[by] = effect
        # attribution patching from the same prompt without a repetition
        other = ids.clone()
        other[0, -1] = model.tokenizer.convert_tokens_to_ids(" ")
        sites = [Site("z", layer) for layer in range(2)]
        with model.record(sites) as corrupted:
            model(other)
        with model.record(sites, grad=True) as clean:
            logit = model(ids)[0, -1, index]
        slopes = gradient(logit, [clean[site] for site in sites])
        change = [s * (clean[site] - corrupted[site]).detach() for s, site in zip(slopes, sites, strict=True)]
        direct = np.stack([each.sum((0, 1, 3)).numpy() for each in change])
        # the softmax of the first head is saturated, so that no slope goes through it: only AtP* and ablation see it
        assert direct[1, 2] > 0.1 and np.abs(np.delete(direct.ravel(), 6)).max() < 1e-3 * direct[1, 2]
        for by, effect in scores.items():
            top = {divmod(int(each), 4) for each in np.argsort(-effect.ravel())[:2]}
            assert top == HEADS, (by, effect)
            known = min(effect[head] for head in HEADS)
            rest = max(abs(effect[divmod(each, 4)]) for each in range(8) if divmod(each, 4) not in HEADS)
            assert known > 1 and rest < 0.01 * known, (by, effect)


@pytest.mark.slow
def test_the_recipe_makes_the_weights_that_are_here(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "assets" / "recipes" / "induction.py"
    subprocess.run([sys.executable, str(recipe), "--out", str(tmp_path)], check=True, capture_output=True, timeout=120)
    made, here = (zoo._load(str(each), None, None) for each in (tmp_path, "induction"))
    for name, weight in made.network.state_dict().items():
        assert torch.equal(weight, here.network.state_dict()[name]), name
