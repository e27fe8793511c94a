"""Each way of searching equals its formula by slow loops; what is put together is; words are whole words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from interp import Unsuitable, sae
from interp._index_close import _unembedding
from interp.methods.features import feature_search as search
from interp.methods.features._saes import look, need_index
from interp.methods.features.feature_search import Found, feature_search, fused, occurrences
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.features import kept
from tests.methods.features.kept import PROMPT

WORDS = ("cat", "Paris", "in", "zebra")


@pytest.fixture(scope="module")
def subject() -> tuple[Any, sae.SAE, Any]:
    model = tiny.language("gpt2")
    name = kept.keep(model, "jumprelu", Site("resid_post", 2), seed=4)
    kept.index(model, name)
    own = sae.load(name)
    return model, own, need_index(model, own)


def matches(text: str, word: str) -> set[int]:
    """The places of all letters of whole words, in any case."""
    found = re.finditer(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE)
    return {place for each in found for place in range(each.start(), each.end())}


@pytest.mark.parametrize("word", ["cat", "in", "a", "of", "France"])
def test_words_are_found_whole_in_whatever_case(word: str) -> None:
    model = tiny.language("gpt2")
    texts = ("The cat in a cap.", "a CAT, a concat; Cat", "France is France", "of coffee, of inns IN", "A", "cat")
    ids = np.full((len(texts), 24), -1)
    for row, text in zip(ids, texts, strict=True):
        row[24 - len(text) :] = model.tokenizer(text)["input_ids"]
    hits, alone = occurrences(model, word, ids)
    for row, text in zip(hits, texts, strict=True):
        assert set((np.flatnonzero(row) - (24 - len(text))).tolist()) == matches(text, word), text
    assert [model.token_text(each).strip().casefold() for each in alone] == [word] * len(alone)


def test_where_it_stands_nowhere_parts_of_tokens_count() -> None:
    model = tiny.language("gpt2")
    known = search.vocabulary(model)
    longer = next(each for each in known.plain if len(each) > 2)
    ids = np.array([[known.plain.tolist().index(longer), -1]])
    assert occurrences(model, longer[1:], ids)[0].tolist() == ([[True, False]] if len(longer) > 3 else [[False] * 2])


@pytest.mark.parametrize("word", WORDS)
def test_contexts_are_scored_as_said(subject: tuple[Any, sae.SAE, Any], word: str) -> None:
    model, _, known = subject
    found = search.in_contexts(model, known, [word])
    for feature in range(known.n_features):
        top = known.page(feature, model).top
        text = ["".join(each.tokens) for each in top]
        total = sum(float(each.values.clip(0).sum()) for each in top)
        sums, counts = np.zeros(3), np.zeros(3, int)
        for context, own in zip(top, text, strict=True):
            hits = matches(own, word)
            places = range(len(own))
            kinds = (
                hits, {t for t in places if t not in hits and hits & {t - 1, t - 2, t - 3}},
                {t for t in places if t not in hits and t + 1 in hits},
            )  # fmt: skip
            for kind, these in enumerate(kinds):
                sums[kind] += sum(float(context.values[t].clip(0)) for t in these)
                counts[kind] += context.at in these
        worth = sums / max(total, 1e-12) * counts / max(len(top), 1) * counts / (counts + 2) * (1, 0.5, 0.5)
        assert found.scores[feature] == pytest.approx(worth.max(), rel=2e-3, abs=1e-6)
        if worth.max() > 0:
            assert f"in {counts[worth.argmax()]} of {len(top)} contexts" in found.why(feature)
    two = search.in_contexts(model, known, [word, "the"]).scores
    np.testing.assert_allclose(two, (found.scores + search.in_contexts(model, known, ["the"]).scores) / 2)


def test_promoted_tokens_are_scored_in_spreads(subject: tuple[Any, sae.SAE, Any]) -> None:
    model, own, known = subject
    read = _unembedding(model, own)
    assert read is not None
    logits = (read[0].double() @ read[1].double().T).numpy()
    logits -= logits.mean(1, keepdims=True)
    z = logits / logits.std(1, keepdims=True)
    small, large = (model.tokenizer.convert_tokens_to_ids(each) for each in "zZ")
    found = search.in_promoted(model, own, known, ["z"])
    np.testing.assert_allclose(found.scores, z[:, [small, large]].max(1), rtol=1e-3, atol=1e-4)
    best = int(found.scores.argmax())
    token = (small, large)[int(z[best, [small, large]].argmax())]
    assert f"promotes {model.token_text(token)!r} ({logits[best, token]:+.2g}" in found.why(best)
    result = feature_search(model, PROMPT, sae=own.name, words="z", how="promoted", top=5)
    alive = np.where(known.count > 0, found.scores, 0)
    np.testing.assert_allclose(result.values, np.sort(alive)[::-1][:5])


def test_a_prompt_counts_for_its_end_and_for_what_is_rare(subject: tuple[Any, sae.SAE, Any]) -> None:
    model, own, known = subject
    f = kept.dense(model, own.name, PROMPT)
    weight = np.r_[np.full(len(f) - 1, 1 / 3), 1]
    most = np.maximum(known.maximum, f.max(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.nan_to_num((f * weight[:, None]).max(0) / np.sqrt(most))
    scores *= -np.log((known.count + 1) / (known.n_tokens + 1))
    (seen,), _ = look(model, PROMPT, [own])
    np.testing.assert_allclose(search.by_prompt(model, PROMPT, seen, known).scores, scores, rtol=1e-4, atol=1e-7)


def test_words_are_read_again_where_they_stand(subject: tuple[Any, sae.SAE, Any]) -> None:
    model, own, known = subject
    means, fires = search._read_again(model, own, known, "cat")
    contexts: dict[int, tuple[int, ...]] = {}
    for feature in range(known.n_features):
        for row, document in zip(known.context_ids[feature], known.context_documents[feature], strict=True):
            text = "".join(model.token_text(each) for each in row[row >= 0].tolist())
            if document >= 0 and matches(text, "cat") and int(document) not in contexts:
                contexts[int(document)] = tuple(row[row >= 0].tolist())
    sums, counts, on = np.zeros((5, 32)), np.zeros(5), np.zeros(32)
    for ids in contexts.values():
        with torch.no_grad(), model.record([own.site]) as found:
            model(torch.tensor([ids]))
        f = own.encode(own.rows(found[own.site], model))[0].double().numpy()
        hits = matches("".join(model.token_text(each) for each in ids), "cat")
        for t in hits:
            on += f[t] > 0
            for place, step in enumerate((0, -1, 1, 2, 3)):
                if 0 <= t + step < len(ids) and (not step or t + step not in hits):
                    sums[place] += f[t + step]
                    counts[place] += 1
    np.testing.assert_allclose(means, sums / np.maximum(counts, 1)[:, None], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fires, on / counts[0])
    on_it, beside = search.read_again(model, own, known, ["cat"])
    worth = -np.log((known.count + 1) / (known.n_tokens + 1)) / np.sqrt(np.maximum(known.maximum, 1e-12))
    np.testing.assert_allclose(on_it.scores, means[0] * worth)
    np.testing.assert_allclose(beside.scores, means[1:].max(0) * worth)


def test_reciprocal_ranks_are_added_up() -> None:
    one = Found(np.array([0.0, 3, 2, 0]), "share", lambda each: f"one {each}")
    two = Found(np.array([9.0, 0, 5, 2.5]), "spreads", lambda each: f"two {each}")
    got = fused([one, two], (1, 0.5))
    np.testing.assert_allclose(got.scores, [0.5 / 6, 1 / 6, 1 / 7 + 0.5 / 7, 0])
    assert got.why(2) == "one 2; two 2" and got.why(0) == "two 0" and got.why(3) == ""
    either = search.either(one, two)
    np.testing.assert_allclose(either.scores, [6.3, 3, 3.5, 1.75])
    assert either.why(1) == "one 1" and either.why(2) == "two 2"


@pytest.mark.parametrize("how", ["best", "contexts", "read", "promoted", "prompt", "spreading"])
def test_the_lens_lists_the_best_first_with_reasons(subject: tuple[Any, sae.SAE, Any], how: str) -> None:
    model, own, known = subject
    result = feature_search(model, PROMPT, sae=own.name, words="cat", how=how, top=7)
    assert 0 < len(result.features) <= 7 and (np.diff(result.values) <= 0).all() and (result.values > 0).all()
    assert all(result.reasons) and len(result.reasons) == len(result.features) == len(set(result.features.tolist()))
    assert (known.count[result.features] > 0).all(), "what never fires is not found"
    f = kept.dense(model, own.name, PROMPT)
    np.testing.assert_allclose(result.grid, f[:, result.features].T, rtol=1e-5, atol=1e-6)
    if how == "spreading":
        high = feature_search(model, PROMPT, sae=own.name, words="cat", how=how, threshold=0.5, top=50)
        low = feature_search(model, PROMPT, sae=own.name, words="cat", how=how, threshold=0.01, top=50)
        assert set(high.features.tolist()) <= set(low.features.tolist()) and (high.values >= 0.5).all()


def test_without_words_the_prompt_is_looked_for(subject: tuple[Any, sae.SAE, Any]) -> None:
    model, own, _ = subject
    result = feature_search(model, PROMPT, sae=own.name)
    assert len(result.features) and result != feature_search(model, Prompt("A dog ran"), sae=own.name)
    for how in ("contexts", "read", "promoted"):
        with pytest.raises(Unsuitable, match="Type a word"):
            feature_search(model, PROMPT, sae=own.name, how=how, words=" ")
    none = feature_search(model, PROMPT, sae=own.name, how="contexts", words="zebra")
    assert not len(none.features) and none.note.startswith("Nothing was found") and none.grid.shape == (0, 22)


def test_images_are_found_by_their_captions_and_by_classes() -> None:
    model = tiny.vision("resnet")
    name = kept.keep(model)
    known = kept.index(model, name)
    result = feature_search(model, tiny.image(), sae=name, words="dog", how="contexts", top=3)
    for feature, value, reason in zip(result.features, result.values, result.reasons, strict=True):
        top = known.page(int(feature), model).top
        there = [each for each in top if each.label == "a dog"]
        share = sum(float(each.values.clip(0).sum()) for each in there) / sum(
            float(e.values.clip(0).sum()) for e in top
        )
        n = len(there)
        assert value == pytest.approx(share * n / len(top) * n / (n + 2), rel=2e-3)
        assert reason == f"fires on 'dog' in {n} of {len(top)} images"
    classes = feature_search(model, tiny.image(), sae=name, words="teapot", how="promoted", top=3)
    assert all("promotes 'teapot'" in each for each in classes.reasons)
    assert feature_search(model, tiny.image(), sae=name, words="dog").grid.shape[1:] == (4, 4)
