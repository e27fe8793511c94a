"""The lenses again, slowly, from the modules of a GPT-2 and a Llama themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.model import LanguageModel


def head_shares(model: LanguageModel, ids: Tensor, direction: Tensor) -> Tensor:
    """[layer, head]: what each head of the last position writes along `direction`, the final norm's scale frozen."""
    network: Any = model.network
    gpt2 = model.family == "gpt2"
    blocks = network.transformer.h if gpt2 else network.model.layers
    norm = network.transformer.ln_f if gpt2 else network.model.norm
    sites = [f"z.{layer}" for layer in range(model.layers)] + [f"resid_post.{model.layers - 1}"]
    with model.record(sites) as found:
        model(ids)
    x = found[sites[-1]][0, -1].double()
    if gpt2:
        scale = 1 / (x.var(unbiased=False) + norm.eps).sqrt()
    else:
        scale = 1 / (x.square().mean() + norm.variance_epsilon).sqrt()
    rows = []
    for layer, block in enumerate(blocks):
        z = found[f"z.{layer}"][0, -1].double()
        weight = block.attn.c_proj.weight if gpt2 else block.self_attn.o_proj.weight.T
        parts = torch.stack([each @ weight[h * len(each) : (h + 1) * len(each)].double() for h, each in enumerate(z)])
        if gpt2:
            parts = parts - parts.mean(1, keepdim=True)
        rows.append((parts * scale * norm.weight.double()) @ direction.double())
    return torch.stack(rows)
