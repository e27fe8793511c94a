"""What `stories` carries from layer to layer and what it makes anew, with examples that its language explains.

python -m tests.transported      # three tables: all pairs of layers, known features, and what replacing a layer costs
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from interp import sae, transport
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, TextSet
from interp.transport import Operators
from tests.known import PROPERTIES, Tokens, activations, best_f1, grammar

NAMED = [(f"the name {name}", rf"(?<=\w) {name}\b", "resid_post.0") for name in ("Mary", "John", "Paul")]
"""Tokens that have the property end where the pattern does; a feature of the SAE tells it."""
KNOWN = [*NAMED, *((each.name, each.pattern, each.sae) for each in PROPERTIES if each.sae.startswith("resid_post"))]


@dataclass(frozen=True)
class Counts:
    """Of the features of one SAE from one source: how many can be judged, are carried, are made between; and by the
    paper's own R^2, of the projection on the decoder's direction where the feature fires."""

    source: str
    target: str
    judged: int
    carried: int
    made: int
    paper_carried: int
    paper_made: int


def counts(of: Operators) -> Iterator[Counts]:
    """For all SAEs and earlier streams; carried and made where the whole interval is on one side of one half."""
    for name in of.saes:
        target = of.number(sae.load(name).site)
        for source in range(target):
            facts = of.features(name, source, target)
            assert facts is not None
            numbers = [int(np.nansum(each)) for each in (
                np.isfinite(facts["read"]), facts["read low"] > 0.5, facts["read high"] < 0.5,
                facts["r2 low"] > 0.5, facts["r2 high"] < 0.5,
            )]  # fmt: skip
            yield Counts(of.names[source], of.names[target], *numbers)


@dataclass(frozen=True)
class Example:
    """A feature that tells a property, and how well it is read from each stream: (R^2, low, high), by name."""

    name: str
    sae: str
    feature: int
    f1: float
    reads: dict[str, tuple[float, float, float]]

    @property
    def verdict(self) -> str:
        """Since when it is there, in words."""
        there = [stream for stream, (_, low, _) in self.reads.items() if low > 0.5]
        here = self.sae.rsplit(".", 1)[1]
        if "embed" in there:
            return "carried from the embedding"
        return f"made in layer {there[0]}, carried since" if there else f"made in layer {here}"


def examples(model: LanguageModel, of: Operators, documents: int = 3000, seed: int = 54321) -> list[Example]:
    """For each known property the feature that tells it best on new documents, and where it can be read."""
    rng = random.Random(seed)
    texts = [grammar.document(rng) for _ in range(documents)]
    read = [model.tokenizer(text, return_offsets_mapping=True) for text in texts]
    ids = [each["input_ids"] for each in read]
    fired: dict[str, torch.Tensor] = {}
    found = []
    for name, pattern, site in KNOWN:
        has = []
        for text, each in zip(texts, read, strict=True):
            hits = {match.end() for match in re.finditer(pattern, text)}
            has += [end in hits and place > 0 for place, (_, end) in enumerate(each["offset_mapping"])]
        own = sae.load(f"{model.name}/{site}")
        if own.name not in fired:
            fired[own.name] = activations(model, own, Tokens(ids, {}))
        _, scores = best_f1(fired[own.name], np.array(has))
        feature, target = int(scores.argmax()), of.number(own.site)
        reads = {}
        for source in range(target):
            facts = of.features(own.name, source, target)
            assert facts is not None
            reads[of.names[source]] = tuple(float(facts[each][feature]) for each in ("read", "read low", "read high"))
        found.append(Example(name, own.name, feature, float(scores[feature]), reads))  # type: ignore[arg-type]
    return found


def costs(model: LanguageModel, of: Operators, documents: int = 100, seed: int = 98765) -> dict[tuple[str, str], Table]:
    """What replacing a target by four maps of a source costs on new documents, for all pairs: `transport_check`."""
    rng = random.Random(seed)
    texts = TextSet(tuple(grammar.document(rng) for _ in range(documents)))
    return {
        (of.names[a], of.names[b]): METHODS["transport_check"](
            model, Prompt("The"), source=of.streams[a], target=of.streams[b], texts=texts
        )
        for a, b in of.pairs
    }


if __name__ == "__main__":
    from interp import zoo

    stories = zoo.load("stories")
    operators = transport.need(stories)
    print("| from | to | features judged | carried | made between | carried (paper's R²) | made (paper's R²) |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row in counts(operators):
        print(f"| {row.source} | {row.target} | {row.judged:,} | {row.carried} | {row.made} | {row.paper_carried} "
              f"| {row.paper_made} |")  # fmt: skip
    print("\n| property | SAE | feature | F1 | R² read from | verdict |\n|---|---|--:|--:|---|---|")
    for one in examples(stories, operators):
        reads = ", ".join(f"{name} {r2:.2f} ({low:.2f} to {high:.2f})" for name, (r2, low, high) in one.reads.items())
        print(f"| {one.name} | `{one.sae}` | {one.feature} | {one.f1:.3f} | {reads} | {one.verdict} |", flush=True)
    print("\n| from | to | unchanged | transport | identity | mean | random | KL of the transport |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for (source, target), table in costs(stories, operators).items():
        values = [f"{value:.3g}" for value in table.values[:, 0]]
        print(f"| {source} | {target} | {' | '.join(values)} | {table.values[1, 3]:.3f} |", flush=True)
