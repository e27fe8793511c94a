"""Experiments, fits and work over data sets from a file of JSON: `python -m interp run spec.json`.

An experiment, as `Experiment.to_json` writes it; its image, and its model, may be a file and a folder:

    {"v": "1", "model": "stories", "prompt": "The cat", "lens": {"method": "logit_lens", "settings": {}}, ...}

A fit, over {"texts": [...]}, {"images": [...]}, a .txt or .jsonl file, or a folder of images; without "data", over the
embedded texts. What it returns (a name, a key) is printed:

    {"fit": "build_index", "model": "stories", "data": "corpus.jsonl", "settings": {"context": 128}}

A lens over the same kinds of data, under any interventions: arrays by sample in safetensors, the rest in facts.jsonl:

    {"lens": "logit_lens", "over": "prompts.txt", "model": "stories", "interventions": ["ablate_heads{...}"]}

Activations of sites:

    {"harvest": {"model": "stories", "sites": ["resid_post.2"], "data": "corpus.jsonl", "context": 128}}

Paths are relative to the file. What was interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from interp import Unsuitable, progress

LARGEST = 2**20
"""Bytes of a spec."""
KINDS = (
    'A spec is an experiment, or has "fit", "harvest", or "lens" and "over"; python -m interp run --help shows each.'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0: done, 1: unsuitable input, 2: wrong usage, 128 + n: stopped by signal n."""
    parser = argparse.ArgumentParser("python -m interp", description="Actiscope without its pages.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "run", help="run a spec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("spec", type=Path, help="a file of JSON, at most 1 MB")
    command.add_argument(
        "--on", choices=("inline", "pool", "ray"), default="inline",
        help="where shards run, each on one thread: here, in processes, on Ray ($RAY_ADDRESS, or one of its own)",
    )  # fmt: skip
    command.add_argument("--workers", type=int, help="how many shards at once; as many as there are cores")
    command.add_argument("--out", type=Path, help="folder of what is written; beside the spec, with its name")
    given = parser.parse_args(arguments)

    stop = threading.Event()
    signals: list[int] = []

    def stopped(number: int, _: Any) -> None:
        signals.append(number)
        stop.set()
        signal.signal(number, before[number])  # the second one does not wait

    before: dict[int, Any] = {each: signal.signal(each, stopped) for each in (signal.SIGINT, signal.SIGTERM)}
    line = _Line(sys.stderr)
    try:
        with progress.watch(line.show, stop):
            said = run(given.spec, given.on, given.workers, given.out)
        line.clear()
        print(said)
        return 0
    except Unsuitable as reason:
        line.clear()
        print(reason, file=sys.stderr)
        return 1
    except progress.Cancelled:
        line.clear()
        print("Stopped; the same command goes on with the rest.", file=sys.stderr)
        return 128 + signals[0]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Line:
    """A line of progress on a terminal; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.shown = stream, stream.isatty()

    def show(self, now: progress.Progress) -> None:
        if self.shown:
            left = "" if now.left is None else f", {now.left:.0f} s left"
            self.stream.write(f"\r{now.label}: {now.done} of {now.total}{left}\x1b[K")
            self.stream.flush()

    def clear(self) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def run(path: Path, on: Any = "inline", workers: int | None = None, out: Path | None = None) -> str:
    """Run the spec in a file; returns what to print about it.

    Raises:
        Unsuitable: the spec can't be read or done.
    """
    spec, place = _read(path), path.resolve().parent
    out = out or place / path.stem
    if "fit" in spec:
        _known(spec, {"fit", "model", "data", "settings"}, {"fit", "model"})
        return _fit(spec, place, on, workers, out)
    if "harvest" in spec:
        _known(spec, {"harvest"}, set())
        if not isinstance(spec["harvest"], dict):
            raise Unsuitable('"harvest" is an object with "model", "sites" and "data".')
        _known(spec["harvest"], {"model", "sites", "data", "context", "batch", "dtype"}, {"model", "sites", "data"})
        return _harvest(spec["harvest"], place, on, workers, out)
    if "over" in spec:
        _known(spec, {"lens", "over", "model", "interventions"}, {"lens", "model"})
        return _lens(spec, place, on, workers, out)
    if "lens" in spec:
        return _experiment(spec, place, out)
    raise Unsuitable(KINDS)


def _read(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise Unsuitable(f"{path.name} holds {name}, which is no number in JSON; give a finite one.")

    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as problem:
        raise Unsuitable(f"{path.name} can't be read: {problem.strerror}.") from None
    if len(data) > LARGEST:
        raise Unsuitable(f"{path.name} is larger than 1 MB; name files of data in it instead.")
    try:
        spec = json.loads(data, parse_constant=refuse)
    except Unsuitable:
        raise
    except (ValueError, RecursionError) as problem:
        raise Unsuitable(f"{path.name} is no JSON: {str(problem)[:100]}.") from None
    if not isinstance(spec, dict):
        raise Unsuitable(KINDS)
    return spec


def _known(spec: dict[str, Any], keys: set[str], needed: set[str]) -> None:
    if other := set(spec) - keys:
        raise Unsuitable(f'A spec of this kind has no "{min(other)[:40]}"; it has {", ".join(sorted(keys))}.')
    if missing := needed - set(spec):
        raise Unsuitable(f'The spec lacks "{min(missing)}".')


def _model_name(value: Any, place: Path) -> str:
    """The name as `zoo.load` takes it, a folder by its path."""
    from interp import zoo

    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise Unsuitable('"model" is a name of the shelf, a folder, or a Hugging Face id.')
    found = None if value in zoo.shelf() else _found(value, place)
    return str(found) if found and found.is_dir() else value


def _found(value: str, place: Path) -> Path | None:
    """The file or folder of that name, seen from the spec."""
    try:
        path = place / Path(value).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for a path, or of a home that is not
        return None


def _file(value: str, place: Path) -> Path:
    path = _found(value, place)
    if path is None:
        raise Unsuitable(f"{value[:80]!r} is no file or folder beside the spec.")
    return path


def _call(value: Any) -> Any:
    from interp.experiment import Call

    if isinstance(value, str):
        return Call.parse(value)
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise Unsuitable('A method is its key, or an object with "method" and "settings".')
    _known(value, {"method", "settings", "version"}, {"method"})
    return Call.parse(value["method"] + json.dumps(value.get("settings") or {}))


def _image(value: Any, place: Path) -> Any:
    """A gallery image or kept upload by its reference, or a file."""
    from interp.samples import Image, gallery

    if not isinstance(value, str):
        raise Unsuitable("An image is the name of one in the gallery, or a file.")
    return Image.refer(value) if value in gallery() or value.startswith("sha256:") else Image.open(_file(value, place))


def _data(value: Any, place: Path) -> Any:
    from interp.samples import ImageSet, TextSet

    if isinstance(value, str):
        return _file(value, place)
    if isinstance(value, dict) and set(value) == {"texts"} and isinstance(value["texts"], list):
        return TextSet(tuple(value["texts"]))
    if isinstance(value, dict) and set(value) == {"images"} and isinstance(value["images"], list):
        return ImageSet(tuple(_image(each, place) for each in value["images"]))
    raise Unsuitable('Data are {"texts": [...]}, {"images": [...]}, a .txt or .jsonl file, or a folder of images.')


def _experiment(spec: dict[str, Any], place: Path, out: Path) -> str:
    from interp import store, zoo
    from interp.experiment import Experiment

    name = _model_name(spec.get("model"), place)
    zoo.load(name)
    spec["model"] = zoo.shared_name(name)
    if isinstance(file := spec.get("image"), str) and _found(file, place):
        spec["image"] = f"sha256:{store.keep_blob(_image(file, place).data)}"
    result = Experiment.from_json(json.dumps(spec)).run()
    store._write(out / "result.json", result.to_json().encode())
    store._write(out / "result.npz", result.to_npz())
    return str(out / "result.json")


def _fit(spec: dict[str, Any], place: Path, on: Any, workers: int | None, out: Path) -> str:
    from interp import batch, feature_index, store, zoo
    from interp.jobs import pictures
    from interp.methods import METHODS
    from interp.methods.features._saes import open_sae
    from interp.results import Result
    from interp.samples import Image, ImageSet, TextSet, reference_texts
    from interp.texts import Texts

    call = _call({"method": spec["fit"], "settings": spec.get("settings")})
    method = METHODS[call.method]
    if method.kind != "fit":
        raise Unsuitable(f"{call.method} is a {method.kind}, not a fit.")
    data = _data(spec["data"], place) if "data" in spec else reference_texts()
    model = zoo.load(_model_name(spec["model"], place))
    _one_thread()
    with batch.executor(on, workers):
        if isinstance(data, Path) and data.is_dir():
            data = ImageSet(tuple(map(Image.open, pictures(data))))
        elif isinstance(data, Path) and call.method == "build_index":  # of any size
            settings = dict(call.settings)
            return feature_index.build(model, open_sae(model, settings.pop("sae")), data, **settings).key
        elif isinstance(data, Path):
            data = TextSet(tuple(text for _, text in Texts(data, "", 2**20).documents()))
        made = method(model, data, **call.settings)
    if isinstance(made, Result):
        store._write(out / "result.json", made.to_json().encode())
        store._write(out / "result.npz", made.to_npz())
        return str(out / "result.json")
    return str(made)


def _harvest(spec: dict[str, Any], place: Path, on: Any, workers: int | None, out: Path) -> str:
    from interp import batch, zoo
    from interp.jobs import Harvest

    sites = spec["sites"]
    if not isinstance(sites, list) or not all(isinstance(each, str) for each in sites):
        raise Unsuitable('"sites" is a list of sites, as "resid_post.3".')
    settings = {key: spec[key] for key in ("context", "batch", "dtype") if key in spec}
    for key in ("context", "batch"):
        if key in settings and (type(settings[key]) is not int or not 1 <= settings[key] <= 2**20):
            raise Unsuitable(f'"{key}" is a whole number from 1.')
    data = _data(spec["data"], place)
    job = Harvest.of(zoo.load(_model_name(spec["model"], place)), sites, data, **settings)
    _one_thread()
    count = batch.run(job, on, workers, keep=out)
    return f"{count} shard{'s' * (count != 1)} in {out}"


def _lens(spec: dict[str, Any], place: Path, on: Any, workers: int | None, out: Path) -> str:
    from interp import batch, store, zoo
    from interp.jobs import Lens

    changes = spec.get("interventions", [])
    if not isinstance(changes, list):
        raise Unsuitable('"interventions" is a list of methods.')
    lens, calls, data = _call(spec["lens"]), [_call(each) for each in changes], _data(spec["over"], place)
    job = Lens.of(zoo.load(_model_name(spec["model"], place)), lens, data, calls)
    _one_thread()
    facts = batch.run(job, on, workers, keep=out)
    store._write(out / "facts.jsonl", "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in facts).encode())
    refused = sum("unsuitable" in each for each in facts)
    return f"{len(facts)} samples in {out}" + (f", {refused} of them unsuitable (see facts.jsonl)" if refused else "")


def _one_thread() -> None:
    """What workers have, so that the numbers are the same to the last bit."""
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
