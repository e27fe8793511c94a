"""Eight threads on one model, each with interventions of its own, against one thread alone.

Run by test_threads.py in a process of its own, as what goes wrong is a crash: `python -m tests.hammer resnet 15`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp import Unsuitable, progress
from interp.methods import METHODS
from interp.model import LanguageModel, Model, VisionModel, gradient
from interp.results import Result
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny
from tests.acting import ALIKE, acting, fitting
from tests.state import state

FEW = ("head", "patch_from", "repeat_layer")
MANY = ("acdc", "neuron_detectors", "verified_patching")
Job = Callable[[], Any]
THREADS = 8


def vision_jobs(model: VisionModel) -> dict[str, Job]:
    """Every lens, plain and after every intervention that serves the model; of those with one edit, after one."""
    pictures = [tiny.image(0), tiny.image(1)]
    changes: dict[str, Callable[[Any], list[Any]]] = {"plain": lambda _: []}
    for key, settings in acting(model).items():
        if METHODS[key].refuses(model) is None and key not in ALIKE:
            changes[key] = lambda sample, key=key, settings=settings: [METHODS[key](model, sample, **settings)]
    changes["swap and edit"] = lambda _: [
        model.swap({name: model.weight(name) * 1.5 for name, _ in list(model.network.named_parameters())[:2]}),
        model.edit({model.last_spatial: lambda x: x * 0.5}),
    ]
    lenses = [each for each in METHODS.values() if each.kind == "lens" and each.refuses(model) is None]

    def run(method: Any, change: Any, sample: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for block in change(sample):
                stack.enter_context(block)
            return method(model, sample)

    return {
        f"{method.key} / {name} / {index}": lambda m=method, c=change, s=sample: run(m, c, s)  # type: ignore[misc]
        for method in lenses
        for name, change in changes.items()
        for index, sample in enumerate(pictures)
        if method.family != "features" or name in ("plain", "ablate_feature")
    }


def language_jobs(model: LanguageModel) -> dict[str, Job]:
    prompts = ["The cat sat", "on a mat, and"]
    weight = next(name for name, value in model.network.named_parameters() if value.dim() == 2 and ".1." in name)
    blocks: dict[str, Callable[[], Any]] = {
        "plain": contextlib.nullcontext,
        "resid": lambda: model.edit({"resid_post.1": lambda x: x * -1.5}),
        "head": lambda: model.edit({"z.1.0": lambda x: x * 0}),
        "pattern": lambda: model.edit({"pattern.0": lambda x: x.flip(1)}),
        "mid": lambda: model.edit({"resid_mid.1": lambda x: x + 1}),
        "skip": lambda: model.around({1: lambda run, x: x}),
        "twice": lambda: model.around({0: lambda run, x: run(run(x))}),
        "swap": lambda: model.swap({weight: model.weight(weight) * 2}),
    }
    if model.refuses(Site("resid_mid", 1)):  # attention and MLP of parallel blocks read one and the same stream
        del blocks["mid"]
    sites = [site for site in model.sites() if site.kind != "pattern"]

    def look(prompt: str) -> list[Tensor]:
        with model.record(["resid_pre.0", "z.1"], grad=True) as recorded:
            logits = model(prompt)
        gradients = gradient(logits[0, -1, 5], [recorded["resid_pre.0"], recorded["z.1"]])
        with model.record(sites) as everything, contextlib.suppress(KeyError):
            model(prompt)
            return [logits, *gradients, *everything.values()]
        return [logits, *gradients]

    def run(block: Callable[[], Any], work: Callable[[], Any]) -> Any:
        with block():
            return work()

    for key, settings in acting(model, prompts[0]).items():
        method = METHODS[key]
        if method.refuses(model) is None:
            blocks[key] = lambda m=method, s=settings: m(model, Prompt(prompts[0]), **s)  # type: ignore[misc]
    lenses = [each for each in METHODS.values() if each.kind == "lens" and isinstance(model, each.model_type)]

    def stream(prompt: str) -> list[str]:
        return list(model.generate(prompt, 6, temperature=1.0))

    jobs: dict[str, Job] = {}
    for name, block in blocks.items():
        for index, prompt in enumerate(prompts):
            if name not in ("skip", "twice", "skip_layer", "repeat_layer", "ablate_layer"):
                jobs[f"look / {name} / {index}"] = lambda b=block, p=prompt: run(b, lambda: look(p))  # type: ignore[misc]
            jobs[f"logits / {name} / {index}"] = lambda b=block, p=prompt: run(b, lambda: model([p, "x"]))  # type: ignore[misc]
            jobs[f"stream / {name} / {index}"] = lambda b=block, p=prompt: run(b, lambda: stream(p))  # type: ignore[misc]
            for method in lenses:
                if method.refuses(model) is not None or (index and name != "plain"):
                    continue
                # what runs a prompt a hundred times, and what all read one SAE, is looked through under few changes
                few = name == "plain" or (name in FEW and method.key not in MANY)
                if name in ALIKE:
                    continue
                few = few or (name == "ablate_feature" and method.family == "features")
                few = few or (name == "transport_replace" and method.family == "transport")
                few = few or (name == "steer" and method.family == "steering")
                if method.family not in ("circuits", "features", "transport", "steering") or few:
                    jobs[f"{method.key} / {name} / {index}"] = lambda b=block, p=prompt, m=method: run(  # type: ignore[misc]
                        b, lambda: m(model, fitting(m, Prompt(p)))
                    )
    return jobs


def same(left: Any, right: Any, numbers: bool = False) -> bool:
    """Whether two answers are equal; numbers: only the arrays of results, not what is said of them."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    assert isinstance(left, Result | str)
    if numbers and isinstance(left, Result):
        mine, others = left.arrays(), right.arrays()
        return mine.keys() == others.keys() and all(mine[key].tobytes() == others[key].tobytes() for key in mine)
    return left == right


