"""DeepLIFT as a lens: references, interventions, and Captum beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods import METHODS
from interp.methods.attribution.deeplift import deeplift
from interp.methods.attribution.deeplift_captum import deeplift_captum, operations
from interp.samples import Image, ImageSet
from interp.sites import Site
from tests import tiny

KINDS = ["blur", "zeros", "black", "white", "image mean", "uniform"]


@pytest.mark.parametrize("reference", KINDS)
@pytest.mark.parametrize("family", ["resnet", "vit", "convnext"])
def test_the_map_adds_up_for_every_reference(family: str, reference: str) -> None:
    model, sample = tiny.vision(family, torch.float64, 1), tiny.image(1)
    for rule, bound in (("rescale", 1e-10), ("reveal cancel", 1e-8), ("genomics default", 1e-8)):
        found = deeplift(model, sample, target=1, reference=reference, rule=rule, draws=2)
        assert found.residual is not None and found.residual.value < bound
        assert found.values.shape == found.size and found.signed


def test_several_images_are_averaged() -> None:
    model, sample = tiny.vision("resnet", torch.float64, 0), tiny.image(0)
    others = [tiny.image(3), tiny.image(4)]
    both = deeplift(model, sample, target=1, images=ImageSet(tuple(others)))
    each = [deeplift(model, sample, target=1, images=ImageSet((one,))) for one in others]
    np.testing.assert_allclose(both.values, (each[0].values + each[1].values) / 2, atol=1e-12)


def test_another_class_costs_no_new_reference_pass() -> None:
    model, sample = tiny.vision("resnet", torch.float64, 2), tiny.image(5)
    model.forget()
    first, second = (deeplift(model, sample, target=target) for target in (0, 1))
    assert (first.forwards, second.forwards) == (3, 1) and second.backwards == 1


def test_an_image_that_is_its_own_reference_gets_nothing() -> None:
    model, sample = tiny.vision("convnext", torch.float64, 0), tiny.image(0)
    found = deeplift(model, sample, target=0, images=ImageSet((sample,)))
    assert not found.values.any() and "zero everywhere" in found.note


def test_interventions_in_force_are_respected() -> None:
    model, sample = tiny.vision("resnet", torch.float64, 0), tiny.image(0)
    with METHODS["hide_region"](model, sample, box=(0.0, 0.0, 0.5, 1.0), by="mean"):
        hidden = deeplift(model, sample, target=1, reference="zeros")
        seen = model.inputs(sample)
        with model.record([Site("input")]) as recorded:
            model(sample)
        seen = recorded[Site("input")]
    with model.edit({Site("input"): lambda _: seen}):
        same = deeplift(model, sample, target=1, reference="zeros")
    np.testing.assert_allclose(hidden.values, same.values, atol=1e-10)
    with METHODS["randomize_weights"](model, sample, site=Site("stage", 0)):
        changed = deeplift(model, sample, target=1)
    assert changed.residual is not None and changed.residual.value < 1e-9
    assert np.abs(changed.values - deeplift(model, sample, target=1).values).max() > 1e-6


def test_an_empty_set_of_references_is_refused() -> None:
    model = tiny.vision("resnet", torch.float64, 0)
    with pytest.raises(Unsuitable, match="at least one"):
        deeplift(model, tiny.image(0), images=ImageSet(()))


def test_a_reference_of_another_size_is_refused() -> None:
    model = tiny.vision("resnet", torch.float64, 0)
    processor = type(model.processor)(size={"height": 32, "width": 32}, do_resize=False)
    loose = type(model)(model._network, processor, "no resizing")
    small, large = (Image.of(np.full((side, side, 3), 90, np.uint8)) for side in (32, 48))
    with pytest.raises(Unsuitable, match="same shape"):
        deeplift(loose, small, images=ImageSet((large,)))


@pytest.mark.filterwarnings("ignore")
def test_captum_does_not_add_up_where_ours_does() -> None:
    worst = 0.0
    for seed in (0, 1, 2):
        model, sample = tiny.vision("resnet", torch.float64, seed), tiny.image(seed)
        theirs, ours = (each(model, sample, target=1, reference="blur") for each in (deeplift_captum, deeplift))
        assert theirs.residual is not None and ours.residual is not None
        assert ours.residual.value < 1e-10
        worst = max(worst, theirs.residual.value)
    assert worst > 0.01


def test_operations_without_a_rule_in_captum_are_counted() -> None:
    table = operations(tiny.vision("vit", torch.float64, 0), tiny.image(0))
    found = dict(zip(table.rows, table.values.tolist(), strict=True))
    assert found["gelu"] == [3.0, 0.0] and found["layer_norm"][1] == 0
    table = operations(tiny.vision("resnet", torch.float64, 0), tiny.image(0))
    found = dict(zip(table.rows, table.values.tolist(), strict=True))
    assert found["relu"][0] == found["relu"][1] > 0 and found["max_pool2d"] == [1.0, 1.0]


def test_parts_that_outgrow_their_difference_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.methods.attribution import deeplift as module

    model = tiny.vision("resnet", torch.float64, 0)
    exact = module._multipliers.contributions
    monkeypatch.setattr(module._multipliers, "contributions", lambda *args: (1.1 * exact(*args)[0], exact(*args)[1]))
    with pytest.raises(Unsuitable, match="choose rescale"):
        deeplift(model, tiny.image(0), target=1, rule="reveal cancel")
    assert deeplift(model, tiny.image(0), target=1).residual.value > 0.05  # type: ignore[union-attr]
