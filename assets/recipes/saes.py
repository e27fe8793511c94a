"""Makes the embedded sparse autoencoders and transcoders of `stories`, and the autoencoder of `photos`.

    pip install -r requirements.txt
    python assets/recipes/saes.py --text FOLDER --photos FOLDER --work WORK [--out assets/saes] [NAME ...]

Names are like stories/resid_post.2, stories/mlp.0 (a transcoder) or photos/stage.7; all of them unless given. --text
holds WikiText-2 and tinyshakespeare as *.txt, --photos the files of _data.py. A run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import grammar
import numpy as np
from _data import Photos, load
from stories import public_text

from interp import progress, training, zoo
from interp.progress import Progress
from interp.sites import Site
from interp.training import Spec, train

DOCUMENTS = 130_000
PUBLIC = 0.2
"""Share of public text, by characters."""
DRAWN, USED = (14_000, 2_100), (3_500, 600)
"""Photos to train and to measure on: in an order drawn once, and how many of them are used."""
SETTINGS = {
    "stories/resid_post.2": (1024, 16, 3e-3),
    "stories/resid_post.1": (1024, 16, 3e-3),
    "stories/resid_post.3": (1024, 16, 3e-3),
    "stories/resid_post.0": (1024, 10, 3e-3),
    "photos/stage.7": (1024, 48, 1e-3),
    "stories/mlp.2": (1024, 16, 3e-3),
    "stories/mlp.1": (1024, 16, 3e-3),
    "stories/mlp.3": (1024, 16, 1.5e-3),
    "stories/mlp.0": (512, 24, 3e-3),
}
"""Features, k (how many of them are active per token or position), learning rate."""
BATCH, STEPS = 512, 2000
BY_TOKEN = ("stories/resid_post.1", "stories/resid_post.2", "stories/resid_post.3")
"""Where each activation is brought to one norm: those of some tokens are twenty times as large as of others."""
LICENCES = {
    "stories": "the grammar (ours), WikiText-2 (CC BY-SA 4.0, Merity et al. 2016), Shakespeare (public domain)",
    "photos": "Tiny ImageNet (ImageNet terms: research use), Caltech-101 (CC BY 4.0, Li et al. 2022)",
}


def documents(folder: Path, path: Path) -> Path:
    """A file of the grammar's documents and passages of public text, about 3 million tokens of `stories`."""
    if not path.exists():
        rng = random.Random(11)
        texts = [grammar.document(rng) for _ in range(DOCUMENTS)]
        left = sum(map(len, texts)) * PUBLIC / (1 - PUBLIC)
        passages = public_text(folder)
        rng.shuffle(passages)
        for passage in passages:
            left -= len(passage)
            if left < 0:
                break
            texts.append(passage)
        rng.shuffle(texts)
        path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in texts), encoding="utf-8")
    return path


def photos(folder: Path, work: Path) -> tuple[Path, Path]:
    """The activations of the last stage on some photos (.npy), and a file of others (.npz)."""
    activations, held = work / "photos.npy", work / "photos-held.npz"
    if not (activations.exists() and held.exists()):
        both = load(folder)
        rng = random.Random(11)
        pools: list[list[tuple[Photos, int]]] = [[], []]
        for each in both:
            for index in range(len(each)):
                pools[int(each.held_out[index])].append((each, index))
        trained, kept = (rng.sample(pool, drawn)[:used] for pool, drawn, used in zip(pools, DRAWN, USED, strict=True))
        _pack(kept, held)
        packed = work / "photos-train.npz"
        _pack(trained, packed)
        model, site = zoo.load("photos"), Site("stage", 7)
        read = training.source(model, Spec("photos", str(site), str(packed), recorded="all"), False)
        found = np.lib.format.open_memmap(f"{activations}.new", "w+", np.float16, (USED[0] * 49, 1280))
        at, began = 0, time.monotonic()
        for inputs in read.inputs(range(USED[0])):
            rows = training.recorded(model, read, inputs, [site])
            found[at : at + len(rows)] = rows.numpy()
            at += len(rows)
            print(f"photo {at // 49} of {USED[0]}, {time.monotonic() - began:.0f} s", flush=True)
        found.flush()
        os.replace(f"{activations}.new", activations)
    return activations, held


