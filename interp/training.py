"""Sparse autoencoders and transcoders trained by SAELens on activations of any site, in a process of their own.

    python -m interp.training SPEC.json FOLDER

SAELens's trainer calls `.backward()` and draws from the global generator, and its import takes 9 s and 900 MB: so it
never runs where models are shared. `train` starts that process, follows it, and stops it where asked to.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, progress, zoo
from interp.model import LanguageModel, Model, VisionModel
from interp.progress import Progress
from interp.samples import Image
from interp.sites import _TRANSFORMER_LENS, HEADED, Site

ARCHITECTURES = (
    "batchtopk", "topk", "matryoshka_batchtopk", "standard", "gated", "jumprelu", "abstopk", "matching_pursuit",
)  # fmt: skip
TRANSCODERS = {
    "batchtopk": "jumprelu_transcoder", "matryoshka_batchtopk": "jumprelu_transcoder", "standard": "transcoder",
}  # fmt: skip
"""What a transcoder can be trained as, and what SAELens calls it afterwards. It has none with a top k of each token."""
CHUNK = 32_768
"""How many activations, about, are shuffled together."""
ROWS, IMAGES = 16, 32
"""Rows of tokens, or images, in one forward."""
HELD_OUT = 20
"""Every how many-eth text or image is kept for measuring."""
STORED = 2 * 2**30
"""Data that is gone through more than once is recorded only once where that takes at most so many bytes on disk."""
MEASURED = 131_072
"""How many held-out activations are measured, at most."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Spec:
    """What to train, on what, and how; `json` and `Spec(**json)` are inverse.

    Args:
        model: as `interp.zoo.load` takes it. digest: of the model, where `model` is a copy whose own may differ.
        site: what is read. target: what a transcoder reconstructs; none for an SAE.
        data: for language models texts, or the path of a file with a document per line (.jsonl: texts, or objects with
            "text"); for vision models paths of images, of folders of them, or of .npz files (`images` uint8
            [n, height, width, 3], or JPEG bytes `x` with offsets `off`).
        recorded: an .npy file [n, d_in + d_out] of such activations, read and target side by side, to train on
            instead of recording them anew; `data` is then what is measured on, as it is whole.
        architecture: see ARCHITECTURES. k: active features per activation, where the architecture has such a number.
        coefficient: of the sparsity loss, where it has one; SAELens's own if None.
        normalize: "rms": all activations by one number, so that E |x|^2 = d; "token": each to |x|^2 = d, where norms
            are so unequal that few tokens would make up the whole loss (an SAE whose site has no zeros).
        samples: activations in all, `batch` in each step. lr: falls to 0 over the last half, after a short warm-up.
        context: tokens in a row. checkpoint: steps between two.
    """

    model: str
    site: str
    data: str | tuple[str, ...]
    target: str | None = None
    architecture: str = "batchtopk"
    d_sae: int = 1024
    k: float = 16
    coefficient: float | None = None
    normalize: str = "rms"
    samples: int = 1_000_000
    batch: int = 1024
    lr: float = 3e-3
    seed: int = 0
    context: int = 256
    checkpoint: int = 250
    recorded: str | None = None
    digest: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.data, str):
            object.__setattr__(self, "data", tuple(self.data))
        if self.architecture not in ARCHITECTURES:
            raise Unsuitable(f"There is no architecture {self.architecture[:40]!r}; take one of {ARCHITECTURES}.")
        if self.target is not None and self.architecture not in TRANSCODERS:
            raise Unsuitable(f"A transcoder can be {', '.join(TRANSCODERS)}, not {self.architecture}.")
        if self.normalize not in ("rms", "token") or (self.normalize == "token" and self.target is not None):
            raise Unsuitable("Activations are normalised by rms or, of an SAE, by token.")
        if "topk" in self.architecture and not 0 < self.k < self.d_sae:
            raise Unsuitable(f"k is a number above 0 and below the {self.d_sae} features, not {self.k:g}.")
        if self.samples < self.batch:
            raise Unsuitable(f"{self.samples:,} activations are no batch of {self.batch:,}; ask for more.")

    @property
    def steps(self) -> int:
        return self.samples // self.batch

    @property
    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


