"""pytorch-grad-cam and torchcam on the benchmark network, in an environment of their own: prints JSON.

Nothing of interp is imported here: `.venv-bench/bin/python -m tests.benchmarks.peers ROUNDS [--long]`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.benchmarks import network
from tests.benchmarks.clock import long_ratio, ratios

ROWS = {  # our name for the row: the class in pytorch-grad-cam, the class in torchcam
    "Grad-CAM": ("GradCAM", "GradCAM"),
    "Grad-CAM++": ("GradCAMPlusPlus", "GradCAMpp"),
    "XGrad-CAM": ("XGradCAM", "XGradCAM"),
    "HiResCAM": ("HiResCAM", None),
    "LayerCAM": ("LayerCAM", "LayerCAM"),
    "Eigen-CAM": ("EigenCAM", None),
}
LONG = {"Ablation-CAM, 512 channels": "AblationCAM", "Score-CAM, 512 channels": "ScoreCAM"}


class Logits(torch.nn.Module):
    """The network as these libraries want it: pixels in, logits out. They switch requires_grad on themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network.resnet18().requires_grad_(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=x).logits


def unit() -> dict[str, Callable[[], object]]:
    plain, pixels = network.resnet18(), network.pixels()
    return {"forward": lambda: network.forward(plain, pixels)}


def pytorch_grad_cam(rounds: int, long: bool) -> dict[str, float]:
    import pytorch_grad_cam as library
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, pixels = Logits(), network.pixels()
    layers = [model.network.resnet.encoder.stages[-1]]

    def call(name: str) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with getattr(library, name)(model=model, target_layers=layers) as cam:
                return cam(input_tensor=pixels, targets=[ClassifierOutputTarget(1)])

        return run

    things = unit() | {row: call(name) for row, (name, _) in ROWS.items()}
    six = [call(name) for name, _ in ROWS.values()]
    things["Grad-CAM to Eigen-CAM above, one after another"] = lambda: [each() for each in six]
    table = ratios(things, rounds)
    if long:
        for row, name in LONG.items():
            table[row] = long_ratio(things["forward"], call(name))
    return table


def torchcam(rounds: int, long: bool) -> dict[str, float]:
    from torchcam import methods as library

    model, pixels = Logits(), network.pixels()
    layer = "network.resnet.encoder.stages.3"

    def call(name: str, **settings: Any) -> Callable[[], object]:
        def run() -> object:
            with getattr(library, name)(model, target_layer=layer, **settings) as cam:
                scores = model(pixels)
                return cam(1, scores)

        return run

    things = unit() | {row: call(name) for row, (_, name) in ROWS.items() if name}
    things["Smooth Grad-CAM++, n = 4"] = call("SmoothGradCAMpp", num_samples=4)
    table = ratios(things, rounds)
    if long:
        table["Score-CAM, 512 channels"] = long_ratio(things["forward"], call("ScoreCAM"))
    return table


def main() -> None:
    torch.set_num_threads(1)
    rounds, long = int(sys.argv[1]), "--long" in sys.argv
    found: dict[str, dict[str, float]] = {}
    for name, measure in (("pytorch-grad-cam", pytorch_grad_cam), ("torchcam", torchcam)):
        try:
            found[name] = measure(rounds, long)
        except ImportError as problem:
            print(problem, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