def _pack(chosen: list[tuple[Photos, int]], path: Path) -> None:
    jpegs = [photos.jpegs[index] for photos, index in chosen]
    offsets = np.cumsum([0, *map(len, jpegs)])
    np.savez(path, x=np.frombuffer(b"".join(jpegs), np.uint8), off=offsets)


def spec(name: str, options: argparse.Namespace) -> Spec:
    model, _, what = name.partition("/")
    kind, _, layer = what.partition(".")
    d_sae, k, lr = SETTINGS[name]
    common: dict[str, Any] = {
        "model": model, "d_sae": d_sae, "k": k, "lr": lr, "batch": BATCH, "samples": STEPS * BATCH,
    }  # fmt: skip
    if model == "photos":
        activations, held = photos(options.photos, options.work)
        return Spec(site=what, data=(str(held),), recorded=str(activations), **common)
    data = str(documents(options.text, options.work / "stories.jsonl"))
    if kind == "mlp":
        return Spec(site=f"module:model.layers.{layer}.mlp:in", target=f"mlp_out.{layer}", data=data, **common)
    return Spec(site=what, data=data, normalize="token" if name in BY_TOKEN else "rms", **common)


def card(name: str, config: dict[str, Any]) -> str:
    model, _, what = name.partition("/")
    found = config["metadata"]["actiscope"]
    transcoder = found["site"] != found["target"]
    heldout = f"{found['measured_on']:,} held-out {'positions' if model == 'photos' else 'tokens'}"
    lines = [
        f"# {name}", "",
        f"A {'transcoder' if transcoder else 'sparse autoencoder'} of `{model}`: {config['d_sae']} features of "
        + (f"what the MLP of layer {what.split('.')[1]} reads, that write what it adds to the residual stream."
           if transcoder else f"`{found['site']}`."), "",
        f"- **Training**: BatchTopK (Bussmann, Leask, Nanda 2024) with k {SETTINGS[name][1]}, by SAELens, on "
        f"{found['samples']:,} activations; Adam, learning rate {SETTINGS[name][2]:g} that falls to 0; seed "
        f"{found['seed']}. "
        + ("Each activation is brought to one norm first, as those of some tokens are twenty times as large as of "
           "others. " if name in BY_TOKEN else "")
        + "Saved as JumpReLU with one threshold.",
        f"- **Data**: {LICENCES[model]}.", "",
        f"On {heldout}:", "", "| | |", "|---|--:|",
        f"| active features per {'position' if model == 'photos' else 'token'} (L0) | {found['l0']:.1f} |",
        f"| explained variance | {found['explained_variance']:.3f} |",
    ]  # fmt: skip
    plain, changed = found["ce"], found["ce_with_sae"]
    if model == "photos":
        lines += [
            f"| same first guess with it in place | {found['agreement']:.3f} |",
            f"| cross-entropy of the model's own first guess, plain / with it in place | {plain:.3f} / {changed:.3f} |",
        ]
    else:
        lines.append(f"| cross-entropy of the next token, plain / with it in place | {plain:.3f} / {changed:.3f} |")
    lines += [f"| features that never fired | {found['dead']:.1%} |", ""]
    lines.append(
        f"The activations are of {USED[0]:,} photos, small ones made large: few, and without fine texture."
        if model == "photos"
        else "Rows of tokens are packed with documents, as the model was trained; `<|end|>` is left out, so that the "
        "SAE says nothing there. Random sub-words that repeat, an eighth of what the model read, were not shown to it."
    )
    return "\n".join(
        [*lines, "", f"    python assets/recipes/saes.py --text FOLDER --photos FOLDER --work WORK {name}", ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "saes")
    parser.add_argument("--harvest", action="store_true", help="only record the activations of the photos")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.harvest:
        photos(options.photos, options.work)
        return
    for name in options.names or SETTINGS:
        with progress.watch(_say()):
            made = train(spec(name, options), options.work / name.replace("/", "-"), name)
        config = json.loads((made / "cfg.json").read_text())
        out = options.out / name
        out.mkdir(parents=True, exist_ok=True)
        for file in ("cfg.json", "sae_weights.safetensors"):
            shutil.copyfile(made / file, out / file)
        (out / "card.md").write_text(card(name, config), encoding="utf-8")
        print(card(name, config), flush=True)


def _say() -> Any:
    """Print the progress every half a minute."""
    told = 0.0

    def say(now: Progress) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{now.label}: step {now.done} of {now.total}, {now.seconds:.0f} s", flush=True)

    return say


if __name__ == "__main__":
    main()
