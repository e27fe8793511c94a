"""SAEs of Hugging Face and of SAELens's list of releases, checked before anything is downloaded.

    python -m interp.sae_hub RELEASE SAE_ID COMMIT FOLDER

SAELens takes 9 s and 900 MB to import, so what only it can convert is converted in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors.torch import save_file

from interp import Unsuitable, hub, progress, sae, settings, store
from interp.hub import Listing
from interp.model import Model
from interp.progress import Progress

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
PICKLED = ("connor_rob_hook_z", "goodfire", "dictionary_learning_1", "deepseek_r1", "qwen_scope")
"""Formats that SAELens converts from pickled files."""
_FETCHED: dict[str, Path] = {}


def fetch(name: str) -> Path:
    """The folder of an SAE in SAELens's format (cfg.json, sae_weights.safetensors), downloaded if it is not here yet.

    What a name stood for when it was first asked for, it stands for as long as the process lives; where the hub can't
    be reached, it stands for what was fetched last.

    Args:
        name: "hub:owner/repository/folder@revision", or "release:RELEASE/SAE_ID" as SAELens lists them. An SAE of a
            release comes as SAELens loads it: with the release's settings, and its norm_scaling_factor s folded in,

                W_enc <- s W_enc,    W_dec <- W_dec / s,    b_dec <- b_dec / s

            One that was trained on a model whose writing weights were centred (as TransformerLens does) takes the mean
            off x itself, so that it says of the model as it is what it would say of that one:

                x W_enc <- (x - mean(x)) W_enc

    Raises:
        Unsuitable: there is no such SAE, it may not be had, is pickled or too large, or the hub can't be reached.
        interp.progress.Cancelled: stopped meanwhile.
    """
    if not sae.NAME.fullmatch(name) or not name.startswith(("hub:", "release:")) or ".." in name:
        raise Unsuitable(f"{name[:80]!r} names no SAE of Hugging Face (hub:owner/repository/folder).")
    with progress.alone(name):
        if name not in _FETCHED or not _whole(_FETCHED[name]):
            _FETCHED[name] = _fetch(name)
        else:
            hub.permitted(*_repository(name)[:2])
        return _FETCHED[name]


def pinned(name: str) -> str:
    """The name with the commit that it stands for, for a link that means the same weights for ever.

    What a release stands for is kept by SAELens's list, which names no commits.

    Raises:
        Unsuitable: as `fetch` does.
    """
    if not name.startswith("hub:"):
        return name
    repository, revision, path = _repository(name)
    place = "/".join(filter(None, (repository, path)))
    return f"hub:{place}@{hub.listing(repository, revision).commit}"


def releases(model: Model) -> list[tuple[str, str, str | None]]:
    """SAELens's pretrained SAEs for that model, without those that can't be opened here (pickled ones, temporal ones).

    Returns:
        (release, sae_id, neuronpedia's id or None) each: "release:{release}/{sae_id}" is its name. Only of repositories
        that may be downloaded here.
    """
    offered = hub.offered()
    mine = None if offered is None else {each.partition("@")[0] for each in offered}
    names = {sae._plain(each) for each in (model.name, str(getattr(model.config, "_name_or_path", ""))) if each}
    return [
        (release, each["id"], each.get("neuronpedia"))
        for release, entry in _directory().items()
        if sae._plain(entry["model"]) in names and entry.get("conversion_func") not in (*PICKLED, "temporal")
        if mine is None or entry["repo_id"] in mine
        for each in entry["saes"]
    ]


# ------------------------------------------------------------------------------------------------------- what is here


def _whole(folder: Path) -> bool:
    return (folder / sae.CONFIG).exists() and (folder / sae.WEIGHTS).exists()


def _place() -> Path:
    place = store.folder() / "saes-hub"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _remembered(name: str) -> Path | None:
    """The folder that was fetched last under this name, if it is still there."""
    try:
        folder = Path((_place() / store.key_of(name)).read_text())
    except OSError:
        return None
    return folder if _whole(folder) else None


@lru_cache(1)
def _directory() -> dict[str, dict[str, Any]]:
    """SAELens's list of releases, read without importing SAELens."""
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise Unsuitable("SAELens is not installed here, so its releases are not known; pip install sae-lens.")
    text = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


# ------------------------------------------------------------------------------------------------------- what is there


def _repository(name: str) -> tuple[str, str, str]:
    """Repository, revision and the path in it of an SAE's name."""
    kind, _, rest = name.partition(":")
    if kind == "release":
        _, entry, one = _entry(rest)
        return entry["repo_id"], "", str(one["path"])
    where, _, revision = rest.partition("@")
    owner, _, where = where.partition("/")
    repository, _, path = where.partition("/")
    if not (owner and repository) or str(PurePosixPath(path)) != (path or ".") or path.startswith("/"):
        raise Unsuitable(f"{name[:80]!r} names no folder on Hugging Face; say hub:owner/repository/folder.")
    return f"{owner}/{repository}", revision, path


def _fetch(name: str) -> Path:
    repository, revision, path = _repository(name)
    known = _remembered(name)
    if known and hub.COMMIT.fullmatch(revision):
        hub.permitted(repository, revision)
        return known
    try:
        listed = hub.listing(repository, revision)
    except hub.Away:
        if known:
            return known
        raise
    if name.startswith("hub:"):
        found = _saelens(name, listed, path)
    else:
        release, entry, one = _entry(name.partition(":")[2])
        found = _place() / store.key_of(name, listed.commit)[:32]
        if not _whole(found):
            with tempfile.TemporaryDirectory(dir=_place()) as made:
                folder = Path(made) / "sae"
                folder.mkdir()
                if entry.get("conversion_func"):
                    _check_release(name, entry["conversion_func"], listed, path)
                    hub.fetch(f"Fetching {name}", listed, _files(path, listed.files))
                    _converted(name, release, one["id"], listed, folder)
                else:
                    _settled(name, entry, one, _saelens(name, listed, path), folder)
                shutil.rmtree(found, ignore_errors=True)  # it is not whole
                try:
                    os.replace(folder, found)
                except OSError:
                    if not _whole(found):  # nor did another process bring it meanwhile
                        raise
        os.utime(found)
    store._write(_place() / store.key_of(name), str(found).encode())
    return found


def _kept() -> Iterator[hub.Kept]:
    """What was made of releases: it takes disk beside what was downloaded."""
    for folder in (store.folder() / "saes-hub").glob("*"):
        if folder.is_dir() and _whole(folder):
            size = sum(each.stat().st_size for each in folder.iterdir())
            yield hub.Kept(folder.name, size, folder.stat().st_mtime, partial(shutil.rmtree, folder, True))


hub.KEPT.append(_kept)


def _entry(rest: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    release, _, sae_id = rest.partition("/")
    entry = _directory().get(release)
    if entry is None:
        raise Unsuitable(f"SAELens lists no release {release[:80]!r}; choose one of those listed for the model.")
    one = next((each for each in entry["saes"] if each["id"] == sae_id), None)
    if one is None:
        raise Unsuitable(f"The release {release} has no SAE {sae_id[:80]!r}; it has {entry['saes'][0]['id']}, for one.")
    if entry.get("conversion_func") == "temporal":
        raise Unsuitable(f"{release} looks at a whole text at once (temporal), which is not known here; take another.")
    return release, entry, one


def _files(path: str, files: Mapping[str, hub.File]) -> list[str]:
    """What belongs to a path of a release: that file, or what is in that folder, or what is named after it."""
    named = (path, f"{path}.safetensors", f"W_enc_{path}.safetensors", f"W_dec_{path}.safetensors")
    return [each for each in files if each in named or each.startswith(f"{path}/")]


def _saelens(name: str, listed: Listing, path: str) -> Path:
    """Download the two files of a folder in SAELens's format."""
    inside = {each: f"{path}/{each}".strip("/") for each in (sae.CONFIG, sae.WEIGHTS)}
    for each, file in inside.items():
        if file not in listed.files:
            _refuse_pickles(
                name, [other for other in listed.files if str(PurePosixPath(other).parent) == (path or ".")]
            )
            where = repr(path) if path else "its first folder"
            raise Unsuitable(f"{listed.repository} holds no {each} in {where}; give a folder that SAELens saved.")
    _refuse_large(name, listed, inside.values())
    return (hub.fetch(f"Fetching {name}", listed, inside.values()) / path).absolute()


def _check_release(name: str, conversion: str, listed: Listing, path: str) -> None:
    files = _files(path, listed.files)
    if not any(each.endswith((".safetensors", ".npz")) for each in files) or conversion in PICKLED:
        _refuse_pickles(name, files)
        raise Unsuitable(f"{listed.repository} holds no weights for {path!r}; SAELens's list may be older than it.")
    _refuse_large(name, listed, files)


def _refuse_pickles(name: str, files: list[str]) -> None:
    for each in files:
        if each.endswith(PICKLES):
            raise Unsuitable(
                f"{name} comes as pickled weights ({PurePosixPath(each).name}), which can run any code when opened; "
                "open it with SAELens where you trust it, and add the folder that its save_model writes."
            )


def _refuse_large(name: str, listed: Listing, files: Iterable[str]) -> None:
    size, limit = sum(listed.files[each].size for each in files), settings.SETTINGS.sae_bytes
    if limit and size > limit:
        raise Unsuitable(
            f"{name} has {hub.said(size)} of weights; the limit here is {hub.said(limit)} (ACTISCOPE_SAE_BYTES)."
        )


# --------------------------------------------------------------------------------------------------------- conversion


def _settled(name: str, entry: Mapping[str, Any], one: Mapping[str, Any], source: Path, made: Path) -> None:
    """Write into `made` an SAE of SAELens's format with what its release says of it, folded as `fetch` tells."""
    found = sae.read(source, name)
    settings = dict(entry.get("config_overrides") or {})
    centred = (settings.pop("model_from_pretrained_kwargs", None) or {}).get("center_writing_weights")
    config = {**found.config, **settings, "dtype": "float32"}
    config["metadata"] = {**found.metadata, "neuronpedia_id": one.get("neuronpedia")}
    weights = dict(found.weights)
    factor = one.get("norm_scaling_factor")
    if config["normalize_activations"] == "expected_average_only_in" and factor:
        weights["W_enc"] = weights["W_enc"] * factor
        weights |= {key: weights[key] / factor for key in ("W_dec", "b_dec")}
        config["normalize_activations"] = "none"
    if centred:
        total = weights["W_enc"].sum(0)
        weights["W_enc"] = weights["W_enc"] - total / found.d_in
        if config["apply_b_dec_to_input"]:  # b_dec is taken off as it is, its mean with it
            weights["b_enc"] = weights["b_enc"] - weights["b_dec"].mean() * total
    save_file(weights, made / sae.WEIGHTS)
    (made / sae.CONFIG).write_text(json.dumps(config))


def _converted(name: str, release: str, sae_id: str, listed: Listing, made: Path) -> None:
    """Let SAELens convert it, in another process."""
    here = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
    if hub.token(listed.repository) is False:
        environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    command = [sys.executable, "-m", "interp.sae_hub", release, sae_id, listed.commit, str(made)]
    log, began = made.parent / "log.txt", time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
    try:
        while process.poll() is None:
            progress._tell(Progress(f"Converting {name}", 0, 1, time.monotonic() - began))
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        reason = made.parent / "reason.txt"
        if reason.exists():
            raise Unsuitable(f"SAELens can't convert {name}: {reason.read_text()}")
        if process.returncode == -9:
            raise Unsuitable(f"This machine has too little memory to convert {name}; take a narrower one.")
        raise RuntimeError(f"Converting ended with {process.returncode}:\n" + log.read_text()[-2000:])


def main(release: str, sae_id: str, commit: str, folder: Path) -> None:
    """Convert with SAELens, from that commit and without opening a pickle; why it can't is written beside `folder`."""
    try:
        import torch
        from sae_lens import SAE
        from sae_lens.loading import pretrained_sae_loaders as loaders

        def refuse(*_: Any, **__: Any) -> None:
            raise Unsuitable("its weights are pickled, which can run any code when opened.")

        def pinned(function: Any) -> Any:
            return lambda *arguments, **options: function(*arguments, **options | {"revision": commit})

        torch.load = refuse
        loaders.hf_hub_download = pinned(loaders.hf_hub_download)
        loaders.hf_hub_url = pinned(loaders.hf_hub_url)
        found = SAE.from_pretrained(release, sae_id)
        for weight in found.parameters():
            weight.data = weight.data.contiguous()
        found.save_model(folder)
    except Exception as problem:  # whatever its loaders raise for what they did not expect
        line = next(iter(str(problem).splitlines()), "")[:200]
        (folder.parent / "reason.txt").write_text(line or type(problem).__name__)
        raise


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
