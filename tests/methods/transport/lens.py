"""What the tests of the lenses of transport share: tiny models with operators, and one in which layers are linear."""

from __future__ import annotations

import tempfile

import torch
from torch import nn

from interp import sae, transport
from interp.methods.transport.transport_operator import transport_operator
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.transport import Operators, Policy
from tests import tiny

STORE = tempfile.mkdtemp(prefix="actiscope-test-")
PROMPT = Prompt("the cat sat on the mat")
FAMILIES = [("gpt2", 0), ("llama", 1), ("gemma2", 0)]
_NORMS = {"gpt2": ("ln_2",), "llama": ("post_attention_layernorm",),
          "gemma2": ("pre_feedforward_layernorm", "post_feedforward_layernorm")}  # fmt: skip


def fitted(family: str, seed: int = 0, policy: Policy = "same") -> tuple[LanguageModel, Operators, sae.SAE]:
    """A tiny model, operators of that policy, and its SAE of the stream behind layer 1."""
    model = tiny.featured(tiny.language(family, seed))
    if not transport.available(model, policy):
        transport_operator(model, tiny.small_texts(), context=32, policy=policy)
    return model, transport.need(model, "", policy), sae.load(sae.first(model))


def linear(family: str, seed: int = 0) -> tuple[LanguageModel, Operators, sae.SAE]:
    """The same of a model in which layer 1 maps the stream x to x + A x + c, and layers 0 and 2 leave it alone."""
    network = tiny.untouched(family, seed=seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("c_proj.weight", "c_proj.bias", "o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    block = (network.transformer.h if family == "gpt2" else network.model.layers)[1]
    for norm in _NORMS[family]:
        setattr(block, norm, nn.Identity())
    block.mlp = nn.Linear(16, 16).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    block.mlp.weight.copy_(torch.randn(16, 16, generator=generator) / 4)
    block.mlp.bias.copy_(torch.randn(16, generator=generator))
    model = tiny.featured(LanguageModel(network, tiny.tokenizer(), f"linear {family} {seed}"))
    return model, transport.need(model), sae.load(sae.first(model))
