"""Settings under which every intervention acts: the contract and the thread test run with these."""

from __future__ import annotations

from typing import Any

from interp.methods import METHODS
from interp.model import VisionModel
from interp.sites import Site


def acting(model: Any) -> dict[str, dict[str, Any]]:
    """Settings by intervention; the tests fail for one that is missing here."""
    first = model.spatial_sites()[0] if isinstance(model, VisionModel) else Site("resid_pre", 0)
    return {
        "ablate_heads": {"heads": ((0, 1), (1, 0)), "by": "resample"},
        "ablate_neurons": {"layer": 1, "neurons": (0, 3, 5), "by": "mean"},
        "ablate_layer": {"layer": 1, "part": "both", "by": "mean"},
        "scale_site": {"site": Site("z", 1, 1), "by": -1.5},
        "skip_layer": {"layer": 1, "count": 1},
        "repeat_layer": {"layer": 1, "times": 2},
        "ablate_channels": {"channels": (0, 3)},
        "hide_region": {"box": (0.1, 0.2, 0.6, 0.7), "by": "noise"},
        "randomize_weights": {"site": first},
        "add_noise": {"sigma": 0.5},
    }


IDENTITY: dict[str, dict[str, Any]] = {
    "ablate_heads": {"heads": ()},
    "ablate_neurons": {"neurons": ()},
    "ablate_layer": {"part": "nothing"},
    "scale_site": {"by": 1.0},
    "skip_layer": {"count": 0},
    "repeat_layer": {"times": 1},
    "ablate_channels": {"channels": ()},
    "hide_region": {"box": (0.0, 0.0, 0.0, 0.0)},
    "randomize_weights": {"site": None},
    "add_noise": {"sigma": 0.0},
}
"""Settings under which an intervention enters nothing."""

LOOKS: dict[str, dict[str, Any]] = {"attention_pattern": {"layer": 2}}
"""Settings under which a lens sees what every intervention does."""

INTERVENTIONS = [key for key, method in METHODS.items() if method.kind == "intervention"]
LENSES = [key for key, method in METHODS.items() if method.kind == "lens"]
