"""Sparse autoencoders and transcoders in SAELens's format, read without SAELens."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp import Missing, Unsuitable, hooks, store
from interp import settings as limits
from interp.model import Model
from interp.sites import HEADED, Site
from kernels.sae import encode_columns, sparse_decode

SHELF = Path(__file__).parent.parent / "assets" / "saes"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LARGEST_CONFIG = 2**20

ARCHITECTURES = (
    "standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit", "transcoder", "skip_transcoder",
    "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
NAME = re.compile(r"[a-z0-9_-]{1,40}/[a-z0-9_.-]{1,60}|local:[0-9a-f]{16}|(hub|release):[A-Za-z0-9_./@-]{1,200}")
"""How an experiment may name an SAE: of the shelf, of the store, of the hub. Never a path of this machine."""
NORMS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
_UNREAD = {
    "temporal": "looks at a whole text at once",
    **dict.fromkeys(
        ("batchtopk", "matryoshka_batchtopk"), "was saved for training (save_inference_model saves it for use)"
    ),
}
_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_ALIKE = {"gpt2small": "gpt2", "pythia70mdeduped": "pythia70m"}


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder f(x), x_hat(f) of the activations at a site; a transcoder's x_hat is of another site.

        x' = norm(x) - b_dec                                  (b_dec only where apply_b_dec_to_input)
        standard   f = relu(x' W_enc + b_enc)
        jumprelu   f = relu(p) [p > threshold],               p = x' W_enc + b_enc
        gated      f = [x' W_enc + b_gate > 0] relu(x' (W_enc exp(r_mag)) + b_mag)
        topk       f = relu(p) where p is among its k largest;  abstopk: p where |p| is among its k largest
        matching pursuit   f grows by relu(r . d) of the best decoder row d, r <- r - relu(r . d) d, until r is small
        x_hat      = unnorm(f W_dec + b_dec) (+ W_skip x)

    norm is none, layer_norm ((x - mean) / (std + 1e-5), std unbiased) or constant_norm_rescale (x sqrt(d) / |x|).
    Where the configuration says expected_average_only_in or covariance_whitening, both are taken to be folded into the
    weights.
    """

    name: str
    digest: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.config.get("metadata") or {})

    @property
    def d_in(self) -> int:
        return int(self.config["d_in"])

    @property
    def d_sae(self) -> int:
        return int(self.config["d_sae"])

    @property
    def d_out(self) -> int:
        return int(self.W_dec.shape[1])

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        return self.weights["W_dec"]

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.weights.get("W_enc", self.W_dec.T)

    @property
    def is_transcoder(self) -> bool:
        return "transcoder" in self.architecture

    @cached_property
    def site(self) -> Site:
        """What it reads."""
        return _site(self.metadata, "site", "hook_name")

    @cached_property
    def target(self) -> Site:
        """What it reconstructs: the site it reads, or a transcoder's other one."""
        return _site(self.metadata, "target", "hook_name_out") if self.is_transcoder else self.site

    @property
    def neuronpedia(self) -> str | None:
        """Where neuronpedia.org has pages of its features."""
        found = self.metadata.get("neuronpedia_id")
        return f"https://www.neuronpedia.org/{found}" if found else None

    @cached_property
    def bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.weights.values())

    def to(self, device: torch.device | str) -> SAE:
        """The same on another device."""
        return dataclasses.replace(self, weights={key: each.to(device) for key, each in self.weights.items()})

    # ------------------------------------------------------------------------------------------- encode and decode

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The activation of every feature; differentiable in x."""
        inside = self._inside(x)
        if self.architecture == "matching_pursuit":
            return self._pursue(inside)
        return self._activate(inside @ self.W_enc, inside, slice(None))

    def columns(self, x: Float[Tensor, "*batch d_in"], features: Int[Tensor, chosen]) -> Float[Tensor, "*batch chosen"]:
        """The activations of the chosen features alone; where features compete (topk), all are computed."""
        if "topk" in self.architecture or self.architecture == "matching_pursuit":
            return self.encode(x)[..., features]
        inside = self._inside(x)
        return self._activate(encode_columns(inside, self.W_enc, self._zero, features), inside, features)

    def sparse(self, x: Float[Tensor, "row d_in"]) -> tuple[Int[Tensor, nnz], Int[Tensor, nnz], Float[Tensor, nnz]]:
        """The activations that are not zero: their rows (rising), features and values."""
        f = self.encode(x)
        rows, features = f.nonzero(as_tuple=True)
        return rows, features, f[rows, features]

    def decode(
        self, f: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of what has these activations; x is what was encoded, for its norm and the skip.

        Differentiable in x, and in those activations that are not zero.
        """
        flat = f.reshape(-1, f.shape[-1])
        rows, features = flat.nonzero(as_tuple=True)
        summed = sparse_decode(rows, features, flat[rows, features], self._decoder, len(flat))
        out = summed.view(*f.shape[:-1], self.d_out)
        if self.architecture != "matching_pursuit" or self.config["apply_b_dec_to_input"]:
            out = out + self.weights["b_dec"]
        return self._skipped(self._scaled(out, x, shift=True), x)

    def directions(
        self, x: Float[Tensor, "*batch d_in"], features: Int[Tensor, chosen]
    ) -> Float[Tensor, "*batch chosen d_out"]:
        """d x_hat / d f_i: what one more unit of a feature adds to the reconstruction, at each x."""
        rows = self._decoder[features].expand(*x.shape[:-1], -1, -1)
        return self._scaled(rows, x.unsqueeze(-2), shift=False)

    def shift(
        self, x: Float[Tensor, "*batch d_in"], features: Int[Tensor, chosen], by: Float[Tensor, "*batch chosen"]
    ) -> Float[Tensor, "*batch d_out"]:
        """sum_i by_i d x_hat / d f_i: how far the reconstruction moves where features move by that much."""
        return self._scaled(by @ self._decoder[features], x, shift=False)

    @cached_property
    def _zero(self) -> Tensor:
        return self.W_dec.new_zeros(self.d_sae)

    @property
    def _rescaled(self) -> bool:
        """Whether activations are counted in lengths of decoder rows, which SAELens does for topk alone."""
        return self.architecture in ("topk", "abstopk") and bool(self.config.get("rescale_acts_by_decoder_norm"))

    @cached_property
    def _decoder(self) -> Tensor:
        if self._rescaled:
            return self.W_dec / self.W_dec.norm(dim=-1, keepdim=True)
        return self.W_dec

    def _inside(self, x: Tensor) -> Tensor:
        """x' : normalised, and without the decoder's bias where it is taken off."""
        x = x.to(self.W_dec.dtype)
        kind = self.config["normalize_activations"]
        if kind == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
            x = x / (x.std(-1, keepdim=True) + 1e-5)
        elif kind == "constant_norm_rescale":
            x = x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        return x - self.weights["b_dec"] if self.config["apply_b_dec_to_input"] else x

    def _scaled(self, out: Tensor, x: Tensor, shift: bool) -> Tensor:
        """The norm undone, which transcoders never do: their output is of another site."""
        kind, x = self.config["normalize_activations"], x.to(self.W_dec.dtype)
        if self.is_transcoder or kind not in ("layer_norm", "constant_norm_rescale"):
            return out
        if kind == "constant_norm_rescale":
            return out * (x.norm(dim=-1, keepdim=True) / self.d_in**0.5)
        out = out * x.std(-1, keepdim=True)
        return out + x.mean(-1, keepdim=True) if shift else out

    def _skipped(self, out: Tensor, x: Tensor) -> Tensor:
        return out + x.to(self.W_dec.dtype) @ self.weights["W_skip"].T if "W_skip" in self.weights else out

    def _activate(self, products: Tensor, inside: Tensor, features: Any) -> Tensor:
        """Activations from x' W_enc, of all features or of the columns `features`."""
        weights, kind = self.weights, self.architecture
        if kind == "gated":
            magnitude = products * weights["r_mag"][features].exp() + weights["b_mag"][features]
            return magnitude.relu() * (products + weights["b_gate"][features] > 0)
        before = products + weights["b_enc"][features]
        if kind.startswith("jumprelu"):
            return before.relu() * (before > weights["threshold"][features])
        if kind in ("topk", "abstopk"):
            if self._rescaled:
                before = before * self.W_dec.norm(dim=-1)
            k = min(int(self.config["k"]), self.d_sae)
            chosen = (before.abs() if kind == "abstopk" else before).topk(k, dim=-1, sorted=False).indices
            values = before.gather(-1, chosen)
            values = values if kind == "abstopk" else values.relu()
            return torch.zeros_like(before).scatter(-1, chosen, values)
        return before.relu()

    def _pursue(self, inside: Tensor) -> Tensor:
        """Matching pursuit, as SAELens stops it: at a small residual, or when no new feature comes in."""
        left = inside.reshape(-1, inside.shape[-1])
        f = left.new_zeros(len(left), self.d_sae)
        support, done = torch.zeros_like(f, dtype=torch.bool), left.new_zeros(len(left), dtype=torch.bool)
        small = self.config["residual_threshold"]
        for _ in range(self.config.get("max_iterations") or self.d_in):
            best = (left @ self.W_dec.T).relu().argmax(1)
            rows = self.W_dec[best]
            step = (left * rows).sum(1).relu() * ~done
            f = f.scatter_add(1, best[:, None], step[:, None])
            left = left - step[:, None] * rows
            if self.config.get("stop_on_duplicate_support", True):
                done, support = done | ((f != 0) == support).all(1), f != 0
            if small > 0:
                done = done | (left.norm(dim=-1) < small)
            if done.all():
                break
        return f.view(*inside.shape[:-1], self.d_sae)

    # -------------------------------------------------------------------------------------------------- in a model

    def check(self, model: Model) -> None:
        """See that it was made for this model and fits its sites.

        Raises:
            Unsuitable: another model, a site it has not, or another width.
        """
        made_for, name = self.metadata.get("model_digest"), self.metadata.get("model_name")
        if made_for and made_for != model.digest:
            raise Unsuitable(
                f"{self.name} was made for other weights ({str(name or made_for)[:60]}) than {model.name}'s; "
                "choose one that was made for this model, or load that model."
            )
        names = (model.name, str(getattr(model.config, "_name_or_path", "")))
        if not made_for and name and not any(_plain(str(name)) == _plain(each) for each in names):
            raise Unsuitable(
                f"{self.name} was made for {str(name)[:60]}, not for {model.name}; if they are the same model, "
                "say so where you add it."
            )
        for site, width, what in ((self.site, self.d_in, "reads"), (self.target, self.d_out, "writes")):
            found = self._width(model, model.resolve(site))
            if found != width:
                raise Unsuitable(f"{self.name} {what} {width} numbers at {site}; {model.name} has {found} there.")

    def _width(self, model: Model, site: Site) -> int:
        def look() -> int:
            with torch.no_grad(), model.record([site]) as found:
                model(model._random_input())
            return int(self.rows(found[site], model, site).shape[-1])

        with hooks.alone():
            return model.cached(("width of", site), look)

    def rows(self, activation: Tensor, model: Model, site: Site | None = None) -> Float[Tensor, "batch position d"]:
        """An activation of its site (or of `site`) as rows: heads side by side, maps as positions row by row."""
        site = model.resolve(site or self.site)
        if activation.dim() == 4 and site.kind in HEADED:
            return activation.flatten(2)
        if activation.dim() == 4:
            return activation.flatten(2).transpose(1, 2)
        return activation if activation.dim() == 3 else activation.flatten(1)[:, None]

    def unrows(self, rows: Tensor, like: Tensor, model: Model, site: Site | None = None) -> Tensor:
        """The inverse of `rows`: an activation of the shape and type of `like`."""
        site = model.resolve(site or self.target)
        if like.dim() == 4 and site.kind not in HEADED:
            rows = rows.transpose(1, 2)
        return rows.reshape(like.shape).to(like.dtype)


