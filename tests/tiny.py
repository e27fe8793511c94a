"""One tiny random network per family: every weight, bias and statistic drawn, so that nothing hides behind a zero."""

from __future__ import annotations

import functools
import json
import math
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as T
from safetensors.torch import save_file
from torch import nn
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from interp import feature_index, sae
from interp.methods.steering.difference_of_means import difference_of_means
from interp.methods.steering.soft_injection import soft_injection
from interp.methods.transport.transport_operator import transport_operator
from interp.model import LanguageModel, Model, VisionModel
from interp.samples import Contrast, Image, ImageSet, Prompt, TextSet
from interp.sites import Site

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
DINO: dict[str, Any] = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
SWIN: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 4,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 2]}
LLAMA: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}

VISION: dict[str, Callable[[], Any]] = {
    "resnet": lambda: T.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES),
    "resnet_bottleneck": lambda: T.ResNetConfig(embedding_size=8, layer_type="bottleneck", **STAGES),
    "regnet": lambda: T.RegNetConfig(embedding_size=8, groups_width=8, **STAGES),
    "convnext": lambda: T.ConvNextConfig(num_stages=2, layer_scale_init_value=1.0, **STAGES),
    "convnextv2": lambda: T.ConvNextV2Config(num_stages=2, **STAGES),
    "efficientnet": lambda: T.EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=0.2,
        hidden_dim=320,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 3, 5],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
    ),
    "mobilenet_v2": lambda: T.MobileNetV2Config(depth_multiplier=0.25),
    "vit": lambda: T.ViTConfig(**VIT),
    "deit": lambda: T.DeiTConfig(**VIT),
    "dinov2": lambda: T.Dinov2Config(layerscale_value=1.0, **DINO),
    "dinov2_with_registers": lambda: T.Dinov2WithRegistersConfig(num_register_tokens=2, **DINO),
    "beit": lambda: T.BeitConfig(layer_scale_init_value=0.5, use_relative_position_bias=True, **VIT),
    "swin": lambda: T.SwinConfig(**SWIN),
    "swinv2": lambda: T.Swinv2Config(**SWIN),
}
"""Configurations by family; `resnet_bottleneck` is the other kind of ResNet block."""

LANGUAGE: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: T.GPT2Config(
        vocab_size=258,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=128,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
    ),
    "llama": lambda: T.LlamaConfig(**LLAMA),
    "mistral": lambda: T.MistralConfig(sliding_window=None, **LLAMA),
    "qwen2": lambda: T.Qwen2Config(**LLAMA),
    "qwen3": lambda: T.Qwen3Config(head_dim=4, **LLAMA),
    "gemma2": lambda: T.Gemma2Config(head_dim=4, sliding_window=64, **LLAMA),
    "gemma3_text": lambda: T.Gemma3TextConfig(head_dim=4, sliding_window=4, **LLAMA),
    "phi3": lambda: T.Phi3Config(**LLAMA),
    "olmo2": lambda: T.Olmo2Config(**LLAMA),
    "mixtral": lambda: T.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **LLAMA),
    "gpt_neox": lambda: T.GPTNeoXConfig(**{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}),
    "opt": lambda: T.OPTConfig(
        vocab_size=258,
        hidden_size=16,
        word_embed_proj_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=128,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
    ),
}

# its five halvings would leave 32 px a single cell
LARGE = ("mobilenet_v2",)
CLASSES = ("cat", "dog", "teapot")


