"""The times that pixel attributions promise, as ratios within one run on one thread: `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from interp.methods.attribution._multipliers import at_reference, contributions
from interp.methods.attribution._pixels import gradient_at, seen
from interp.methods.attribution.integrated_gradients import integrated_gradients
from tests.benchmarks.clock import ratios
from tests.benchmarks.network import forward, pixels, resnet18
from tests.benchmarks.speed import Subject

pytestmark = pytest.mark.bench
ROUNDS = 15
STEPS = 8


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return resnet18()


def backward(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A forward and the gradient at the pixels."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(network(pixel_values=leaf).logits[0, 1], leaf)[0]


def test_deeplift_takes_little_more_than_its_passes(network):
    x, x0 = pixels(), 0.3 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    scores: Callable[[torch.Tensor], torch.Tensor] = lambda p: network(pixel_values=p).logits  # noqa: E731
    at = at_reference(scores, x0)

    def whole() -> None:
        contributions(scores, x, at_reference(scores, x0), 1, "rescale")

    taken = ratios(
        {
            "two forwards and a backward": lambda: (forward(network, x0), backward(network, x)),
            "one forward and a backward": lambda: backward(network, x),
            "deeplift": whole,
            "deeplift, reference kept": lambda: contributions(scores, x, at, 1, "rescale"),
        },
        ROUNDS,
    )
    found = taken["deeplift"], taken["deeplift, reference kept"] / taken["one forward and a backward"]
    print(
        f"\nof two forwards and a backward {found[0]:.2f}, with the reference kept of one and a backward {found[1]:.2f}"
    )
    maps, at_x = contributions(scores, x, at, 1, "rescale")
    difference = at_x.double() - at.scores[:, 1].double()
    print(f"residual {float((maps.double().sum() - difference).abs() / difference.abs()):.1e}")
    assert found[0] <= 1.3 and found[1] <= 1.2


def test_integrated_gradients_take_little_more_than_their_passes():
    subject = Subject()
    model, sample = subject.model, subject.sample
    x, _ = seen(model, sample)
    floor = {"steps": lambda: [gradient_at(model, x, 1) for _ in range(STEPS)]}
    lens = lambda: integrated_gradients(model, sample, target=1, steps=STEPS, reference="zeros")  # noqa: E731
    taken = ratios(floor | {"lens": lens}, max(ROUNDS // 3, 3))
    print(f"\nIntegrated Gradients: {taken['lens']:.2f} of {STEPS} x (forward + backward)")
    assert taken["lens"] <= 1.1


@pytest.mark.filterwarnings("ignore")
def test_captums_deeplift_beside_it(network):
    from captum.attr import DeepLift

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, p: torch.Tensor) -> torch.Tensor:
            return self.network(pixel_values=p).logits

    x, x0 = pixels(), 0.3 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    start = time.perf_counter()
    found = DeepLift(Scores()).attribute(x.clone().requires_grad_(), x0, target=1).detach()
    seconds = time.perf_counter() - start
    difference = (forward(network, x) - forward(network, x0))[0, 1]
    residual = float((found.sum() - difference).abs() / difference.abs())
    print(f"\nCaptum's DeepLift: {seconds:.2f} s, residual {residual:.2f}")
    assert residual > 0.01  # the day it adds up, the page should no longer say that it does not
