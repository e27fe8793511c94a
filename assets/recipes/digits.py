"""Makes `digits.safetensors` and `digits.npz`, the network and the held-out images of interp/paper/digits.py.

pip install scikit-learn
python assets/recipes/digits.py --out assets/paper
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from interp.paper.digits import network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    kept, rest = order[:400], order[400:]
    x = torch.from_numpy(data.images / 16).float()[:, None]
    digits = torch.from_numpy(data.target)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
    for _ in range(60):
        for index in torch.from_numpy(rest)[torch.randperm(len(rest))].split(64):
            loss = F.cross_entropy(model(x[index]), digits[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = float((model.eval()(x[kept]).argmax(1) == digits[kept]).float().mean())
    print(f"{right:.4f} of {len(kept)} held-out digits are right")
    save_file(model.state_dict(), options.out / "digits.safetensors")
    np.savez_compressed(
        options.out / "digits.npz", images=data.images[kept].astype(np.uint8), digits=data.target[kept].astype(np.uint8)
    )


if __name__ == "__main__":
    main()
