from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import Unsuitable, hooks, progress
from interp.method import Paper, Range, Unset, lens
from interp.methods.reading._linear import frozen
from interp.methods.reading._prompts import chosen, last_logits, looked, position_of
from interp.model import LanguageModel
from interp.results import Graph, Residual
from interp.samples import Prompt, Target
from interp.sites import Site

PAPER = Paper(
    "Ferrando, Javier and Voita, Elena",
    "Information Flow Routes: Automatically Interpreting Language Models at Scale",
    2024,
    "EMNLP",
    "https://arxiv.org/abs/2403.00824",
)
By = Literal["proximity", "projection"]
Space = Literal["what is read", "the whole stream"]
BYTES = 2**23
"""How much memory the parts that are compared at once may take; it changes no result beyond rounding."""
CELLS = 2**26
"""The largest number of attention weights, over all layers and heads, that routes are followed through."""
EDGES = 2**17
"""How many edges are listed at most: the heaviest."""
ROUNDING = 1e-6
"""A smaller share of a block's output is rounding, and counts as none."""


def no_routes(model: Any) -> str | None:
    """The reason why a model's blocks can't be split into what heads and MLPs write, or None."""
    kinds = ("v", "pattern", "z", "attn_out", "mlp_out")
    return next((reason for kind in kinds if (reason := model.refuses(Site(kind, 0)))), None)


@lens(
    "Information flow routes", PAPER, needs=no_routes, cost=lambda model, position, **_: (1 + (position is not None), 0)
)
def information_flow_routes(
    model: LanguageModel,
    sample: Prompt,
    *,
    target: Target = Target(),
    foil: Target = Target(),
    position: Annotated[int | None, Unset("the last token")] = None,
    by: By = "proximity",
    space: Space = "what is read",
    threshold: Annotated[float, Range(0, 1)] = 0.0,
) -> Graph:
    """Follow what made the last residual stream back to the tokens, through every head, MLP and skip connection.

        attention:  resid_mid_t = resid_pre_t + sum_h sum_j p_h,tj v_h,j W_O^h + b_O
        MLP:  resid_post_t = resid_mid_t + mlp_t
        proximity:  c_i = prox(z_i, y) / sum_k prox(z_k, y),    prox(z, y) = max(|y|_1 - |y - z|_1, 0)
        projection:  c_i = z_i . y / |y|^2
        importance of a part = c_i times the importance of y;  1 at the top

    z_i are the parts of a block's output y, exactly: a norm behind the branch (Gemma, OLMo) is linear at the scale that
    it has; where attention and MLP lie in parallel (GPT-NeoX) both are parts of resid_post. Biases b_O, those of the
    norms, and what an intervention puts in, are a part of their own, at which a route ends; b_V comes with the values.

    The paper compares whole streams. Here parts and output are first projected onto what is read of them:

        z_i <- P z_i,  y <- P y,    P onto the rows of W_Q, W_K, W_V, W_in of all later layers, and of W_U w

    with the mean and scale of the norms given, so that a part no one reads is left out. Where everything is read, as in
    any trained model of full rank, P is the identity and the shares are those of the paper. With a target, W_U is the
    one row (W_U[t] - W_U[f]) w, so that the last layer is asked for that logit alone.

    Args:
        target: The token whose logit is followed; all tokens' unless given.
        foil: A token to compare with: the difference of both logits is followed.
        position: From after which token, counted from 0.
        by: Proximity (the paper's) is blind to what speaks against; projection is signed, and sums to one as it is.
        space: Compare what later parts and the logits read, or whole streams as the paper does, whatever the target.
        threshold: Drop parts with a smaller share of their block (0.04 in the paper); the largest stays.

    Returns:
        Graph in shares of the last residual stream. z.l.h@t is a head at a query; its edges of port v come from the
        tokens it reads. What is kept of a block is scaled to sum to one (proximity), or what is dropped counts with the
        biases (projection). The residual is how far the parts are from their sum. In a layer that is repeated the
        parts of all passes add up, as in parallel blocks; one that is skipped is a skip connection.

    Raises:
        Unsuitable: no such token or position; a prompt so long that its patterns would fill the memory.

    Assumes:
        That a part near the output in L1 (or in its direction) made it, and that the patterns are given.

    Misleads:
        Why a head looks where it looks is not followed: what queries and keys read counts as what any later part reads.
        Two parts that cancel each other have small shares, however large they are; where all of an output's parts do,
        none of them is near it, and only the nearest is followed, which the note says. "What is read" leaves out only
        what no weight can see, not what is without effect here.
    """
    length = model.inputs(sample).shape[1]
    if model.layers * model.parts.heads * length**2 > CELLS:
        most = int((CELLS / model.layers / model.parts.heads) ** 0.5)
        raise Unsuitable(f"The prompt has {length} tokens; routes through {model.name} can be followed up to {most}.")
    at = position_of(length, position)
    tokens = tuple(model.tokens(sample.text))
    middle = not model.refuses(Site("resid_mid", 0))
    kinds = ("resid_pre", "pattern", "v", "z", "attn_out", *(["resid_mid"] if middle else []), "mlp_out", "resid_post")
    sites = [Site(kind, layer) for layer in range(model.layers) for kind in kinds]
    passes, logits = looked(model, sample, sites)
    found = dict(zip(sites, passes, strict=True))
    asked, name = None, f"the stream at {tokens[at]!r}"
    if target.name is not None or foil.name is not None:
        index, other, name = chosen(
            model, target, foil, logits if position is None else last_logits(model, sample, position)
        )
        asked = index, other
    readers = _spaces(model, asked) if space == "what is read" else {}

    routes = _Routes(model.layers, model.parts.heads, length, by, threshold)
    routes.start(at)
    worst = 0.0
    for layer in progress.track(range(model.layers)[::-1], "following routes"):
        own = {kind: [each.double() for each in found[Site(kind, layer)]] for kind in kinds}
        pre = own["resid_pre"][0]
        # what enters the next layer, after whatever an intervention does to it there
        above = Site("resid_pre", layer + 1) if layer + 1 < model.layers else Site("resid_post", layer)
        post = found[above][-1].double()
        if not own["z"]:
            worst = max(worst, routes.block(layer, "post", post, pre, None, [], readers.get((layer, "post"))))
            continue
        heads = [
            _heads(model, layer, *each)
            for each in zip(*(own[k] for k in ("pattern", "v", "z", "attn_out")), strict=True)
        ]
        mlp = torch.stack(own["mlp_out"]).sum(0)
        if middle and len(own["z"]) == 1:
            mid = own["resid_mid"][0]
            worst = max(worst, routes.block(layer, "post", post, mid, mlp, [], readers.get((layer, "post"))))
            worst = max(worst, routes.block(layer, "mid", mid, pre, None, heads, readers.get((layer, "mid"))))
        else:
            worst = max(worst, routes.block(layer, "post", post, pre, mlp, heads, readers.get((layer, "post"))))
    residual = Residual(worst, "the largest distance of a block's parts from its output, relative to it")
    if hooks.in_force():  # what an intervention puts in belongs to no part, and is no error
        lost = abs(1 - routes.ended - float(routes.values[:length].sum()))
        residual = Residual(lost, "how far the importance of all tokens and of what belongs to no part is from one")
    return routes.graph(tokens=tokens, target=name, units="share", residual=residual)


