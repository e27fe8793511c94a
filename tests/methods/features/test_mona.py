"""J of two vectors equals slow sums; profiles equal a loop over texts and tokens; what is like the task comes first."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from interp import Unsuitable, sae, zoo
from interp.methods.features import mona as module
from interp.methods.features.mona import jaccard, mona, profiles
from interp.samples import TextSet
from tests import tiny
from tests.methods.features import kept

POOL = TextSet(
    ("The cat sat.", "1234 5678 90", "The cat sat on a mat, the cat sat", "zzz", "99 81 72 63 54", "The mat")
)


def test_the_generalised_jaccard_similarity() -> None:
    rng = np.random.default_rng(0)
    z = rng.random((6, 9)) * (rng.random((6, 9)) < 0.5)
    z[5] = 0
    for other in z:
        slow = []
        for row in z:
            low, high = sum(map(min, row, other)), sum(map(max, row, other))
            slow.append(low / high if high else 0.0)
        np.testing.assert_allclose(jaccard(z, other), slow)
        assert (jaccard(z, other) <= 1).all() and (jaccard(z, other) >= 0).all()
    np.testing.assert_allclose([jaccard(row[None], row)[0] for row in z], [1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("family", "architecture"), [("gpt2", "standard"), ("llama", "abstopk"), ("gemma2", "transcoder")]
)
@pytest.mark.parametrize("k", [3, 192])
def test_profiles_are_means_of_the_largest_activations(family: str, architecture: str, k: int) -> None:
    model = tiny.language(family)
    own = sae.load(kept.keep(model, architecture))
    got = profiles(model, own, list(POOL.texts), k)
    for text, row in zip(POOL.texts, got, strict=True):
        with torch.no_grad(), model.record([own.site]) as found:
            model(model.inputs(text))
        f = own.encode(own.rows(found[own.site], model))[0].abs().double().numpy()
        wanted = np.zeros(own.d_sae)
        for token in f:
            for feature in np.argsort(-token, kind="stable")[:k]:
                wanted[feature] += token[feature] / len(f)
        np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-5)


def test_what_is_like_the_task_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model, "jumprelu")
    task = TextSet(("The cat sat on the mat", "The mat, the cat"))
    result = mona(model, POOL, task=task, sae=name, keep=0.5)
    assert result.columns == ("similarity", "number", "kept") and (np.diff(result.values[:, 0]) <= 0).all()
    z = profiles(model, sae.load(name), [*POOL.texts, *task.texts], 192)
    np.testing.assert_allclose(result.values[:, 0], jaccard(z[:6], z[6:].mean(0))[result.values[:, 1].astype(int)])
    assert result.rows == tuple(POOL.texts[int(each)] for each in result.values[:, 1])
    assert result.values[:, 2].tolist() == [1, 1, 1, 0, 0, 0]
    assert {0, 2, 5} == set(result.values[:3, 1].astype(int)), "what is written in the same letters"
    same = mona(model, POOL, sae=name)
    assert same.rows[0] == POOL.texts[0] and same.values[0, 0] == 1, "the first text, where no task is given"
    monkeypatch.setattr(module, "BATCH", 1)
    model.forget()
    np.testing.assert_allclose(mona(model, POOL, task=task, sae=name).values[:, 0], result.values[:, 0], rtol=1e-4)
    for wrong in (TextSet(()), TextSet(("", ""))):
        with pytest.raises(Unsuitable):
            mona(model, wrong, sae=name)


def test_reviews_are_nearest_to_reviews() -> None:
    model = zoo.load("stories")
    if not sae.available(model):
        pytest.skip("no SAE of stories on the shelf")
    sys.path.insert(0, str(sae.SHELF.parent / "recipes"))
    import grammar

    rng = random.Random(5)
    kinds = (grammar._review, grammar._ioi, grammar._fact, grammar._maps, grammar._chat, grammar._years)
    pool = [(kind is grammar._review, kind(rng)) for kind in kinds for _ in range(8)]
    rng.shuffle(pool)
    task = TextSet(tuple(grammar._review(rng) for _ in range(6)))
    result = mona(model, TextSet(tuple(text for _, text in pool)), task=task, keep=8 / 48)
    best = [pool[int(each)][0] for each in result.values[:8, 1]]
    assert sum(best) >= 7 and result.values[:8, 2].all()
