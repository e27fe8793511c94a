"""On a model that has learned what the object is, maps of the class lie on the object more than blind maps do."""

import numpy as np
import pytest

from interp import zoo
from interp.methods import METHODS
from tests.benchmarks.scenes import CENTRE, RANDOM, UNTRAINED, shares

pytestmark = pytest.mark.skipif("scenes" not in zoo.shelf(), reason="the scenes model is not embedded yet")
NUMBER = 16


@pytest.fixture(scope="module")
def found() -> dict[str, list[float]]:
    keys = [key for key, method in METHODS.items() if method.family == "cam"]
    return shares(zoo.load("scenes"), keys, NUMBER)


def test_every_method_beats_blind_maps(found):
    means = {name: float(np.nanmean(values)) for name, values in found.items()}
    blind = max(means[name] for name in (RANDOM, CENTRE, UNTRAINED))
    ours = {method.name for method in METHODS.values() if method.name in means}
    assert len(ours) == 12
    for name in ours:
        assert means[name] > 1.3 * blind, (name, means)