@dataclass(frozen=True)
class _Heads:
    """What each head writes at a query t from a key j:  weight[t, j, h] written[j, h];  and the bias [t, d]."""

    weight: Float[Tensor, "query key head"]
    written: Float[Tensor, "key head d"]
    bias: Float[Tensor, "query d"]


def _heads(model: LanguageModel, layer: int, pattern: Tensor, v: Tensor, z: Tensor, attn_out: Tensor) -> _Heads:
    """The parts of one pass through a layer's attention; a z or attn_out that was edited scales them, head by head."""
    v = v.repeat_interleave(pattern.shape[0] // v.shape[1], 1)
    path = str(model.parts.projection(layer))
    module: Any = model.network.get_submodule(path)
    rows = _matrix(module).double().unflatten(0, (z.shape[1], -1))
    bias = torch.zeros_like(attn_out[0]) if module.bias is None else module.bias.detach().double()
    weight = pattern.permute(1, 2, 0) * _scale(z, torch.einsum("hqk,khe->qhe", pattern, v))[:, None]
    written = torch.einsum("khe,hed->khd", v, rows)
    out = torch.einsum("qhe,hed->qd", z, rows) + bias
    biases = bias.expand_as(out)
    end = model.address(Site("attn_out", layer))
    if path != end and not end.endswith((".attn", ".self_attn", ".attention")):
        norm, behind = (
            model.network.get_submodule(end),
            frozen(model.network.get_submodule(end), out[0].to(model.dtype), end),
        )

        def through(x: Tensor) -> Tensor:
            return behind.gain * (x - x.mean(-1, keepdim=True) if behind.centred else x)

        with hooks.alone(), torch.no_grad():
            normed = norm(out[None].to(model.dtype))[0].double()
        at_scale = _scale(normed - behind.bias, through(out))[:, None]
        weight, written = weight * at_scale[:, None], through(written)
        biases, out = at_scale * through(biases) + behind.bias, normed
    edited = _scale(attn_out, out)[:, None]
    return _Heads(weight * edited[:, None], written, biases * edited)


def _scale(new: Float[Tensor, "*n d"], old: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """The factor c by which c old comes nearest to new."""
    return (new * old).sum(-1) / old.square().sum(-1).clamp(min=1e-300)


class _Routes:
    """The graph as it grows from the top: nodes by number, their importance, and edges."""

    def __init__(self, layers: int, heads: int, length: int, by: By, threshold: float) -> None:
        self.layers, self.heads, self.length = layers, heads, length
        self.by, self.threshold = by, threshold
        self.values = np.zeros(length * (1 + layers * (heads + 3)))
        self.reached = np.zeros(len(self.values), bool)
        self.edges = np.zeros((0, 2), int)
        self.weights = np.zeros(0)
        self.enters_v = np.zeros(0, bool)
        self.count, self.total, self.ended = 0, 0.0, 0.0
        self.outputs, self.alone = 0, 0

    def number(self, kind: str, layer: int) -> np.ndarray:
        """The numbers of the nodes of a kind in a layer, [token] or, of heads, [token, head]; layer -1: what enters."""
        places = np.arange(self.length)
        if layer < 0:
            return places
        start = self.length * (1 + layer * (self.heads + 3))
        if kind == "z":
            return start + places[:, None] * self.heads + np.arange(self.heads)
        return start + self.length * (self.heads + ("mlp", "mid", "post").index(kind)) + places

    def names(self) -> list[str]:
        found = [f"resid_pre.0@{t}" for t in range(self.length)]
        for layer in range(self.layers):
            found += [f"z.{layer}.{head}@{t}" for t in range(self.length) for head in range(self.heads)]
            found += [f"{k}.{layer}@{t}" for k in ("mlp_out", "resid_mid", "resid_post") for t in range(self.length)]
        return found

    def start(self, position: int) -> None:
        top = self.number("post", self.layers - 1)[position]
        self.values[top], self.reached[top] = 1, True

    def flow(self, sources: np.ndarray, targets: np.ndarray, weights: np.ndarray, port: str = "") -> None:
        """Edges, and what flows along them; of more than can be listed, the heaviest are kept."""
        np.add.at(self.values, sources, weights)
        self.reached[sources] = True
        self.count, self.total = self.count + len(weights), self.total + float(np.abs(weights).sum())
        edges = np.concatenate([self.edges, np.stack([sources, targets], 1)])
        weights = np.concatenate([self.weights, weights])
        enters_v = np.concatenate([self.enters_v, np.full(len(sources), port == "v")])
        kept = np.sort(np.argsort(-np.abs(weights), kind="stable")[:EDGES]) if len(weights) > EDGES else slice(None)
        self.edges, self.weights, self.enters_v = edges[kept], weights[kept], enters_v[kept]

    def block(
        self,
        layer: int,
        kind: str,
        y: Float[Tensor, "token d"],
        stream: Float[Tensor, "token d"],
        mlp: Float[Tensor, "token d"] | None,
        heads: list[_Heads],
        basis: Float[Tensor, "d rank"] | None,
    ) -> float:
        """Push the importance of a block's output down to its parts; how far those are from their sum.

        basis: of what is read of the output, orthonormal; None: all.
        """
        out = self.number(kind, layer)
        places = np.flatnonzero(self.reached[out])
        if not len(places):
            return 0.0
        below = (
            self.number("mid", layer)
            if kind == "post" and mlp is not None and not heads
            else self.number("post", layer - 1)
        )
        at = torch.as_tensor(places, device=y.device)
        y, stream = y[at], stream[at]
        parts = [
            stream,
            torch.zeros_like(y) if mlp is None else mlp[at],
            sum((h.bias[at] for h in heads), torch.zeros_like(y)),
        ]
        whole = sum(parts) + sum(torch.einsum("qkh,khd->qd", h.weight[at], h.written) for h in heads)
        error = float(((y - whole).norm(dim=-1) / y.norm(dim=-1).clamp(min=1e-300)).max())
        parts[2] = parts[2] + y - whole

        read = (lambda x: x) if basis is None else (lambda x: x @ basis @ basis.T)
        y = read(y)
        own = torch.stack([self.alike(read(part), y) for part in parts], 1).cpu().numpy()
        by_head = np.zeros((len(places), self.length, self.heads if heads else 0))
        for row, keys, near in self.compared([(h.weight[at], read(h.written)) for h in heads], y, places):
            by_head[row, keys] = near
        scale = (y.abs().sum(-1) if self.by == "proximity" else y.square().sum(-1)).cpu().numpy()
        shares = self.kept(np.concatenate([own, by_head.reshape(len(places), -1)], 1), scale)

        mass, self.ended = self.values[out[places]], self.ended + float(self.values[out[places]] @ shares[:, 2])
        weights = shares * mass[:, None]
        kept = np.flatnonzero(shares[:, 0])
        self.flow(below[places[kept]], out[places[kept]], weights[kept, 0])
        if (kept := np.flatnonzero(shares[:, 1])).size:
            inner = self.number("mlp", layer)[places[kept]]
            self.flow(inner, out[places[kept]], weights[kept, 1])
            self.flow(below[places[kept]], inner, weights[kept, 1])
        if heads:
            inner = self.number("z", layer)
            each = weights[:, 3:].reshape(by_head.shape)
            query, source, head = np.nonzero(shares[:, 3:].reshape(by_head.shape))
            query_of, head_of = np.nonzero((shares[:, 3:].reshape(by_head.shape) != 0).any(1))
            self.flow(inner[places[query_of], head_of], out[places[query_of]], each.sum(1)[query_of, head_of])
            self.flow(
                self.number("post", layer - 1)[source], inner[places[query], head], each[query, source, head], "v"
            )
        return error

    def alike(self, z: Float[Tensor, "*n d"], y: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """|y|_1 - |y - z|_1, or z . y."""
        return y.abs().sum(-1) - (y - z).abs().sum(-1) if self.by == "proximity" else (z * y).sum(-1)

    def compared(
        self, heads: list[tuple[Tensor, Tensor]], y: Float[Tensor, "query d"], places: np.ndarray
    ) -> Iterator[tuple[int, slice, np.ndarray]]:
        """How alike to the output what each head writes from a key is: number of the query, keys, [key, head]."""
        size = max(1, BYTES // (2 * y.element_size() * self.heads * y.shape[1]))
        for query, place in enumerate(places.tolist() if heads else []):
            for start in range(0, place + 1, size):
                keys = slice(start, min(start + size, place + 1))
                parts: Any = sum(weight[query, keys, :, None] * written[keys] for weight, written in heads)
                yield query, keys, self.alike(parts, y[query]).cpu().numpy()

    def kept(self, near: Float[np.ndarray, "query part"], scale: Float[np.ndarray, query]) -> np.ndarray:
        """Shares [query, part] that sum to one, small ones dropped, never the largest; part 2 is what ends here."""
        if self.by == "projection":
            shares = near / np.maximum(scale, 1e-300)[:, None]
            shares[scale == 0, 0] = 1
            keep = np.abs(shares) >= max(self.threshold, ROUNDING)
            keep[np.arange(len(shares)), np.abs(shares).argmax(1)] = True
            shares = np.where(keep, shares, 0)
            shares[:, 2] += 1 - shares.sum(1)
            return shares
        # a part that is nothing, as biases often are, must not win where every other is farther than nothing
        some = np.abs(near) > ROUNDING * scale[:, None]
        best = np.where(some, near, -np.inf).argmax(1)  # the stream where there is nothing at all
        near = np.where(some & (near > 0), near, 0)
        empty = near.sum(1) == 0
        self.outputs, self.alone = self.outputs + len(empty), self.alone + int(empty.sum())
        near[empty, best[empty]] = 1
        shares = near / near.sum(1, keepdims=True)
        keep = shares >= self.threshold
        keep[np.arange(len(shares)), best] = True
        shares = np.where(keep, shares, 0)
        return shares / shares.sum(1, keepdims=True)

    def graph(self, **more: Any) -> Graph:
        names, number = self.names(), np.cumsum(self.reached) - 1
        listed = len(self.weights)
        notes = [
            f"{self.values[: self.length].sum():.1%} comes from the tokens, "
            f"{self.ended:.1%} from biases and what belongs to no part."
        ]
        if self.alone:
            notes.append(
                f"At {self.alone} of {self.outputs} outputs every part is farther than none would be, "
                "and only the nearest is followed."
            )
        if listed < self.count:
            notes.append(f"The {listed:,} heaviest of {self.count:,} edges are listed.")
        return Graph(
            tuple(names[each] for each in np.flatnonzero(self.reached)), self.values[self.reached], number[self.edges],
            self.weights, tuple("v" if each else "" for each in self.enters_v), total=self.total,
            note=" ".join(notes),
            **more,
        )  # fmt: skip


def _spaces(
    model: LanguageModel, asked: tuple[int, int | None] | None
) -> dict[tuple[int, str], Float[Tensor, "d rank"] | None]:
    """Of the stream behind each block ("mid", "post") an orthonormal basis of what is read of it; None: everything."""
    places = [(layer, kind) for layer in reversed(range(model.layers)) for kind in ("post", "mid")]

    def find() -> tuple[Tensor | None, ...]:
        spaces: list[Tensor | None] = []
        gram = _read_by_logits(model, asked)
        for layer, kind in places:
            # once all is read behind a block, all is read before it
            spaces.append(_basis(gram) if not spaces or spaces[-1] is not None else None)
            if spaces[-1] is not None:
                gram = gram + _read_by_block(model, layer, kind == "mid", len(gram))
        return tuple(spaces)

    return dict(zip(places, model.cached(("read", asked), find), strict=True))


def _read_by_logits(model: LanguageModel, asked: tuple[int, int | None] | None) -> Float[Tensor, "d d"]:
    """The sum of r r' over the rows r of W_U, or the one that is asked for, as they read the last stream."""
    rows = model.unembedding[0]
    if asked is not None:
        index, other = asked
        rows = rows[index : index + 1] - (0 if other is None else rows[other : other + 1])
    gram: Any = 0
    for part in rows.detach().split(2 * rows.shape[1]):
        taken = part.double()
        for path in reversed(model.parts.before_logits):
            module: Any = model.network.get_submodule(path)
            taken = taken @ module.weight.double() if isinstance(module, nn.Linear) else taken * _gain(module, path)
        gram = gram + taken.T @ taken
        if _basis(gram) is None:
            break
    return gram


def _read_by_block(model: LanguageModel, layer: int, attention: bool, width: int) -> Float[Tensor, "d d"]:
    """The same over the rows of a block's W_Q, W_K and W_V, or over those of what its MLP reads."""
    if not attention and model.refuses(Site("mlp_post", layer)):
        return torch.eye(width, dtype=torch.float64, device=model.device)  # experts are taken to read everything
    block = model.network.get_submodule(model.parts.block_paths[layer])
    named = [(f"{model.parts.block_paths[layer]}.{name}", module) for name, module in block.named_modules() if name]
    projection = str(model.parts.projection(layer))
    inside = projection.rpartition(".")[0] + "."
    ends = [model.address(Site(kind, layer)) for kind in ("attn_out", "mlp_out")]
    children = set(block.children())
    # the first lies before attention, the last before the MLP; a norm behind one of them is where it ends
    norms = [each for each in named if each[1] in children and each[0] not in ends and _dim(each[1]) == 1]
    path, norm = norms[0 if attention else -1] if norms else ("", None)
    gain = 1 if norm is None else _gain(norm, path)
    writers = [projection] if attention else [model.address(Site("mlp_post", layer))]
    gram = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    for path, module in named:
        if _dim(module) == 2 and path.startswith(inside) == attention and path not in writers:
            rows = _matrix(module).T.double() * gain
            gram += rows.T @ rows
    return gram


def _dim(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.dim() if isinstance(weight, Tensor) else 0


def _matrix(module: Any) -> Float[Tensor, "n_in n_out"]:
    """The weight of a linear layer, of torch or of GPT-2."""
    return (module.weight.T if isinstance(module, nn.Linear) else module.weight).detach()


def _gain(norm: Any, path: str) -> Float[Tensor, d]:
    """The gain of a norm, but for a factor: its scale depends on what it is given."""
    weight = norm.weight
    return frozen(norm, torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device), path).gain


def _basis(gram: Float[Tensor, "d d"]) -> Float[Tensor, "d rank"] | None:
    """An orthonormal basis of its range; None where that is everything."""
    least = 1e-12 * gram.trace().clamp(min=1e-300)
    # far cheaper than eigenvalues, where all of them are large enough
    if not int(torch.linalg.cholesky_ex(gram - least * torch.eye(len(gram)).to(gram)).info):
        return None
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, values > least]
