"""A rerun from a layer is the whole run, whatever interventions are in force: patching builds on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.methods import METHODS
from interp.model import VisionModel
from interp.samples import Prompt, PromptPair
from interp.sites import Node, Site
from tests import tiny
from tests.acting import INTERVENTIONS, acting

CLEAN, CORRUPTED = "The cat sat on the mat", "The dog sat on the mat"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(
    "change", [each for each in INTERVENTIONS if not issubclass(METHODS[each].model_type, VisionModel)]
)
def test_a_rerun_begins_behind_the_edits_in_force(family: str, change: str) -> None:
    model: Any = tiny.featured(tiny.language(family))
    sample = Prompt(CLEAN)
    with METHODS[change](model, sample, **acting(model, CLEAN)[change]):
        for layer in range(min(model.layers, model.carried_from() + 1)):
            with model.record([Site("resid_pre", layer)], every=True) as found:
                whole = model(sample)
            if len(found[Site("resid_pre", layer)]) != 1 or change in ("skip_layer", "repeat_layer"):
                continue
            with model.resume(layer, found[Site("resid_pre", layer)][0]):
                assert torch.allclose(model(sample), whole, atol=1e-5), layer


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "change", ["scale_site", "scale_feature", "transport_replace", "steer_upstream", "ablate_feature"]
)
def test_patching_after_a_change_is_patching_of_the_changed_model(family: str, change: str) -> None:
    """Against runs from the first token on, with the donor's activation put in by an edit."""
    model: Any = tiny.featured(tiny.language(family))
    settings = dict(acting(model, CLEAN)[change])
    if change == "scale_site":
        settings = {"site": Site("resid_post", 1), "by": 0.5}
    pair = PromptPair(CLEAN, CORRUPTED, "e", "n")
    with METHODS[change](model, pair, **settings):
        graph = METHODS["activation_patching"](model, pair, nodes="residual stream")
        answer, foil = (model.tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in ("e", "n"))
        score = lambda logits: float(logits[0, -1, answer] - logits[0, -1, foil])  # noqa: E731
        base, donor = (CLEAN, CORRUPTED) if graph.direction == "noising" else (CORRUPTED, CLEAN)
        plain = score(model(Prompt(base)))
        for name, value in list(zip(graph.nodes, graph.values, strict=True))[::3]:
            node = Node.parse(name)
            if node.site is None:
                continue
            with model.record([node.site]) as found:
                model(Prompt(donor))
            theirs = found[node.site]

            def put(x: torch.Tensor, theirs: torch.Tensor = theirs, at: Any = node.position) -> torch.Tensor:
                new = x.clone()
                new[:, at] = theirs[:, at]
                return new

            with model.edit({node.site: put}):
                assert score(model(Prompt(base))) - plain == pytest.approx(float(value), abs=1e-4), name
