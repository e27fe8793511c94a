"""Model, VisionModel, LanguageModel: handles on a frozen Hugging Face network, for any number of threads."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp import Unsuitable, hooks, progress
from interp.hooks import Action, Block, Here, Point, Recorder
from interp.parts import Parts
from interp.samples import Image, Prompt, Target
from interp.sites import HEAD_AXIS, HEADED, ROTARY, Site

T = TypeVar("T")
_NO_SETTINGS = ("architectures", "dtype", "torch_dtype", "transformers_version", "name_or_path")
"""What a configuration says about how it was stored, not about what it computes."""
CACHE_BYTES = 256 * 2**20
"""How much each model keeps of its captures (activations, logits, gradients)."""


class Record(Mapping[Site, Any]):
    """Site -> the tensor of the last forward (or the list of all of them), also found by the site's text."""

    def __init__(self, recorders: Mapping[Site, Recorder], every: bool, resolve: Callable[[Site | str], Site]) -> None:
        self.recorders, self.every, self.resolve = recorders, every, resolve

    def __getitem__(self, site: Site | str) -> Any:
        values = self.recorders[self.resolve(site)].values
        if not values and not self.every:
            raise KeyError(f"{site} was not reached by a forward in this record block")
        return values if self.every else values[-1]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.recorders)

    def __len__(self) -> int:
        return len(self.recorders)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str | Site) and self.resolve(site) in self.recorders


