from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import numpy as np

from interp import Unsuitable, directions, hooks, progress
from interp.directions import Direction
from interp.experiment import Call
from interp.method import DirectionName, Paper, Range, Unset, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._meters import (
    TEXTS,
    judge,
    mean_divergence,
    perplexity,
    repetition,
    written,
)
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, TextSet

PAPER = Paper(
    "Wu, Zhengxuan and Arora, Aryaman and Geiger, Atticus and Wang, Zheng and Huang, Jing and Jurafsky, Dan and "
    "Manning, Christopher D. and Potts, Christopher",
    "AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders",
    2025,
    "ICML",
    "https://arxiv.org/abs/2501.17148",
)
MOST = 12


def passes(
    model: LanguageModel, ways: tuple[str, ...], instruction: str, n: int, seeds: int, **_: Any
) -> tuple[float, float]:
    """Continuations and ordinary texts of every row."""
    rows = 1 + bool(instruction.strip()) + len(ways)
    return rows * (seeds * (n + 2) + TEXTS), 0


@lens("Compare ways to steer", PAPER, needs=no_blocks, cost=passes)
def compare_steering(
    model: LanguageModel,
    sample: Prompt,
    *,
    ways: tuple[str, ...] = (),
    instruction: str = "",
    n: Annotated[int, Range(1, 200)] = 24,
    seeds: Annotated[int, Range(1, 64)] = 4,
    temperature: Annotated[float, Range(0, 2)] = 1.0,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[
        int | None, Range(0, 512), Unset("the last, or where a direction of whole texts tells best")
    ] = None,
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
) -> Table:
    """Measure several ways to steer on the same prompt with the same seeds, each by itself, beside the plain model.

        KL = mean_i mean_t sum_v p_v log(p_v / q_v);    perplexity ratio = exp(mean_t log p(x_t) - mean_t log q(x_t))

    p is what the plain model expects of the prompt and the continuation i, q what it was drawn from.

    Args:
        ways: Interventions as links write them, `steer{"strength":2.0}`; several lines make one way.
        instruction: A text put before the prompt, and before ordinary text: what the right words alone would do.
        n: How many tokens to go on by.
        seeds: How many continuations of each.
        temperature: 0 takes the likeliest token, 1 draws as the model expects.
        direction: Which direction scores the behaviour; the model's first unless given.
        layer: After which layer it is read.
        texts: Ordinary texts, of which the first 8 are read.
        seed: The first of the seeds.

    Returns:
        Table with a row per way, the plain model first, then the interventions in force, if there are any, and the
        instruction: the behaviour score as among the side effects (where a direction is known), the perplexity of
        ordinary text over the plain model's, KL, and the share of repeated runs of 3 tokens.

    Raises:
        Unsuitable: a way that is no intervention, or does not fit the model.

    Assumes:
        That the strengths are chosen fairly: each at its best, or all at the same perplexity ratio.

    Misleads:
        One prompt and a few seeds rank nothing; a way that wins here may lose on the next prompt.
    """
    if len(ways) > MOST:
        raise Unsuitable(f"At most {MOST} ways are compared at once; leave some out.")
    calls = [_calls(each) for each in ways]
    by = judge(model, direction, layer)
    own = model.inputs(sample)

    def measured(before: str = "") -> list[float]:
        asked = Prompt(before + sample.text) if before else sample
        text = written(model, [asked] * seeds, n, temperature, range(seed, seed + seeds), "continuation")
        plain = text.after(own)
        numbers = [] if by is None else [float(by.scores(model, sample, plain).mean())]
        repeated = float(np.mean([repetition(text.tokens(row)) for row in range(seeds)]))
        return [*numbers, perplexity(model, texts, before), float(mean_divergence(model, plain).mean()), repeated]

    def kept(before: str = "") -> tuple[float, ...]:
        scored = None if by is None else (by.direction.key, by.layer)
        key = ("compared", sample.text, before, n, seeds, temperature, scored, texts, seed)
        return model.cached(key, lambda: tuple(measured(before)))

    rows: dict[str, tuple[float, ...]] = {}
    with hooks.alone():
        rows["plain"] = kept()
    if hooks.in_force():
        rows["as it stands"] = kept()
    with hooks.alone():
        if instruction.strip():
            rows["instruction"] = kept(instruction if instruction[-1].isspace() else instruction + " ")
        for each in progress.track(calls, "comparing"):
            with ExitStack() as stack:
                for call in each:
                    stack.enter_context(_method(call)(model, sample, **call.settings))
                rows[_distinct(_name(each, model), rows)] = kept()
    columns = ("behaviour",) if by is not None else ()
    values = np.array(list(rows.values()), np.float64)
    values[:, len(columns)] /= values[0, len(columns)]
    return Table(tuple(rows), (*columns, "perplexity ratio", "KL", "repetition"), values, units="KL in nats")


def _method(call: Call) -> Any:
    from interp.methods import METHODS  # which imports this file

    return METHODS[call.method]


def _calls(way: str) -> list[Call]:
    calls = [Call.parse(line.strip()) for line in way.splitlines() if line.strip()]
    if not calls:
        raise Unsuitable("A way to steer is empty; name an intervention in it, or leave it out.")
    for call in calls:
        if _method(call).kind != "intervention":
            raise Unsuitable(f"{_method(call).name} is no intervention, so it can't be compared as a way to steer.")
    return calls


def _name(calls: Sequence[Call], model: LanguageModel) -> str:
    """What a way is called: its methods, and the settings that differ from the defaults."""
    parts = []
    for call in calls:
        settings = [f"{key.replace('_', ' ')} {_shown(key, value, model)}" for key, value in call.changed.items()]
        parts.append(f"{_method(call).name} ({', '.join(settings)})" if settings else _method(call).name)
    return " + ".join(parts)[:160]


def _shown(key: str, value: Any, model: LanguageModel) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str) and directions.NAME.fullmatch(value) and len(value) == 64:
        known: dict[str, Direction] = {each.key: each for each in directions.available(model)}
        return known[value].name if value in known else value[:8]
    return str(value)[:40]


def _distinct(name: str, taken: Any) -> str:
    number = 2
    first = name
    while name in taken:
        name, number = f"{first}, {number}", number + 1
    return name