def vision(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> VisionModel:
    """A tiny image classifier of three classes (cat, dog, teapot); families are the keys of VISION."""
    return _vision(family, dtype, seed)


def language(family: str, seed: int = 0) -> LanguageModel:
    """A tiny causal language model that reads bytes; families are the keys of LANGUAGE."""
    return _language(family, seed)


def image(seed: int = 0, width: int = 60, height: int = 40) -> Image:
    """A random picture: smooth colours with noise, so that neighbouring pixels are alike and none are equal."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(40, 215, (4, 6, 3))
    smooth = np.repeat(np.repeat(coarse, math.ceil(height / 4), 0), math.ceil(width / 6), 1)[:height, :width]
    return Image.of((smooth + generator.normal(0, 15, (height, width, 3))).clip(0, 255).astype(np.uint8))


def size(family: str) -> int:
    """Height and width of the input in pixels."""
    return 64 if family in LARGE else 32


@functools.lru_cache(64)
def _vision(family: str, dtype: torch.dtype, seed: int) -> VisionModel:
    config = VISION[family]()
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {label: index for index, label in enumerate(CLASSES)}
    network = _make(T.AutoModelForImageClassification, config, seed)
    edge = size(family)
    processor = ViTImageProcessorPil(size={"height": edge, "width": edge})
    return VisionModel(network.to(dtype), processor, f"tiny {family}")


@functools.lru_cache(64)
def _language(family: str, seed: int) -> LanguageModel:
    return LanguageModel(_make(T.AutoModelForCausalLM, LANGUAGE[family](), seed), tokenizer(), f"tiny {family}")


def untouched(family: str, attention: str | None = None, seed: int = 0) -> Any:
    """The same network as `language`'s, as transformers makes it, with the attention it picks unless named."""
    config = LANGUAGE[family]()
    config.architectures = []
    with torch.random.fork_rng(devices=[]):
        network = T.AutoModelForCausalLM.from_config(
            config, **({"attn_implementation": attention} if attention else {})
        )
    draw(network, seed)
    return network.eval().requires_grad_(False)


@functools.lru_cache(1)
def tokenizer() -> Any:
    """One token per byte, and two special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "<bos>", "<eos>"])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return T.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )


def _make(kind: Any, config: Any, seed: int) -> nn.Module:
    config.architectures = []
    with torch.random.fork_rng(devices=[]):
        network = kind.from_config(config)
    draw(network, seed)
    return network


@torch.no_grad()
def draw(network: nn.Module, seed: int) -> None:
    """Draw every parameter and every BatchNorm statistic anew, at scales that keep activations of the order of one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, parameter in network.named_parameters():
        if "logit_scale" in name:  # SwinV2's temperature, in logarithms
            continue
        norm = re.search(r"norm|bn|batch", name) is not None and parameter.dim() == 1
        if (norm and name.endswith("weight")) or "lambda" in name or "layer_scale" in name:
            parameter.copy_(1 + 0.2 * normal(parameter))
        elif (
            parameter.dim() >= 2
            and name.endswith("weight")
            and "grn" not in name
            and "embed" not in name.rsplit(".", 2)[-2]
        ):
            parameter.copy_(normal(parameter) * math.sqrt(2 / parameter[0].numel()))
        else:
            parameter.copy_(0.3 * normal(parameter))
    normed = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if normed:  # measured on noise first: statistics far from the real ones would make logits in the hundreds
        for module in normed:
            module.momentum = 1.0
        with torch.random.fork_rng(devices=[]):
            network.train()(pixel_values=torch.randn(8, 3, 64, 64, generator=generator))
        network.eval()
        for module in normed:
            mean, variance = module.running_mean, module.running_var
            assert mean is not None and variance is not None
            mean.add_(0.3 * variance.sqrt() * normal(mean))
            variance.mul_(0.5 + torch.rand(variance.shape, generator=generator))


def random_sae(
    folder: Path, architecture: str = "standard", d_in: int = 16, d_sae: int = 32, seed: int = 0, **settings: Any
) -> dict[str, torch.Tensor]:
    """Write an SAE in SAELens's format with every weight, bias and threshold drawn; return the weights.

    settings: of cfg.json (d_out, k, metadata, normalize_activations ...).
    """
    generator = torch.Generator().manual_seed(seed)
    d_out = settings.get("d_out", d_in)
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    if architecture != "matching_pursuit":
        shapes["W_enc"] = (d_in, d_sae)
    if architecture == "gated":
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,))
    elif architecture != "matching_pursuit":
        shapes["b_enc"] = (d_sae,)
    if "jumprelu" in architecture:
        shapes["threshold"] = (d_sae,)
    if "skip" in architecture:
        shapes["W_skip"] = (d_out, d_in)
    weights = {
        key: torch.randn(shape, generator=generator) * (shape[0] ** -0.5 if key == "W_enc" else 0.4)
        for key, shape in shapes.items()
    }
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    if architecture == "matching_pursuit":  # which has rows of length one
        weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"k": 5} if "topk" in architecture else {}),
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.0.hook_resid_post"},
        **settings,
    }
    write_sae(folder, config, weights)
    return weights


