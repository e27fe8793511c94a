"""Settings under which every intervention acts: the contract and the thread test run with these."""

from __future__ import annotations

from typing import Any

from interp.methods import METHODS
from interp.model import VisionModel


def acting(model: VisionModel) -> dict[str, dict[str, Any]]:
    """Settings by intervention; the tests fail for one that is missing here."""
    first = model.spatial_sites()[0]
    return {
        "ablate_channels": {"channels": (0, 3)},
        "hide_region": {"box": (0.1, 0.2, 0.6, 0.7), "by": "noise"},
        "randomize_weights": {"site": first},
        "add_noise": {"sigma": 0.5},
    }


IDENTITY: dict[str, dict[str, Any]] = {
    "ablate_channels": {"channels": ()},
    "hide_region": {"box": (0.0, 0.0, 0.0, 0.0)},
    "randomize_weights": {"site": None},
    "add_noise": {"sigma": 0.0},
}
"""Settings under which an intervention enters nothing."""

INTERVENTIONS = [key for key, method in METHODS.items() if method.kind == "intervention"]
LENSES = [key for key, method in METHODS.items() if method.kind == "lens"]
