"""min(x1, x2), the paper's figure 3: what one multiplier per unit can't see."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interp.paper.attributions import METHODS


def minimum(x: Tensor) -> Tensor:
    """min(x1, x2) = x1 - relu(x1 - x2), [batch, 2] -> [batch, 1].

    At (3, 2) with reference (0, 0) the unit goes from 0 to 1. Its input x1 - x2 has the parts +3 and -2. Rescale gives
    the unit the multiplier 1, so x1 gets 3 - 3 = 0 and x2 gets 2: the smaller one alone is said to matter.
    RevealCancel looks at +3 and -2 in both orders: +3 makes relu rise by 3 or by 1, so by 2, and -2 makes it fall by 0
    or by 2, so by 1: x1 gets 3 - 2 = 1, and x2 gets 1.
    """
    return (x[:, :1] - torch.relu(x[:, :1] - x[:, 1:])).clone()


@lru_cache(maxsize=128)
def shares(x1: float, x2: float) -> dict[str, tuple[float, float]]:
    """What each method gives x1 and x2, from the reference (0, 0)."""
    x = torch.tensor([[x1, x2]], dtype=torch.float64)
    found = {name: run(minimum, x, torch.zeros_like(x), 0)[0].tolist() for name, run in METHODS.items()}
    return {name: (a, b) for name, (a, b) in found.items() if name != "DeepLIFT, genomics default"}


def moves(x1: float, x2: float) -> tuple[float, float]:
    """How far RevealCancel says the part +x1 raises the ReLU, and the part -x2 lowers it."""
    up, down, both = max(x1, 0.0), max(-x2, 0.0), max(x1 - x2, 0.0)
    return (up + both - down) / 2, (up - both - down) / 2
