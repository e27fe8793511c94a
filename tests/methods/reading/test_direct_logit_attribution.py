"""Complete on every architecture; equal to a split by hand; biases where they belong; through changed layers too."""

import numpy as np
import pytest
import torch

from interp import Unsuitable, zoo
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.skip_layer import skip_layer
from interp.methods.reading.direct_logit_attribution import OTHER, direct_logit_attribution
from interp.samples import Prompt
from tests import tiny
from tests.methods.reading import by_hand

PROMPT = Prompt("The cat sat on the mat")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_the_parts_sum_to_the_logit(family: str, seed: int) -> None:
    model = tiny.language(family, seed)
    logits = model(PROMPT)[0].double()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)  # what is split is the logit before the cap
    for by in ("layer", "head", "neuron"):
        if by == "neuron" and family == "mixtral":
            with pytest.raises(Unsuitable, match="hidden layer"):
                direct_logit_attribution(model, PROMPT, by=by)
            continue
        for position, foil in ((None, None), (3, "b")):
            result = direct_logit_attribution(model, PROMPT, target="a", foil=foil, by=by, position=position)
            at = -1 if position is None else position
            score = logits[at, model.tokenizer.convert_tokens_to_ids("a")]
            if foil:
                score = score - logits[at, model.tokenizer.convert_tokens_to_ids("b")]
            scale = float(logits[at].abs().max())
            assert abs(result.values.sum() - float(score)) < 1e-4 * scale
            assert result.residual is not None and result.residual.value < 1e-4 * scale / abs(float(score))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_are_what_they_are_by_hand(family: str) -> None:
    model = tiny.language(family)
    index = model.tokenizer.convert_tokens_to_ids("a")
    expected = by_hand.head_shares(model, model.inputs(PROMPT), model.unembedding[0][index])
    result = direct_logit_attribution(model, PROMPT, target="a", by="head")
    np.testing.assert_allclose(result.values[0, 1:-1, : model.parts.heads], expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", tiny.LANGUAGE)
@pytest.mark.parametrize("by", ["head", "neuron"])
def test_nothing_is_left_over_but_biases(family: str, by: str) -> None:
    """The remainder is what the projection adds without an input: nothing in models without biases."""
    model = tiny.language(family)
    if by == "neuron" and family == "mixtral":
        return
    result = direct_logit_attribution(model, PROMPT, target="a", by=by)
    rest = result.values[0, 1:-1, result.columns.index(OTHER)]
    if family in ("gpt2", "opt", "gpt_neox"):
        assert np.abs(rest).max() > 1e-3
        zero = torch.zeros(model.config.hidden_size)
        ends = [
            model.address(site)
            for layer in range(model.layers)
            for site in [model.resolve(f"{'attn_out' if by == 'head' else 'mlp_out'}.{layer}")]
        ]
        biases = {}
        for end in ends:
            inner = model.parts.projection(ends.index(end)) if by == "head" else None
            path = inner or next(
                name for name, _ in model.network.named_modules()
                if name.startswith(end) and name.endswith(("c_proj", "dense_4h_to_h", "fc2"))
            )  # fmt: skip
            biases[f"{path}.bias"] = zero
        with model.swap(biases):
            without = direct_logit_attribution(model, PROMPT, target="a", by=by)
        assert np.abs(without.values[0, 1:-1, -1]).max() < 1e-6
    else:
        assert np.abs(rest).max() < 1e-6


@pytest.mark.parametrize("change", [
    lambda model: repeat_layer(model, PROMPT, layer=1, times=3),
    lambda model: skip_layer(model, PROMPT, layer=1, count=1),
    lambda model: ablate_heads(model, PROMPT, heads=((1, 0),)),
])  # fmt: skip
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_it_stays_complete_when_layers_are_repeated_skipped_or_ablated(family: str, change) -> None:
    model = tiny.language(family)
    with change(model):
        logits = model(PROMPT)[0, -1].double()
        result = direct_logit_attribution(model, PROMPT, target="a")
    score = float(logits[model.tokenizer.convert_tokens_to_ids("a")])
    if cap := getattr(model.config, "final_logit_softcapping", None):
        score = cap * float(np.arctanh(score / cap))
    assert abs(result.values.sum() - score) < 1e-4 * max(1, abs(score))


def test_an_ablated_head_has_nothing_left() -> None:
    model = tiny.language("llama")
    with ablate_heads(model, PROMPT, heads=((2, 1),)):
        result = direct_logit_attribution(model, PROMPT, target="a")
    assert result.values[0, 3, 1] == 0 and np.abs(result.values[0, 3, 0]) > 1e-4


def test_of_the_model_set_by_hand_the_induction_head_alone_speaks() -> None:
    model = zoo.load("induction")
    result = direct_logit_attribution(model, Prompt("The cat sat. The c"), target="a", foil="o")
    heads = result.values[0, 1:-1, :4]
    assert heads[1, 2] > 5 and np.abs(np.delete(heads.ravel(), 6)).max() < 1e-3 * heads[1, 2]


def test_target_and_foil_must_differ_and_positions_exist() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="same token"):
        direct_logit_attribution(model, PROMPT, target="a", foil="a")
    with pytest.raises(Unsuitable, match="positions 0 to"):
        direct_logit_attribution(model, PROMPT, position=500)