# -------------------------------------------------------------------------------------------------- what it reads


class Texts:
    """Rows of tokens filled with documents, each begun as the tokenizer begins a text; `context` tokens each."""

    def __init__(self, model: LanguageModel, spec: Spec, held_out: bool) -> None:
        self.context = min(spec.context, model.limit)
        reader = model.tokenizer
        texts = _documents(spec.data)
        self.texts = texts if spec.recorded else _part(texts, held_out)
        self.reader = reader
        alone, special = reader("a")["input_ids"], set(reader.all_special_ids)
        self.start: list[int] = list(itertools.takewhile(lambda token: token in special, alone))
        if not self.start and reader.eos_token_id is not None:
            self.start = [int(reader.eos_token_id)]
        self.special = torch.tensor(sorted({*special, *self.start, -1}))

    def pieces(self, order: Sequence[int]) -> Iterator[list[int]]:
        for first in range(0, len(order), 256):
            some = [self.texts[index] for index in order[first : first + 256]]
            yield from self.reader(some, add_special_tokens=False, verbose=False)["input_ids"]

    def rows(self, order: Sequence[int]) -> Iterator[list[int]]:
        """What a row has no room for goes on in the next, begun anew."""
        row: list[int] = []
        for ids in self.pieces(order):
            while ids:
                room = max(0, self.context - len(row) - len(self.start))
                row += self.start + ids[:room]
                ids = ids[room:]
                if len(row) >= self.context:
                    yield row[: self.context]
                    row = []
        if row:
            yield row

    def inputs(self, order: Sequence[int]) -> Iterator[Tensor]:
        for rows in _batched(self.rows(order), ROWS):
            longest = max(map(len, rows))
            yield torch.tensor([[-1] * (longest - len(row)) + row for row in rows])

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, ids: Tensor) -> Tensor:
        """bool [batch, position]: which positions count. Special tokens do not: their norms are of another order."""
        return ~torch.isin(ids, self.special)


class Images:
    """Batches of pixels, as the model's processor makes them."""

    def __init__(self, model: VisionModel, spec: Spec, held_out: bool) -> None:
        self.model = model
        pictures = _pictures(spec.data)
        self.pictures = pictures if spec.recorded else _part(pictures, held_out)

    def inputs(self, order: Sequence[int]) -> Iterator[Tensor]:
        for some in _batched(iter(order), IMAGES):
            pictures = [self.pictures[index]() for index in some]
            yield self.model.processor(images=pictures, return_tensors="pt")["pixel_values"]

    def __len__(self) -> int:
        return len(self.pictures)

    def chosen(self, pixels: Tensor) -> Tensor:
        return torch.ones(len(pixels), 1, dtype=torch.bool)


def _documents(data: str | tuple[str, ...]) -> list[str]:
    if isinstance(data, str):
        try:
            lines = Path(data).expanduser().read_text(encoding="utf-8").splitlines()
            if data.endswith(".jsonl"):
                found = [json.loads(line) for line in lines if line.strip()]
                lines = [each if isinstance(each, str) else str(each["text"]) for each in found]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise Unsuitable(
                f"{Path(data).name} can't be read as texts ({type(problem).__name__}); give a .txt with a document per "
                'line, or a .jsonl of texts or {"text": ...}.'
            ) from None
        data = tuple(lines)
    texts = [each for each in data if each.strip()]
    if not texts:
        raise Unsuitable("There is no text to train on; give a few documents.")
    return texts


def _pictures(data: str | tuple[str, ...]) -> list[Callable[[], PIL.Image.Image]]:
    """A function that opens it, for each image."""
    found: list[Callable[[], PIL.Image.Image]] = []
    for name in (data,) if isinstance(data, str) else data:
        path = Path(name).expanduser()
        if path.suffix == ".npz":
            found += _packed(path)
        elif path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
            found += [functools.partial(_open, each) for each in files]
        else:
            found.append(functools.partial(_open, path))
    if not found:
        raise Unsuitable("There are no images to train on; give image files, or a folder of them.")
    return found


