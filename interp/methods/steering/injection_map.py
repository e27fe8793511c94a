import numpy as np
import torch

from interp.method import lens
from interp.methods.reading._prompts import layer_names, looked
from interp.methods.steering._tasks import head_outputs, load, no_heads
from interp.methods.steering.soft_injection import PAPER
from interp.model import LanguageModel
from interp.results import TokenGrid
from interp.samples import Prompt


@lens("Injection map", PAPER, needs=no_heads)
def injection_map(model: LanguageModel, sample: Prompt, *, task: str = "") -> TokenGrid:
    """Show which heads a task is injected into, and how far that moves each at the end of the prompt.

        A_lh,    m_lh = A_lh |E_lh - z_lh(last token)|

    Args:
        task: The name of a task, or the key of one that was fitted; the model's first unless given.

    Returns:
        TokenGrid of layers by heads: the share of each head's output that is replaced, and the length of the change.

    Raises:
        Unsuitable: no such task, or another model's.

    Assumes:
        A prompt of the form the task was fitted on.

    Misleads:
        Heads share the work, so a task may be carried by many with a small A; lengths are of z, before the output
        matrix, and layers that write in larger numbers move farther.
    """
    found = load(task, model)
    passes, _ = looked(model, sample, head_outputs(model))
    shares = found.share.double().cpu()
    moved = torch.full_like(shares, float("nan"))
    for layer, each in enumerate(passes):
        if each:  # none where the layer is skipped
            z = each[-1][-1].double().cpu()
            moved[layer] = shares[layer] * (found.outputs[layer].double().cpu() - z).norm(dim=1)
    return TokenGrid(
        layer_names(model), tuple(f"head {head}" for head in range(shares.shape[1])),
        np.stack([shares.numpy(), moved.numpy()]), ("share injected", "change of z"),
    )  # fmt: skip
