"""Continuations written together, texts counted by hand, and what scores a behaviour."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from interp import Unsuitable, directions, hooks
from interp.methods import METHODS
from interp.methods.steering import _meters
from interp.methods.steering._meters import (
    distinct,
    divergence,
    judge,
    ordinary,
    perplexity,
    random_like,
    read,
    repetition,
    written,
)
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site
from tests import tiny
from tests.methods.change import pushed

PROMPTS = ("The cat sat on the mat", "A dog", "So", "My hat was not that, and the dog")


def alone(model: LanguageModel, n: int, temperature: float) -> list[str]:
    return ["".join(model.generate(each, n, temperature, seed)) for seed, each in enumerate(PROMPTS)]


def together(model: LanguageModel, n: int, temperature: float) -> list[str]:
    own = written(model, PROMPTS, n, temperature, range(len(PROMPTS)))
    return [model.tokenizer.decode(own.tokens(row), clean_up_tokenization_spaces=False) for row in range(len(PROMPTS))]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt", "mixtral"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_continuations_written_together_are_those_written_alone(family: str, temperature: float) -> None:
    model = tiny.language(family)
    assert together(model, 20, temperature) == alone(model, 20, temperature)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_changes_at_the_prompt_or_behind_it_find_each_row_where_it_stands(family: str, where: str) -> None:
    model = tiny.language(family)
    name = pushed.random_direction(model, 9.0)
    plain = alone(model, 12, 2.0)
    with METHODS["steer"](model, Prompt("x"), direction=name, layer=0, strength=1.0, where=where):
        assert together(model, 12, 2.0) == alone(model, 12, 2.0) != plain


@pytest.mark.parametrize("key", ["skip_layer", "repeat_layer"])
def test_where_layers_are_gone_around_nothing_is_cached_and_texts_are_the_same(key: str) -> None:
    model = tiny.language("llama")
    with METHODS[key](model, Prompt("x"), layer=1):
        assert together(model, 8, 0.7) == alone(model, 8, 0.7)


def test_a_text_that_ends_ends_where_it_does_alone_and_the_others_go_on() -> None:
    model = tiny.language("llama")
    end = model.tokenizer.eos_token_id
    ends = 0
    with model.edit({Site("resid_post", 2): lambda h: h + 2 * model.weight("lm_head.weight")[end]}):
        for base in range(0, 40, 4):
            own = written(model, PROMPTS, 30, 1.0, range(base, base + 4))
            for row, prompt in enumerate(PROMPTS):
                text = "".join(model.generate(prompt, 30, 1.0, base + row))
                assert model.tokenizer.decode(own.tokens(row), clean_up_tokenization_spaces=False) == text
                ended = len(own.tokens(row)) < 30
                assert int(own.drawn[row].sum()) == len(own.tokens(row)) + ended
                ends += ended
    assert 5 < ends < 40


def test_a_prompt_near_the_limit_goes_on_to_it_and_a_full_one_is_refused() -> None:
    model = tiny.language("gpt2")  # which reads 128 tokens, and has no position for another
    own = written(model, ["a" * 120, "b"], 20, 1.0, [0, 1])
    assert len(own.tokens(0)) == 8 and len(own.tokens(1)) == 20
    with pytest.raises(Unsuitable, match="shorten"):
        written(model, ["a" * 128], 3, 1.0, [0])


def test_what_a_continuation_was_drawn_from_is_what_a_whole_forward_gives() -> None:
    model = tiny.language("llama")
    own = written(model, PROMPTS, 9, 1.0, range(4), "all")
    logits, (stream,) = read(model, own, (2,), "all")
    some = written(model, PROMPTS, 9, 1.0, range(4), "continuation")
    assert own.logits is not None and own.stream is not None and some.logits is not None
    there = (own.ids[:, :-1] >= 0) & (own.ids[:, 1:] >= 0)
    torch.testing.assert_close(own.logits[there], logits[there], rtol=0, atol=2e-5)
    torch.testing.assert_close(own.stream[there], stream[:, :-1][there], rtol=0, atol=2e-5)
    torch.testing.assert_close(some.logits, own.logits[:, own.start - 1 :])
    torch.testing.assert_close(some.begun, some.logits[:, 0])


def test_runs_of_tokens_are_counted() -> None:
    assert repetition([1, 2, 3, 1, 2, 3, 1, 2, 3]) == pytest.approx(4 / 7)  # 123 231 312, and four of them again
    assert repetition([5] * 12) == pytest.approx(9 / 10) and repetition(list(range(9))) == 0
    assert distinct([1, 1, 2], 1) == pytest.approx(2 / 3) and distinct([1, 1, 1, 2], 2) == pytest.approx(2 / 3)
    assert repetition([1, 2]) == 0 and distinct([], 1) == 1


def test_divergence_is_the_sum_over_tokens_and_zero_of_equals() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (3 * torch.randn(2, 5, 7, generator=draw) for _ in range(2))
    found = divergence(left, right)
    for row in range(2):
        for step in range(5):
            p, q = left[row, step].double().softmax(0).tolist(), right[row, step].double().softmax(0).tolist()
            slow = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert float(found[row, step]) == pytest.approx(slow)
    assert not divergence(left, left).any()
    left[..., 0] = -torch.inf  # a token that can't come
    assert divergence(left, right).isfinite().all()


TEXTS = TextSet(("The cat sat on the mat, and so did I.", "A dog ran.", "My hat"))


def surprise(model: LanguageModel, text: str, skipped: int = 0) -> list[float]:
    ids = model.inputs(text)
    logits = model(ids)[0].log_softmax(1)
    return [-float(logits[at, ids[0, at + 1]]) for at in range(skipped, ids.shape[1] - 1)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_perplexity_is_that_of_each_text_alone(family: str) -> None:
    model = tiny.language(family)
    name = pushed.random_direction(model)

    def slow() -> float:
        every = [each for text in TEXTS.texts for each in surprise(model, text)]
        return math.exp(sum(every) / len(every))

    plain = slow()
    assert perplexity(model, TEXTS) == pytest.approx(plain, rel=1e-5)
    with METHODS["steer"](model, Prompt("x"), direction=name, layer=1, strength=2.0):
        assert perplexity(model, TEXTS) == pytest.approx(slow(), rel=1e-5) and abs(slow() - plain) > 0.1


def test_perplexity_behind_a_text_counts_the_texts_own_tokens() -> None:
    model = tiny.language("llama")
    before = "Be nice. "
    every = [each for text in TEXTS.texts for each in surprise(model, before + text, len(before))]
    assert perplexity(model, TEXTS, before) == pytest.approx(math.exp(sum(every) / len(every)), rel=1e-5)


def test_half_of_a_text_is_its_prompt() -> None:
    model = tiny.language("gpt2")
    name = pushed.random_direction(model)
    text = "The cat sat on the mat, and so did I"
    half = len(text) // 2
    found = {}
    for where in ("all", "prompt", "generated"):
        with METHODS["steer"](model, Prompt("x"), direction=name, layer=1, strength=1.0, where=where):
            found[where] = perplexity(model, TextSet((text,)))
    # the last token of the prompt is where generating begins
    chosen = {"prompt": range(half - 1), "generated": range(half - 1, len(text)), "all": range(len(text))}
    for where, positions in chosen.items():
        with METHODS["steer"](model, Prompt("x"), direction=name, layer=1, strength=1.0, positions=tuple(positions)):
            every = surprise(model, text)
        assert found[where] == pytest.approx(math.exp(sum(every) / len(every)), rel=1e-5)


def test_only_the_beginnings_of_the_first_texts_are_read_and_one_token_is_too_little() -> None:
    model = tiny.language("llama")
    own = ordinary(model, TextSet(tuple(f"{number} {'x' * 90}" for number in range(30))))
    assert own.ids.shape == (_meters.TEXTS, _meters.CONTEXT) and own.half == _meters.CONTEXT // 2
    assert own.counted.sum(1).tolist() == [_meters.CONTEXT - 1] * _meters.TEXTS
    for texts in (TextSet(()), TextSet(("a", "b"))):
        with pytest.raises(Unsuitable, match="two tokens"):
            ordinary(model, texts)


def test_random_directions_are_as_long_and_differ() -> None:
    v = torch.randn(64, generator=torch.Generator().manual_seed(1))
    drawn = random_like(v, 50, 0)
    torch.testing.assert_close(drawn.norm(dim=1), v.norm().expand(50))
    cosines = drawn @ v / v.norm().square()
    assert cosines.abs().max() < 0.5 and abs(float(cosines.mean())) < 0.06  # sd 1/8
    assert torch.equal(drawn, random_like(v, 50, 0)) and not torch.equal(drawn, random_like(v, 50, 1))


# ----------------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_held_at_a_score_the_model_expects_what_has_this_score(family: str, value: float) -> None:
    model, sample = tiny.language(family), Prompt("The cat sat")
    key = difference_of_means(model, tiny.two_sides())
    by = judge(model, key, None)
    assert by is not None and by.layer == 2 and not by.whole
    with METHODS["clamp_direction"](model, sample, direction=key, layer=2, value=value, positions=(10,)):
        own = written(model, [sample] * 2, 3, 1.0, [0, 1])
    torch.testing.assert_close(by.scores(model, sample, own), torch.full((2,), value).double(), atol=1e-4, rtol=0)


def test_a_push_that_no_later_layer_reads_moves_no_score() -> None:
    """The stream lies elsewhere along the direction, but what is expected stays."""
    model, sample = tiny.language("llama"), Prompt("The cat sat")
    by = judge(model, difference_of_means(model, tiny.two_sides()), None)
    assert by is not None
    plain = by.scores(model, sample, written(model, [sample], 3, 1.0, [0]))
    with model.edit({Site("resid_post", 2): lambda h: 7.0 * h}):  # the norm behind it sees no length
        own = written(model, [sample], 3, 1.0, [0])
    torch.testing.assert_close(by.scores(model, sample, own), plain, atol=1e-4, rtol=0)


def test_a_direction_of_whole_texts_reads_the_continuation_by_the_plain_model() -> None:
    model, sample = tiny.language("llama"), Prompt("The cat sat")
    key = difference_of_means(model, tiny.two_sides(), token="mean")
    by, found = judge(model, key, 1), directions.load(key, model)
    assert by is not None and by.whole and by.layer == 1
    with METHODS["steer"](model, sample, direction=key, layer=1, strength=3.0):
        own = written(model, [sample] * 4, 6, 1.0, range(1, 5))
        scores = by.scores(model, sample, own)
    assert all(own.tokens(row) for row in range(4))
    for row in range(4):
        ids = torch.tensor([model.inputs(sample)[0].tolist() + own.tokens(row)])
        with model.record(["resid_post.1"]) as seen:
            model(ids)
        h = seen["resid_post.1"][0, 11:].double()
        assert float(scores[row]) == pytest.approx(float(found.score(h, 1).mean()), abs=1e-5)


def test_what_gives_no_score_is_refused_by_name_and_left_out_otherwise(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    model = tiny.language("gpt2", 5)
    assert judge(model, "", None) is None
    name = pushed.random_direction(model)
    assert judge(model, "", None) is None
    with pytest.raises(Unsuitable, match="no examples"):
        judge(model, name, None)
    assert hooks.in_force() == ()