def _open(path: Path) -> PIL.Image.Image:
    return Image.open(path).picture


def _packed(path: Path) -> list[Callable[[], PIL.Image.Image]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "images" in file:
                return [functools.partial(PIL.Image.fromarray, each) for each in file["images"]]
            data, start = file["x"].tobytes(), file["off"]
    except (OSError, ValueError, KeyError):
        raise Unsuitable(f"{path.name} holds no images; see interp.training.Spec for what it may hold.") from None
    read = lambda i: PIL.Image.open(io.BytesIO(data[start[i] : start[i + 1]])).convert("RGB")  # noqa: E731
    return [functools.partial(read, index) for index in range(len(start) - 1)]


def _part(everything: list[Any], held_out: bool) -> list[Any]:
    """Every twentieth (of few, the first) is held out; of one alone there is nothing to hold out."""
    if len(everything) == 1:
        return everything
    return [each for index, each in enumerate(everything) if (index % HELD_OUT == 0) == held_out]


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(itertools.islice(items, size)):
        yield some


def flat(activation: Tensor, site: Site) -> Float[Tensor, "batch position d"]:
    """An activation with its positions in one axis: maps as height * width, heads side by side.

    Raises:
        Unsuitable: it has no positions with channels.
    """
    if site.kind != "pattern" and activation.dim() == 4:
        return activation.flatten(2) if site.kind in HEADED else activation.flatten(2).transpose(1, 2)
    if site.kind == "pattern" or activation.dim() not in (2, 3):
        raise Unsuitable(f"{site} holds no vector at each position; choose a site like resid_post or stage.")
    return activation if activation.dim() == 3 else activation[:, None]


@torch.no_grad()
def recorded(model: Model, read: Texts | Images, inputs: Tensor, sites: Sequence[Site]) -> Float[Tensor, "n d"]:
    """The activations of the sites, side by side, at the positions that count."""
    with model.record(sites) as found:
        model(inputs.to(model.device))
    rows = [flat(found[site], site) for site in sites]
    chosen = read.chosen(inputs).expand(rows[0].shape[:2])
    return torch.cat([each.float().cpu()[chosen] for each in rows], -1)


def source(model: Model, spec: Spec, held_out: bool) -> Texts | Images:
    """Its data, ready to be read.

    Raises:
        Unsuitable: there is none, or it can't be read.
    """
    return Texts(model, spec, held_out) if isinstance(model, LanguageModel) else Images(model, spec, held_out)  # type: ignore[arg-type]


def chunks(
    model: Model, spec: Spec, sites: Sequence[Site], skip: int = 0, stored: Path | None = None
) -> Iterator[Float[Tensor, "n d"]]:
    """Shuffled activations without end, CHUNK or a little more at a time; `skip` chunks are passed over.

    What is in a chunk depends on its number and the spec alone, so that a run can go on at any of them. What a chunk
    has beyond whole batches is dropped, and comes in another order in the next pass over the data.
    """
    for number, make in enumerate(_chunks(model, spec, sites, stored)):
        if number >= skip:
            rows = make()
            generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + number)
            yield rows[torch.randperm(len(rows), generator=generator)]


def _chunks(model: Model, spec: Spec, sites: Sequence[Site], stored: Path | None) -> Iterator[Callable[[], Tensor]]:
    if stored or spec.recorded:
        file = np.load(stored or str(spec.recorded), mmap_mode="r")
        for epoch in itertools.count():
            order = np.random.default_rng((spec.seed, epoch)).permutation(len(file))
            for first in range(0, len(order), CHUNK):
                some = np.sort(order[first : first + CHUNK])  # in the order of the file, which reads faster
                yield functools.partial(_taken, file, some)
    read = source(model, spec, held_out=False)
    inputs = _endless(read, spec.seed)
    first_inputs = next(inputs)
    found = len(recorded(model, read, first_inputs, sites))
    if not found:
        raise Unsuitable("The texts hold nothing but special tokens; give some with words.")
    inputs = itertools.chain([first_inputs], inputs)
    while True:
        batches = list(itertools.islice(inputs, math.ceil(CHUNK / found)))
        yield functools.partial(_joined, model, read, batches, sites)


