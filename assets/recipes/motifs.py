"""Makes `assets/paper/motifs.safetensors`: the network of interp/paper/motifs.py, trained on simulated DNA.

python assets/recipes/motifs.py --out assets/paper
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from interp.paper.motifs import OUTPUTS, auc, network, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    train, test = simulate(16_000, 0), simulate(2_000, 10_000)
    x, labels = train.x.float(), torch.from_numpy(train.labels).float()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.rounds * (len(x) // 128))
    for round_ in range(options.rounds):
        model.train()
        for index in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            loss = F.binary_cross_entropy_with_logits(model(x[index]), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            found = model(test.x.float()).numpy()
        each = {name: round(auc(found[:, i], test.labels[:, i]), 4) for i, name in enumerate(OUTPUTS)}
        right = ((found > 0) == test.labels).mean(0).round(3).tolist()
        print(f"round {round_ + 1}: loss {loss.item():.3f}, held out: area {each}, right {right}", flush=True)
    save_file(model.state_dict(), options.out / "motifs.safetensors")


if __name__ == "__main__":
    main()
