from typing import Annotated

import torch
from torch import Tensor

from interp import Unsuitable, hooks
from interp.hooks import Block
from interp.method import Paper, Positions, Range, SAEName, Unset, intervention
from interp.methods.change._features import turned
from interp.methods.change._steering import Where, places
from interp.methods.features._saes import open_sae
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._contrast import Token
from interp.methods.steering.sae_direction import activations, effect
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet

LF = Paper(
    "Yang, Jingyuan and Li, Rongjun and Wang, Weixuan and Zhou, Ziyu and Feng, Zhiyong and Peng, Wei",
    "LF-Steering: Latent Feature Activation Steering for Enhancing Semantic Consistency in Large Language Models",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2501.11036",
)


@intervention("Steer active features (LF-style)", LF, needs=no_blocks)
def lf_steer(
    model: LanguageModel,
    sample: Prompt,
    *,
    sae: Annotated[str, SAEName()] = "",
    consistent: Annotated[TextSet | None, Unset("none")] = None,
    inconsistent: Annotated[TextSet | None, Unset("none")] = None,
    top: Annotated[int, Range(1, 4096)] = 16,
    strength: Annotated[float, Range(-100, 100)] = 0.0,
    token: Token = "mean",
    where: Where = "all",
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Move those features that are active anyway towards what they are in texts which are answered consistently.

        delta_i = mean f_i(consistent) - mean f_i(inconsistent),    i among the `top` by |delta_i| / pooled std of f_i
        f_i <- f_i + strength delta_i  where f_i > 0;    h <- h + x_hat(f') - x_hat(f)

    In the manner of LF-Steering: its paper biases the active features of a layer that tell consistent from inconsistent
    paraphrases. The score by which features are chosen and the size of the bias are Actiscope's own.

    Args:
        sae: Which SAE or transcoder; the model's own unless given.
        consistent: Paraphrases that the model answers as it should.
        inconsistent: Paraphrases that it answers otherwise.
        top: How many features are moved.
        strength: How far, in differences of the means; 0 leaves the model as it is.
        token: Which token of a text counts, or the mean of all.
        where: At all tokens, at those of the prompt, or from the last token of the prompt on.
        positions: At these tokens alone, from 0.

    Raises:
        Unsuitable: one side has no texts, no SAE that fits this model, or no feature that differs.

    Assumes:
        That what makes answers inconsistent is a few features which fire too much or too little, and not ones missing.

    Misleads:
        Whatever else the two sets differ in is pushed as well; use paraphrases of the same questions on both sides.
    """
    if strength == 0:
        return None
    if consistent is None or inconsistent is None or not consistent.texts or not inconsistent.texts:
        raise Unsuitable("Give texts that are answered consistently, and others that are not, at least one of each.")
    found = open_sae(model, sae)
    sides = consistent.texts, inconsistent.texts

    def read() -> Tensor:
        f = [activations(model, each, found, token)[1] for each in sides]
        score = effect(*f)
        features = score.topk(min(top, int((score > 0).sum()))).indices.sort().values
        return torch.stack([features.double(), (f[0].double().mean(0) - f[1].double().mean(0))[features]])

    with hooks.alone():  # examples are of the model as it is
        kept = model.cached(("features of two sides", found.digest, sides, top, token), read)
    if not kept.numel():
        raise Unsuitable("No feature of this SAE differs between these texts; give others, or choose another SAE.")
    features, delta = kept[0].long(), kept[1].to(model.device, torch.float32)

    def turn(f: Tensor) -> Tensor:
        chosen = places(f, where)
        active = f > 0 if chosen is None else (f > 0) & chosen.unsqueeze(-1)
        return torch.where(active, f + strength * delta.to(f), f)

    return turned(model, found, tuple(features.tolist()), positions, turn)
