import pytest
import torch

from interp import Unsuitable
from interp.methods.change.add_noise import add_noise
from interp.sites import Site
from tests import tiny


@pytest.mark.parametrize(("family", "site"), [("resnet", None), ("resnet", "stage.0"), ("vit", "resid_post.1")])
def test_the_noise_has_the_strength_it_was_given_and_is_the_same_every_time(family, site):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    at = Site.parse(site or "input")
    with model.record([at]) as recorded:
        model(sample)
    plain = recorded[at]
    found = []
    for seed in (3, 3, 4):
        with add_noise(model, sample, site=site, sigma=0.5, seed=seed), model.record([at]) as recorded:
            model(sample)
        found.append((recorded[at] - plain) / plain.std())
    assert torch.equal(found[0], found[1])
    assert float(found[0].std()) == pytest.approx(0.5, rel=0.15)
    assert abs(float(found[0].mean())) < 0.1
    assert float((found[0] * found[2]).mean()) == pytest.approx(0, abs=0.05)


def test_every_example_of_a_batch_gets_what_it_would_get_alone():
    model, samples = tiny.vision("resnet", torch.float64), [tiny.image(0), tiny.image(1)]
    with add_noise(model, samples[0], site="stage.0", sigma=1.0):
        together = model(samples)
        alone = torch.cat([model(each) for each in samples])
    torch.testing.assert_close(together, alone)


def test_strength_0_enters_nothing_and_unknown_sites_are_refused():
    model, sample = tiny.vision("resnet"), tiny.image()
    assert add_noise.function(model, sample, **add_noise.canonical({})) is None
    with pytest.raises(Unsuitable, match="no site"):
        add_noise(model, sample, site="stage.7", sigma=1.0)