def write_sae(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write cfg.json and sae_weights.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sae.CONFIG).write_text(json.dumps(config))
    save_file({key: each.contiguous() for key, each in weights.items()}, folder / sae.WEIGHTS)


def featured(model: Any) -> Any:
    """The model, with a random SAE and its index in the store: of the middle layer, or the last map of images.

    A fifth of its features fire, and the first nearly everywhere. GPT-2 and Llama get a transcoder of an MLP besides,
    and all language models operators between their streams, a direction and a task.
    """
    if sae.available(model):
        return model
    vision = isinstance(model, VisionModel)
    site = model.last_spatial if vision else Site("resid_post", 1)
    name = _keep_random(model, "standard", site, site)
    data: Any = (
        ImageSet(tuple(image(seed) for seed in range(5, 9)))
        if vision
        else TextSet(("The cat sat on the mat, and so did I.", "A dog ran, but the mat was on the cat."))
    )
    feature_index.build(model, sae.load(name), data)
    if model.family in ("gpt2", "llama"):
        mlp = Site("mlp_out", 1)
        _keep_random(model, "transcoder", Site("module", path=f"{model.address(mlp)}:in"), mlp)
    if not vision:
        transport_operator(model, small_texts(), context=32)
        difference_of_means(model, two_sides())
        soft_injection(model, two_sides(), steps=2)
    return model


def small_texts(count: int = 40, seed: int = 0) -> TextSet:
    """Texts of six words each, drawn from a few."""
    words = ("the", "cat", "sat", "on", "a", "mat", "and", "so", "did", "my", "dog", "but", "not", "that", "hat")
    draw = random.Random(seed)
    return TextSet(tuple(" ".join(draw.choices(words, k=6)) for _ in range(count)))


def two_sides(count: int = 6, seed: int = 0) -> Contrast:
    """Texts of small letters that end in a question mark, and others that end in an exclamation mark."""
    texts = small_texts(2 * count, seed).texts
    return Contrast(tuple(f"{each}?" for each in texts[:count]), tuple(f"{each}!" for each in texts[count:]))


def _keep_random(model: Model, architecture: str, site: Site, target: Site) -> str:
    seen: Any = image(5) if isinstance(model, VisionModel) else Prompt("The cat sat on the mat, and so did I.")
    with model.record([site, target]) as found:
        model(seen)
    shell = sae.SAE("", "", {}, {})
    x, y = (shell.rows(found[each].float(), model, each).flatten(0, 1) for each in (site, target))
    with tempfile.TemporaryDirectory() as folder:
        metadata = {
            "model_name": model.name,
            "model_digest": model.digest,
            "actiscope": {"site": str(site), "target": str(target)},
        }
        weights = random_sae(
            Path(folder), architecture, x.shape[1], 32, 0, d_out=y.shape[1], metadata=metadata | {"hook_name": "-"}
        )
        weights["b_dec"] = y.mean(0)
        inside = x if architecture == "transcoder" else x - weights["b_dec"]
        weights["b_enc"] = -(inside @ weights["W_enc"]).quantile(0.8, 0)
        weights["b_enc"][0] = -(inside @ weights["W_enc"][:, 0]).quantile(0.05)
        config = json.loads((Path(folder) / sae.CONFIG).read_text())
        write_sae(Path(folder), config, weights)
        return sae.keep(folder)
