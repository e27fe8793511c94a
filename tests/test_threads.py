"""Any number of threads on one model: the same bits as one alone, no crash, nothing left behind, cancels at once.

What was found about bits: the answers of eight threads equal those of one with one and with two intra-op threads. Torch
gives a new Python thread the process's number of them, and splits its loops by that number alone, not by how busy the
cores are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch

from interp import progress
from interp.methods import METHODS
from tests import tiny

FAST = ["resnet", "vit", "gpt2", "llama"]
ALL = [*tiny.VISION, *tiny.LANGUAGE]


def run(family: str, seconds: float, threads: int = 1, share: int = 1) -> dict[str, Any]:
    """The report of the hammer; share: one of how many jobs on a changed model it goes through."""
    arguments = [family, str(seconds), str(threads), str(share)]
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.hammer", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, f"crashed with {result.returncode}:\n{result.stderr[-3000:]}"
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(family, report)
    return report


def check(report: dict[str, Any]) -> None:
    assert not report["wrongs"] and not report["changed"], report
    assert report["answers"] >= 20 and report["broken"] > 0, report


@pytest.mark.parametrize("family", FAST)
def test_eight_threads_get_what_one_gets(family: str) -> None:
    check(run(family, 4, share=4))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ALL)
def test_eight_threads_get_what_one_gets_on_every_family(family: str) -> None:
    check(run(family, 15))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4])
def test_with_more_threads_inside_each(threads: int) -> None:
    check(run("resnet", 10, threads))


def test_a_new_thread_has_as_many_threads_inside_as_the_first() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [torch.get_num_threads()]


@pytest.mark.parametrize("key", ["score_cam", "ablation_cam", "smooth_grad_cam_plus_plus", "cf_cam"])
def test_long_work_stops_within_a_second(key: str) -> None:
    """On a network of real size, from another thread, while a forward runs."""
    if key not in METHODS:
        pytest.skip(f"{key} is not here")
    model = _large()
    cancel, stopped = threading.Event(), list[float]()

    def work() -> None:
        try:
            with progress.watch(cancel=cancel):
                while True:
                    METHODS[key](model, tiny.image(3))
                    model.forget()
        except progress.Cancelled:
            stopped.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1.0)
    asked = time.monotonic()
    cancel.set()
    thread.join(20)
    assert stopped and stopped[0] - asked < 1.0


def _large() -> Any:
    import transformers as T
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from interp.model import VisionModel

    global _kept
    if _kept is None:
        config = T.ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
        )
        network = tiny._make(T.AutoModelForImageClassification, config, 0)
        _kept = VisionModel(network, ViTImageProcessorPil(size={"height": 224, "width": 224}), "ResNet-18")
    return _kept


_kept: Any = None