def _site(metadata: Mapping[str, Any], key: str, hook: str) -> Site:
    own = metadata.get("actiscope") or {}
    text = own.get(key) if isinstance(own, dict) else None
    text = text or metadata.get(hook)
    if not isinstance(text, str) or not 0 < len(text) <= 200:
        raise Unsuitable(f"The SAE's cfg.json does not say where it belongs ({hook}); add that to its metadata.")
    if match := re.fullmatch(r"blocks\.([0-9]{1,4})\.hook_(in|out)", text):  # TransformerLens 3's bridge
        return Site("resid_post" if match[2] == "out" else "resid_pre", int(match[1]))
    try:
        return Site.parse(text)
    except Unsuitable:
        if text.startswith("blocks."):
            raise Unsuitable(f"The SAE belongs to {text}, which Actiscope has no site for.") from None
        return Site("module", path=text)  # SAELens names modules of Hugging Face models by their path


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _plain(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.split("/")[-1].split("@")[0].lower())
    return _ALIKE.get(plain, plain)


# ------------------------------------------------------------------------------------------------------------- loading


def load(name: str, device: torch.device | str = "cpu") -> SAE:
    """Load an SAE by the name an experiment gives it.

    Args:
        name: of the shelf ("stories/resid_post.2"), of the store (`local:DIGEST`, as `keep` returns it), or of the hub
            ("release:gpt2-small-res-jb/blocks.8.hook_resid_pre", "hub:owner/repository/folder@revision").

    Raises:
        Unsuitable: not an SAE that can be read; the text says why. Missing: it is not here.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise Unsuitable(f"{name[:80]!r} names no SAE; add a folder first, on the Features page or by interp.sae.keep.")
    folder = _folder(name)
    key = name, str(folder), str(device)
    with _lock:
        if key in _loaded:
            _loaded.move_to_end(key)
            return _loaded[key]
    found = read(folder, name).to(device)
    with _lock:
        found = _loaded.setdefault(key, found)
        most = limits.SETTINGS.sae_bytes or math.inf
        while len(_loaded) > 1 and sum(each.bytes for each in _loaded.values()) > most:
            _loaded.popitem(last=False)
    return found


_loaded: OrderedDict[tuple[str, str, str], SAE] = OrderedDict()
_lock = threading.Lock()


def _folder(name: str) -> Path:
    if name.startswith("local:"):
        folder = store.folder() / "saes" / name.removeprefix("local:")
        if not (folder / CONFIG).exists():
            raise Missing("This is about an SAE that is not kept here; add its folder on the Features page first.")
        store.mark(folder)
        return folder
    if name.startswith(("hub:", "release:")):
        from interp import sae_hub

        return sae_hub.fetch(name)
    folder = SHELF / name
    if not (folder / CONFIG).exists():
        raise Missing(f"There is no SAE called {name!r} on the shelf.")
    return folder


def read(folder: Path, name: str = "") -> SAE:
    """Read cfg.json and sae_weights.safetensors of a folder, and check them.

    Raises:
        Unsuitable: files are missing, too large, pickled, damaged, not finite, or not of an architecture known here.
    """
    name = name or folder.name
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not config.exists():
        raise Unsuitable(f"{name} holds no {CONFIG}; give a folder that SAELens saved (save_model).")
    if not weights.exists():
        pickles = [each.name for each in folder.iterdir() if each.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]
        raise Unsuitable(
            f"{name} holds only pickled weights ({pickles[0]}), which can run any code when opened; save it again with "
            "SAELens's save_model, as safetensors."
            if pickles
            else f"{name} holds no {WEIGHTS}; give the whole folder that SAELens saved."
        )
    if weights.stat().st_size > (limits.SETTINGS.sae_bytes or math.inf):
        raise Unsuitable(
            f"{name} has {weights.stat().st_size / 2**30:.1f} GB of weights; the limit here is "
            f"{limits.SETTINGS.sae_bytes / 2**30:.1f} GB (ACTISCOPE_SAE_BYTES)."
        )
    try:
        settings = _settings(_json(config))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OSError) as problem:
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable(f"The {CONFIG} of {name} can't be read; save the SAE again with SAELens.") from None
    try:
        with safe_open(weights, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as problem:
        raise Unsuitable(f"The weights of {name} are damaged or no safetensors ({str(problem)[:80]}).") from None
    if "log_threshold" in tensors:  # as SAELens wrote it before version 6
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if not (tensors.get("scaling_factor", torch.ones(1)) == 1).all():
        raise Unsuitable(f"{name} scales its activations (scaling_factor), as SAELens no longer does; take another.")
    return SAE(name, store.digest_of((config, weights)), settings, _checked(settings, tensors, name))


def _json(config: Path) -> Any:
    if config.stat().st_size > LARGEST_CONFIG:
        raise Unsuitable(f"The {CONFIG} is larger than 1 MB, as none that SAELens writes; save the SAE again with it.")
    return json.loads(config.read_text(encoding="utf-8"))


def _settings(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with SAELens's defaults filled in; that of versions before 6 as 6 would write it."""
    if not isinstance(raw, dict):
        raise Unsuitable("The SAE's cfg.json is no JSON object.")
    new = {_NAMES.get(key, key): value for key, value in raw.items()}
    if not isinstance(new.get("metadata"), dict):
        new["metadata"] = {
            key: value for key, value in new.items() if isinstance(value, str | int | float | bool) and key != "dtype"
        }
    if new.get("activation_fn") == "topk" and (new.get("activation_fn_kwargs") or {}).get("k"):  # before version 6
        new |= {"architecture": "topk", "k": new["activation_fn_kwargs"]["k"]}
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    kind = new["architecture"] = new.get("architecture") or "standard"
    new["normalize_activations"] = new.get("normalize_activations") or "none"
    if kind not in ARCHITECTURES:
        what = _UNREAD.get(str(kind), "is not known here")
        raise Unsuitable(f"An SAE of architecture {str(kind)[:40]!r} {what}; see {ARCHITECTURES[0]}, "
                         f"{', '.join(ARCHITECTURES[1:6])} and transcoders.")  # fmt: skip
    if new["normalize_activations"] not in NORMS:
        raise Unsuitable(
            f"The SAE normalises by {str(new['normalize_activations'])[:40]!r}; known are {', '.join(NORMS)}."
        )
    # a transcoder's b_dec is of what it writes
    new["apply_b_dec_to_input"] = "transcoder" not in kind and bool(new.get("apply_b_dec_to_input", True))
    counts = ["d_in", "d_sae"]
    if kind in ("topk", "abstopk"):
        new["k"] = 100 if new.get("k") is None else new["k"]
        counts.append("k")
    if kind == "matching_pursuit":
        counts += ["max_iterations"] if new.get("max_iterations") else []
        new["residual_threshold"] = float(new.get("residual_threshold", 1e-2))
    if "transcoder" in kind and new.get("d_out") is not None:
        counts.append("d_out")
    if not all(_count(new.get(key)) for key in counts):
        raise Unsuitable(
            f"The SAE's cfg.json does not say how wide it is ({', '.join(counts)}); save it again with SAELens."
        )
    return new