class Model:
    """A frozen network: run it, record and edit its activations, swap its weights, for the length of a with-block."""

    def __init__(self, network: nn.Module, name: str) -> None:
        for module in network.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # an activation changed in place after it was recorded would record the change
        self._network = network.eval().requires_grad_(False)
        self.name = name
        self.config: Any = network.config
        self.parts = Parts(network)
        self.owner = hooks.install(network, self.parts.blocks)
        self._cache: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._cache_lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def network(self) -> nn.Module:
        """The network as this context sees it: a clone where a swap is in force. Never keep it or its Parameters."""
        return hooks.network_now(self.owner, self._network)

    @property
    def device(self) -> torch.device:
        return next(self._network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._network.parameters()).dtype

    @property
    def family(self) -> str:
        """Hugging Face's model type: resnet, vit, gpt2, llama ..."""
        return str(self.config.model_type)

    @cached_property
    def digest(self) -> str:
        """sha256 of the unchanged weights and buffers with their names, and of the architecture's settings."""
        settings = {
            key: value for key, value in self.config.to_dict().items() if key not in _NO_SETTINGS and key[0] != "_"
        }
        hasher = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self._network.state_dict().items()):
            hasher.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return hasher.hexdigest()

    def weight(self, name: str) -> Tensor:
        """The parameter or buffer of that name, as this context sees it."""
        path, _, leaf = name.rpartition(".")
        module = self.network.get_submodule(path)
        return module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]  # type: ignore[return-value]

    @property
    def layers(self) -> int:
        """How many blocks (transformers) or stages (convolutional networks) it has."""
        return len(self.parts.blocks) or len(self.parts.stages)

    # ------------------------------------------------------------------------------------------------------ sites

    def sites(self) -> list[Site]:
        """The named sites this model has, from input to output (`module:...` reaches anything else)."""
        return list(self._points)

    @cached_property
    def _points(self) -> dict[Site, Point]:
        points = {
            site: Point((self.owner, address, port), block=block) for site, (address, port, block) in self._addresses()
        }
        kinds = ("attn_out", "resid_mid", "mlp_out")
        if any(site.kind in kinds for site in points) and not self._adds_up(points):
            reason = "what attention and MLP add to its residual stream is not the output of a module"
            self.parts.refused |= dict.fromkeys(kinds, reason)
            points = {site: point for site, point in points.items() if site.kind not in kinds}
        return points

    def _adds_up(self, points: Mapping[Site, Point]) -> bool:
        """Whether resid_pre + attn_out + mlp_out = resid_post in the last layer, on a small random input."""
        layer = self.layers - 1
        found = {site.kind: point for site, point in points.items() if site.layer == layer}
        if "mlp_out" not in found:
            return False
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        recorders = {kind: Recorder(False, False) for kind in kinds}
        with hooks.alone(), hooks.planned(Action(found[kind], recorder=recorders[kind]) for kind in kinds):
            self(self._random_input())
        pre, attention, mlp, post = (recorders[kind].values[0].double() for kind in kinds)
        if not pre.shape == attention.shape == mlp.shape:
            return False
        scale = max(each.abs().max() for each in (pre, attention, mlp, post))
        return bool((pre + attention + mlp - post).abs().max() <= 64 * torch.finfo(self.dtype).eps * scale)

    def _addresses(self) -> Iterator[tuple[Site, tuple[str, str, str | None]]]:
        """Site -> (module, port, block), in the order they are computed."""
        raise TypeError(f"{type(self).__name__} is neither a vision nor a language model")

    def _random_input(self) -> Tensor:
        raise TypeError(f"{type(self).__name__} is neither a vision nor a language model")

    def __call__(self, sample: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} is neither a vision nor a language model")

    def refuses(self, site: Site) -> str | None:
        """The reason why this model has no such site, or None."""
        try:
            self._point(site)
        except Unsuitable as reason:
            return str(reason)
        return None

    def resolve(self, site: Site | str) -> Site:
        """The site by our name: TransformerLens names are read, and refused where they mean something else here.

        Raises:
            Unsuitable: the model has no such site.
        """
        site = Site.parse(site)
        if site.kind in ROTARY:
            rotary = self.parts.rotary
            if rotary != site.kind.startswith("hook_rot"):
                raise Unsuitable(
                    f"{site} is not kept by this model: q and k are given as attention uses them"
                    + (", after rotary (hook_rot_q, hook_rot_k)." if rotary else "; it has no rotary embedding.")
                )
            site = Site(ROTARY[site.kind], site.layer, site.head)
        self._point(site)
        return site

    def address(self, site: Site) -> str:
        """The path of the module at which a site lies."""
        return self._point(site).key[1]

    def _point(self, site: Site) -> Point:
        if site.kind == "module":
            path, _, port = str(site.path).partition(":")
            try:
                self._network.get_submodule(path)
            except AttributeError:
                raise Unsuitable(f"{self.name} has no module {path!r}.") from None
            if port not in ("", "in"):
                raise Unsuitable(f"{site} ends in {port!r}; only :in can follow a module's path.")
            return Point((self.owner, path, port or "out"), copied=True)
        plain = Site(site.kind, site.layer)
        point = self._points.get(plain)
        if point is None:
            reason = self.parts.refused.get(site.kind)
            layers = (
                f" (it has {self.layers} layers, from 0)"
                if any(each.kind == site.kind for each in self._points)
                else ""
            )
            raise Unsuitable(f"{self.name} has no site {site}{layers}" + (f": {reason}." if reason else "."))
        if site.head is None:
            return point
        heads = self.parts.kv_heads if site.kind in ("k", "v") else self.parts.heads
        if site.head >= heads:
            raise Unsuitable(f"{self.name} has {heads} heads at {plain}, from 0.")
        return Point(point.key, site.head, HEAD_AXIS[site.kind])

    # ------------------------------------------------------------------------------------------------ with-blocks

    def record(self, sites: Sequence[Site | str], grad: bool = False, every: bool = False) -> Block:
        """Record activations as they are after the edits in force, from the forward run in the block.

        Args:
            grad: keep the graph; the first site reached becomes a detached leaf, so nothing before it costs a backward.
            every: allow several forwards and give lists; otherwise a second forward raises.

        Returns:
            A block that gives a mapping Site -> Tensor.
        """
        recorders = {self.resolve(site): Recorder(every, grad) for site in sites}
        actions = [Action(self._point(site), recorder=recorder) for site, recorder in recorders.items()]
        return hooks.planned(actions, Record(recorders, every, self.resolve))

    def edit(self, edits: Mapping[Site | str, Callable[[Tensor], Tensor]], carried: int | None = None) -> Block:
        """Replace activations: `function(activation)` gives a new tensor. Edits of one site apply in order of entry.

        carried: the layer from which on all has to run where an edit uses what stood at another, so that a rerun from
        a later layer begins there (`carried_from`).
        """
        actions = [Action(self._point(self.resolve(site)), function=function) for site, function in edits.items()]
        if carried is not None:
            actions.append(Action(Point((self.owner, str(carried), "carried"))))
        return hooks.planned(actions, raw=True)

    def carried_from(self) -> int:
        """The last layer from which a rerun gives what the edits in force give: they may use what stood at others."""
        carried = [int(where) for owner, where, port in hooks.plan() if owner == self.owner and port == "carried"]
        return min(carried, default=self.layers)

    def around(self, routes: Mapping[int, hooks.Around]) -> Block:
        """Go around blocks: `function(run, resid_pre) -> resid_post` may run the layer never, once or often.

        Skip: `lambda run, x: x`; repeat: `lambda run, x: run(run(x))`; replay: return what was recorded before.
        """
        if not self.parts.blocks:
            raise Unsuitable(f"{self.name} has no transformer blocks to go around.")
        if wrong := [layer for layer in routes if not 0 <= layer < self.layers]:
            raise Unsuitable(f"{self.name} has layers 0 to {self.layers - 1}, not {wrong[0]}.")
        actions = [
            Action(Point((self.owner, self.parts.block_paths[layer], "call")), around=function)
            for layer, function in routes.items()
        ]
        return hooks.planned(actions, raw=True)

    def swap(self, new: Mapping[str, Tensor | nn.Module]) -> Block:
        """Run with other parameters, buffers or modules, on a clone that shares the rest; tied names together."""
        return hooks.swapped(self.owner, lambda: self.network, new)

    # ---------------------------------------------------------------------------------------------------- captures

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, or what it gave before under the same interventions. Under a raw edit or swap nothing is reused."""
        calls = hooks.in_force()
        if any(isinstance(call, hooks.Raw) for call in calls):
            return make()
        full = (calls, key)
        with self._cache_lock:
            if full in self._cache:
                self._cache.move_to_end(full)
                return self._cache[full][0]
        value = make()
        with self._cache_lock:
            self._cache[full] = (value, _bytes(value))
            while sum(each for _, each in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return value

    def forget(self) -> None:
        """Drop all captures."""
        with self._cache_lock:
            self._cache.clear()


def gradient(
    output: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor | None = None,
    batched: bool = False,
    keep: bool = False,
    loose: bool = False,
) -> tuple[Tensor, ...]:
    """d output / d inputs, by `torch.autograd.grad` and nothing else; counted by the meter.

    Args:
        weights: what to multiply output with; `batched`: its first axis runs over several such weightings at once.
        keep: keep the graph for another backward.
        loose: zeros where the output does not depend on an input, instead of an error.
    """
    progress.check()
    progress.spent(backwards=len(weights) if batched and weights is not None else 1)
    return torch.autograd.grad(
        output, tuple(inputs), weights, is_grads_batched=batched, retain_graph=keep, materialize_grads=loose
    )


class VisionModel(Model):
    """An image classifier. `model(image)` gives logits [batch, class]; `model.grid(site)` makes maps of tokens."""

    def __init__(self, network: nn.Module, processor: Any, name: str = "vision model") -> None:
        super().__init__(network, name)
        self.processor = processor
        names = self.config.id2label
        self.labels: tuple[str, ...] = tuple(str(names[index]) for index in range(len(names)))
        # what processors do to a value (rescale, offset, normalise once or twice) is affine: two points tell it
        black, white = (self._process(PIL.Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
        middle = black.shape[-2] // 2, black.shape[-1] // 2  # the border may be padding
        self.input_size: tuple[int, int] = (black.shape[-2], black.shape[-1])
        """height and width, in pixels, of what the processor makes (of a square image)"""
        low, high = (each[0][:, middle[0], middle[1]].view(3, 1, 1) for each in (black, white))
        self.std, self.mean = 1 / (high - low), -low / (high - low)
        self.sites()  # looked up now, so that the check of the residual stream counts in no one's costs

    def inputs(self, sample: Image) -> Float[Tensor, "1 3 height width"]:
        """The pixels as the network gets them: resized, cropped and normalised by the model's own processor."""

        # no intervention changes what the processor makes of the image, so the cache is asked outside all of them
        with hooks.alone():
            pixels = self.cached(("inputs", sample.sha256), lambda: self._process(sample.picture))
        # a copy, so that no one can change what is kept
        return pixels.to(self.device, self.dtype, copy=True)

    def _process(self, picture: PIL.Image.Image) -> Tensor:
        return self.processor(images=picture, return_tensors="pt")["pixel_values"]

    def picture(self, pixels: Float[Tensor, "3 height width"]) -> np.ndarray:
        """Turn input pixels back into a uint8 picture [height, width, 3]."""
        shown = (pixels.detach().float().cpu() * self.std + self.mean).clamp(0, 1) * 255
        return shown.round().byte().permute(1, 2, 0).numpy()

    def box(self, sample: Image) -> tuple[float, float, float, float]:
        """Where the input lies on the upright original: left, top, right, bottom as fractions of it."""
        width, height = sample.size
        get = lambda key: getattr(self.processor, key, None)  # noqa: E731
        if not get("do_resize") and not get("do_center_crop"):
            return 0.0, 0.0, 1.0, 1.0
        size, crop = get("size") or {}, get("crop_size") if get("do_center_crop") else None
        resized_height, resized_width = float(height), float(width)
        if get("do_resize"):
            if "height" in size:
                resized_height, resized_width = float(size["height"]), float(size["width"])
            elif edge := size.get("shortest_edge"):
                if get("crop_pct") is not None:  # ConvNeXt: below 384 scale a little larger and crop, else squash
                    if edge >= 384:
                        return 0.0, 0.0, 1.0, 1.0
                    crop, edge = {"height": edge, "width": edge}, int(edge / self.processor.crop_pct)
                scale = edge / min(width, height)
                resized_height, resized_width = height * scale, width * scale
        if crop is None:
            return 0.0, 0.0, 1.0, 1.0
        right, bottom = crop["width"] / resized_width / 2, crop["height"] / resized_height / 2
        return 0.5 - right, 0.5 - bottom, 0.5 + right, 0.5 + bottom

    def __call__(self, sample: Image | Sequence[Image] | Tensor) -> Float[Tensor, "batch class"]:
        """Logits of an image, of several, or of pixels [batch, 3, height, width] that `inputs` made."""
        if isinstance(sample, Image):
            sample = self.inputs(sample)
        elif not isinstance(sample, Tensor):
            sample = torch.cat([self.inputs(each) for each in sample])
        with hooks.at(Here()):
            logits = self.network(pixel_values=sample).logits
        progress.spent(forwards=len(logits))
        return logits

    def class_index(self, target: Target, logits: Float[Tensor, "1 class"] | None = None) -> int:
        """The number of the class that `target` names; the model's first guess where it names none.

        Raises:
            Unsuitable: no such class; the text names near ones.
        """
        if target.name is None:
            if logits is None:
                raise ValueError("a target of None needs logits")
            return int(logits[0].argmax())
        if isinstance(target.name, int):
            if not 0 <= target.name < len(self.labels):
                raise Unsuitable(f"{self.name} has classes 0 to {len(self.labels) - 1}, not {target.name}.")
            return target.name
        wanted = target.name.strip().lower()
        lower = [label.lower() for label in self.labels]
        if wanted in lower:
            return lower.index(wanted)
        parts = [index for index, label in enumerate(lower) if wanted in (part.strip() for part in label.split(","))]
        if len(parts) == 1:
            return parts[0]
        near = difflib.get_close_matches(wanted, lower, 3, 0.4) or lower[:3]
        raise Unsuitable(f"{self.name} has no class {target.name!r}; it knows for example {', '.join(near)}.")

    @property
    def last_spatial(self) -> Site:
        """The deepest site that still is a map and that the logits depend on everywhere: where CAMs look by default."""
        # the last block of a ViT is read at the class token only, so its patch tokens have no gradient behind it
        return (
            Site("resid_pre", len(self.parts.blocks) - 1)
            if self.parts.blocks
            else Site("stage", len(self.parts.stages) - 1)
        )

    def spatial_sites(self) -> list[Site]:
        """The sites a CAM can look at, from shallow to deep."""
        kinds = ("resid_pre",) if self.parts.blocks else ("stage",)
        return [site for site in self.sites() if site.kind in kinds]

    def grid(self, site: Site | str) -> Callable[[Tensor], Float[Tensor, "batch channel height width"]]:
        """The function that turns activations (or gradients) of `site` into maps; prefix tokens are dropped.

        Raises:
            Unsuitable: the site has no spatial layout.
        """
        site = self.resolve(site)
        size = self.parts.patches

        def maps(activation: Tensor) -> Tensor:
            if activation.dim() == 4 and (site.kind in ("stage", "module", "input") or not self.parts.blocks):
                return activation
            if activation.dim() == 4 and site.kind in HEADED and site.kind != "pattern":
                activation = activation.flatten(2)
            if activation.dim() != 3:
                raise Unsuitable(f"{site} of {self.name} has no spatial layout.")
            tokens = activation.shape[1]
            if size is None:  # Swin halves the grid from stage to stage
                side = math.isqrt(tokens)
                if side * side != tokens:
                    raise Unsuitable(f"{site} of {self.name} has {tokens} tokens, which is no square grid.")
                return activation.transpose(1, 2).unflatten(2, (side, side))
            height, width = size
            prefix = tokens - height * width
            if prefix < 0:
                raise Unsuitable(
                    f"{site} of {self.name} has {tokens} tokens, fewer than its {height} x {width} patches."
                )
            return activation[:, prefix:].transpose(1, 2).unflatten(2, (height, width))

        return maps

    def _random_input(self) -> Tensor:
        height, width = self.input_size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 3, height, width, generator=generator).to(self.device, self.dtype)

    def _addresses(self) -> Iterator[tuple[Site, tuple[str, str, str | None]]]:
        yield Site("input"), ("", "in", None)
        if self.parts.blocks:
            yield from self.parts.transformer_addresses()
        for index, address in enumerate(self.parts.stages):
            yield Site("stage", index), (address, "out", None)


