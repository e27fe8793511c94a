from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.circuits._pairs import no_pairs
from interp.methods.reading._linear import frozen
from interp.methods.reading._prompts import looked
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt
from interp.sites import Node, Site

PAPER = Paper(
    "Dar, Guy and Geva, Mor and Gupta, Ankit and Berant, Jonathan",
    "Analyzing Transformers in Embedding Space",
    2023,
    "ACL",
    "https://arxiv.org/abs/2209.02535",
)


@lens("What a node promotes", PAPER, needs=no_pairs, cost=lambda model, **_: (1, 0))
def node_output(
    model: LanguageModel,
    sample: Prompt,
    *,
    node: str = "mlp_out.0@0",
    top: Annotated[int, Range(1, 100)] = 8,
) -> Table:
    """Read which tokens a head, an MLP or a residual stream writes for and against, were it read directly.

        logits(part) = W_U (w * (part - mean(part)) / sigma)

    sigma and mean are those of the final norm on the whole last residual stream at that token (an RMS norm takes no
    mean). A head's part is W_O z, through the norm behind attention where there is one, without biases.

    Args:
        node: Which part, as z.2.1@5 (head 1 of layer 2 at token 5), mlp_out.0@3 or resid_post.1@2.
        top: How many of the most promoted and most suppressed tokens to list.

    Returns:
        Table of tokens, most promoted first, then most suppressed, with what the part adds to each logit.

    Raises:
        Unsuitable: no such part or token; queries, keys and values, which write nothing.

    Assumes:
        That what is written is read by the unembedding. Parts of early layers mostly write for later layers.

    Misleads:
        A part that removes something, or that later heads move elsewhere, looks here as if it spoke of nothing.
    """
    part = Node.parse(node)
    if part.site is None or part.kind not in ("z", "mlp_out", "attn_out", "resid_pre", "resid_mid", "resid_post"):
        raise Unsuitable(f"{node[:40]!r} writes nothing to the residual stream; choose a head, an MLP or a stream.")
    site = model.resolve(part.site)
    length = model.inputs(sample).shape[1]
    at = length - 1 if part.position is None else part.position
    if at >= length:
        raise Unsuitable(f"The prompt has positions 0 to {length - 1}, not {at}.")
    (passes, ends), _ = looked(model, sample, [Site(site.kind, site.layer), Site("resid_post", model.layers - 1)])
    stream = ends[-1][at]
    written = sum((_written(model, site, each[at]) for each in passes), torch.zeros_like(stream, dtype=torch.float64))
    logits = _to_logits(model, stream, written)
    order = logits.argsort(descending=True, stable=True)
    count = min(top, len(order) // 2)
    ids = [*order[:count].tolist(), *order[-count:].flip(0).tolist()]
    values = np.array([[float(logits[each]), each] for each in ids]).reshape(-1, 2)
    return Table(tuple(model.token_text(each) for each in ids), ("logit", "token"), values)


def _written(model: LanguageModel, site: Site, activation: Tensor) -> Float[Tensor, d]:
    """What the part writes to the residual stream, in float64."""
    if site.kind != "z":
        return activation.double()
    projection, end = str(model.parts.projection(site.layer or 0)), model.address(Site("attn_out", site.layer))
    module = model.network.get_submodule(projection)
    own = torch.zeros_like(activation)
    heads = slice(None) if site.head is None else site.head
    own[heads] = activation[heads]
    with torch.no_grad():
        whole, part, none = (
            module(each.reshape(1, 1, -1))[0, 0] for each in (activation, own, torch.zeros_like(activation))
        )
    written = part.double() - none.double()
    if projection != end and not end.endswith((".attn", ".self_attn", ".attention")):
        norm = frozen(model.network.get_submodule(end), whole, end)
        written = norm.gain * (written - written.mean() if norm.centred else written)
    return written


def _to_logits(model: LanguageModel, stream: Float[Tensor, d], part: Float[Tensor, d]) -> Float[Tensor, token]:
    for path in model.parts.before_logits:
        module = model.network.get_submodule(path)
        if isinstance(module, torch.nn.Linear):
            part = module.weight.double() @ part
        else:
            norm = frozen(module, stream, path)
            part = norm.gain * (part - part.mean() if norm.centred else part)
    weight, _, _ = model.unembedding
    return weight.double() @ part
