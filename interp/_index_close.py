"""What is worked out of a finished pass: contexts packed, logits, nearest features, those that fire together, a map."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from interp import hooks
from interp._index_pass import AFTER, BEFORE, BINS, EDGES, HASH_BITS, SKETCH, TOP, Array, Pass, mix, rank
from interp.model import LanguageModel, Model, VisionModel, gradient
from interp.sae import SAE
from interp.sites import Site
from kernels.layout import layout, neighbours

LOGITS, NEAR, TOGETHER, QUARTER = 12, 20, 10, 5
"""How many logits, nearest features, features firing together, and contexts of each quarter are kept."""
RESIDUAL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "embed", "input")


def closed(model: Model, sae: SAE, seen: Pass, grid: tuple[int, int] | None) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of the index's file, and what its metadata says of them."""
    sampled, quarter_start, quarter_edges = _quarters(seen)
    top = seen.top.columns
    top_feature = (top["code"] >> np.uint64(32)).astype(np.int64)
    columns = {name: np.concatenate([top[name], sampled[name]]) for name in top if name not in ("code", "key")}
    top_start = np.searchsorted(top_feature, np.arange(seen.features + 1))
    maximum = np.zeros(seen.features, np.float32)
    maximum[top_feature[::-1]] = top["value"][::-1]
    feature = np.concatenate([top_feature, sampled["feature"]])
    near, cosines = neighbours(sae.W_dec.cpu(), NEAR)
    arrays: dict[str, Array] = {
        "count": seen.count.astype(np.int64), "total": seen.total, "maximum": maximum, "edges": EDGES,
        "histogram": seen.histogram.astype(np.uint32 if seen.histogram.max(initial=0) < 2**32 else np.int64),
        "top_start": top_start.astype(np.int64), "quarter_start": quarter_start + len(top_feature),
        "quarter_edges": quarter_edges, "map": layout(sae.W_dec.cpu(), (near, cosines)),
        "neighbour_ids": near.numpy().astype(np.int32), "neighbour_values": cosines.numpy().astype(np.float16),
        **together(seen), **_contexts(columns, maximum[feature], grid is None), **_logits(model, sae),
    }  # fmt: skip
    return arrays, {"grid": grid, "k": TOP, "width": columns["values"].shape[1], "before": BEFORE}


def _contexts(columns: dict[str, Array], scale: Array, text: bool) -> dict[str, Array]:
    """All contexts, with the tokens that several share kept once, and of the activations those above zero."""
    values = columns["values"].copy()
    values[np.arange(len(values)), columns["at"]] = 0  # kept exactly beside
    owner, column = values.nonzero()
    small = lambda x, top: x.astype(np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.uint32)  # noqa: E731
    out = {
        "at": small(columns["at"], values.shape[1]), "value": columns["value"], "document": columns["document"],
        "active_start": np.searchsorted(owner, np.arange(len(values) + 1)).astype(np.uint32),
        "active_column": small(column, values.shape[1]),
        "active_value": (values[owner, column] / scale[owner]).astype(np.float16),
    }  # fmt: skip
    if text:
        there = columns["ids"] >= 0
        left, size = there[:, :BEFORE].sum(1), there.sum(1)
        start = columns["place"] - left
        order = np.argsort(start, kind="stable")
        reached = np.maximum.accumulate((start + size)[order]) if len(order) else start
        new = np.r_[True, start[order][1:] > reached[:-1]] if len(order) else np.zeros(0, bool)
        # each run of overlapping contexts is one piece of the pool
        first = start[order][new]
        length = reached[np.r_[new[1:], True]] - first if len(order) else first
        offset = np.cumsum(length) - length
        piece = np.empty(len(order), np.int64)
        piece[order] = np.cumsum(new) - 1
        at = offset[piece] + start - first[piece]
        pool = np.zeros(int(length.sum()), np.int64)
        owner, column = there.nonzero()
        pool[at[owner] + column - BEFORE + left[owner]] = columns["ids"][owner, column]
        out |= {
            "pool": pool.astype(np.uint16 if pool.max(initial=0) < 2**16 else np.int32),
            "pool_start": at.astype(np.uint32), "size": small(size, BEFORE + 1 + AFTER), "left": small(left, BEFORE),
        }  # fmt: skip
    return out


