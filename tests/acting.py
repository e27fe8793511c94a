"""Settings under which every intervention acts: the contract and the thread test run with these."""

from __future__ import annotations

from typing import Any

from interp.methods import METHODS
from interp.model import VisionModel
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, TextSet
from interp.sites import Site


def acting(model: Any, text: str = "The cat sat on the mat") -> dict[str, dict[str, Any]]:
    """Settings by intervention; the tests fail for one that is missing here. text: a language model's prompt."""
    first = model.spatial_sites()[0] if isinstance(model, VisionModel) else Site("resid_pre", 0)
    return {
        "ablate_heads": {"heads": ((0, 1), (1, 0)), "by": "resample"},
        "ablate_neurons": {"layer": 1, "neurons": (0, 3, 5), "by": "mean"},
        "ablate_layer": {"layer": 1, "part": "both", "by": "mean"},
        "scale_site": {"site": Site("z", 1, 1), "by": -1.5},
        "patch_from": {"sites": (Site("z", 1, 1), Site("resid_post", 1)), "donor": Prompt(text[::-1])},
        "skip_layer": {"layer": 1, "count": 1},
        "repeat_layer": {"layer": 1, "times": 2},
        "ablate_channels": {"channels": (0, 3)},
        "hide_region": {"box": (0.1, 0.2, 0.6, 0.7), "by": "noise"},
        "randomize_weights": {"site": first},
        "add_noise": {"sigma": 0.5},
        "ablate_feature": {"features": tuple(range(8))},
        "clamp_feature": {"features": (0, 5), "value": 2.0},
        "scale_feature": {"features": tuple(range(8)), "factor": 3.0},
        "transport_replace": {"source": Site("resid_pre", 0), "target": Site("resid_post", 1)},
        "steer_upstream": {"by": 3.0},
        "steer": {"layer": 0, "strength": 2.0},
        "project_out": {"layer": 0, "share": 1.0},
        "clamp_direction": {"layer": 0, "value": 3.0},
        "inject_task": {"share": 1.0},
        "lf_steer": {"consistent": TextSet(("a cat sat",)), "inconsistent": TextSet(("My Dog?",)), "strength": 3.0},
        "conditional_steer": {"layer": 0, "strength": 2.0, "condition_layer": 0, "threshold": -1.0},
    }


def fitting(method: Any, sample: Any) -> Any:
    """The sample, or a pair or set with it where a method looks at nothing else."""
    if isinstance(sample, method.samples) or not isinstance(sample, Prompt | Image):
        return sample
    if isinstance(sample, Image):
        return ImageSet((sample,)) if ImageSet in method.samples else sample
    if TextSet in method.samples:
        return TextSet((sample.text, sample.text[::-1]))
    if Contrast in method.samples:
        return Contrast((sample.text,), (sample.text[::-1],))
    other = "".join(chr(ord("a") + (ord(each) - 96) % 26) if each.islower() else each for each in sample.text[:5])
    return PromptPair(sample.text, other + sample.text[5:], "e", "n")


IDENTITY: dict[str, dict[str, Any]] = {
    "ablate_heads": {"heads": ()},
    "ablate_neurons": {"neurons": ()},
    "ablate_layer": {"part": "nothing"},
    "scale_site": {"by": 1.0},
    "patch_from": {"sites": ()},
    "skip_layer": {"count": 0},
    "repeat_layer": {"times": 1},
    "ablate_channels": {"channels": ()},
    "hide_region": {"box": (0.0, 0.0, 0.0, 0.0)},
    "randomize_weights": {"site": None},
    "add_noise": {"sigma": 0.0},
    "ablate_feature": {"features": ()},
    "clamp_feature": {"features": (), "value": 2.0},
    "scale_feature": {"features": (0, 5), "factor": 1.0},
    "transport_replace": {"share": 0.0},
    "steer_upstream": {"by": 0.0},
    "steer": {"strength": 0.0},
    "project_out": {"share": 0.0},
    "clamp_direction": {"value": None},
    "inject_task": {"share": 0.0},
    "lf_steer": {"strength": 0.0},
    "conditional_steer": {"strength": 0.0},
}
"""Settings under which an intervention enters nothing."""

LOOKS: dict[str, dict[str, Any]] = {
    "attention_pattern": {"layer": 2},
    "acdc": {"threshold": 0.5},
    "node_output": {"node": "mlp_out.0"},
    "verified_patching": {"verify": 3, "samples": 12},
    "side_effects": {"n": 3},
    "kl_by_token": {"n": 3},
    "dose_response": {"measure": "KL", "n": 2, "seeds": 1, "steps": 3},
    "compare_steering": {"n": 2, "seeds": 1},
}
"""Settings under which a lens sees what every intervention does, in little time."""

SMALL: dict[str, dict[str, Any]] = {
    "rise": {"masks": 100},
    "expected_gradients": {"samples": 15},
    "integrated_gradients": {"steps": 12},
    "tuned_lens": {"fit_steps": 60},
    "verified_patching": {"verify": 5, "samples": 40},
}
"""Settings of lenses that repeat one and the same work a hundred times, where a few times tell as much."""

ALIKE = (
    "clamp_feature", "scale_feature", "lf_steer", "project_out", "clamp_direction", "steer_upstream",
)  # fmt: skip
"""Interventions that enter the same edits as ablate_feature or steer: every lens is looked through under those."""

INTERVENTIONS = [key for key, method in METHODS.items() if method.kind == "intervention"]
LENSES = [key for key, method in METHODS.items() if method.kind == "lens"]
