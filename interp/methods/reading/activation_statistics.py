import numpy as np
import torch

from interp.method import Paper, lens
from interp.methods.reading._prompts import RESIDUALS, layer_names, no_blocks, streams
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt

PAPER = Paper(
    "Dettmers, Tim and Lewis, Mike and Belkada, Younes and Zettlemoyer, Luke",
    "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    2022,
    "NeurIPS",
    "https://arxiv.org/abs/2208.07339",
)
OUTLIER = 6.0
"""In root mean squares of the layer."""


@lens("Activation statistics", PAPER, needs=no_blocks, cost=lambda model, **_: (1, 0))
def activation_statistics(model: LanguageModel, sample: Prompt) -> Table:
    """Measure how large the residual stream is after each layer, and how unevenly its channels carry it.

        norm = mean_t ||x_t||,   kurtosis = mean((x - m)^4) / mean((x - m)^2)^2,   outlier: |x_ti| > 6 rms(x)

    m is the mean over tokens and channels. A normal distribution has a kurtosis of 3.

    Returns:
        Table with a row per layer: mean norm over the tokens, largest norm, the position that has it, kurtosis, largest
        magnitude over the root mean square, the channel that has it, and how many channels hold an outlier.

    Assumes:
        That the channels are a basis of their own: norms and optimisers single them out, attention and MLP need not.

    Misleads:
        The first token often has a norm many times that of all others, and then makes most of the statistics.
    """
    rows = []
    for stream in streams(model, sample)[0]:
        x = stream.double()
        norms = x.norm(dim=1)
        centred = x - x.mean()
        square = centred.square().mean()
        kurtosis = centred.pow(4).mean() / square.square() if float(square) > 0 else torch.tensor(torch.nan)
        rms = x.square().mean().sqrt()
        largest = x.abs().amax(0)
        rows.append(
            [
                float(norms.mean()), float(norms.max()), int(norms.argmax()), float(kurtosis),
                float(largest.max() / rms) if float(rms) > 0 else 0.0, int(largest.argmax()),
                int((largest > OUTLIER * rms).sum()),
            ]
        )  # fmt: skip
    columns = (
        "mean norm", "largest norm", "at position", "kurtosis", "largest / rms", "in channel", "outlier channels",
    )  # fmt: skip
    return Table((RESIDUALS, *layer_names(model)), columns, np.array(rows))