def _quarters(seen: Pass) -> tuple[dict[str, Array], Array, Array]:
    """For each feature up to five contexts from each quarter of its activations; where each quarter's begin; the edges.

    The quartiles are read off the histogram, evenly within a bin.
    """
    features, columns = seen.features, seen.sample.columns
    counts = seen.histogram.astype(np.float64)
    below = np.cumsum(counts, 1)
    edges = np.zeros((features, 5), np.float32)
    every = np.arange(features)
    for quarter in (1, 2, 3):
        wanted = below[:, -1] * quarter / 4
        bin_of = np.minimum((below < wanted[:, None]).sum(1), BINS - 1)
        inside = counts[every, bin_of]
        share = np.where(inside > 0, (wanted - below[every, bin_of] + inside) / np.maximum(inside, 1), 0)
        edges[:, quarter] = EDGES[bin_of] + share * (EDGES[bin_of + 1] - EDGES[bin_of])
    top = seen.top.columns
    edges[(top["code"] >> np.uint64(32)).astype(np.int64)[::-1], 4] = top["value"][::-1]
    edges[:, 1:4] = np.minimum(edges[:, 1:4], edges[:, 4:])

    feature = (columns["code"] >> np.uint64(HASH_BITS)).astype(np.int64)
    quarter = (columns["value"][:, None] > edges[feature, 1:4]).sum(1)
    group = 4 * feature + quarter
    priority = columns["code"] & np.uint64(2**HASH_BITS - 1)
    order = np.lexsort((columns["place"], priority, group))
    once = np.unique(mix(columns["key"][order] ^ mix(group[order].astype(np.uint64))), return_index=True)[1]
    order = order[np.sort(once)]
    order = order[rank(group[order]) < QUARTER]
    order = order[np.lexsort((columns["place"][order], -columns["value"][order], group[order]))]
    chosen = {name: each[order] for name, each in columns.items() if name != "code"} | {"feature": feature[order]}
    return chosen, np.searchsorted(group[order], np.arange(4 * features + 1)).astype(np.int64), edges


def together(seen: Pass) -> dict[str, Array]:
    """The features that fire on the most of the same tokens: Jaccard similarities from the kept hashes.

        J_ab = |A and B| / |A or B|  among hashes up to t = min(t_a, t_b)

    t_a is the largest kept hash of a feature that fires on more tokens than are kept; up to t both sets are whole.
    """
    features = seen.features
    ids, values = np.full((features, TOGETHER), -1, np.int32), np.zeros((features, TOGETHER), np.float16)
    feature = (seen.sketch >> np.uint64(HASH_BITS)).astype(np.int64)
    start = np.searchsorted(feature, np.arange(features + 1))
    size = np.diff(start)
    low = seen.sketch & np.uint64(2**HASH_BITS - 1)
    limit = np.full(features, 2**HASH_BITS - 1, np.uint64)
    full = (size == SKETCH) & (seen.count > SKETCH)
    limit[full] = low[start[1:][full] - 1]
    token = np.unique(low, return_inverse=True)[1]
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(feature), np.int32), (feature, token)), (features, token.max(initial=0) + 1)
    )
    transposed = matrix.T.tocsr()
    for begin in range(0, features, 512):
        both = (matrix[begin : begin + 512] @ transposed).tocoo()
        a, b, shared = both.row.astype(np.int64) + begin, both.col.astype(np.int64), both.data.astype(np.int64)
        other = a != b
        a, b, shared = a[other], b[other], shared[other]
        # up to the smaller limit one of the two sets is all that was kept
        larger = np.where(limit[a] > limit[b], a, b)
        smaller = a + b - larger
        code = larger.astype(np.uint64) << np.uint64(HASH_BITS) | limit[smaller]
        union = np.searchsorted(seen.sketch, code, "right") - start[larger] + size[smaller] - shared
        jaccard = shared / union
        order = np.lexsort((b, -shared, -jaccard, a))
        place = rank(a[order])
        order, place = order[place < TOGETHER], place[place < TOGETHER]
        ids[a[order], place], values[a[order], place] = b[order], jaccard[order]
    return {"together_ids": ids, "together_values": values}


