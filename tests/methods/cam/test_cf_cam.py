import math
import sys

import numpy as np
import pytest
import torch

from interp.methods.cam.cf_cam import cf_cam
from tests import tiny

MODULE = sys.modules[cf_cam.__module__]


def planted(seed: int = 0) -> torch.Tensor:
    """4 strong channels, two clusters of 6 and 5 near copies of a map, and 3 channels like no other."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    strong = 50 + draw(4, 5, 5)
    clusters = [draw(1, 5, 5) * 3 + 0.001 * draw(n, 5, 5) for n in (6, 5)]
    lonely = draw(3, 5, 5) * torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)[:, None, None]
    return torch.cat([strong, *clusters, lonely])


def test_planted_clusters_are_found_and_lonely_channels_dropped():
    groups = MODULE.group(planted())
    # the 75th percentile of 18 norms keeps the five largest: the four strong ones and one more
    assert (groups[:4] == MODULE.IMPORTANT).all()
    assert (groups == MODULE.IMPORTANT).sum() == 5
    for members in (groups[4:10], groups[10:15]):
        assert len(set(members)) == 1 and members[0] >= 0
    assert groups[4] != groups[10]
    assert (groups[15:] < 0).all()


@pytest.mark.parametrize("sigma", [1.0, None])
def test_weights_are_a_softmax_of_filtered_means_and_noise_has_none(sigma):
    activation, gradient = planted(), 0.3 * planted(1)
    groups = MODULE.group(activation)
    weights = MODULE.channel_weights(gradient, groups, sigma)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights[groups == MODULE.NOISE] == 0).all() and (groups == MODULE.NOISE).any()
    for number in range(groups.max() + 1):
        assert len(set(weights[groups == number].tolist())) == 1
    strong = gradient[:4].mean((1, 2)).exp()
    torch.testing.assert_close(weights[:4] / weights[0], strong / strong[0])


@pytest.mark.parametrize("sigma", [0.0, 1.0, None])
def test_the_order_of_the_channels_changes_nothing(sigma):
    activation, gradient = planted(), planted(1)
    order = torch.randperm(len(activation), generator=torch.Generator().manual_seed(3))
    plain = MODULE.channel_weights(gradient, MODULE.group(activation), sigma)
    mixed = MODULE.channel_weights(gradient[order], MODULE.group(activation[order]), sigma)
    torch.testing.assert_close(mixed, plain[order])


@pytest.mark.parametrize("shape", [(7, 7), (4, 6), (1, 5)])
def test_the_released_filter_by_plain_loops(shape):
    gradient = 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    height, width = shape
    mean = float(gradient.mean())
    kernel = [
        [
            math.exp(-((i - height / 2) ** 2 + (j - width / 2) ** 2) / 50)
            * math.exp(-((float(gradient[i, j]) - mean) ** 2) / 0.02)
            for j in range(width)
        ]
        for i in range(height)
    ]
    total = sum(map(sum, kernel)) + 1e-6
    expected = torch.zeros_like(gradient)
    for i in range(height):
        for j in range(width):
            for a in range(height):
                for b in range(width):
                    y, x = i + a - (height - 1) // 2, j + b - (width - 1) // 2
                    if 0 <= y < height and 0 <= x < width:
                        expected[i, j] += kernel[a][b] / total * gradient[y, x]
    torch.testing.assert_close(MODULE.released_filter(gradient), expected)


def test_few_channels_and_a_single_cell_are_served():
    one_cell = torch.arange(8, dtype=torch.float64).view(8, 1, 1)
    weights = MODULE.channel_weights(one_cell, MODULE.group(one_cell), 1.0)
    assert float(weights.sum()) == pytest.approx(1)
    assert MODULE.group(torch.ones(1, 2, 2)).tolist() == [MODULE.IMPORTANT]
    assert MODULE.group(torch.zeros(6, 2, 2)).tolist() == [MODULE.IMPORTANT] * 6


def test_the_map_is_the_weighted_sum_and_the_filters_differ():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    with model.record(["stage.1"], grad=True) as recorded:
        logits = model(sample)
    activation = recorded["stage.1"]
    gradient = torch.autograd.grad(logits[0, 1], activation)[0][0]
    groups = MODULE.group(activation.detach()[0])
    for filter, sigma in (("gaussian", 1.0), ("released code", None)):
        weights = MODULE.channel_weights(gradient, groups, sigma)
        expected = (weights[:, None, None] * activation.detach()[0]).sum(0)
        found = cf_cam(model, sample, target=1, filter=filter).values
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-10)