def store(model: Model, spec: Spec, sites: Sequence[Site], path: Path) -> Path | None:
    """Record all of the data into an .npy, if it will be gone through more than once and is not too large for that."""
    if spec.recorded or path.exists():
        return path if path.exists() else None
    read = source(model, spec, held_out=False)
    found = recorded(model, read, next(read.inputs([0])), sites)
    if isinstance(read, Images):
        count = len(read) * len(found)
    else:
        count = 0
        for inputs in read.inputs(range(len(read))):
            count += int(read.chosen(inputs).sum())
            if count > spec.samples:
                break
    if not count or count > spec.samples or count * found.shape[1] * 4 > STORED:
        return None
    new = path.with_suffix(".part")
    file = np.lib.format.open_memmap(new, "w+", np.float32, (count, found.shape[1]))
    at = 0
    for inputs in read.inputs(range(len(read))):
        rows = recorded(model, read, inputs, sites)
        file[at : at + len(rows)] = rows.numpy()
        at += len(rows)
    file.flush()
    os.replace(new, path)
    return path


def _taken(file: np.ndarray, some: np.ndarray) -> Tensor:
    return torch.from_numpy(file[some].astype(np.float32))


def _joined(model: Model, read: Texts | Images, batches: Sequence[Tensor], sites: Sequence[Site]) -> Tensor:
    return torch.cat([recorded(model, read, each, sites) for each in batches])


def _endless(read: Texts | Images, seed: int) -> Iterator[Tensor]:
    for epoch in itertools.count():
        order = list(range(len(read)))
        random.Random(seed * 1_000_003 + epoch).shuffle(order)
        yield from read.inputs(order)


# ----------------------------------------------------------------------------------------------------- what it trains


