"""Interventions on language models against the same done by hand to weights and streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Unsuitable, hooks
from interp.methods.change._replacement import seen
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.change.ablate_layer import ablate_layer
from interp.methods.change.ablate_neurons import ablate_neurons
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.scale_site import scale_site
from interp.methods.change.skip_layer import skip_layer
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site
from tests import tiny
from tests.test_hooks import near

PROMPT = Prompt("The cat sat on the mat")
TEXTS = TextSet(("A dog ran.", "The sea is wide", "one two three"))


def weight_of(model: LanguageModel, path: str, columns: slice | list[int]) -> Tensor:
    """The weight with the inputs of those columns at zero; GPT-2 keeps it transposed."""
    weight = model.weight(f"{path}.weight").clone()
    if model.family == "gpt2":
        weight[columns] = 0
    else:
        weight[:, columns] = 0
    return weight


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "opt", "gpt_neox"])
def test_a_head_at_zero_is_its_part_of_the_projection_at_zero(family: str) -> None:
    model = tiny.language(family)
    with ablate_heads(model, PROMPT, heads=((1, 0), (2, 1))):
        edited = model(PROMPT)
    swaps: dict[str, Any] = {}
    for layer, head in ((1, 0), (2, 1)):
        path = str(model.parts.projection(layer))
        size = model.config.hidden_size // model.parts.heads if family in ("gpt2", "opt", "gpt_neox") else 4
        swaps[f"{path}.weight"] = weight_of(model, path, slice(head * size, (head + 1) * size))
    with model.swap(swaps):
        near(model(PROMPT), edited, 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_neurons_at_zero_are_their_columns_at_zero(family: str) -> None:
    model = tiny.language(family)
    path = model.address(Site("mlp_post", 1))
    with ablate_neurons(model, PROMPT, layer=1, neurons=(0, 7, 31)):
        edited = model(PROMPT)
    with model.swap({f"{path}.weight": weight_of(model, path, [0, 7, 31])}):
        near(model(PROMPT), edited, 1e-5)
    with pytest.raises(Unsuitable, match="neurons 0 to"), ablate_neurons(model, PROMPT, neurons=(9999,)):
        model(PROMPT)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_layer_of_zeros_adds_nothing(family: str) -> None:
    model = tiny.language(family)
    with ablate_layer(model, PROMPT, layer=1, part="both"):
        edited = model(PROMPT)
    with skip_layer(model, PROMPT, layer=1, count=1):
        near(model(PROMPT), edited, 1e-6)
    with model.edit({"resid_post.1": lambda x: x}), model.record(["resid_pre.1"]) as found:
        model(PROMPT)
    with model.edit({"resid_pre.2": lambda _: found["resid_pre.1"]}):
        near(model(PROMPT), edited, 1e-6)


def test_the_mean_is_over_all_positions_of_all_texts_of_the_unchanged_model() -> None:
    model = tiny.language("llama")
    rows = []
    for text in TEXTS.texts:
        with model.record(["z.1"]) as found:
            model(text)
        rows.append(found["z.1"][0])
    mean = torch.cat(rows).double().mean(0)
    with (
        model.edit({"resid_pre.0": lambda x: -x}),  # what else is in force does not change the mean
        ablate_heads(model, PROMPT, heads=((1, 2),), by="mean", texts=TEXTS),
        model.record(["z.1"]) as found,
    ):
        model(PROMPT)
    near(found["z.1"][0, :, 2].double(), mean[2].expand(len(found["z.1"][0]), -1), 1e-6)
    assert not torch.allclose(found["z.1"][0, :, 1].double(), mean[1].expand(len(found["z.1"][0]), -1))


def test_resampling_takes_what_stands_in_the_texts_and_is_fixed_by_its_seed() -> None:
    model = tiny.language("gpt2")
    rows = seen(model, Site("mlp_out", 1), TEXTS)
    results = []
    for seed in (0, 0, 1):
        with (
            ablate_layer(model, PROMPT, layer=1, part="MLP", by="resample", texts=TEXTS, seed=seed),
            model.record(["mlp_out.1"]) as found,
        ):
            results.append(model(PROMPT))
        taken = found["mlp_out.1"][0]
        assert (taken[:, None] == rows[None]).all(-1).any(1).all()
        # each position draws for itself: 22 draws from about as many rows hit on few of them twice
        assert len(taken.unique(dim=0)) > len(taken) // 2
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_what_is_resampled_stays_while_text_is_generated() -> None:
    model = tiny.language("llama")
    with ablate_heads(model, PROMPT, heads=((1, 0), (0, 3)), by="resample", texts=TEXTS):
        cached = "".join(model.generate(PROMPT, 8))
        whole = "".join(model.generate(PROMPT, 8, cache=False))
    assert cached == whole != ""


def test_scaling_a_site_scales_it_alone() -> None:
    model = tiny.language("llama")
    with model.record(["z.1"]) as before:
        model(PROMPT)
    with scale_site(model, PROMPT, site=Site("z", 1, 3), by=-2.0), model.record(["z.1"]) as after:
        model(PROMPT)
    near(after["z.1"][:, :, 3], -2 * before["z.1"][:, :, 3])
    assert torch.equal(after["z.1"][:, :, :3], before["z.1"][:, :, :3])
    # the final norm takes a factor of the whole stream out again, but for its eps
    plain = model(PROMPT)
    with scale_site(model, PROMPT, by=3.0):
        near(model(PROMPT), plain, 1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_a_repeated_layer_is_the_block_on_its_own_output(family: str) -> None:
    model = tiny.language(family)
    with repeat_layer(model, PROMPT, layer=1, times=3), model.record(["resid_post.1"]) as found:
        model(PROMPT)
    stream = None
    for _ in range(3):
        block = model.edit({"resid_pre.1": lambda x, stream=stream: stream}) if stream is not None else hooks.Block()
        with block, model.record(["resid_post.1"]) as once:
            model(PROMPT)
        stream = once["resid_post.1"]
    near(found["resid_post.1"], stream, 1e-6)


def test_layers_that_are_not_there_are_refused() -> None:
    model = tiny.language("gpt2")
    for block in (
        lambda: ablate_heads(model, PROMPT, heads=((3, 0),)),
        lambda: ablate_heads(model, PROMPT, heads=((0, 9),)),
        lambda: ablate_neurons(model, PROMPT, layer=3, neurons=(0,)),
        lambda: ablate_layer(model, PROMPT, layer=3, part="both"),
        lambda: skip_layer(model, PROMPT, layer=2, count=2),
        lambda: repeat_layer(model, PROMPT, layer=3, times=2),
        lambda: ablate_heads(model, PROMPT, heads=((0, 0),), by="mean", texts=TextSet(())),
    ):
        with pytest.raises(Unsuitable), block():
            model(PROMPT)
