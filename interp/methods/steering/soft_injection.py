from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Unsuitable, hooks, progress, store
from interp.method import Paper, Range, fit
from interp.methods.steering._tasks import VERSION, Task, head_outputs, injecting, keep, no_heads, path_of
from interp.model import LanguageModel, gradient
from interp.samples import Contrast

PAPER = Paper(
    "Park, Jungwon and Rhee, Wonjong",
    "Soft Injection of Task Embeddings Outperforms Prompt-Based In-Context Learning",
    2026,
    "Findings of ACL",
    "https://arxiv.org/abs/2507.20906",
)
BATCH = 32
CHECKS = 8
"""How often the held-out loss is taken on the way."""


def passes(model: LanguageModel, sample: Any = None, steps: int = 400, **_: Any) -> tuple[float, float]:
    """Every prompt with examples once, the held-out ones at each check, and one a step."""
    shown, plain = (len(sample.positive), len(sample.negative)) if isinstance(sample, Contrast) else (50, 50)
    return shown + steps + (CHECKS + 2) * plain / 4, steps


@fit("Soft injection (SITE)", PAPER, needs=no_heads, cost=passes)
def soft_injection(
    model: LanguageModel,
    data: Contrast,
    *,
    steps: Annotated[int, Range(0, 5000)] = 400,
    rate: Annotated[float, Range(1e-4, 10)] = 0.2,
    seed: int = 0,
    name: str = "",
) -> str:
    """Find out what heads put out where examples show a task, and which heads have to be given it where none do.

        E_lh = mean_i z_lh(last token of x_i),    x_i: prompts with examples
        z_lh <- (1 - A_lh) z_lh + A_lh E_lh at the last token of a prompt without,    A = sigmoid(theta)
        theta = argmin mean_j -log p(answer_j),    by Adam, one prompt a step, from 0

    The positive texts are prompts with examples and the negative ones prompts without, each with its answer at the end:
    an answer is the last token of its text. A quarter of the negative ones is held out, and the theta kept that is best
    on it; held-out losses and accuracies (plain, injected, with examples) are kept with the task.

    Args:
        steps: How many steps of learning.
        rate: Adam's learning rate.
        seed: Number that fixes which prompts are held out, and the order of the others.
        name: What the task is called.

    Returns:
        The key of the task, as `inject_task` and `injection_map` take it.

    Raises:
        Unsuitable: an empty side, or a text of one token.

    Assumes:
        That prompts without examples have one form, so that the last token means the same in all of them.

    Misleads:
        A large A says that injecting there helps, not that the model itself uses that head for the task.
    """
    if not data.positive or len(data.negative) < 2:
        raise Unsuitable("Give at least one prompt with examples and two without, each with its answer at the end.")
    key = store.key_of(
        "task", VERSION, model.digest, data.positive, data.negative, steps, rate, seed, *([name] if name else [])
    )
    with progress.alone(key):
        if not path_of(key).exists():
            with hooks.alone():
                keep(_fitted(model, data, steps, rate, seed, name), key)
    return key


def _fitted(model: LanguageModel, data: Contrast, steps: int, rate: float, seed: int, name: str) -> Task:
    shown, plain = ([_split(model, text) for text in side] for side in (data.positive, data.negative))
    outputs, right = _mean_outputs(model, shown)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(plain), generator=generator).tolist()
    held = [plain[each] for each in order[: max(1, len(plain) // 4)]]
    others = [plain[each] for each in order[len(held) :]]
    theta = torch.zeros(outputs.shape[:2], device=model.device)
    moment, square = torch.zeros_like(theta), torch.zeros_like(theta)
    before = _judged(model, held, torch.zeros_like(theta), outputs)
    best = (theta, *_judged(model, held, torch.sigmoid(theta), outputs))
    every = max(1, steps // CHECKS)
    for step in progress.track(range(1, steps + 1), "learning what to inject"):
        ids, answer = others[int(torch.randint(len(others), (), generator=generator))]
        leaf = theta.clone().requires_grad_()
        with model.edit(injecting(torch.sigmoid(leaf), outputs)):
            loss = torch.nn.functional.cross_entropy(model(ids[None], keep=1)[:, -1].float(), answer[None])
        (slope,) = gradient(loss, [leaf])
        moment, square = 0.9 * moment + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        theta = theta - rate * (moment / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        if step % every == 0 or step == steps:
            now = _judged(model, held, torch.sigmoid(theta), outputs)
            best = (theta, *now) if now[0] < best[1] else best
    about = {
        "name": (name or f"task of {len(shown)} prompts with examples")[:80], "examples": [data.positive[0][:200],
        data.negative[0][:200]], "shown": len(shown), "plain": len(plain), "held_out": len(held), "seed": seed,
        "loss": {"plain": before[0], "injected": best[1]},
        "accuracy": {"plain": before[1], "injected": best[2], "with examples": right},
    }  # fmt: skip
    return Task(outputs, torch.sigmoid(best[0]), model.name, model.digest, about)


def _split(model: LanguageModel, text: str) -> tuple[Int[Tensor, position], Int[Tensor, ""]]:
    """The prompt and its answer, the last token of the text."""
    ids = model.inputs(text)[0]
    if len(ids) < 2:
        raise Unsuitable(f"{text[:40]!r} is one token; give a prompt with its answer at the end.")
    return ids[:-1], ids[-1]


def _batches(items: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Int[Tensor, "batch position"], Int[Tensor, batch]]]:
    """Prompts of about one length together, padded at the left, with their answers."""
    items = sorted(items, key=lambda each: len(each[0]))
    out = []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        longest = max(len(ids) for ids, _ in some)
        padded = [torch.cat([ids.new_full((longest - len(ids),), -1), ids]) for ids, _ in some]
        out.append((torch.stack(padded), torch.stack([answer for _, answer in some])))
    return out


def _mean_outputs(
    model: LanguageModel, shown: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "layer head d_head"], float]:
    """The mean of z at the last token of prompts, and the share of them that are followed by their answer."""
    sites = head_outputs(model)
    total, right = torch.zeros(1, dtype=torch.float64, device=model.device), 0
    for ids, answers in progress.track(_batches(shown), "reading prompts with examples"):
        with torch.no_grad(), model.record(sites) as found:
            right += int((model(ids, keep=1)[:, -1].argmax(1) == answers).sum())
        total = total + torch.stack([found[site][:, -1].double().sum(0) for site in sites])
    return (total / len(shown)).float(), right / len(shown)


def _judged(
    model: LanguageModel,
    held: Sequence[tuple[Tensor, Tensor]],
    share: Float[Tensor, "layer head"],
    outputs: Float[Tensor, "layer head d_head"],
) -> tuple[float, float]:
    """Mean loss and accuracy of the answers of prompts without examples."""
    loss, right = 0.0, 0
    for ids, answers in _batches(held):
        with torch.no_grad(), model.edit(injecting(share, outputs)):
            logits = model(ids, keep=1)[:, -1].float()
        loss += float(torch.nn.functional.cross_entropy(logits, answers, reduction="sum"))
        right += int((logits.argmax(1) == answers).sum())
    return loss / len(held), right / len(held)
