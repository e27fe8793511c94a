"""Soft injection: means against a loop, where it acts, what is learned, and lists of pairs without their examples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Missing, Unsuitable, zoo
from interp.methods.change.inject_task import inject_task
from interp.methods.steering import _tasks
from interp.methods.steering.injection_map import injection_map
from interp.methods.steering.soft_injection import soft_injection
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt
from tests import tiny
from tests.methods.change.pushed import PADDED
from tests.test_hooks import near

sys.path.insert(0, str(Path(__file__).parents[3] / "assets" / "recipes"))
import grammar
import tasks as recipe

FAMILIES = ("gpt2", "llama", "gemma2")
DATA = Contrast(("a b. c d. e f", "one two, g h", "xyz, a b c d"), ("a b", "c d", "x e", "it f", "on g"))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def heads(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """z [batch, position, layer, head, d_head]."""
    sites = [f"z.{layer}" for layer in range(model.layers)]
    with torch.no_grad(), model.record(sites) as found:
        model(ids)
    return torch.stack([found[site] for site in sites], 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_means_over_the_last_tokens_before_the_answers(family: str) -> None:
    model = tiny.language(family)
    task = _tasks.load(soft_injection(model, DATA, steps=0), model)
    alone = [heads(model, model.inputs(text)[:, :-1])[0, -1] for text in DATA.positive]
    near(task.outputs, torch.stack(alone).mean(0))
    assert torch.equal(task.share, torch.full_like(task.share, 0.5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_it_changes_the_last_token_of_each_prompt_and_nothing_else(family: str, share: float) -> None:
    model = tiny.language(family)
    task = _tasks.load(soft_injection(model, DATA, steps=3), model)
    plain = heads(model, PADDED)
    with inject_task(model, Prompt("x"), share=share):
        injected = heads(model, PADDED)
    real = PADDED[:, :-1] >= 0
    near(injected[:, :-1][real], plain[:, :-1][real], 1e-5)
    a = share * task.share[0][:, None]
    near(injected[:, -1, 0], (1 - a) * plain[:, -1, 0] + a * task.outputs[0])


def test_a_share_of_one_puts_exactly_the_mean_there() -> None:
    model = tiny.language("llama")
    task = _tasks.load(soft_injection(model, DATA, steps=0), model)
    full = _tasks.Task(task.outputs, torch.ones_like(task.share), model.name, model.digest)
    _tasks.keep(full, "f" * 64)
    with inject_task(model, Prompt("x"), task="f" * 64, share=1.0):
        injected = heads(model, PADDED)
    for row in range(len(PADDED)):
        near(injected[row, -1], task.outputs, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_while_text_is_generated_the_prompts_end_alone_is_injected(family: str) -> None:
    model = tiny.language(family)
    task = _tasks.load(soft_injection(model, DATA, steps=0), model)
    length = model.inputs("The cat sat").shape[1]
    with inject_task(model, Prompt("x"), share=1.0):
        cached, plain = (list(model.generate("The cat sat", 5, cache=each)) for each in (True, False))
        with model.record(["z.0"], every=True) as found:
            list(model.generate("The cat sat", 3))
    assert cached == plain
    before: list[torch.Tensor] = []
    with inject_task(model, Prompt("x"), share=1.0), model.record(["z.0"], every=True) as again:
        list(model.generate("The cat sat", 3, cache=False))
    with model.edit({"z.0": lambda z: before.append(z) or z}), inject_task(model, Prompt("x"), share=1.0):
        list(model.generate("The cat sat", 3))
    near(found["z.0"][0][0, -1], (before[0][0, -1] + task.outputs[0]) / 2)
    for number in (1, 2):
        assert torch.equal(found["z.0"][number], before[number]), "no token behind the prompt"
        near(again["z.0"][number][0, length - 1], found["z.0"][0][0, -1])


def test_the_best_share_on_held_out_prompts_is_kept_not_the_last() -> None:
    """With a rate far too large the last one is worse than where it began."""
    model = tiny.language("gpt2")
    data = Contrast(DATA.positive, tuple(f"{a} {b}" for a in "abcdefgh" for b in "xyzuvw"))
    found = [_tasks.load(soft_injection(model, data, steps=steps, rate=10.0), model) for steps in (0, 40)]
    assert found[1].about["loss"]["injected"] <= found[0].about["loss"]["injected"]
    last = _tasks.load(soft_injection(model, data, steps=400, rate=0.2), model)
    assert last.about["loss"]["injected"] < found[0].about["loss"]["injected"]


def test_the_map_shows_shares_and_how_far_each_head_is_moved() -> None:
    model, text = tiny.language("gemma2"), "The cat sat"
    task = _tasks.load(soft_injection(model, DATA, steps=5), model)
    grid = injection_map(model, Prompt(text))
    z = heads(model, model.inputs(text))[0, -1]
    assert np.array_equal(grid.sheet("share injected"), task.share.double().numpy())
    near(torch.from_numpy(grid.sheet("change of z")), (task.share * (task.outputs - z).norm(dim=2)).double(), 1e-4)
    assert grid.values.shape[1:] == (model.layers, z.shape[1])


def test_the_same_fit_gives_the_same_task_and_what_it_can_not_fit_a_sentence() -> None:
    model, other = tiny.language("gpt2"), tiny.language("llama")
    key = soft_injection(model, DATA, steps=20)
    first = _tasks.load(key, model)
    _tasks.path_of(key).unlink()
    assert soft_injection(model, DATA, steps=20) == key
    again = _tasks.load(key, model)
    assert torch.equal(first.share, again.share) and torch.equal(first.outputs, again.outputs)
    with pytest.raises(Unsuitable, match="at least one prompt with examples and two without"):
        soft_injection(model, Contrast((), ("a b", "c d")))
    with pytest.raises(Unsuitable, match="is one token"):
        soft_injection(model, Contrast(("a",), ("a b", "c d")))
    with pytest.raises(Unsuitable, match="was fitted on tiny gpt2"):
        inject_task(other, Prompt("x"), task=key, share=1.0)
    with pytest.raises(Unsuitable, match="There is no task"):
        inject_task(other, Prompt("x"), share=1.0)
    for name in ("0" * 64, "../../etc/passwd", key[:-1]):
        with pytest.raises(Missing, match="not kept here"):
            inject_task(model, Prompt("x"), task=name, share=1.0)
    _tasks.path_of(key).write_bytes(_tasks.path_of(key).read_bytes()[:-3])
    with pytest.raises(Unsuitable, match="damaged"):
        inject_task(model, Prompt("x"), task=key, share=1.0)


# --------------------------------------------------------------------------------------------------- lists of `stories`


@pytest.fixture(scope="module")
def stories() -> Iterator[LanguageModel]:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    yield model
    model.forget()


@pytest.mark.parametrize("relation", ["capital", "language"])
def test_injected_it_does_without_examples_what_it_did_with_five(stories: LanguageModel, relation: str) -> None:
    """Asked of held-out countries that never stood in the fit; which relation is meant, only the task says."""
    shares = []
    for seed in (1, 2):
        data, held = recipe.lists(relation, seed)
        shares.append(recipe.judge(stories, soft_injection(stories, data, steps=100, seed=seed), held))
    plain, injected, five = np.mean(shares, 0)
    assert injected > plain + 0.15 and injected >= five - 0.1, shares


def test_the_tasks_of_the_shelf_do_what_their_card_says(stories: LanguageModel) -> None:
    assert [each.key for each in _tasks.available(stories)] == sorted(
        f"stories/{each.lower()}" for each in grammar.RELATIONS
    )
    card = (_tasks.SHELF / "stories" / "card.md").read_text()
    for relation in grammar.RELATIONS:
        shares = recipe.judge(stories, f"stories/{relation.lower()}", recipe.lists(relation)[1])
        row = next(line for line in card.splitlines() if line.startswith(f"| `{relation.lower()}`"))
        assert [float(each) for each in row.split("|")[3:6]] == pytest.approx(shares, abs=0.011), relation
    assert _tasks.load("", stories).key == "stories/capital"
