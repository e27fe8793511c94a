"""Gaussian blur, mirrored at the border."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def blur(values: Float[Tensor, "... height width"], sigma: float) -> Float[Tensor, "... height width"]:
    """Blur the last two axes with a Gaussian of `sigma` cells, cut off at 4 sigma; sigma 0 leaves them as they are.

    Two small matrices, one for each axis, hold kernel and border: any sigma works on any size, down to one cell.
    """
    height, width = values.shape[-2:]
    return _matrix(height, sigma).to(values) @ values @ _matrix(width, sigma).to(values).T


def _matrix(n: int, sigma: float) -> Float[Tensor, "n n"]:
    """Row i holds the Gaussian around i, with what falls outside mirrored at the outermost cells (d c b | a b c d)."""
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (-(offsets**2) / (2 * sigma**2)).exp() if sigma > 0 else torch.ones(1, dtype=torch.float64)
    at = torch.arange(n)[:, None] + offsets.long()
    period = max(2 * (n - 1), 1)
    folded = at % period
    folded = torch.minimum(folded, period - folded) if n > 1 else torch.zeros_like(folded)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, folded, (kernel / kernel.sum()).expand(n, -1))


def blur_reference(values: Float[Tensor, "height width"], sigma: float) -> Float[Tensor, "height width"]:
    """The same, cell by cell."""
    height, width = values.shape

    def mirrored(index: int, n: int) -> int:
        while not 0 <= index < n:
            index = -index if index < 0 else 2 * (n - 1) - index
            if n == 1:
                return 0
        return index

    reach = math.ceil(4 * sigma)
    around = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    weight = {(dy, dx): math.exp(-(dy**2 + dx**2) / (2 * sigma**2)) if sigma else 1.0 for dy, dx in around}
    out = torch.zeros_like(values)
    for y in range(height):
        for x in range(width):
            for dy, dx in around:
                out[y, x] += weight[dy, dx] * values[mirrored(y + dy, height), mirrored(x + dx, width)]
    return out / sum(weight.values())
