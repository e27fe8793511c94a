from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, directions, hooks, progress, store
from interp.directions import Direction
from interp.method import Range, SAEName, Unset, fit
from interp.methods.features._saes import TEMPLETON, feature_of, open_index, open_sae
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._contrast import Streams, Token, judged, streams
from interp.methods.steering.difference_of_means import passes
from interp.model import LanguageModel
from interp.sae import SAE
from interp.samples import Contrast
from interp.sites import Site


@fit("SAE direction", TEMPLETON, needs=no_blocks, cost=passes)
def sae_direction(
    model: LanguageModel,
    data: Contrast,
    *,
    sae: Annotated[str, SAEName()] = "",
    feature: Annotated[int | None, Range(0, 2**24), Unset("the one that tells the two sides apart best")] = None,
    token: Token = "last",
    seed: int = 0,
    name: str = "",
) -> str:
    """Take the decoder row of one feature of an SAE or transcoder, as long as its activation differs between the sides.

        v = (mean f_i+ - mean f_i-) d x_hat / d f_i,    i = argmax |mean f_i+ - mean f_i-| / pooled std of f_i

    It is a direction of one layer: that after which the SAE's site stands. What a transcoder or an SAE of the MLP
    writes is added to the stream within that layer, so it is the same direction behind it.

    Args:
        sae: Which SAE or transcoder; the model's own unless given.
        feature: The number of the feature, from 0. If it fires on neither side, its maximum in the index counts.
        token: Which token of an example counts.
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction.

    Raises:
        Unsuitable: an empty side, no such SAE or feature, a site from which the stream is not reached, or a feature
            that fires nowhere.

    Assumes:
        That one feature stands for the behaviour, and that its decoder row is what writes it.

    Misleads:
        The best feature of many is found by chance too: the accuracy that is kept is of examples that had no part in
        choosing it. A feature that fires on a behaviour need not bring it about.
    """
    if not data.positive or not data.negative:
        raise Unsuitable("One side has no texts; give at least one for each.")
    found = open_sae(model, sae)
    layer = layer_of(model, found)
    if feature is not None:
        feature_of(found, feature)
    key = store.key_of(
        "direction", directions.VERSION, "SAE", model.digest, found.name, found.digest, feature, data.positive,
        data.negative, token, seed,
    )  # fmt: skip
    with progress.alone(key):
        if not (directions.folder() / f"{key}.safetensors").exists():
            _fit(model, data, found, layer, feature, token, seed, name, key)
    return key


def _fit(
    model: LanguageModel, data: Contrast, found: SAE, layer: int, feature: int | None, token: Token, seed: int,
    name: str, key: str,
) -> None:  # fmt: skip
    sides = data.positive, data.negative
    x, f = zip(*(activations(model, each, found, token) for each in sides), strict=True)
    chosen = int(effect(*f).argmax()) if feature is None else feature
    row = found.directions(torch.cat(x).mean(0), torch.tensor([chosen], device=found.W_dec.device))[0].cpu()
    delta = float((f[0].double().mean(0) - f[1].double().mean(0))[chosen])
    if delta == 0:
        index = open_index(model, found)
        delta = 0.0 if index is None else float(index.maximum[chosen])
    if delta == 0:
        raise Unsuitable(
            f"Feature {chosen} of {found.name} fires on neither side, or on both alike, and no index says how far it "
            "goes; choose another, or build an index."
        )
    v = delta * row
    site = Site("resid_post", layer)
    p, n = (streams(model, each, token, "reading examples", [site]).cpu() for each in sides)
    facts = judged(p, n, lambda p, n: v[None], v[None], seed)
    if feature is None:  # of each fold the feature is chosen anew: beside each stream stand its activations
        d, rows = p.shape[-1], found.directions(torch.cat(x).mean(0), torch.arange(found.d_sae)).cpu()

        def again(p: Streams, n: Streams) -> Float[Tensor, "1 d"]:
            f = [side[:, 0, d:] for side in (p, n)]
            best = int(effect(*f).argmax())
            return torch.cat([(f[0].mean(0) - f[1].mean(0))[best] * rows[best], torch.zeros(found.d_sae)])[None]

        p, n = (torch.cat([each, own[:, None]], -1) for each, own in zip((p, n), f, strict=True))
        facts["accuracy"] = judged(p, n, again, again(p, n), seed)["accuracy"]
    title = name or f"feature {chosen} of {found.name}"
    about = {"token": token, "positive": len(data.positive), "negative": len(data.negative), "seed": seed,
             "examples": [data.positive[0][:200], data.negative[0][:200]], "sae": found.name, "feature": chosen,
             "activation": delta}  # fmt: skip
    made = Direction(title, "SAE feature", model.name, model.digest, (layer,), v[None].float(), facts, about)
    directions.keep(made, key)


def layer_of(model: LanguageModel, found: SAE) -> int:
    """The layer behind which what this SAE writes is a direction of the residual stream.

    Raises:
        Unsuitable: it writes somewhere else.
    """
    target = model.resolve(found.target)
    if target.kind in ("resid_post", "mlp_out"):
        return int(target.layer or 0)
    if target.kind == "resid_pre" and target.layer:
        return target.layer - 1
    raise Unsuitable(
        f"{found.name} writes {target}, which is no direction of the stream behind a layer; choose an SAE of "
        "resid_post or mlp_out, or a transcoder."
    )


def activations(
    model: LanguageModel, texts: tuple[str, ...], found: SAE, token: Token
) -> tuple[Float[Tensor, "text d_in"], Float[Tensor, "text d_sae"]]:
    """What the SAE reads of each text, and its activations, on the unchanged model: at one token or the mean of all."""

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([x, found.encode(x)], -1)

    with hooks.alone():
        both = streams(model, texts, token, "reading features", [model.resolve(found.site)], encode)[:, 0]
    return both[:, : found.d_in], both[:, found.d_in :].cpu()


def effect(positive: Float[Tensor, "p feature"], negative: Float[Tensor, "n feature"]) -> Float[Tensor, "feature"]:
    """|mean - mean| / pooled standard deviation, of each feature; 0 where the means are equal.

    A deviation below a thousandth of the largest difference counts as that, so that of features which never vary the
    one that differs most comes first.
    """
    p, n = positive.double(), negative.double()
    shift = (p.mean(0) - n.mean(0)).abs()
    spread = ((p.var(0, correction=0) + n.var(0, correction=0)) / 2).sqrt()
    return shift / spread.clamp(min=1e-3 * float(shift.max()) or 1.0)
