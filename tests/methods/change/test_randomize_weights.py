import sys

import pytest
import torch

from interp.methods.change.randomize_weights import randomize_weights
from interp.sites import Site
from tests import tiny

MODULE = sys.modules[randomize_weights.__module__]


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: model.weight(name).clone() for name, _ in model.network.named_parameters()}


@pytest.mark.parametrize("family", list(tiny.VISION))
def test_the_cascade_goes_from_the_output_down_one_layer_at_a_time(family):
    """Each step leaves what lies below untouched, changes its own layer, and keeps what the step before drew."""
    model, sample = tiny.vision(family), tiny.image()
    before, above = parameters(model), dict[str, torch.Tensor]()
    for site in reversed(model.spatial_sites()):
        with randomize_weights(model, sample, site=site, seed=1):
            now = parameters(model)
        changed = {name for name, value in now.items() if not torch.equal(value, before[name])}
        assert changed > set(above), f"{site} randomises nothing of its own"
        for name, value in above.items():
            assert torch.equal(now[name], value)
        above = {name: now[name] for name in changed}
        # what enters the layer does not change
        entry = site if site.kind == "resid_pre" else None
        if entry is None and site.layer:
            entry = Site("stage", site.layer - 1)
        if entry is not None:
            with model.record([entry]) as plain:
                model(sample)
            with randomize_weights(model, sample, site=site, seed=1), model.record([entry]) as random:
                model(sample)
            assert torch.equal(random[entry], plain[entry])
    assert any(name.startswith("classifier") for name in above)
    assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())


@pytest.mark.parametrize("family", ["resnet", "efficientnet", "mobilenet_v2", "swin", "vit"])
def test_from_the_input_everything_is_random_with_its_own_mean_and_spread(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    before = parameters(model)
    with randomize_weights(model, sample, site="input"):
        now = parameters(model)
        assert torch.isfinite(model(sample)).all()
    for name, value in now.items():
        old = before[name]
        assert not torch.equal(value, old), name
        if old.numel() > 2000:
            assert float(value.std()) == pytest.approx(float(old.std()), rel=0.1)
            assert float(value.mean()) == pytest.approx(float(old.mean()), abs=0.1 * float(old.std()))
            correlation = torch.corrcoef(torch.stack([value.flatten(), old.flatten()]))[0, 1]
            assert abs(float(correlation)) < 0.1


def test_statistics_are_kept_unless_asked_for():
    model, sample = tiny.vision("resnet"), tiny.image()
    names = [name for name, _ in model.network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    kept = {name: model.weight(name).clone() for name in names}
    with randomize_weights(model, sample, site="input"):
        assert all(torch.equal(model.weight(name), value) for name, value in kept.items())
    with randomize_weights(model, sample, site="stage.1", statistics=True):
        for name in names:
            reset = torch.zeros_like(kept[name]) + float(name.endswith("var"))
            assert torch.equal(model.weight(name), reset if "stages.1" in name else kept[name]), name


def test_seeds_and_nesting():
    model, sample = tiny.vision("convnext"), tiny.image()
    logits = []
    for seed in (1, 1, 2):
        with randomize_weights(model, sample, site="stage.0", seed=seed):
            logits.append(model(sample))
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])
    # a second randomisation starts from the weights in force, not from the trained ones
    with (
        randomize_weights(model, sample, site="stage.1", seed=1),
        randomize_weights(model, sample, site="stage.0", seed=2),
    ):
        nested = model(sample)
    assert not torch.equal(nested, logits[2])


def test_no_site_enters_nothing():
    model, sample = tiny.vision("resnet"), tiny.image()
    assert randomize_weights.function(model, sample, **randomize_weights.canonical({})) is None
