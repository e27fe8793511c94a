"""What acceptance asks of language models: untouched bits, edits of heads, reruns from a layer, odd prompts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp import Unsuitable
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site
from interp.zoo import LANGUAGE
from tests import tiny
from tests.acting import fitting
from tests.test_hooks import IDS, near


def padded() -> tuple[Tensor, dict[str, Tensor]]:
    """A left-padded batch as we write it, and as transformers does."""
    ids = torch.cat([torch.full((2, 3), -1), IDS[:1].repeat(2, 1)], 1)
    ids[1] = torch.arange(9)
    mask = (ids >= 0).long()
    return ids, {
        "input_ids": ids.clamp(min=0),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def test_all_twelve_are_here() -> None:
    assert set(LANGUAGE) == set(tiny.LANGUAGE) and len(LANGUAGE) == 12


@pytest.mark.parametrize("family", LANGUAGE)
def test_no_bit_differs_from_the_untouched_model(family: str) -> None:
    model, plain = tiny.language(family), tiny.untouched(family)
    assert plain.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")
    ids, given = padded()
    real = ids >= 0
    for ours, theirs in ((IDS, {"input_ids": IDS}), (ids, given)):
        expected = plain(**theirs, use_cache=False).logits
        rows = real if ours is ids else torch.ones_like(ours).bool()
        assert torch.equal(model(ours)[rows], expected[rows])
        sites = [site for site in model.sites() if site.kind != "pattern"]
        with model.record(sites):
            assert torch.equal(model(ours)[rows], expected[rows])
        eager = tiny.untouched(family, "eager")(**theirs, use_cache=False).logits
        with model.record([*model.sites()]):
            assert torch.equal(model(ours)[rows], eager[rows])


@pytest.mark.parametrize("family", LANGUAGE)
def test_editing_a_heads_z_is_editing_its_slice_of_the_output_projection(family: str) -> None:
    """Scaling what one head gives equals scaling what the projection takes from it."""
    model = tiny.language(family)
    for layer, head in ((0, 0), (1, 1)):
        with model.edit({Site("z", layer, head): lambda z: -2.5 * z}):
            edited = model(IDS)
        path = str(model.parts.projection(layer))
        weight = model.weight(f"{path}.weight").clone()
        size = weight.shape[0 if family == "gpt2" else 1] // model.parts.heads
        part = slice(head * size, (head + 1) * size)
        rows = weight[part] if family == "gpt2" else weight[:, part]  # GPT-2 keeps its weights transposed
        rows *= -2.5
        with model.swap({f"{path}.weight": weight}):
            swapped = model(IDS)
        near(edited, swapped)
        assert (edited - model(IDS)).abs().max() > 1e-4


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_rerun_from_a_layer_runs_no_layer_below_and_gives_the_same(family: str) -> None:
    model = tiny.language(family)
    for layer in range(model.layers):
        with model.record([Site("resid_pre", layer)]) as found:
            whole = model(IDS)
        resid = found[Site("resid_pre", layer)]
        with model.resume(layer, resid), model.record([Site("mlp_out", below) for below in range(model.layers)]) as ran:
            again = model(IDS)
        near(again, whole, 1e-6)
        reached = [bool(recorder.values) for recorder in ran.recorders.values()]
        assert reached == [below >= layer or layer == 0 for below in range(model.layers)]
        # several variants at once
        with model.resume(layer, torch.cat([resid, 2 * resid])):
            both = model(IDS.repeat(2, 1))
        near(both[: len(IDS)], whole, 1e-4)
        assert (both[len(IDS) :] - whole).abs().max() > 1e-3


@pytest.mark.parametrize("family", LANGUAGE)
def test_teacher_forced_logits_agree_with_and_without_cache(family: str) -> None:
    """Under an intervention that begins at the last prompt token, as design has it."""
    from interp.hooks import Here, here

    model = tiny.language(family)
    ids, prompt = IDS[:1], 3

    def steer(x: Tensor) -> Tensor:
        generated = here().generated
        assert generated is not None
        return x + 0.7 * generated[..., None] * x.flip(-1)

    from transformers import DynamicCache

    with model.edit({"resid_post.1": steer}):
        whole = model._forward(ids, None, Here(prompt=prompt))
        cache, scratch, rows = DynamicCache(), dict[Any, Any](), []
        for end in range(prompt, ids.shape[1] + 1):
            new = ids[:, :prompt] if end == prompt else ids[:, end - 1 : end]
            now = Here(prompt=prompt, scratch=scratch)
            rows.append(model._forward(new, cache, now, 0, torch.ones(1, end).bool())[:, -1])
    near(torch.stack(rows, 1), whole[:, prompt - 1 :], 1e-4)
    assert (whole - model(ids)).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------------------- odd prompts

ODD = {
    "one character": "x",
    "emoji": "A fox 🦊 and a family 👨‍👩‍👧 ran",
    "right to left": "שלום עולם, مرحبا",
    "control characters": "a\x00b\x07c\x1b[31m\u202e",
    "markup": "<script>alert(1)</script> **bold** [x](javascript:y) `$a$`",
    "newlines": "\n\n\t x \r\n",
}


@pytest.mark.parametrize("text", ODD.values(), ids=list(ODD))
def test_odd_prompts_are_read(text: str) -> None:
    model = tiny.language("llama")
    tokens = model.tokens(text)
    assert "".join(tokens) == text
    for key in ("next_tokens", "logit_lens", "token_attribution", "direct_logit_attribution"):
        result = METHODS[key](model, Prompt(text))
        assert result.to_json() and result.method == key


@pytest.mark.parametrize("text", ["", "   ", "\n", "y" * 100_000, "\ud800"])
def test_empty_and_endless_prompts_get_a_sentence(text: str) -> None:
    with pytest.raises(Unsuitable) as problem:
        Prompt(text)
    assert str(problem.value).endswith(".") and len(str(problem.value)) < 200


def test_a_prompt_longer_than_the_model_reads_gets_a_sentence() -> None:
    for key in ("next_tokens", "logit_lens", "token_attribution", "attention_pattern"):
        with pytest.raises(Unsuitable, match="reads at most 128"):
            METHODS[key](tiny.language("llama"), Prompt("z" * 500))


def test_a_tokenizer_without_bos_or_padding_serves() -> None:
    """Every lens, and batches of unequal length, which are padded without a padding token."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, None)
    network: nn.Module = tiny.untouched("llama")
    model = tiny.featured(LanguageModel(network, tokenizer, "bare"))
    near(model(["abc", "a"])[1, 2:], model("a")[0], 1e-4)
    assert model.tokens("abc") == ["a", "b", "c"] and "".join(model.generate("abc", 5))
    for key, method in METHODS.items():
        if method.kind == "lens" and method.model_type is LanguageModel:
            assert method(model, fitting(method, Prompt("The cat"))).method == key


def test_targets_are_found_with_the_space_that_is_forgotten() -> None:
    from interp import zoo

    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    lens = METHODS["direct_logit_attribution"]
    prompt = Prompt("The capital of France is")
    assert lens(model, prompt, target="Paris") == lens(model, prompt, target=" Paris")
    with pytest.raises(Unsuitable, match="no single token"):
        lens(model, prompt, target="Constantinople")