class LanguageModel(Model):
    """A causal language model. `model(prompt)` gives logits [batch, position, token]."""

    def __init__(self, network: nn.Module, tokenizer: Any, name: str = "language model") -> None:
        super().__init__(network, name)
        self.tokenizer = tokenizer
        self.limit = int(getattr(self.config, "max_position_embeddings", 0) or 2**20)
        self.sites()

    def tokens(self, text: str) -> list[str]:
        """The text of each token of `text`; joined equal to it, after the special tokens that the tokenizer adds.

        A character of several tokens stands at the last of them, and the others are empty.
        """
        ids, texts, whole = self.tokenizer(text)["input_ids"], [], ""
        for index in range(len(ids)):
            longer = self.tokenizer.decode(ids[: index + 1], clean_up_tokenization_spaces=False)
            longer = whole if longer.endswith("\ufffd") and index + 1 < len(ids) else longer
            texts.append(longer[len(whole) :])
            whole = longer
        return texts

    def inputs(self, sample: Prompt | str | Sequence[Prompt | str], cut: bool = False) -> Int[Tensor, "batch position"]:
        """Token ids; of several prompts, padded at the left with -1. `cut`: what is too long loses its end.

        Raises:
            Unsuitable: longer than the model's context.
        """
        samples = [sample] if isinstance(sample, Prompt | str) else list(sample)
        ids = [self.tokenizer(each if isinstance(each, str) else each.text)["input_ids"] for each in samples]
        ids = [each[: self.limit] for each in ids] if cut else ids
        longest = max(len(each) for each in ids)
        if longest == 0:
            raise Unsuitable("The prompt has no tokens; type a few words.")
        if longest > self.limit:
            raise Unsuitable(f"The prompt has {longest} tokens; {self.name} reads at most {self.limit}.")
        return torch.tensor([[-1] * (longest - len(each)) + each for each in ids], device=self.device)

    def __call__(
        self, sample: Prompt | str | Sequence[Prompt | str] | Int[Tensor, "batch position"], keep: int = 0
    ) -> Float[Tensor, "batch position token"]:
        """Logits of a prompt, of several, or of token ids (-1 = padding). `keep`: the last positions only (0: all)."""
        ids = sample if isinstance(sample, Tensor) else self.inputs(sample)
        if ids.shape[1] > self.limit:
            raise Unsuitable(f"{ids.shape[1]} tokens are too many; {self.name} reads at most {self.limit}.")
        return self._forward(ids, None, Here(prompt=ids.shape[1]), keep)

    def _forward(self, ids: Tensor, cache: Any, now: Here, keep: int = 0, mask: Tensor | None = None) -> Tensor:
        """One forward. With a cache, `ids` are the new tokens, and `mask` says which of all tokens are no padding."""
        mask = ids >= 0 if mask is None else mask
        keys = torch.where(mask, mask.long().cumsum(1) - 1, -1)
        now.keys, now.positions = keys, keys[:, -ids.shape[1] :]
        prompts = mask[:, : now.prompt].sum(1, keepdim=True)
        now.prompt, now.generated = int(prompts.max()), now.positions >= prompts - 1
        padded = not bool(mask.all())
        extra: dict[str, Any] = (
            {"past_key_values": cache, "use_cache": True} if cache is not None else {"use_cache": False}
        )
        if padded:
            extra |= {"attention_mask": mask.long(), "position_ids": now.positions.clamp(min=0)}
        if keep:
            extra["logits_to_keep"] = keep
        with hooks.at(now):
            logits = self.network(input_ids=ids.clamp(min=0), **extra).logits
        progress.spent(forwards=len(ids))
        return logits

    def generate(
        self, prompt: Prompt | str, n: int, temperature: float = 0.0, seed: int = 0, cache: bool = True
    ) -> Iterator[str]:
        """Stream `n` tokens as text, under the interventions in force at this call, whatever is in force later.

        Args:
            temperature: 0 takes the likeliest token; otherwise tokens are drawn with an own generator seeded by `seed`.
            cache: reuse keys and values; without, everything is recomputed for each token, with the same edits.
        """
        return self._stream(self.inputs(prompt), n, temperature, seed, cache, hooks.plan_now())

    def _stream(
        self, ids: Tensor, n: int, temperature: float, seed: int, cached: bool, enter: Callable[[], Block]
    ) -> Iterator[str]:
        from transformers import DynamicCache

        generator = torch.Generator().manual_seed(seed)
        prompt, scratch, text, whole, new = ids.shape[1], dict[Any, Any](), "", "", ids
        with enter():
            cached = cached and not hooks.has_around(self.owner)
        # told nothing of sliding windows, it keeps all keys, so that edits of k and v see each at its position
        cache = DynamicCache() if cached else None
        for _ in range(min(n, self.limit - prompt)):
            with enter():  # in force for one forward, and left again before anything is yielded
                logits = (
                    self._forward(new, cache, Here(prompt=prompt, scratch=scratch), 1, ids >= 0)[0, -1].float().cpu()
                )
            if temperature > 0:
                choice = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
            else:
                choice = logits.argmax().view(1)
            ids = torch.cat([ids, choice.view(1, 1).to(ids)], 1)
            new = ids[:, -1:] if cached else ids
            if int(choice) == getattr(self.tokenizer, "eos_token_id", None):
                break
            whole = self.tokenizer.decode(ids[0, prompt:].tolist(), clean_up_tokenization_spaces=False)
            if not whole.endswith("\ufffd"):  # a character may need several tokens
                yield whole[len(text) :]
                text = whole
        if len(whole) > len(text):
            yield whole[len(text) :]

    def token_text(self, index: int) -> str:
        """The text of one token; of a part of a character, or of nothing, the vocabulary's own name for it."""
        text = str(self.tokenizer.decode([index], clean_up_tokenization_spaces=False))
        return text if text and "\ufffd" not in text else str(self.tokenizer.convert_ids_to_tokens(index))

    def resume(self, layer: int, resid_pre: Float[Tensor, "batch position d_model"]) -> Block:
        """A block in which a forward begins at `layer`, from what entered it before: the layers below are not run.

        What entered it has been through the edits in force, so it is put behind them.
        """
        skipped = [
            Action(Point((self.owner, path, "call")), around=lambda run, hidden: hidden)
            for path in self.parts.block_paths[:layer]
        ]
        entry = Site("resid_pre", layer) if layer < self.layers else Site("resid_post", layer - 1)
        begun = Action(self._point(entry), function=lambda _: resid_pre)
        return hooks.planned([*skipped, begun], raw=True)

    def scorings(self) -> Block:
        """A block that gives, after a forward in it, how each layer's attention makes its scores: layer -> Scoring.

        Ask for patterns beside it: only then masks are the additive ones of eager attention.
        """
        recorders = {Site("pattern", layer): Recorder(True, False) for layer in range(self.layers)}
        actions = [
            Action(Point((*self._point(site).key[:2], "scoring")), recorder=recorder)
            for site, recorder in recorders.items()
        ]
        return hooks.planned(actions, Record(recorders, True, self.resolve))

    def final(self, resid: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        """What the unembedding is given when the last block leaves `resid`: the final norm, and OPT's projection."""
        modules = [self.network.get_submodule(path) for path in self.parts.before_logits]
        with hooks.alone():  # the plan speaks of the model's own forwards
            for module in modules:
                resid = module(resid)
        return resid

    @property
    def unembedding(self) -> tuple[Tensor, Tensor | None, float | None]:
        """W_U [token, d_model], its bias or None, and the cap of the logits or None."""
        head: Any = self.network.get_output_embeddings()  # type: ignore[operator]
        return head.weight, getattr(head, "bias", None), getattr(self.config, "final_logit_softcapping", None)

    def token_index(self, target: Target, logits: Float[Tensor, token] | None = None) -> int:
        """The id of the token that `target` names; the likeliest where it names none.

        Raises:
            Unsuitable: the text is not one token.
        """
        if target.name is None:
            if logits is None:
                raise ValueError("a target of None needs logits")
            return int(logits.argmax())
        if isinstance(target.name, int):
            if not 0 <= target.name < self.config.vocab_size:
                raise Unsuitable(f"{self.name} has tokens 0 to {self.config.vocab_size - 1}, not {target.name}.")
            return target.name
        # most words are one token only with the space before them, which is easily forgotten
        for text in (target.name, " " + target.name) if target.name.strip() else (target.name,):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                return int(ids[0])
        raise Unsuitable(f"{target.name[:40]!r} is no single token for {self.name}; choose one that is.")

    def _random_input(self) -> Tensor:
        return torch.arange(3, device=self.device).view(1, 3)

    def _addresses(self) -> Iterator[tuple[Site, tuple[str, str, str | None]]]:
        yield Site("input"), (self.parts.embedding, "out", None)
        yield from self.parts.transformer_addresses()


def _bytes(value: Any) -> int:
    """How much memory the tensors and arrays in a nest of tuples, dicts and dataclasses take."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if is_dataclass(value):
        return sum(_bytes(getattr(value, each.name)) for each in fields(value))
    return 64
