"""Patches from another prompt against the donor's own run, and changes that act at chosen tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import Unsuitable
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.change.patch_from import patch_from
from interp.methods.change.scale_site import scale_site
from interp.methods.circuits._pairs import read_pair
from interp.methods.circuits.activation_patching import activation_patching
from interp.samples import Prompt, PromptPair
from interp.sites import Node, Site
from tests import tiny
from tests.test_hooks import near

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
PROMPT, DONOR = Prompt(PAIR.clean), Prompt(PAIR.corrupted)
EMBEDDINGS = (Site("resid_pre", 0),)


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_the_donors_embeddings_give_the_donors_logits(family: str) -> None:
    model = tiny.language(family)
    plain, other = model(PROMPT), model(DONOR)
    assert (plain - other).abs().max() > 0.1
    with patch_from(model, PAIR, sites=EMBEDDINGS):
        near(model(PROMPT), other, 1e-5)
    with patch_from(model, PROMPT, sites=EMBEDDINGS, donor=DONOR):
        near(model(PROMPT), other, 1e-5)
    with patch_from(model, PAIR, sites=EMBEDDINGS, donor=PROMPT):
        near(model(PROMPT), plain, 1e-5)
    assert torch.equal(model(PROMPT), plain)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "phi3"])
def test_a_part_at_a_token_moves_the_metric_as_activation_patching_says(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    for kind, names in (
        ("heads and MLPs", ("z.1.1@12", "z.0.0@6", "mlp_out.1@5")),
        ("q, k, v", ("q.1.0@16", "k.1.1@5", "v.0.1@6")),
        ("residual stream", ("resid_post.1@13",)),
    ):
        graph = activation_patching(model, PAIR, nodes=kind)  # type: ignore[arg-type]
        for name in names:
            node = Node.parse(name)
            assert node.site is not None and node.position is not None
            with patch_from(model, PAIR, sites=(node.site,), positions=(node.position,)):
                score = float(pair.score(model(PROMPT)[:, -1]))
            assert score - graph.base == pytest.approx(graph.value(name), abs=1e-5), name


def test_heads_of_several_layers_are_patched_together() -> None:
    model, sites = tiny.language("llama"), (Site("z", 0, 1), Site("z", 2, 3), Site("mlp_out", 2))
    with model.record(["z.0", "z.2", "mlp_out.2"]) as donor:
        model(DONOR)
    with patch_from(model, PAIR, sites=sites), model.record(["z.0", "z.2", "mlp_out.2"]) as found:
        model(PROMPT)
    assert torch.equal(found["z.0"][:, :, 1], donor["z.0"][:, :, 1])
    assert torch.equal(found["z.2"][:, :, 3], donor["z.2"][:, :, 3])
    assert torch.equal(found["mlp_out.2"], donor["mlp_out.2"])
    assert not torch.equal(found["z.2"][:, :, 2], donor["z.2"][:, :, 2])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_shorter_row_beside_it_is_patched_by_its_own_positions(family: str) -> None:
    model = tiny.language(family)
    for positions in ((), (0, 5, 12)):
        settings: dict[str, Any] = {"sites": (Site("z", 0, 1), Site("mlp_out", 1)), "positions": positions}
        with patch_from(model, PAIR, **settings):
            rows = model([PROMPT, "x"])[:, -1]
            near(rows[0], model(PROMPT)[0, -1], 2e-5)
            near(rows[1], model("x")[0, -1], 2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_generated_behind_the_prompt_is_left_alone(family: str) -> None:
    model = tiny.language(family)
    length, longer = model.inputs(PROMPT).shape[1], Prompt(PAIR.clean + " and so")
    sites = (Site("mlp_out", 2),)
    with model.record(["mlp_out.2"]) as plain:
        model(longer)
    with patch_from(model, PAIR, sites=sites), model.record(["mlp_out.2"]) as found:
        model(longer)
    near(found["mlp_out.2"][:, length:], plain["mlp_out.2"][:, length:], 1e-6)
    assert (found["mlp_out.2"][:, 4:length] != plain["mlp_out.2"][:, 4:length]).any()
    settings: dict[str, Any] = {"sites": (Site("z", 0, 0), Site("resid_post", 1)), "positions": ()}
    with patch_from(model, PAIR, **settings):
        cached = "".join(model.generate(PROMPT, 8))
        whole = "".join(model.generate(PROMPT, 8, cache=False))
    assert cached == whole != ""


def test_chosen_tokens_alone_are_scaled_and_ablated() -> None:
    model, chosen = tiny.language("llama"), (3, 7)
    rest = [place for place in range(17) if place not in chosen]
    with model.record(["z.2"]) as plain:
        model(PROMPT)
    for block, factor in (
        (lambda: scale_site(model, PROMPT, site=Site("z", 2, 1), by=-2.0, positions=chosen), -2),
        (lambda: ablate_heads(model, PROMPT, heads=((2, 1),), positions=chosen), 0),
    ):
        with block(), model.record(["z.2"]) as found:
            logits = model(PROMPT)
        near(found["z.2"][:, chosen, 1], factor * plain["z.2"][:, chosen, 1], 1e-6)
        near(found["z.2"][:, rest], plain["z.2"][:, rest], 1e-6)
        near(found["z.2"][:, :, [0, 2, 3]], plain["z.2"][:, :, [0, 2, 3]], 1e-6)
        near(logits[:, :3], model(PROMPT)[:, :3], 1e-5)
        with block():
            near(model([PROMPT, "x"])[0, -1], logits[0, -1], 1e-5)


def test_no_site_changes_nothing() -> None:
    assert patch_from.function(tiny.language("gpt2"), PAIR, sites=()) is None


@pytest.mark.parametrize(
    ("sample", "settings", "reason"),
    [
        (PROMPT, {}, "no other prompt"),
        (PROMPT, {"donor": Prompt("The dog")}, "as many"),
        (PromptPair("The cat", "The cats"), {}, "as many"),
        (PAIR, {"positions": (40,)}, "positions 0 to 16"),
        (PAIR, {"sites": (Site("pattern", 1, 0),)}, "queries or keys"),
        (PAIR, {"sites": (Site("z", 9, 0),)}, "z.9"),
        (PAIR, {"sites": (Site("z", 1, 9),)}, "head"),
    ],
)
def test_what_can_not_be_patched_is_refused_in_a_sentence(sample: Any, settings: Any, reason: str) -> None:
    model = tiny.language("gpt2")
    with (
        pytest.raises(Unsuitable, match=reason) as problem,
        patch_from(model, sample, **{"sites": EMBEDDINGS, **settings}),
    ):
        model(PROMPT)
    assert str(problem.value).endswith(".") and "\n" not in str(problem.value)