# -------------------------------------------------------------------------------------------------------------- logits


def _logits(model: Model, sae: SAE) -> dict[str, Array]:
    """The outputs that each decoder row promotes and suppresses most; nothing where it does not reach them directly."""
    with torch.no_grad():
        read = _unembedding(model, sae)
        if read is None:
            return {}
        directions, outputs = read
        outputs = outputs - outputs.mean(0)
        k = min(LOGITS, len(outputs))
        parts: dict[str, list[Tensor]] = {name: [] for name in ("promoted", "suppressed")}
        block = max(1, 2**25 // len(outputs))
        for start in range(0, len(directions), block):
            logits = directions[start : start + block] @ outputs.T
            for name, largest in (("promoted", True), ("suppressed", False)):
                found = logits.topk(k, dim=1, largest=largest)
                parts[name].append(torch.stack([found.indices.double(), found.values.double()]))
    out = {}
    for name, each in parts.items():
        ids, values = torch.cat(each, 1).cpu().numpy()
        out[f"{name}_ids"], out[f"{name}_values"] = ids.astype(np.int32), values.astype(np.float32)
    return out


def _unembedding(model: Model, sae: SAE) -> tuple[Float[Tensor, "feature d"], Float[Tensor, "output d"]] | None:
    """Decoder rows, and what reads an output off the space in which they lie."""
    directions = sae.W_dec.float()
    if isinstance(model, VisionModel):
        last = Site("stage", len(model.parts.stages) - 1) if model.parts.stages else None
        return (directions, _slopes(model, sae)) if sae.target == last else None
    model = cast(LanguageModel, model)
    site = model.resolve(sae.target)
    if site.kind in ("z", "mlp_post"):
        path = model.parts.projection(cast(int, site.layer)) if site.kind == "z" else model.address(site)
        end = model.address(Site("attn_out" if site.kind == "z" else "mlp_out", site.layer))
        if path is None or not path.startswith(end):  # a norm stands between it and the residual stream
            return None
        module: Any = model.network.get_submodule(path)
        with hooks.alone():
            zero, out = module(torch.zeros_like(directions[:1])), module(directions.to(model.dtype))
        directions = (out - zero).float()
    elif site.kind not in RESIDUAL:
        return None
    return _before_final(model, directions), model.unembedding[0].float()[: len(model.tokenizer)]


def _before_final(model: LanguageModel, directions: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    """What the unembedding is given of directions in the last residual stream, at a stream of RMS 1."""
    from interp.methods.reading._linear import frozen  # the methods read indexes, and import this

    for path in model.parts.before_logits:
        module: Any = model.network.get_submodule(path)
        if isinstance(module, torch.nn.Linear):
            directions = torch.nn.functional.linear(directions, module.weight.float())
            continue
        alternating = torch.ones(directions.shape[1], device=directions.device, dtype=model.dtype)
        alternating[1::2] = -1
        norm = frozen(module, alternating, path)
        directions = directions - directions.mean(1, keepdim=True) if norm.centred else directions
        directions = directions * norm.gain.float()
    return directions


def _slopes(model: VisionModel, sae: SAE) -> Float[Tensor, "class d"]:
    """d logit_c / d x, summed over the cells of the last stage: exact where pooling and a linear layer follow."""
    with torch.enable_grad(), hooks.alone(), model.record([sae.target], grad=True) as found:
        logits = model(model._random_input())
    rows = []
    for start in range(0, logits.shape[1], 64):
        weights = torch.eye(logits.shape[1], device=logits.device, dtype=logits.dtype)[start : start + 64, None]
        (slope,) = gradient(logits, [found[sae.target]], weights, batched=True, keep=True)
        rows += [sae.rows(each, model, sae.target).sum((0, 1)) for each in slope]
    return torch.stack(rows).float()