def _checked(settings: Mapping[str, Any], tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of that architecture, of the shapes that the configuration says, all of them finite."""
    d_in, d_sae, kind = settings["d_in"], settings["d_sae"], settings["architecture"]
    if "transcoder" in kind:
        d_out = settings.get("d_out") or [d_in, *(tensors["W_dec"].shape if "W_dec" in tensors else ())][-1]
    else:
        d_out = d_in
    wanted: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    if kind != "matching_pursuit":
        wanted["W_enc"] = (d_in, d_sae)
    if kind == "gated":
        wanted |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,))
    elif kind != "matching_pursuit":
        wanted["b_enc"] = (d_sae,)
    if kind.startswith("jumprelu"):
        wanted["threshold"] = (d_sae,)
    if "skip" in kind:
        wanted["W_skip"] = (d_out, d_in)
    for key, shape in wanted.items():
        if key not in tensors:
            raise Unsuitable(f"{name} lacks the weights {key} that a {kind} SAE has; save it again with SAELens.")
        if tuple(tensors[key].shape) != shape:
            raise Unsuitable(f"{key} of {name} is {tuple(tensors[key].shape)}; its cfg.json says {shape}.")
        if not tensors[key].isfinite().all():
            raise Unsuitable(
                f"{key} of {name} holds numbers that are not finite; its training went wrong, take another."
            )
    return {key: tensors[key] for key in wanted}


def keep(folder: str | Path, model: Model | None = None) -> str:
    """Take an SAE's folder into the store, and return the name by which experiments and links find it.

    Args:
        model: say that it was made for this model, whatever its cfg.json calls that.

    Raises:
        Unsuitable: as `read` and `SAE.check` do.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Unsuitable(f"{folder.name!r} is no folder here; give one that holds {CONFIG} and {WEIGHTS}.")
    found = read(folder)
    place = store.folder() / "saes"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        config = json.loads((folder / CONFIG).read_text())
        if model is not None:
            config["metadata"] = {**found.metadata, "model_digest": model.digest, "model_name": model.name}
        (Path(made) / CONFIG).write_text(json.dumps(config))
        shutil.copyfile(folder / WEIGHTS, Path(made) / WEIGHTS)
        if model is not None:
            read(Path(made), folder.name).check(model)
        digest = store.digest_of((Path(made) / CONFIG, Path(made) / WEIGHTS))
        if not (place / digest).exists():
            new = Path(tempfile.mkdtemp(dir=place))
            shutil.copytree(made, new, copy_function=shutil.copyfile, dirs_exist_ok=True)
            try:
                os.replace(new, place / digest)
            except OSError:  # someone else kept the same one meanwhile
                shutil.rmtree(new, ignore_errors=True)
    return f"local:{digest}"


def keep_files(files: Mapping[str, bytes], model: Model | None = None) -> str:
    """`keep` of uploaded files by name."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            try:
                (Path(folder) / Path(name).name).write_bytes(data)
            except (OSError, ValueError):
                raise Unsuitable(f"{name[:40]!r} can't be the name of a file; give {CONFIG} and {WEIGHTS}.") from None
        return keep(folder, model)


# ------------------------------------------------------------------------------------------------- what there is


def available(model: Model) -> list[str]:
    """The SAEs and transcoders made for these weights, on the shelf and in the store, in the order of the layers."""
    found = []
    for folder in (*SHELF.glob("*/*"), *(store.folder() / "saes").glob("*")):
        settings = _glance(folder / CONFIG)
        if settings is None or settings["metadata"].get("model_digest") != model.digest:
            continue
        name = f"{folder.parent.name}/{folder.name}" if folder.is_relative_to(SHELF) else f"local:{folder.name}"
        if not NAME.fullmatch(name):  # one that is just being written
            continue
        try:
            site = _site(settings["metadata"], "site", "hook_name")
        except Unsuitable:
            continue
        found.append(("transcoder" in settings["architecture"], name.startswith("local:"), site, name))
    return [name for *_, name in sorted(found)]


def first(model: Model) -> str:
    """The SAE that a method looks at where none is named: of the residual stream past the middle, if there is one.

    Raises:
        Unsuitable: there is none for this model.
    """
    names = available(model)
    if not names:
        raise Unsuitable(f"There is no SAE for {model.name} here; add one, or train one, on the Features page.")
    wanted = [name for name in names if name.endswith(f"/resid_post.{model.layers // 2}")]
    return (wanted or names)[0]


def _glance(config: Path) -> dict[str, Any] | None:
    try:
        return _glanced(str(config), config.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(256)
def _glanced(config: str, _: int) -> dict[str, Any] | None:
    try:
        return _settings(_json(Path(config)))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OSError):
        return None