def _trainable(spec: Spec, d_in: int, d_out: int) -> Any:
    """SAELens's training SAE of that architecture; a transcoder where d_out is of another site."""
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(spec.architecture)
    k = int(spec.k) if spec.architecture in ("topk", "abstopk") else spec.k
    settings: dict[str, Any] = {"d_in": d_in, "d_sae": spec.d_sae, "device": spec.device, "k": k}
    settings["matryoshka_widths"] = sorted({max(1, spec.d_sae // 16), max(1, spec.d_sae // 4), spec.d_sae})
    if spec.coefficient is not None:
        settings |= {"l1_coefficient": spec.coefficient, "l0_coefficient": spec.coefficient}
    if spec.architecture == "matching_pursuit":
        settings["decoder_init_norm"] = 1.0  # or SAELens warns that it takes that
    if Site.parse(spec.site).kind == "z":
        settings["reshape_activations"] = "hook_z"
    if spec.target is not None:
        sae_class, config_class = _transcoder(sae_class, config_class, TRANSCODERS[spec.architecture])
        settings |= {"d_out": d_out, "apply_b_dec_to_input": False, "reshape_activations": "none"}
    known = {field.name for field in dataclasses.fields(config_class)}
    return sae_class(config_class(**{key: value for key, value in settings.items() if key in known}))


def _transcoder(sae_class: Any, config_class: Any, name: str) -> tuple[Any, Any]:
    """A training SAE that is given x and y side by side, encodes x and is judged on y."""
    from sae_lens.registry import get_sae_class

    @dataclass(kw_only=True)
    class Config(config_class):
        d_out: int

        def get_inference_config_class(self) -> Any:
            return get_sae_class(name)[1]

    class Transcoder(sae_class):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.mse_loss_fn = lambda out, both: F.mse_loss(out, both[..., config.d_in :], reduction="none")

        def initialize_weights(self) -> None:
            super().initialize_weights()
            like: Tensor = self.b_enc
            rows = torch.randn(self.cfg.d_sae, self.cfg.d_out).to(like)
            columns = torch.randn(self.cfg.d_in, self.cfg.d_sae).to(like)
            self.W_dec = torch.nn.Parameter(0.1 * F.normalize(rows, dim=1))
            self.W_enc = torch.nn.Parameter(0.1 * F.normalize(columns, dim=0))
            self.b_dec = torch.nn.Parameter(like.new_zeros(self.cfg.d_out))

        def process_sae_in(self, both: Tensor) -> Tensor:
            return self.hook_sae_input(both[..., : self.cfg.d_in].to(self.dtype))

        def calculate_aux_loss(self, step_input: Any, **rest: Any) -> Any:
            target = step_input.sae_in[..., self.cfg.d_in :]
            return super().calculate_aux_loss(dataclasses.replace(step_input, sae_in=target), **rest)

    return Transcoder, Config


@torch.no_grad()
def fold(sae: Any, scale_in: float, scale_out: float) -> None:
    """Let it read x where it was trained on scale_in x, and write y where it was trained on scale_out y, exactly.

        W_enc <- scale_in W_enc,    W_dec, b_dec <- W_dec / scale_out, b_dec / scale_out

    and likewise a threshold that was compared with activations in units of the decoder's norm.
    """
    sae.fold_activation_norm_scaling_factor(scale_out)
    sae.W_enc.data *= scale_in / scale_out


class _Run:
    """One training, in its own process: the model, the SAE, SAELens's trainer and where in the data it is."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.model: LanguageModel | VisionModel = zoo.load(
            Path(spec.model) if os.path.isabs(spec.model) else spec.model, spec.device
        )
        self.site = self.model.resolve(spec.site)
        self.target = self.site if spec.target is None else self.model.resolve(spec.target)
        self.sites = [self.site] if spec.target is None else [self.site, self.target]
        self.chunk, self.at = 0, 0
        self.stored = store(self.model, spec, self.sites, folder / "activations.npy")
        self.rows = next(chunks(self.model, spec, self.sites, stored=self.stored))
        widths = self._widths()
        self.d_in, self.d_out = widths[0], widths[-1]
        x, y = self.rows[:, : self.d_in], self.rows[:, -self.d_out :]
        self.token = spec.normalize == "token"
        # E |scale x|^2 = d
        self.scales = (
            [1.0, 1.0]
            if self.token
            else [math.sqrt(each.shape[1] / float(each.pow(2).sum(1).mean())) for each in (x, y)]
        )
        from sae_lens import SAETrainer  # late: what is wrong with the spec is said at once
        from sae_lens.config import LoggingConfig, SAETrainerConfig

        torch.manual_seed(spec.seed)
        config = SAETrainerConfig(
            total_training_samples=spec.steps * spec.batch,
            train_batch_size_samples=spec.batch,
            lr=spec.lr,
            lr_end=spec.lr,  # where the decay to 0 begins
            lr_warm_up_steps=min(100, spec.steps // 20),
            lr_decay_steps=spec.steps // 2,
            device=spec.device,
            dead_feature_window=max(20, min(1000, spec.steps // 15)),
            feature_sampling_window=2**60,  # at its end it would make a histogram for W&B
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer: Any = SAETrainer(config, _trainable(spec, self.d_in, self.d_out), iter(()))
        self.centre()
        self.resume()

    @torch.no_grad()
    def centre(self) -> None:
        """Begin with the mean as the decoder's bias: until it is learned, all features say it, and then most die.

        A transcoder's features begin as pairs of x and y less their means, so that each fires somewhere.
        """
        sae, rows = self.trainer.sae, self.scaled(self.rows).to(self.spec.device)
        mean = rows.mean(0)
        sae.b_dec.copy_(mean[-self.d_out :])
        if len(self.sites) > 1:
            some = rows[torch.randint(len(rows), (self.spec.d_sae,))] - mean
            x, y = F.normalize(some[:, : self.d_in], dim=1), F.normalize(some[:, self.d_in :], dim=1)
            # with what it began with, so that no two are the same
            sae.W_enc.copy_(0.1 * F.normalize(x.T + sae.W_enc, dim=0))
            sae.W_dec.copy_(0.1 * F.normalize(y + sae.W_dec, dim=1))
            sae.b_enc.copy_(-(mean[: self.d_in] @ sae.W_enc))

    def _widths(self) -> list[int]:
        if len(self.sites) == 1:
            return [self.rows.shape[1]]
        with torch.no_grad(), self.model.record(self.sites) as found:
            self.model(self.model._random_input())
        return [flat(found[site], site).shape[-1] for site in self.sites]

    def scaled(self, rows: Tensor) -> Tensor:
        """x, or x and y side by side, as they are trained on."""
        if self.token:
            return rows * (math.sqrt(self.d_in) / rows.norm(dim=1, keepdim=True).clamp(min=1e-6))
        if len(self.sites) == 1:
            return rows * self.scales[0]
        return torch.cat([rows[:, : self.d_in] * self.scales[0], rows[:, self.d_in :] * self.scales[1]], 1)

    def batches(self) -> Iterator[Tensor]:
        size = self.spec.batch
        for rows in chunks(self.model, self.spec, self.sites, self.chunk, self.stored):
            if len(rows) < size:  # of little data
                rows = rows.repeat(math.ceil(size / len(rows)), 1)
            while (self.at + 1) * size <= len(rows):
                self.at += 1
                yield self.scaled(rows[(self.at - 1) * size : self.at * size])
            self.chunk, self.at = self.chunk + 1, 0

    def train(self) -> None:
        trainer, spec, parent = self.trainer, self.spec, os.getppid()
        began, told = time.monotonic(), 0.0
        for batch in self.batches() if trainer.n_training_steps < spec.steps else ():
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            step = trainer.n_training_steps
            last = step >= spec.steps
            if last or time.monotonic() - told > 1:
                told = time.monotonic()
                self.tell(step, output, time.monotonic() - began)
            if last or step % spec.checkpoint == 0:
                self.save()
            if last:
                break
            if os.getppid() != parent:  # whoever asked for it is gone
                raise SystemExit(1)

    def tell(self, step: int, output: Any, seconds: float) -> None:
        with torch.no_grad():
            target = output.sae_in[:, -self.d_out :]
            error = (output.sae_out - target).pow(2).sum()
            numbers = {
                "step": step,
                "samples": self.trainer.n_training_samples,
                "mse": float(error) / target.numel(),
                "l0": float((output.feature_acts != 0).sum(-1).float().mean()),
                "explained_variance": 1 - float(error / (target - target.mean(0)).pow(2).sum()),
                "dead": int(self.trainer.dead_neurons.sum()),
                "seconds": round(seconds, 2),
            }
        _append(self.folder, numbers)

    def save(self) -> None:
        """A checkpoint: all of it or, if the process ends here, the one before."""
        step = self.trainer.n_training_steps
        new = self.folder / f"checkpoint-{step}.part"
        shutil.rmtree(new, ignore_errors=True)
        self.trainer.save_trainer_state(new)
        # SAELens's own file of a JumpReLU holds exp of what is trained, which does not come back to the bit
        state = {"sae": self.trainer.sae.state_dict(), "generator": torch.get_rng_state()}
        torch.save(state, new / "sae.pt")
        (new / "cursor.json").write_text(json.dumps([self.chunk, self.at]))
        os.replace(new, self.folder / f"checkpoint-{step}")
        for old in _checkpoints(self.folder)[:-1]:
            shutil.rmtree(old)

    def resume(self) -> None:
        found = _checkpoints(self.folder)
        if not found:
            return
        self.trainer.load_trainer_state(found[-1])
        state = torch.load(found[-1] / "sae.pt", weights_only=True)
        self.trainer.sae.load_state_dict(state["sae"])
        torch.set_rng_state(state["generator"])
        self.chunk, self.at = json.loads((found[-1] / "cursor.json").read_text())
        before = [each for each in curve(self.folder) if each.get("step", math.inf) <= self.trainer.n_training_steps]
        (self.folder / "progress.jsonl").write_text("".join(json.dumps(each) + "\n" for each in before))

    @torch.no_grad()
    def settle(self) -> None:
        """The threshold that lets through k of each batch with the last weights: SAELens's lags behind."""
        if "batchtopk" in self.spec.architecture:
            sae = self.trainer.sae
            found = [sae.encode(each.to(sae.device)) for each in itertools.islice(self.batches(), 32)]
            least = torch.stack([f[f > 0].min() for f in found])
            sae.topk_threshold = least.double().mean()

    def finish(self) -> None:
        """Undo the scale, save for SAELens, measure what was saved, and write that into its metadata."""
        sae, spec = self.trainer.sae, self.spec
        self.settle()
        fold(sae, *self.scales)
        if self.token:
            sae.cfg.normalize_activations = "constant_norm_rescale"  # from here on its own part
        digest = spec.digest or self.model.digest
        sae.cfg.metadata = type(sae.cfg.metadata)(
            model_name=self.model.name,
            model_digest=digest,
            hook_name=hook_name(self.site),
            context_size=spec.context if isinstance(self.model, LanguageModel) else None,
            actiscope={"site": str(self.site), "target": str(self.target)},
        )
        if spec.target is not None:
            sae.cfg.metadata.hook_name_out = hook_name(self.target)
        new = self.folder / "sae.part"
        shutil.rmtree(new, ignore_errors=True)
        sae.save_inference_model(new)
        measured = measure(self.model, spec, new) | {"samples": self.trainer.n_training_samples, "seed": spec.seed}
        config = json.loads((new / "cfg.json").read_text())
        config["metadata"]["actiscope"] |= measured
        config["metadata"]["l0"] = measured["l0"]
        config["device"] = "cpu"
        (new / "cfg.json").write_text(json.dumps(config, indent=1))
        os.replace(new, self.folder / "sae")
        for old in _checkpoints(self.folder):
            shutil.rmtree(old)
        (self.folder / "activations.npy").unlink(missing_ok=True)


def hook_name(site: Site) -> str:
    """TransformerLens's name of the site where it has one, or the site's own text."""
    for name, kind in _TRANSFORMER_LENS.items():
        if kind == site.kind and site.head is None:
            return f"blocks.{site.layer}.{name}"
    return str(site)


@torch.no_grad()
def measure(model: LanguageModel | VisionModel, spec: Spec, folder: Path) -> dict[str, Any]:
    """How well an SAE does on what was held out, of at most MEASURED activations.

        explained_variance = 1 - sum |y - y_hat|^2 / sum |y - mean y|^2,     l0 = E |{i: f_i > 0}|,
        dead = share of features that never fired,   ce, ce_with_sae = E -log p(next token)

    `ce_with_sae`: of the model with y_hat in place of y (at special tokens y stays). For vision models ce is of the
    model's own first guess, and `agreement` the share of images of which that stays the first.
    """
    from interp import sae as saes

    sae = saes.read(folder).to(model.device)
    site = model.resolve(spec.site)
    target = site if spec.target is None else model.resolve(spec.target)
    read = source(model, spec, held_out=True)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    count, active, error, square = 0, 0, 0.0, 0.0
    total = torch.zeros(sae.d_out, dtype=torch.float64)
    losses: list[Tensor] = []
    for inputs in read.inputs(range(len(read))):
        kept: dict[str, Tensor] = {}

        def put(y: Tensor, kept: dict[str, Tensor] = kept, inputs: Tensor = inputs) -> Tensor:
            rows, before = flat(y, target), kept.get("x", y)
            x = flat(before, site).float()
            f = sae.encode(x)
            chosen = read.chosen(inputs).expand(rows.shape[:2]).to(rows.device)[..., None]
            kept.update(f=f[chosen[..., 0]].cpu(), y=rows[chosen[..., 0]].double().cpu())
            made = torch.where(chosen, sae.decode(f, x).to(rows), rows)
            kept["y_hat"] = made[chosen[..., 0]].double().cpu()
            return sae.unrows(made, y, model, target)

        def keep(x: Tensor, kept: dict[str, Tensor] = kept) -> Tensor:
            kept["x"] = x.clone()
            return kept["x"]

        plain = model(inputs.to(model.device))
        with model.edit({target: put} if spec.target is None else {site: keep, target: put}):
            changed = model(inputs.to(model.device))
        losses.append(_losses(plain, changed, inputs, read))
        f, y = kept["f"], kept["y"]
        fired |= (f != 0).any(0)
        active += int((f != 0).sum())
        count += len(f)
        error += float((y - kept["y_hat"]).pow(2).sum())
        square += float(y.pow(2).sum())
        total += y.sum(0)
        if count >= MEASURED:
            break
    if not count:
        raise Unsuitable("The held-out part of the data holds nothing to measure; give more.")
    ce = torch.cat(losses).double().mean(0).tolist()
    found = {
        "l0": active / count,
        "explained_variance": 1 - error / (square - float(total.pow(2).sum()) / count),
        "ce": ce[0],
        "ce_with_sae": ce[1],
        "dead": 1 - float(fired.float().mean()),
        "measured_on": count,
    }
    return found if isinstance(model, LanguageModel) else found | {"agreement": ce[2]}


def _losses(plain: Tensor, changed: Tensor, inputs: Tensor, read: Texts | Images) -> Tensor:
    """Cross-entropy plain and changed, of every next token [n, 2], or of every image, with agreement [n, 3]."""
    plain, changed = plain.float().cpu(), changed.float().cpu()
    if isinstance(read, Texts):
        chosen = read.chosen(inputs)[:, 1:]
        answers = inputs[:, 1:][chosen]
        pair = [F.cross_entropy(each[:, :-1][chosen], answers, reduction="none") for each in (plain, changed)]
        return torch.stack(pair, 1)
    guess = plain.argmax(-1)
    pair = [F.cross_entropy(each, guess, reduction="none") for each in (plain, changed)]
    return torch.stack([*pair, (changed.argmax(-1) == guess).float()], 1)


# ------------------------------------------------------------------------------------------------- who asks for it


def train(spec: Spec, folder: Path, label: str = "Training") -> Path:
    """Train in a process of its own, and return the SAE's folder: cfg.json and sae_weights.safetensors of SAELens.

    It reports and can be cancelled like all long work; then, or when it is killed, the same call goes on from the last
    checkpoint in `folder`, to the same weights bit for bit. `folder`/progress.jsonl holds the curve: step, samples, mse
    (in units where E |y|^2 = d), l0, explained_variance, dead, seconds.

    Raises:
        Unsuitable: the model, site, data or settings do not serve; or the folder holds another training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with progress.alone(f"train {folder.resolve()}"):
        done, asked = folder / "sae", folder / "spec.json"
        if asked.exists() and asked.read_text() != spec.json:
            raise Unsuitable(f"{folder.name} holds a training with other settings; take another folder.")
        if done.exists():
            return done
        asked.write_text(spec.json)
        _run(spec, folder, label)
        return done


def _run(spec: Spec, folder: Path, label: str) -> None:
    here = str(Path(__file__).parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "interp.training", str(folder / "spec.json"), str(folder)]
    log = folder / "log.txt"
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
    try:
        while process.poll() is None:
            step = int(_last(folder).get("step", 0))
            progress._tell(Progress(label, step, spec.steps, time.monotonic() - began))
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        if reason := _last(folder).get("unsuitable"):
            raise Unsuitable(reason)
        raise RuntimeError(f"Training ended with {process.returncode}:\n" + log.read_text()[-2000:])


def curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of progress.jsonl, without a last one that is not whole."""
    try:
        lines = (folder / "progress.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _last(folder: Path) -> dict[str, Any]:
    return next(iter(reversed(curve(folder))), {})


def _checkpoints(folder: Path) -> list[Path]:
    found = [each for each in folder.glob("checkpoint-*") if each.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda each: int(each.name.removeprefix("checkpoint-")))


def _append(folder: Path, line: dict[str, Any]) -> None:
    with (folder / "progress.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _alone(folder: Path) -> Any:
    """A lock on the folder against other processes, until it is collected or the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Unsuitable("This training is going on in another process already; wait for it to end.") from None
    return file


def main(spec: Path, folder: Path) -> None:
    """Train in this process; what a person can do something about is the last line of progress.jsonl."""
    try:
        lock = _alone(folder)  # noqa: F841 (let go when it is collected)
        run = _Run(Spec(**json.loads(spec.read_text())), folder)
        run.train()
        run.finish()
    except Unsuitable as reason:
        _append(folder, {"unsuitable": str(reason)})
        raise SystemExit(3) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
