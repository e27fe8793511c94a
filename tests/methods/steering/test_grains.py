"""GrAInS: which tokens are chosen, that the integral adds up, signs, and pairs that are no pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable, directions, zoo
from interp.methods.change.steer import steer
from interp.methods.reading.token_attribution import mean_embedding
from interp.methods.steering._answers import answered
from interp.methods.steering.grains import attribution, chosen, combined, grains
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt
from tests import tiny
from tests.test_hooks import near

sys.path.insert(0, str(Path(__file__).parents[3] / "assets" / "recipes"))
import grammar

DATA = Contrast(
    ("the cat e", "a dog sat e", "so it e", "my hat e"), ("the cat n", "a dog sat n", "so it n", "my hat n")
)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


@pytest.fixture(scope="module")
def stories() -> Iterator[LanguageModel]:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    yield model
    model.forget()


def reviews(count: int, seed: int, held: bool) -> tuple[Contrast, list[grammar.Case]]:
    cases = grammar.cases("sentiment", count, seed, held)
    return Contrast(
        tuple(each.prompt + " positive" for each in cases), tuple(each.prompt + " negative" for each in cases)
    ), cases


# ----------------------------------------------------------------------------------------------------------- the pieces


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_integral_adds_up_to_what_the_prompt_changes(family: str) -> None:
    model = tiny.language(family)
    for pair in answered(model, DATA):
        c, rest, whole, favours = attribution(model, pair, "mean embedding", 300)
        ids = pair.positive[None, : pair.shared]
        ends = []
        for share in (0, 1):
            start = mean_embedding(model).float()
            with torch.no_grad(), model.edit({"input": lambda e, s=share, m=start: m + s * (e - m)}):
                out = model(ids)[0, -1].log_softmax(-1)
            ends.append(float(out[pair.positive[pair.shared]] - out[pair.negative[pair.shared]]))
        assert whole == pytest.approx(ends[1] - ends[0], abs=1e-4) and favours == (ends[1] > 0)
        assert float(c.sum()) == pytest.approx(whole, abs=0.02 * float(c.abs().sum())) and len(c) == pair.shared
        assert rest == pytest.approx(float(c.sum()) - whole, abs=1e-6)


def test_a_pair_is_cut_where_its_tokens_part() -> None:
    model = tiny.language("gpt2")
    (pair,) = answered(model, Contrast(("the cat sat",), ("the cars",)))
    assert pair.shared == len("the ca")
    assert model.tokenizer.decode(pair.positive[pair.shared :]) == "t sat"
    for data, says in (
        (Contrast(("a b",), ()), "as many texts on both sides, not 1 and 0"),
        (Contrast((), ()), "as many texts on both sides"),
        (Contrast(("a b", "cat"), ("a c", "dog")), "pair 2 begin differently"),
        (Contrast(("a b",), ("a b",)), "two answers that differ"),
        (Contrast(("a b",), ("a bc",)), "neither the beginning of the other"),
    ):
        with pytest.raises(Unsuitable, match=says):
            answered(model, data)


def test_the_largest_above_zero_and_the_smallest_below_are_chosen_and_never_special_tokens() -> None:
    c = torch.tensor([9.0, 3.0, -1.0, 0.5, -4.0, 2.0, 0.0])
    real = torch.tensor([False, True, True, True, True, True, True])
    gains, losses = chosen(c, real, 2)
    assert gains.nonzero()[:, 0].tolist() == [1, 5] and losses.nonzero()[:, 0].tolist() == [2, 4]
    gains, losses = chosen(c, real, 100)
    assert gains.nonzero()[:, 0].tolist() == [1, 3, 5] and losses.nonzero()[:, 0].tolist() == [2, 4]


@pytest.mark.parametrize("by", ["PCA", "mean"])
@pytest.mark.parametrize("seed", range(4))
def test_each_part_points_the_way_its_mean_does_whatever_the_sign_of_the_component(by: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains, losses = (torch.from_numpy(rng.normal(size=(60, 2, 1, 6)) * 0.1).float() for _ in range(2))
    gains[..., 0] += 3 * (-1) ** seed
    losses[..., 1] -= 2
    v = {mode: combined(gains, losses, mode, by)[0].numpy() for mode in ("pos", "neg", "both")}
    assert v["pos"] == pytest.approx(gains.mean((0, 1, 2)).numpy(), abs=0.1)
    assert v["neg"] == pytest.approx(-losses.mean((0, 1, 2)).numpy(), abs=0.1)
    assert v["both"] == pytest.approx(v["pos"] + v["neg"], abs=1e-6)


@pytest.mark.parametrize("read", ["end of prompt", "end of answer"])
def test_the_mean_is_what_the_chosen_tokens_add_in_a_loop_over_pairs(read: str) -> None:
    model = tiny.language("llama")
    key = grains(model, DATA, by="mean", mode="pos", count=2, read=read, baseline="mean embedding", steps=40)
    found = directions.load(key, model)
    differences = []
    for pair in answered(model, DATA):
        c = attribution(model, pair, "mean embedding", 40)[0]
        best = [at for at in c.argsort(descending=True).tolist()[:2] if c[at] > 0]
        texts = [pair.positive[: pair.shared]] if read == "end of prompt" else [pair.positive, pair.negative]
        for ids in texts:

            def without(e: torch.Tensor, best: list[int] = best) -> torch.Tensor:
                e = e.clone()
                e[:, best] = mean_embedding(model).float()
                return e

            sites = [f"resid_post.{layer}" for layer in range(3)]
            with torch.no_grad(), model.record(sites) as whole:
                model(ids[None])
            with torch.no_grad(), model.edit({"input": without}), model.record(sites) as less:
                model(ids[None])
            differences.append(torch.stack([(whole[site] - less[site])[0, -1] for site in sites]))
    near(found.vectors, torch.stack(differences).mean(0), 1e-3)


def test_the_same_fit_is_bit_for_bit_the_same() -> None:
    model = tiny.language("gpt2")
    key = grains(model, DATA)
    first = directions.load(key, model).vectors
    (directions.folder() / f"{key}.safetensors").unlink()
    assert grains(model, DATA) == key and torch.equal(directions.load(key, model).vectors, first)
    assert len({key, grains(model, DATA, mode="pos"), grains(model, DATA, count=1), grains(model, DATA, steps=5)}) == 4


# -------------------------------------------------------------------------------------------------------------- stories


def test_the_word_that_judges_is_among_the_chosen(stories: LanguageModel) -> None:
    """Of a good review, a token that speaks for positive; of a bad one, a token that speaks for negative."""
    data, cases = reviews(30, 1, held=False)
    for side, words, label in ((0, grammar.GOOD, " positive"), (1, grammar.BAD, " negative")):
        hits = []
        for pair, case in zip(answered(stories, data), cases, strict=True):
            if case.answer == label:
                c = attribution(stories, pair, "zeros", 20)[0]
                taken = chosen(c, torch.ones(len(c), dtype=torch.bool), 5)[side]
                tokens = {stories.token_text(int(pair.positive[at])).strip() for at in taken.nonzero()[:, 0]}
                hits.append(bool(tokens & set(words)))
        assert np.mean(hits) > 0.7, label


def test_pushed_along_it_bad_reviews_are_called_positive_and_the_other_way_good_ones_negative(
    stories: LanguageModel,
) -> None:
    key = grains(stories, reviews(30, 1, held=False)[0])
    found = directions.load(key, stories)
    assert found.fact("accuracy", 3) > 0.9, "held-out prompts, by what the model says of them"
    cases = reviews(40, 2, held=True)[1]
    for sign, before, after in ((1, " negative", " positive"), (-1, " positive", " negative")):
        prompts = [each.prompt for each in cases if each.answer == before]
        with torch.no_grad(), steer(stories, Prompt("x"), direction=key, layer=3, strength=4.0 * sign):
            said = [stories.token_text(int(stories(each, keep=1)[0, -1].argmax())) for each in prompts]
        assert np.mean([each == after for each in said]) > 0.6, said
