from typing import Annotated, Any

import torch

from interp.method import Paper, Range, Unset, lens
from interp.methods.attribution._pixels import Reference, completeness, gradient_at, pixel_map, references, seen
from interp.methods.attribution.integrated_gradients import scores_at
from interp.model import VisionModel
from interp.progress import track
from interp.results import Heatmap
from interp.samples import Image, ImageSet, Target

PAPER = Paper(
    "Erion, Gabriel and Janizek, Joseph D. and Sturmfels, Pascal and Lundberg, Scott M. and Lee, Su-In",
    "Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and Expected Gradients",
    2021,
    "Nature Machine Intelligence",
    "https://arxiv.org/abs/1906.10670",
)
BATCH = 4
"""Samples per forward and backward."""


def _cost(
    model: VisionModel, samples: int, reference: Reference, images: ImageSet | None, **_: Any
) -> tuple[float, float]:
    known = len(images.images) if images is not None else samples if reference == "uniform" else 1
    return samples + known + 1, samples


@lens("Expected Gradients", PAPER, cost=_cost)
def expected_gradients(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    reference: Reference = "uniform",
    images: Annotated[ImageSet | None, Unset("the reference above")] = None,
    samples: Annotated[int, Range(1, 500)] = 50,
    seed: int = 0,
) -> Heatmap:
    """Integrated Gradients over many references at once: one random point on the path from each.

        L_ij = mean_s sum_k  (x_kij - r^s_kij)  dS_c(r^s + alpha_s (x - r^s)) / dx_kij
        r^s ~ the references,    alpha_s ~ U(0, 1),    s = 1 ... n

    Its expectation adds up to S_c(x) - mean_r S_c(r). The residual compares the sum with S_c(x) - mean_s S_c(r^s): it
    is the error of the random draw and shrinks like 1 / sqrt(n). The paper draws the references from training images.

    Args:
        target: The class to explain.
        reference: What the references are; uniform draws new colours for each sample, the others are one picture.
        images: Pictures to draw the references from, with replacement, instead of the reference.
        samples: How many references and points, n.
        seed: Number that fixes the draws.

    Returns:
        Heatmap [height, width], one value per pixel of the input, in logits.

    Raises:
        Unsuitable: no such class, or reference images that the model sees at another size.

    Assumes:
        That the references together stand for "anything else", and that the blends with them are images to the network.

    Misleads:
        With few samples the map is mostly the noise of the draw; look at the residual and at another seed. References
        of pure noise are far from any photo, and the network's scores for them mean little.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    score = float(logits[0, index])
    generator = torch.Generator().manual_seed(seed)
    # all drawn beforehand, so that they do not depend on the batches
    alphas = torch.rand(samples, generator=generator, dtype=torch.float64)
    if fresh := images is None and reference == "uniform":
        picks = torch.randint(2**63 - 1, (samples,), generator=generator)  # a seed for each: together they fill memory
        starting = torch.zeros(samples, dtype=torch.float64, device=pixels.device)
    else:
        pool = references(model, pixels, reference, images)
        picks = torch.randint(len(pool), (samples,), generator=generator)
        starting = scores_at(model, pool, index)[picks]
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    for at in track(torch.arange(samples).split(BATCH), "Samples"):
        if fresh:
            drawn = torch.cat([references(model, pixels, reference, seed=int(picks[each])) for each in at])
            starting[at] = scores_at(model, drawn, index)
        else:
            drawn = pool[picks[at]]
        away = pixels - drawn
        slopes = gradient_at(model, drawn + alphas[at, None, None, None].to(pixels) * away, index)[0]
        total += (away * slopes).double().sum(0)
    values = total / samples
    residual = completeness(float(values.sum()), score - float(starting.mean()))
    return pixel_map(model, sample, values, index, score, "logit per pixel", residual=residual)
