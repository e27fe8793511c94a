"""Guided Backprop and DeconvNet against Captum's, where every ReLU is a module; LRP where its value is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from interp.methods.attribution._rectified import Rectified
from interp.methods.attribution.deconvnet import deconvnet
from interp.methods.attribution.guided_backprop import guided_backprop
from interp.methods.attribution.lrp import _Relevance, lrp
from tests import tiny


class Scores(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pixel_values=x).logits


@pytest.mark.filterwarnings("ignore:Setting")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["resnet", "resnet_bottleneck", "regnet"])
def test_as_captum_on_modules(family: str, seed: int) -> None:
    from captum.attr import Deconvolution, GuidedBackprop

    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    for ours, theirs in ((guided_backprop, GuidedBackprop), (deconvnet, Deconvolution)):
        pixels = model.inputs(sample).requires_grad_()
        expected = theirs(Scores(model._network)).attribute(pixels, target=1)[0].sum(0).detach()
        found = torch.from_numpy(ours(model, sample, target=1).values)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_functions_are_met_as_modules_are() -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    last = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)

    def by_hand(rule: str) -> Tensor:
        a = (x @ weight)[0]
        mask = (last > 0) & (a > 0) if rule == "guided" else last > 0
        return (last * mask) @ weight.T

    for name, rule in (("guided", lambda g, a: g.clamp(min=0) * (a > 0)), ("deconv", lambda g, a: g.clamp(min=0))):
        leaf = x.clone().requires_grad_()
        with Rectified(rule):
            out = torch.relu(leaf @ weight) @ last
        torch.testing.assert_close(torch.autograd.grad(out.sum(), leaf)[0][0], by_hand(name))


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 6, 3, bias=bias), nn.Conv2d(6, 8, 3, bias=bias)
        self.one, self.two = nn.ReLU(), nn.ReLU()
        self.highest, self.mean, self.last = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(8, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.two(self.second(self.highest(self.one(self.first(x)))))
        return self.last(self.mean(inner).flatten(1))


def network(bias: bool) -> nn.Module:
    return Net(bias).double().requires_grad_(False)


def relevance(model: nn.Module, x: Tensor, epsilon: float, index: int) -> tuple[Tensor, float]:
    leaf = x.clone().requires_grad_()
    with _Relevance(epsilon):
        score = model(leaf)[0, index]
    return leaf.detach() * torch.autograd.grad(score, leaf)[0], float(score.detach())


def test_without_biases_relevance_is_gradient_times_input_and_conserved() -> None:
    model, x = network(False), torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(4)).double()
    found, score = relevance(model, x, 0.0, 2)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, x * torch.autograd.grad(model(leaf)[0, 2], leaf)[0])
    assert float(found.sum()) == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("index", [0, 3])
def test_as_captums_lrp_with_biases(index: int) -> None:
    from captum.attr import LRP

    model, x = network(True), torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(5)).double()
    theirs = LRP(copy.deepcopy(model)).attribute(x.clone().requires_grad_(), target=index).detach()
    found, _ = relevance(model, x, 0.0, index)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


def test_more_epsilon_hands_less_back() -> None:
    model, x = network(False), torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(6)).double()
    totals = [abs(float(relevance(model, x, each, 1)[0].sum())) for each in (0.0, 0.05, 0.5)]
    assert totals[0] > totals[1] > totals[2] > 0


@pytest.mark.parametrize("family", ["vit", "convnext", "efficientnet"])
def test_relevance_is_finite_and_tells_what_was_taken(family: str) -> None:
    model, sample = tiny.vision(family, torch.float64, 0), tiny.image(0)
    found = lrp(model, sample, target=1)
    assert found.residual is not None
    assert found.values.sum() == pytest.approx(found.score + found.residual.value * abs(found.score), rel=1e-6)
