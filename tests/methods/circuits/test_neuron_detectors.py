"""AUROC by counting pairs; planted neurons are found; labels that are dealt out give the null."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable
from interp.methods.change.skip_layer import skip_layer
from interp.methods.circuits.neuron_detectors import COLUMNS, PERMUTED, auroc, neuron_detectors, properties
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny

PROMPT = Prompt("The cat sat on the mat")
FAMILIES = [family for family in tiny.LANGUAGE if family != "mixtral"]


def test_auroc_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (40, 7), generator=generator).float()  # many ties
    labels = torch.rand(3, 40, generator=generator) < 0.4
    labels[2] = False
    found = auroc(values, labels)
    for neuron in range(7):
        for label in range(2):
            with_it, without = values[labels[label], neuron], values[~labels[label], neuron]
            pairs = with_it[:, None] - without
            expected = ((pairs > 0).double() + (pairs == 0).double() / 2).mean()
            assert float(found[neuron, label]) == pytest.approx(float(expected), abs=1e-12)
    assert (found[:, 2] == 0.5).all()
    assert (auroc(torch.zeros(40, 1), labels) == 0.5).all()


def test_properties_by_hand() -> None:
    found = properties(torch.tensor([[5, 6, 7, 5, 6, 6]]), [0, 0, -1, -1, 1, 1]).int().tolist()
    assert found == [
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 0],  # 5 6 was there before, 6 6 was not
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 1],
    ]
    assert not any(properties(torch.tensor([[5, 6, 5]]), []).tolist()[3])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_neuron_tops_the_list(family: str, sign: int) -> None:
    model = tiny.language(family)
    ids: list[Tensor] = []

    def plant(activation: Tensor) -> Tensor:
        """Neuron 3: whether the token, known by its place in the batch, was there before."""
        flags = torch.zeros(ids[0].shape)
        for row, tokens in enumerate(ids[0].tolist()):
            for t, token in enumerate(tokens):
                flags[row, t] = token >= 0 and token in tokens[:t]
        new = activation.clone()
        new[..., 3] = sign * flags.reshape(activation.shape[:-1])
        return new

    forward = model._forward

    def seen(batch: Tensor, *more: object, **named: object) -> Tensor:
        ids[:] = [batch]
        return forward(batch, *more, **named)  # type: ignore[arg-type]

    model._forward = seen  # type: ignore[method-assign]
    try:
        with model.edit({Site("mlp_post", 1): plant}):
            result = neuron_detectors(model, PROMPT)
    finally:
        del model._forward  # type: ignore[method-assign]
    assert result.rows[0] == "L1N3"
    assert result.values[0, COLUMNS.index("duplicate token")] == pytest.approx((1 + sign) / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_on_every_architecture(family: str) -> None:
    model = tiny.language(family)
    result = neuron_detectors(model, PROMPT, top=5)
    assert len(result.rows) == 6 and result.rows[-1] == PERMUTED and result.columns == COLUMNS
    assert all(re.fullmatch(r"L[0-2]N\d+", row) for row in result.rows[:-1]) and len(set(result.rows)) == 6
    assert ((result.values >= 0) & (result.values <= 1)).all()
    more = neuron_detectors(model, PROMPT, top=10)
    assert more.rows[:5] == result.rows[:5] and np.array_equal(more.values[:5], result.values[:5])


def test_noise_stays_within_the_null() -> None:
    """Neurons that know nothing lie as far from a half as those whose labels are dealt out."""
    model = tiny.language("gpt2")
    generator = torch.Generator().manual_seed(0)

    def noise(activation: Tensor) -> Tensor:
        return torch.randn(activation.shape, generator=generator)

    gaps = []
    for seed in range(5):
        with model.edit({Site("mlp_post", layer): noise for layer in range(3)}):
            result = neuron_detectors(model, PROMPT, top=1000, seed=seed)
        for column in range(len(COLUMNS)):
            real, null = np.abs(result.values[:-1, column] - 0.5).max(), result.values[-1, column] - 0.5
            assert 0.5 < real / null < 2
            gaps.append(real / null)
    assert np.mean(gaps) == pytest.approx(1, abs=0.15)


def test_a_skipped_layer_tells_nothing() -> None:
    model = tiny.language("llama")
    with skip_layer(model, PROMPT, layer=1, count=1):
        result = neuron_detectors(model, PROMPT, top=1000)
    skipped = [index for index, row in enumerate(result.rows) if row.startswith("L1N")]
    assert len(skipped) == 32 and (result.values[skipped] == 0.5).all()


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(Unsuitable, match="hidden layer"):
        neuron_detectors(tiny.language("mixtral"), PROMPT)