def thinned(jobs: dict[str, Job], share: int) -> dict[str, Job]:
    """All jobs of the unchanged model, and one of so many of the others: a diagonal, so that each lens and each change
    is among them."""
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    chosen = {}
    for name, job in jobs.items():
        lens, change, _ = name.split(" / ")
        place = rows.setdefault(lens, len(rows)) + columns.setdefault(change, len(columns))
        if change == "plain" or place % share == 0:
            chosen[name] = job
    return chosen


class Broken(Exception):
    pass


def hammer(model: Model, jobs: dict[str, Job], seconds: float) -> dict[str, Any]:
    """The share of wrong answers, with a cancel or an exception in the middle of every third job."""
    before = state(model)
    truth = {name: (model.forget(), job())[1] for name, job in jobs.items()}
    counts = {"answers": 0, "cancelled": 0, "broken": 0}
    wrong: list[str] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def work(number: int) -> None:
        chance = random.Random(number)
        names = list(jobs)
        chance.shuffle(names)
        turn = 0
        while time.monotonic() < end or turn < len(names) / THREADS:
            name, turn = names[turn % len(names)], turn + 1
            if chance.random() < 0.2:
                model.forget()
            kind, outcome = chance.choice(["answers", "answers", "answers", "cancelled", "broken"]), "answers"
            try:
                if kind == "answers":
                    answer = jobs[name]()
                elif kind == "cancelled":
                    cancel = threading.Event()
                    timer = threading.Timer(chance.random() * 0.01, cancel.set)
                    timer.start()
                    with progress.watch(cancel=cancel):
                        answer = jobs[name]()
                else:
                    left = chance.randrange(1, 4)

                    def fail(x: Tensor) -> Tensor:
                        nonlocal left
                        left -= 1
                        if left == 0:
                            raise Broken
                        return x

                    with model.edit({model.sites()[-1]: fail}):
                        answer = jobs[name]()
                # under a raw edit the arithmetic is the same; a residual may be another one
                good = same(answer, truth[name], numbers=kind == "broken")
            except progress.Cancelled:
                outcome, good = "cancelled", True
            except Broken:
                outcome, good = "broken", True
            except Unsuitable:
                raise
            except BaseException as problem:
                good = False
                name = f"{name}: {type(problem).__name__}: {problem}"
            with lock:
                counts[outcome] += 1
                if not good:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changed = [name for name, value in state(model).items() if before[name] != value]
    return counts | {
        "jobs": len(jobs),
        "wrong": wrong[:9],
        "wrongs": len(wrong),
        "changed": changed,
    }


if __name__ == "__main__":
    faulthandler.enable()
    family, seconds = sys.argv[1], float(sys.argv[2])
    threads, share = (int(each) for each in (*sys.argv[3:], "1", "1")[:2])
    torch.set_num_threads(threads)
    subject: Any = tiny.featured(tiny.language(family) if family in tiny.LANGUAGE else tiny.vision(family))
    jobs = language_jobs(subject) if family in tiny.LANGUAGE else vision_jobs(subject)
    print(json.dumps(hammer(subject, thinned(jobs, share), seconds)))
