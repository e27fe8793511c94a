import sys

import numpy as np
import pytest
import torch

from interp.methods.cam.eigen_cam import eigen_cam
from tests import tiny

principal = sys.modules[eigen_cam.__module__].principal


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", list(tiny.VISION))
def test_it_rises_with_the_mean_activation_and_is_the_best_single_direction(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    found = eigen_cam(model, sample)
    site = model.last_spatial
    with model.record([site]) as recorded:
        model(sample)
    activation = model.grid(site)(recorded[site])[0].numpy()
    assert np.corrcoef(found.values.ravel(), activation.mean(0).ravel())[0, 1] >= 0
    centred = activation.reshape(len(activation), -1).T
    centred = centred - centred.mean(0)
    # its energy is the largest eigenvalue of the scatter matrix, which no other direction exceeds
    assert (found.values**2).sum() == pytest.approx(np.linalg.eigvalsh(centred.T @ centred)[-1], rel=1e-9)


def test_the_class_takes_no_part():
    model, sample = tiny.vision("resnet"), tiny.image()
    assert np.array_equal(eigen_cam(model, sample, target=0).values, eigen_cam(model, sample, target=2).values)


def test_rank_one_activations_give_their_map():
    shape = draw(0, 5, 6)
    weights = draw(1, 9).abs()
    activation = weights[:, None, None] * shape
    torch.testing.assert_close(principal(activation, False), shape * weights.norm())
    torch.testing.assert_close(principal(activation, True), (shape - shape.mean()) * weights.norm())


@pytest.mark.parametrize("centre", [True, False])
def test_mixing_channels_orthogonally_changes_nothing_but_the_sign(centre):
    activation = draw(2, 8, 4, 5)
    rotation = torch.linalg.qr(draw(3, 8, 8)).Q
    mixed = torch.einsum("kl,lij->kij", rotation, activation)
    a, b = principal(activation, centre), principal(mixed, centre)
    torch.testing.assert_close(b * torch.sign((a * b).sum()), a)
