"""Simulated DNA with two planted motifs, and a small network that finds them (the paper's section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.paper.attributions import METHODS

LETTERS = "ACGT"
LENGTH = 200
OUTPUTS = ("both", "GATA", "TAL", "TAL without GATA")
WEIGHTS = Path(__file__).parents[2] / "assets" / "paper" / "motifs.safetensors"


def _weights(consensus: str, flank: str) -> Float[np.ndarray, "position letter"]:
    """Probabilities of the letters: 0.95 for a letter of the core, 0.7 for one of the flanks."""
    rows = []
    for at, letter in enumerate(consensus):
        sure = 0.95 if flank[at] == "*" else 0.7
        rows.append([sure if each == letter else (1 - sure) / 3 for each in LETTERS])
    return np.array(rows)


MOTIFS = {"GATA": _weights("AGATAAGA", ".******."), "TAL": _weights("ACAGATGG", ".******.")}
"""Near to what the transcription factors GATA1 and TAL1 bind: both hold GAT, so one is a near miss of the other."""


@dataclass(frozen=True)
class Sequences:
    """letters [sequence, position] as numbers of ACGT; inside: motif -> bool [sequence, position]."""

    letters: Int[np.ndarray, "sequence position"]
    inside: dict[str, np.ndarray]

    @property
    def x(self) -> Float[Tensor, "sequence 4 position"]:
        """One-hot, in double precision."""
        return torch.eye(4, dtype=torch.float64)[torch.from_numpy(self.letters)].transpose(1, 2)

    def one(self, row: int) -> Sequences:
        """One of the sequences."""
        return Sequences(self.letters[[row]], {name: each[[row]] for name, each in self.inside.items()})

    @property
    def text(self) -> str:
        """The letters of the first sequence."""
        return "".join(LETTERS[letter] for letter in self.letters[0])

    @property
    def spans(self) -> list[tuple[int, int, str]]:
        """(start, end, motif) of what is planted in the first sequence."""
        found = []
        for name, inside in self.inside.items():
            edges = np.flatnonzero(np.diff(np.concatenate([[0], inside[0].astype(int), [0]])))
            found += [(int(start), int(end), name) for start, end in edges.reshape(-1, 2)]
        return found

    @property
    def labels(self) -> Float[np.ndarray, "sequence output"]:
        """1 where the output is true of the sequence."""
        gata, tal = (self.inside[name].any(1) for name in MOTIFS)
        return np.stack([gata & tal, gata, tal, tal & ~gata], 1).astype(float)


def simulate(number: int, seed: int, counts: tuple[int, int] | None = None) -> Sequences:
    """Draw random letters and plant 0 to 3 of each motif, without overlap.

    Args:
        counts: how many GATA and TAL in every sequence; drawn unless given.
    """
    rng = np.random.default_rng(seed)
    letters = rng.integers(0, 4, (number, LENGTH))
    inside = {name: np.zeros((number, LENGTH), bool) for name in MOTIFS}
    for row in range(number):
        taken = np.zeros(LENGTH, bool)
        for place, (name, weights) in enumerate(MOTIFS.items()):
            planted = int(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))) if counts is None else counts[place]
            while planted:
                start = int(rng.integers(0, LENGTH - len(weights)))
                where = slice(start, start + len(weights))
                if taken[where].any():
                    continue
                letters[row, where] = [int(rng.choice(4, p=each)) for each in weights]
                taken[where] = inside[name][row, where] = True
                planted -= 1
    return Sequences(letters, inside)


def network() -> nn.Sequential:
    """Two convolutions, the mean over positions, two dense layers."""
    return nn.Sequential(
        nn.Conv1d(4, 32, 11, padding=5),
        nn.ReLU(),
        nn.Conv1d(32, 32, 11, padding=5),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, len(OUTPUTS)),
    )


@cache
def trained() -> nn.Sequential:
    """The embedded network, in double precision, frozen."""
    from safetensors.torch import load_file

    found = network()
    found.load_state_dict(load_file(WEIGHTS))
    return found.double().eval().requires_grad_(False)


def reference(x: Float[Tensor, "sequence 4 position"]) -> Float[Tensor, "sequence 4 position"]:
    """Every letter as likely as any other."""
    return torch.full_like(x, 0.25)


def scores(method: str, sequences: Sequences, output: str) -> Float[np.ndarray, "sequence position"]:
    """What a method says each letter adds to the logit of an output."""
    x = sequences.x
    found = METHODS[method](trained(), x, reference(x), OUTPUTS.index(output))
    # what the four letters of a position get is what the one that stands there gets, against the expected letter
    return found.sum(1).numpy()


def auc(values: np.ndarray, truth: np.ndarray) -> float:
    """The probability that a true place has a larger value than a false one (ties count half): area under the ROC."""
    values, truth = values.ravel(), truth.ravel().astype(bool)
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    positive, negative = int(truth.sum()), int((~truth).sum())
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


CASES = {
    "both motifs speak for both": ("both", (1, 1), ("GATA", "TAL"), 1),
    "TAL speaks for both, though GATA is missing": ("both", (0, 2), ("TAL",), 1),
    "GATA, a near miss, speaks against TAL": ("TAL", (2, 0), ("GATA",), -1),
    "GATA rules out TAL without GATA": ("TAL without GATA", (2, 1), ("GATA",), -1),
}
"""Case -> output, motifs in every sequence, the motifs that must stand out, and the sign of their evidence."""


def roc(number: int = 100, seed: int = 1) -> dict[str, dict[str, float]]:
    """For each case and method: how well its scores tell letters inside the motifs from all others.

    In the second, the answer is no for want of GATA, and the gradient at TAL nearly vanishes. In the last two, evidence
    is negative: scores must be below zero at GATA, which Guided Backprop, keeping only what excites, can't do.
    """
    found: dict[str, dict[str, float]] = {}
    for case, (output, counts, names, sign) in CASES.items():
        sequences = simulate(number, seed, counts)
        truth = np.logical_or.reduce([sequences.inside[name] for name in names])
        found[case] = {method: auc(sign * scores(method, sequences, output), truth) for method in METHODS}
    return found
