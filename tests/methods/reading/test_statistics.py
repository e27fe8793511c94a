"""Attention patterns, activation statistics and layer similarity against numpy and known cases."""

import sys

import numpy as np
import pytest
import torch
from scipy import stats

from interp import Unsuitable
from interp.methods.change.skip_layer import skip_layer
from interp.methods.reading.activation_statistics import activation_statistics
from interp.methods.reading.attention_pattern import attention_pattern
from interp.methods.reading.layer_similarity import layer_similarity
from interp.samples import Prompt
from tests import tiny

PROMPT = Prompt("The cat sat on the mat")


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_patterns_are_those_that_an_untouched_eager_model_gives(family: str) -> None:
    model = tiny.language(family)
    plain = tiny.untouched(family, "eager")
    given = plain(input_ids=model.inputs(PROMPT), output_attentions=True).attentions
    for layer in range(3):
        result = attention_pattern(model, PROMPT, layer=layer)
        np.testing.assert_array_equal(result.values, given[layer][0].double().numpy())
        assert result.residual is not None and result.residual.value < 1e-5
        assert not np.triu(result.values, 1).any() and len(result.sheets) == model.parts.heads


def test_a_layer_that_is_skipped_or_missing_has_no_pattern() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="layers 0 to 2"):
        attention_pattern(model, PROMPT, layer=3)
    with skip_layer(model, PROMPT, layer=1, count=1), pytest.raises(Unsuitable, match="skipped"):
        attention_pattern(model, PROMPT, layer=1)


def test_statistics_are_those_of_numpy_and_scipy() -> None:
    model = tiny.language("gpt2")
    result = activation_statistics(model, PROMPT)
    with model.record(["resid_pre.0", *(f"resid_post.{layer}" for layer in range(3))]) as found:
        model(PROMPT)
    for row, x in zip(result.values, (each[0].double().numpy() for each in found.values()), strict=True):
        norms = np.linalg.norm(x, axis=1)
        rms = np.sqrt((x**2).mean())
        expected = [
            norms.mean(), norms.max(), norms.argmax(), stats.kurtosis(x, axis=None, fisher=False),
            np.abs(x).max() / rms, np.abs(x).max(0).argmax(), (np.abs(x).max(0) > 6 * rms).sum(),
        ]  # fmt: skip
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_an_outlier_channel_is_found() -> None:
    model = tiny.language("llama")

    def loud(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., 5] = 1000
        return x

    with model.edit({"resid_post.1": loud}):
        result = activation_statistics(model, Prompt("x"))
    # one of sixteen channels can't stand six root mean squares above all: sqrt(16) = 4
    assert result.values[2, 5] == 5 and result.values[2, 4] == pytest.approx(4, rel=1e-2) and result.values[2, 6] == 0


def test_similarity_is_that_of_its_definition() -> None:
    model = tiny.language("gpt2")
    result = layer_similarity(model, PROMPT)
    with model.record(["resid_pre.0", *(f"resid_post.{layer}" for layer in range(3))]) as found:
        model(PROMPT)
    streams = [each[0].double().numpy() for each in found.values()]
    for i, x in enumerate(streams):
        for j, y in enumerate(streams):
            cosine = ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
            assert result.sheet("cosine")[i, j] == pytest.approx(cosine)
            a, b = x - x.mean(0), y - y.mean(0)
            cka = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
            assert result.sheet("linear CKA")[i, j] == pytest.approx(cka)


def test_a_rotation_changes_the_cosine_but_not_cka() -> None:
    model = tiny.language("llama")
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    with model.around({1: lambda run, x: 3 * x @ turn}):
        result = layer_similarity(model, PROMPT)
    assert result.sheet("linear CKA")[1, 2] == pytest.approx(1, abs=1e-5) and result.sheet("cosine")[1, 2] < 0.9
    assert np.isnan(layer_similarity(model, Prompt("x")).sheet("linear CKA")).all()


def test_patterns_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[attention_pattern.function.__module__], "CELLS", 200)
    with pytest.raises(Unsuitable, match="22 tokens; the patterns of tiny gpt2 can be seen up to 10"):
        attention_pattern(tiny.language("gpt2"), PROMPT)
