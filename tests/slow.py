"""GPT-2 and Llama written out by hand, position by position where that is clearer: what the sites are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Edits = Mapping[str, Callable[[Tensor], Tensor]]


class Trace(dict[str, Tensor]):
    """Activations by site, each after its edit."""

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self.edits = edits

    def at(self, site: str, value: Tensor) -> Tensor:
        self[site] = self.edits.get(site, lambda same: same)(value)
        return self[site]


def gpt2(network: Any, ids: Tensor, edits: Edits | None = None) -> tuple[Tensor, Trace]:
    """Logits and activations of one unpadded batch, with edits applied where they are computed."""
    trace, weights, config = Trace(edits or {}), network.state_dict(), network.config
    positions = torch.arange(ids.shape[1])
    hidden = trace.at("input", weights["transformer.wte.weight"][ids]) + weights["transformer.wpe.weight"][positions]
    for layer in range(config.n_layer):
        get = lambda name, layer=layer: weights[f"transformer.h.{layer}.{name}"]  # noqa: E731
        hidden = trace.at(f"resid_pre.{layer}", hidden)
        normed = _layer_norm(hidden, get("ln_1.weight"), get("ln_1.bias"), config.layer_norm_epsilon)
        q, k, v = (normed @ get("attn.c_attn.weight") + get("attn.c_attn.bias")).chunk(3, -1)
        z = _attention(trace, layer, *(each.unflatten(-1, (config.n_head, -1)) for each in (q, k, v)))
        out = trace.at(f"attn_out.{layer}", z.flatten(2) @ get("attn.c_proj.weight") + get("attn.c_proj.bias"))
        hidden = trace.at(f"resid_mid.{layer}", hidden + out)
        normed = _layer_norm(hidden, get("ln_2.weight"), get("ln_2.bias"), config.layer_norm_epsilon)
        inner = F.gelu(normed @ get("mlp.c_fc.weight") + get("mlp.c_fc.bias"), approximate="tanh")
        inner = trace.at(f"mlp_post.{layer}", inner)
        out = trace.at(f"mlp_out.{layer}", inner @ get("mlp.c_proj.weight") + get("mlp.c_proj.bias"))
        hidden = trace.at(f"resid_post.{layer}", hidden + out)
    hidden = _layer_norm(
        hidden, weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"], config.layer_norm_epsilon
    )
    return hidden @ weights["lm_head.weight"].T, trace


def llama(network: Any, ids: Tensor, edits: Edits | None = None) -> tuple[Tensor, Trace]:
    """The same for Llama: RMS norms, rotary positions, grouped-query heads, SwiGLU."""
    trace, weights, config = Trace(edits or {}), network.state_dict(), network.config
    size = config.hidden_size // config.num_attention_heads
    hidden = trace.at("input", weights["model.embed_tokens.weight"][ids])
    for layer in range(config.num_hidden_layers):
        get = lambda name, layer=layer: weights[f"model.layers.{layer}.{name}.weight"]  # noqa: E731
        hidden = trace.at(f"resid_pre.{layer}", hidden)
        normed = _rms_norm(hidden, get("input_layernorm"), config.rms_norm_eps)
        q, k, v = ((normed @ get(f"self_attn.{name}_proj").T).unflatten(-1, (-1, size)) for name in "qkv")
        z = _attention(trace, layer, _rotate(q), _rotate(k), v)
        out = trace.at(f"attn_out.{layer}", z.flatten(2) @ get("self_attn.o_proj").T)
        hidden = trace.at(f"resid_mid.{layer}", hidden + out)
        normed = _rms_norm(hidden, get("post_attention_layernorm"), config.rms_norm_eps)
        inner = F.silu(normed @ get("mlp.gate_proj").T) * (normed @ get("mlp.up_proj").T)
        out = trace.at(f"mlp_out.{layer}", trace.at(f"mlp_post.{layer}", inner) @ get("mlp.down_proj").T)
        hidden = trace.at(f"resid_post.{layer}", hidden + out)
    hidden = _rms_norm(hidden, weights["model.norm.weight"], config.rms_norm_eps)
    return hidden @ weights["lm_head.weight"].T, trace


def _attention(trace: Trace, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (trace.at(f"{kind}.{layer}", value) for kind, value in (("q", q), ("k", k), ("v", v)))
    batch, length, heads, size = q.shape
    shared = heads // k.shape[2]  # so many query heads read one key head
    pattern = torch.zeros(batch, heads, length, length, dtype=q.dtype)
    for head in range(heads):
        for query in range(length):
            scores = torch.stack(
                [(q[:, query, head] * k[:, key, head // shared]).sum(-1) / math.sqrt(size) for key in range(query + 1)],
                -1,
            )
            pattern[:, head, query, : query + 1] = scores.softmax(-1)
    pattern = trace.at(f"pattern.{layer}", pattern)
    z = torch.stack(
        [torch.einsum("bqk,bkd->bqd", pattern[:, head], v[:, :, head // shared]) for head in range(heads)], 2
    )
    return trace.at(f"z.{layer}", z)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _rotate(x: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of a head by position x 10000^(-2i / size)."""
    length, half = x.shape[1], x.shape[-1] // 2
    out = torch.empty_like(x)
    for position in range(length):
        for i in range(half):
            angle = position * 10000 ** (-i / half)
            a, b = x[:, position, :, i], x[:, position, :, i + half]
            out[:, position, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, position, :, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out
