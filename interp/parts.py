"""Parts: where the pieces of an architecture lie in its network, read from the network itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from interp.sites import Site

ATTENTION = ("attn", "self_attn", "attention")
MLP = ("mlp", "block_sparse_moe", "feed_forward")
DOWN = ("c_proj", "fc2", "down_proj", "dense_4h_to_h", "weights_out")
PROJECTION = ("o_proj", "c_proj", "dense", "out_proj")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm")
# what the attention (MLP) adds to the residual stream leaves through the first of these that the block has
AFTER_ATTENTION = ("layer_scale1",)
AFTER_MLP = ("layer_scale2", "post_feedforward_layernorm")


class Parts:
    """The blocks or stages, heads, patch grid and embedding of a network, and the kinds of site it refuses."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network
        self.config: Any = network.config
        self.refused: dict[str, str] = {}
        """kind of site -> why this model has none"""
        self.stages = self._stages()
        self.block_paths = [] if self.stages else self._block_paths()
        self.blocks = [network.get_submodule(path) for path in self.block_paths]
        get = lambda *names: next((getattr(self.config, n) for n in names if getattr(self.config, n, None)), None)  # noqa: E731
        self.heads: int = get("num_attention_heads", "n_head") or 0
        self.kv_heads: int = get("num_key_value_heads") or self.heads
        self.rotary = any("rotary" in type(module).__name__.lower() for module in network.modules())
        self.patches = self._patches() if self.blocks else None
        self.embedding = next(
            (path for path, module in network.named_modules() if isinstance(module, nn.Embedding)), ""
        )
        """the token embedding: the first table of a language model"""
        self.before_logits = self._before_logits()
        """what a language model does to the last residual stream before the unembedding, as paths of modules"""
        if self.blocks and getattr(self.config, "use_parallel_residual", False):
            self.refused["resid_mid"] = "attention and MLP read the same residual stream in parallel"
        if self.blocks and not getattr(network, "_supports_attention_backend", False):
            for kind in ("q", "k", "v", "pattern", "z"):
                self.refused[kind] = "its attention can't be reached through transformers' attention interface"

    def _stages(self) -> list[str]:
        """Addresses whose outputs are the stages of a convolutional network or Swin, the head convolution last."""
        base = getattr(self.network, "base_model_prefix", "")
        module = self.network.get_submodule(base)
        prefix = base + "." if base else ""
        encoder: Any = getattr(module, "encoder", None)
        if hasattr(encoder, "stages"):
            return [f"{prefix}encoder.stages.{index}" for index in range(len(encoder.stages))]
        if self.config.model_type in ("swin", "swinv2"):
            return [f"{prefix}encoder.layers.{index}" for index in range(len(encoder.layers))]
        if hasattr(encoder, "top_activation"):  # EfficientNet: a flat list of blocks, then the head convolution
            widths = [block.projection.project_conv.out_channels for block in encoder.blocks]
            return [f"{prefix}encoder.blocks.{index}" for index in _ends(widths)] + [f"{prefix}encoder.top_activation"]
        if hasattr(module, "conv_1x1") and hasattr(module, "layer"):  # MobileNetV2
            widths = [block.reduce_1x1.convolution.out_channels for block in module.layer]
            return [f"{prefix}layer.{index}" for index in _ends(widths)] + [f"{prefix}conv_1x1"]
        return []

    def _block_paths(self) -> list[str]:
        lists = [
            path
            for path, module in self.network.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) and all(_child(block, ATTENTION) for block in module)
        ]
        if not lists:
            return []
        path = max(lists, key=lambda each: len(self.network.get_submodule(each)))
        return [f"{path}.{index}" for index in range(len(self.network.get_submodule(path)))]

    def _patches(self) -> tuple[int, int] | None:
        image, patch = (_pair(getattr(self.config, key, None)) for key in ("image_size", "patch_size"))
        return (image[0] // patch[0], image[1] // patch[1]) if image and patch else None

    def _before_logits(self) -> tuple[str, ...]:
        if not self.blocks:
            return ()
        around, _, _ = self.block_paths[0].rpartition(".")[0].rpartition(".")
        holder = self.network.get_submodule(around)
        found = (_child(holder, FINAL_NORM), _child(holder, ("project_out",)))
        return tuple(f"{around}.{name}".strip(".") for name in found if name)

    def projection(self, layer: int) -> str | None:
        """The module that takes the heads' z, side by side, to the residual stream."""
        attention = _child(self.blocks[layer], ATTENTION)
        name = _child(getattr(self.blocks[layer], str(attention)), PROJECTION)
        return f"{self.block_paths[layer]}.{attention}.{name}" if name else None

    def transformer_addresses(self) -> Iterator[tuple[Site, tuple[str, str, str | None]]]:
        """Site -> (module, port, block) of every block, in the order they are computed."""
        embeddings = [path for path, _ in self.network.named_modules() if path.endswith("embeddings")]
        yield Site("embed"), (embeddings[0] if embeddings else self.embedding, "out", None)
        for layer, (path, block) in enumerate(zip(self.block_paths, self.blocks, strict=True)):
            attention, mlp = _child(block, ATTENTION), _child(block, MLP)
            sandwich = hasattr(block, "pre_feedforward_layernorm") or not hasattr(block, "input_layernorm")
            after = (
                (*AFTER_ATTENTION, "post_attention_layernorm")
                if sandwich and hasattr(block, "post_feedforward_layernorm")
                else AFTER_ATTENTION
            )
            attn_out = f"{path}.{_child(block, after) or attention}"
            # OPT keeps the two layers of its MLP in the block itself
            inner = f"{mlp}." if mlp else ""
            down = _child(getattr(block, mlp) if mlp else block, DOWN)
            found: dict[str, tuple[str, str, str | None]] = {"resid_pre": (path, "in", None)}
            found |= {kind: (f"{path}.{attention}", kind, None) for kind in ("q", "k", "v", "pattern", "z")}
            found["attn_out"] = (attn_out, "out", None)
            found["resid_mid"] = (attn_out, "mid", path)
            if down:
                found["mlp_post"] = (f"{path}.{inner}{down}", "in", None)
            else:
                self.refused.setdefault("mlp_post", "its MLP has no single hidden layer")
            if mlp or down:
                found["mlp_out"] = (f"{path}.{_child(block, AFTER_MLP) or mlp or down}", "out", None)
            else:
                self.refused.setdefault("mlp_out", "its MLP is not a module of its own")
            found["resid_post"] = (path, "out", None)
            for kind, address in found.items():
                if kind not in self.refused:
                    yield Site(kind, layer), address


def _child(block: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(block, name, None), nn.Module)), None)


def _ends(widths: list[int]) -> list[int]:
    """The last index of every run of equal widths."""
    return [index for index in range(len(widths)) if index + 1 == len(widths) or widths[index] != widths[index + 1]]


def _pair(size: Any) -> tuple[int, int] | None:
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
