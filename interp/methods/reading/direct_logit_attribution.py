from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp import Unsuitable
from interp.method import Paper, Unset, lens
from interp.methods.reading._linear import shares, to_logit
from interp.methods.reading._prompts import chosen, last_logits, layer_names, looked, position_of
from interp.model import LanguageModel
from interp.results import Residual, TokenGrid
from interp.samples import Prompt, Target
from interp.sites import Site

PAPER = Paper(
    "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob",
    "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 Small",
    2023,
    "ICLR",
    "https://arxiv.org/abs/2211.00593",
)
By = Literal["layer", "head", "neuron"]
OTHER = "bias & other"


def no_parts(model: Any) -> str | None:
    """The reason why what attention and MLP add can't be told apart, or None."""
    return next((reason for kind in ("attn_out", "mlp_out", "z") if (reason := model.refuses(Site(kind, 0)))), None)


def passes(model: LanguageModel, by: str, position: int | None, **_: Any) -> tuple[float, float]:
    """A forward (another for logits inside the prompt), and a backward through one projection of each layer."""
    return (1 if position is None else 2), (0 if by == "layer" else model.layers)


@lens("Direct logit attribution", PAPER, needs=no_parts, cost=passes)
def direct_logit_attribution(
    model: LanguageModel,
    sample: Prompt,
    *,
    target: Target = Target(),
    foil: Target = Target(),
    by: By = "head",
    position: Annotated[int | None, Unset("the last token")] = None,
) -> TokenGrid:
    """Split a logit into what each head, neuron or MLP writes straight to it.

        z_t - z_f = (W_U[t] - W_U[f]) . norm(x_embed + sum_l attn_l + sum_l mlp_l) + b_t - b_f
        contribution of a part = (W_U[t] - W_U[f]) . (w * (part - mean(part)) / sigma)

    sigma is that of the whole stream, so that the norm is linear in the parts (an RMS norm takes no mean). Heads are
    split by the rows of the output projection, neurons by those of the MLP's; norms behind attention or MLP (Gemma,
    OLMo) are frozen likewise. Biases, of projections, norms and unembedding, have a column of their own. A soft cap
    comes after: what is split is the logit before it.

    Args:
        target: The token whose logit is split; the model's first guess unless given.
        foil: A token to compare with: the difference of both logits is split.
        by: Whole layers, heads, or neurons of the MLPs.
        position: After which token, counted from 0.

    Returns:
        TokenGrid in logits, a row for the embedding, each layer and the end, a column per part, and in the last column
        what belongs to no part. Everything adds up to the logit; the residual is how far it does not.

    Raises:
        Unsuitable: no such token or position; neurons of a model whose MLP has no single hidden layer.

    Assumes:
        That the scale of the final norm is given: a part that changes it changes every other part's share.

    Misleads:
        Only the direct path is seen. A head that matters because later heads read it gets nothing, and one that later
        heads cancel gets much.
    """
    if by == "neuron" and (reason := model.refuses(Site("mlp_post", 0))):
        raise Unsuitable(reason)
    layers = range(model.layers)
    inner = [*(["z"] if by != "layer" else []), *(["mlp_post"] if by == "neuron" else [])]
    kinds = ("attn_out", "mlp_out", *inner)
    inside = [Site(kind, layer) for layer in layers for kind in kinds]
    sites = [Site("resid_pre", 0), *inside, Site("resid_post", model.layers - 1)]
    if position is not None:
        position_of(model.inputs(sample).shape[1], position)
    found, logits = looked(model, sample, sites)
    at = -1 if position is None else position
    # all passes through a layer that is repeated; none through one that is skipped
    passes = {site: [each[at] for each in own] for site, own in zip(sites, found, strict=True)}
    (final,) = passes[sites[-1]]
    if position is not None:
        logits = last_logits(model, sample, position)
    index, other, name = chosen(model, target, foil, logits)

    weight, bias, _ = model.unembedding
    direction, offset = weight[index].double(), 0.0 if bias is None else float(bias[index])
    if other is not None:
        direction, offset = direction - weight[other].double(), offset - (0.0 if bias is None else float(bias[other]))
    read, constant = to_logit(model, final, direction)
    heads = model.parts.heads
    neurons = next((own[0].shape[-1] for site, own in passes.items() if site.kind == "mlp_post" and own), 0)
    parts = {
        "layer": ("attention", "MLP"),
        "head": (*(f"head {head}" for head in range(heads)), "MLP"),
        "neuron": ("attention", *(f"neuron {neuron}" for neuron in range(neurons))),
    }[by]
    values = np.zeros((model.layers + 2, len(parts) + 1))
    values[0, -1], values[-1, -1] = sum(_read(passes[Site("resid_pre", 0)], read)), constant + offset
    for layer in layers:
        row = values[layer + 1]
        row[0] = attention = sum(_read(passes[Site("attn_out", layer)], read))
        row[len(parts) - 1] = mlp = sum(_read(passes[Site("mlp_out", layer)], read))
        if by == "head":
            row[:heads] = 0
            for z in passes[Site("z", layer)]:
                split = shares(model, Site("attn_out", layer), z, str(model.parts.projection(layer)), read)
                row[:heads] += split.view(heads, -1).sum(1).cpu().numpy()
            row[-1] = attention - row[:heads].sum()
        if by == "neuron":
            row[1 : 1 + neurons] = 0
            for hidden in passes[site := Site("mlp_post", layer)]:
                row[1 : 1 + neurons] += shares(
                    model, Site("mlp_out", layer), hidden, model.address(site), read
                ).cpu().numpy()  # fmt: skip
            row[-1] = mlp - row[1 : 1 + neurons].sum()
    with torch.no_grad():
        score = float(model.final(final.view(1, 1, -1))[0, 0].double() @ direction) + offset
    total = float(values.sum())
    return TokenGrid(
        ("embedding", *layer_names(model), "norm and unembedding"),
        (*parts, OTHER),
        values[None],
        (f"contribution to {name!r} (logit)",),
        signed=True,
        residual=Residual(
            abs(total - score) / max(abs(score), 1e-9), "how far the sum of all parts is from the logit, relative to it"
        ),
        note=f"The parts add up to {total:.4g}; the logit{' difference' if other is not None else ''} is {score:.4g}.",
    )


def _read(passes: list[Tensor], direction: Tensor) -> list[float]:
    return [float(each.double() @ direction) for each in passes]
