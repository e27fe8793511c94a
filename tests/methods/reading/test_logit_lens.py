"""The last layer is the model's output; every number equals a dense computation; the tuned lens begins there."""

import numpy as np
import pytest
import torch

from interp import store
from interp.methods.reading.logit_lens import CHANCE, ENTROPY, KL, logit_lens
from interp.methods.reading.next_tokens import next_tokens
from interp.methods.reading.tuned_lens import tuned_lens
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from kernels import unembed
from tests import tiny

PROMPT = Prompt("The cat sat on the mat")
TEXTS = TextSet(tuple(f"{a} {b} sat on the {c}." for a in ("A", "The") for b in ("cat", "dog") for c in ("mat", "sea")))


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_the_last_layer_is_what_the_model_says(family: str) -> None:
    model = tiny.language(family)
    chances = model(PROMPT)[0].double().softmax(-1)
    result = logit_lens(model, PROMPT, target="a", top=3)
    best = chances.topk(3)
    np.testing.assert_allclose(result.chances[-1], best.values.numpy(), rtol=1e-4, atol=1e-7)
    assert [cell[0] for cell in result.choices[-1]] == [model.token_text(int(each)) for each in best.indices[:, 0]]
    np.testing.assert_allclose(result.sheet(CHANCE)[-1], best.values[:, 0].numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        result.sheet(ENTROPY)[-1], -(chances * chances.log()).sum(-1).numpy(), rtol=1e-4, atol=1e-5
    )
    assert np.abs(result.sheet(KL)[-1]).max() < 1e-5 and result.sheet(KL)[0].max() > 0.01
    index = model.tokenizer.convert_tokens_to_ids("a")
    np.testing.assert_allclose(result.sheet("probability of 'a'")[-1], chances[:, index].numpy(), rtol=1e-4)
    ranks = (chances > chances[:, index : index + 1]).sum(-1)
    np.testing.assert_array_equal(result.sheet("rank of 'a'")[-1], ranks.numpy())
    assert result.residual is not None and result.residual.value < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_every_layer_is_what_a_dense_computation_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the head of the network itself, with hooks of torch's own; streamed in small pieces."""
    model = tiny.language(family)
    network = model.network
    monkeypatch.setattr(unembed.unembed, "__kwdefaults__", {**unembed.unembed.__kwdefaults__, "chunk": 50})
    result = logit_lens(model, PROMPT, target="a")
    with model.record([f"resid_post.{layer}" for layer in range(3)]) as found:
        final = model(PROMPT)[0].double().log_softmax(-1)
    for layer in range(3):
        with model.around({2: lambda run, x, layer=layer: found[f"resid_post.{layer}"]}):
            dense = model(PROMPT)[0].double().log_softmax(-1)
        np.testing.assert_allclose(result.chances[layer + 1, :, 0], dense.exp().amax(-1).numpy(), rtol=1e-4)
        kl = (final.exp() * (final - dense)).sum(-1)
        np.testing.assert_allclose(result.sheet(KL)[layer + 1], kl.numpy(), rtol=1e-3, atol=2e-6)
    assert network is model.network


def test_next_tokens_are_the_softmax() -> None:
    model = tiny.language("gpt2")
    logits = model(PROMPT)[0].double()
    for position in (None, 0, 4):
        table = next_tokens(model, PROMPT, position=position, top=100)
        row = logits[-1 if position is None else position]
        best = row.topk(100)
        np.testing.assert_allclose(table.values[:, 0], row.softmax(0)[best.indices].numpy(), rtol=1e-5)
        np.testing.assert_array_equal(table.values[:, 2], best.indices.numpy())


# ------------------------------------------------------------------------------------------------------ the tuned lens


def test_without_steps_the_tuned_lens_is_the_logit_lens() -> None:
    model = tiny.language("llama")
    plain, tuned = logit_lens(model, PROMPT), tuned_lens(model, PROMPT, fit_steps=0)
    np.testing.assert_array_equal(plain.values, tuned.values)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_fit_brings_every_layer_nearer_to_the_output_also_on_other_texts(family: str) -> None:
    model = tiny.language(family)
    other = Prompt("The dog sat on the sea and the cat.")
    plain = logit_lens(model, other).sheet(KL)
    tuned = tuned_lens(model, other, texts=TEXTS, fit_steps=300).sheet(KL)
    assert (tuned[:-1].mean(1) < 0.8 * plain[:-1].mean(1)).all() and np.abs(tuned[-1]).max() < 1e-5


def test_translators_are_fitted_once_on_the_unchanged_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model: LanguageModel = tiny.language("gpt2", 3)
    first = tuned_lens(model, PROMPT, texts=TEXTS, fit_steps=20)
    kept = []
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *given: (kept.append(1), write(*given)))
    with model.edit({"resid_post.1": lambda x: x * 2}):
        changed = tuned_lens(model, PROMPT, texts=TEXTS, fit_steps=20)
    assert not kept and changed != first
    assert tuned_lens(model, PROMPT, texts=TEXTS, fit_steps=20) == first
    torch.manual_seed(5)
    assert tuned_lens(model, PROMPT, texts=TEXTS, fit_steps=20, seed=1) != first and kept
