"""Replacing one key's score in closed form is taking the softmax again, however saturated it is."""

from __future__ import annotations

import pytest
import torch

from kernels.softmax_patch import key_change, key_change_dense, query_change


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sharp", [0.1, 1.0, 10.0, 60.0])
@pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_replaced_key_is_the_softmax_taken_again(seed: int, sharp: float, mask: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, new, weights = (torch.randn(12, 12, generator=generator, dtype=torch.float64) for _ in range(3))
    hidden = torch.ones(12, 12).triu(1).bool()
    scores, new = ((sharp * each).masked_fill(hidden, mask) for each in (scores, new))
    found = key_change(scores, new, weights)
    assert found.isfinite().all()
    torch.testing.assert_close(found, key_change_dense(scores, new, weights), rtol=0, atol=1e-10)
    assert not found[hidden].any(), "what is not visible changes nothing"
    assert found[0, 0] == 0, "a single visible key keeps all the weight"


def test_a_saturated_key_is_not_lost() -> None:
    """p = 1 - e^-60, which float64 can't tell from 1: with its score gone, everything goes to the others."""
    scores = torch.tensor([[60.0, 0.0, -1.0]])
    new, weights = torch.tensor([[-60.0, 0.0, -1.0]]), torch.tensor([[1.0, 5.0, 7.0]])
    others = torch.tensor([0.0, -1.0]).double().softmax(0) @ torch.tensor([5.0, 7.0]).double()
    assert key_change(scores, new, weights)[0, 0] == pytest.approx(float(others) - 1, abs=1e-12)


def test_what_stays_as_it_is_changes_nothing() -> None:
    scores = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert key_change(scores, scores, torch.randn(2, 5, 5)).abs().max() < 1e-15
    assert not query_change(scores, scores).any()


@pytest.mark.parametrize("change", [1e-4, 1e-5])
def test_for_small_changes_it_is_the_derivative(change: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores, step, weights = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    pattern = scores.softmax(-1)
    slope = pattern * (weights - (pattern * weights).sum(-1, keepdim=True))
    found = key_change(scores, scores + change * step, weights) / change
    torch.testing.assert_close(found, slope * step, rtol=0, atol=10 * change)
    rows = (query_change(scores, scores + change * step) * weights).sum(-1) / change
    torch.testing.assert_close(rows, (slope * step).sum(-1), rtol=0, atol=30 * change)
