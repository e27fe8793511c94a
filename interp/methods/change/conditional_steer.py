from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from interp.hooks import Block, here
from interp.method import DirectionName, Positions, Range, Unset, intervention
from interp.methods.change._places import positions_of
from interp.methods.change._steering import Where, added, at_layer, pushed, scale_of
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._conditions import CAST, Condition, Fires, condition_of, counted, last_of, mean_of, rule_of
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site


@intervention("Steer on a condition (CAST)", CAST, needs=no_blocks)
def conditional_steer(
    model: LanguageModel,
    sample: Prompt,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells its examples best")] = None,
    strength: Annotated[float, Range(-100, 100)] = 0.0,
    unit: Literal["shift", "norm"] = "shift",
    condition: Annotated[str, DirectionName()] = "",
    condition_layer: Annotated[int | None, Range(0, 512), Unset("where it tells best, up to the one steered")] = None,
    threshold: Annotated[float | None, Unset("the fitted one")] = None,
    fires: Fires = "as fitted",
    rule: str = "this",
    where: Where = "all",
    positions: Annotated[tuple[int, ...], Positions()] = (),
    keep_norm: bool = False,
) -> Block | None:
    """Add a direction to the residual stream after a layer, if the prompt meets a condition.

        h <- h + s v    if s_c > threshold  (or <),    s_c = cos(h_c, tanh(c <c, h_c> / <c, c>))
        h_c = mean over the prompt's tokens (or the last one's) of the stream after the condition's layer

    The condition is judged once, on the pass that reads the prompt, over its tokens that are neither padding nor
    special; what it says then holds for all tokens that are generated. Each prompt of a batch is judged on its own.

    Args:
        direction: Which direction is added; the model's first unless given.
        layer: After which layer.
        strength: How much; 0 leaves the model as it is, below 0 pushes the other way.
        unit: One "shift" is the direction as it was fitted, one "norm" the mean length of the stream there.
        condition: A condition vector, or any direction if a threshold is given; the first condition unless given.
        condition_layer: After which layer the prompt is judged, at most the layer that is steered.
        threshold: The similarity from which on, or up to which, the condition is met.
        fires: Whether it is met above the threshold or below it.
        rule: Joins conditions by and, or, not and brackets. `this` is the condition above; others are called by the
            names of their directions, with layer and threshold if need be, as in this and not stories/topic@1 > 0.4.
        where: At all tokens, at those of the prompt, or from the last token of the prompt on, where text is generated.
        positions: At these tokens alone, from 0.
        keep_norm: Whether each token's stream keeps its length.

    Raises:
        Unsuitable: no such direction or condition, a rule that can't be read, or a condition read above the layer that
            is steered, where it would be known too late.

    Assumes:
        That prompts which meet the condition are like those it was fitted on.

    Misleads:
        A prompt near the threshold is told one way or the other by a word: look at where examples lie. Steering several
        layers takes one of these for each; those above then see what the first has changed.
    """
    if strength == 0:
        return None
    found, at, v = at_layer(model, direction, layer)
    scale = scale_of(found, at, v, strength, unit)

    def named(name: str, layer: int | None, threshold: float | None, fires: Fires) -> Condition:
        return condition_of(model, name, layer, threshold, fires, at)

    conditions, rules = rule_of(rule, lambda: named(condition, condition_layer, threshold, fires), named)
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.long, device=model.device)
    read, kept = object(), [object() for _ in conditions]  # found in the scratch of each forward or generation alone

    def look(ids: Tensor) -> Tensor:
        if read not in here().scratch:
            here().scratch[read] = torch.isin(ids, special).reshape(len(ids), -1)
        return ids

    def judge(layer: int, h: Tensor) -> Tensor:
        scratch = here().scratch
        for each, key in zip(conditions, kept, strict=True):
            if each.layer == layer and key not in scratch:  # the first pass reads the prompt
                special, generated, at = alike(scratch[read], h), alike(here().generated, h), positions_of(h)
                known = at >= 0
                prompt = known & (at <= (known & ~generated).sum(1, keepdim=True))
                scratch[key] = each.met(mean_of(h.detach(), last_of(prompt) if each.last else counted(prompt, special)))
        return h

    def push(h: Tensor) -> Tensor:
        met = rules([here().scratch[key] for key in kept])
        return torch.where(met[:, None, None], added(h, scale * v, keep_norm), h)

    def alike(marks: Tensor | None, h: Tensor) -> Tensor:
        assert marks is not None
        # variants of one prompt may run together where only the one's tokens are known
        return marks if len(marks) == len(h) else marks[:1].expand(len(h), -1)

    layers = sorted({each.layer for each in conditions})
    edits: dict[Site | str, Callable[[Tensor], Tensor]] = {
        Site("module", path=f"{model.parts.embedding}:in"): look,
        **{Site("resid_post", each): partial(judge, each) for each in layers},
    }
    judging = model.edit(edits, carried=layers[0])
    return Block(*judging.settings, *pushed(model, (at,), push, where, positions).settings)
