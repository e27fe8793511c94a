"""Call, Experiment: a model, a sample, interventions and a lens as one frozen value, and its texts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from interp import Unsuitable
from interp.method import Method
from interp.results import Result
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, Target, TextSet
from interp.sites import Site

LINK_VERSION = "1"
LONGEST = 2**18
"""Characters of a link or of JSON that is looked at: more than a prompt of the longest takes when it is quoted."""
INTERVENTIONS = 50
"""So many at most in one experiment."""
IMAGES = 256
"""So many at most in a set that a link names."""
Sample = Image | Prompt | PromptPair | Contrast | ImageSet | TextSet


@dataclass(frozen=True, init=False)
class Call:
    """A method with settings, canonical from the start: `Call("grad_cam", target="dog")`. Equal calls do the same."""

    method: str
    version: int
    items: tuple[tuple[str, Any], ...]

    def __init__(self, method: str, /, **settings: Any) -> None:
        found = _method(method)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "version", found.version)
        object.__setattr__(self, "items", tuple(found.canonical(settings).items()))

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.items)

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        defaults = {control.name: control.default for control in _method(self.method).controls}
        differ = {}
        for name, value in self.items:
            try:
                default = _method(self.method).canonical({**self.settings, name: defaults[name]})[name]
            except Unsuitable:
                default = dataclasses.MISSING
            if value != default:
                differ[name] = value
        return differ

    def but(self, **settings: Any) -> Call:
        """The same call with other settings."""
        return Call(self.method, **{**self.settings, **settings})

    def __str__(self) -> str:
        changed = {name: _plain(value) for name, value in self.changed.items()}
        return self.method + (json.dumps(changed, separators=(",", ":"), ensure_ascii=False) if changed else "")

    @staticmethod
    def parse(text: str) -> Call:
        """Read what `str(call)` wrote.

        Raises:
            Unsuitable: an unknown method or setting, or a value out of bounds.
        """
        _check_length(text)
        name, brace, rest = text.partition("{")
        try:
            settings = {key: _unplain(value) for key, value in json.loads(brace + rest).items()} if brace else {}
        except (ValueError, RecursionError) as problem:
            if isinstance(problem, Unsuitable):
                raise
            raise Unsuitable(f"The settings of {name[:40]!r} in this link can't be read.") from None
        return Call(name, **settings)

    def python(self) -> str:
        """The expression that makes it."""
        return f"Call({', '.join([repr(self.method)] + [f'{k}={_literal(v)}' for k, v in self.changed.items()])})"


@dataclass(frozen=True)
class Experiment:
    """A model, a sample, any number of interventions and one lens. Frozen, hashable, and made of plain values."""

    model: str
    sample: Sample
    lens: Call
    interventions: tuple[Call, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(self.interventions))
        if not isinstance(self.model, str) or not 0 < len(self.model) <= 1000:
            raise Unsuitable("An experiment names its model: of the shelf, a folder, or a Hugging Face id.")
        if not isinstance(self.sample, Sample):
            raise Unsuitable(
                f"An experiment looks at a sample (Image, Prompt ...), not at {type(self.sample).__name__}."
            )
        if len(self.interventions) > INTERVENTIONS:
            raise Unsuitable(f"An experiment has at most {INTERVENTIONS} interventions; take some of them out.")
        for call, kind in ((self.lens, "lens"), *((each, "intervention") for each in self.interventions)):
            if _method(call.method).kind != kind:
                raise Unsuitable(f"{call.method} is a {_method(call.method).kind}, not a {kind}.")

    def run(self) -> Result:
        """Load the model, enter the interventions in order, and look through the lens."""
        from interp import zoo

        model = zoo.load(self.model)
        with ExitStack() as stack:
            for call in self.interventions:
                stack.enter_context(_method(call.method)(model, self.sample, **call.settings))
            return _method(self.lens.method)(model, self.sample, **self.lens.settings)

    def stream(self, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
        """Go on with a prompt under the interventions, token by token; the lens takes no part."""
        from interp import zoo

        model = zoo.load(self.model)
        if not isinstance(self.sample, Prompt) or not hasattr(model, "generate"):
            raise Unsuitable("Only a language model goes on with a prompt.")
        with ExitStack() as stack:
            for call in self.interventions:
                stack.enter_context(_method(call.method)(model, self.sample, **call.settings))
            # the stream keeps what is in force now and enters it for each forward
            return model.generate(self.sample, n, temperature, seed)

    def check(self) -> None:
        """Load the model and see that it has what the calls name, without running anything.

        Raises:
            Unsuitable: the model can't be loaded, or a method, site or class does not fit it.
        """
        from interp import zoo

        model = zoo.load(self.model)
        for call in (self.lens, *self.interventions):
            if reason := _method(call.method).refuses(model):
                raise Unsuitable(reason)
            for value in call.settings.values():
                if isinstance(value, Site):
                    model.resolve(value)
                elif isinstance(value, Target) and value.name is not None:
                    model.class_index(value) if hasattr(model, "class_index") else model.token_index(value)

    def before(self) -> Experiment:
        """The same without any intervention."""
        return dataclasses.replace(self, interventions=())

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON: names the experiment, not the floats it gives."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    # ----------------------------------------------------------------------------------------- to and from texts

    def to_json(self) -> str:
        """Canonical JSON with every setting and the versions of the methods."""
        calls = [
            {"method": each.method, "version": each.version, "settings": _plain(each.settings)}
            for each in (self.lens, *self.interventions)
        ]
        kind, sample = _sample_text(self.sample)
        value = {
            "v": LINK_VERSION,
            "model": _shared(self.model),
            kind: sample,
            "lens": calls[0],
            "interventions": calls[1:],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Experiment:
        """Read what `to_json` wrote.

        Raises:
            Unsuitable: not an experiment, or from a version that can't be read. Missing: its upload is not here.
        """
        _check_length(text)
        try:
            value = json.loads(text)
            _check_version(str(value["v"]))
            sample = next(_sample(kind, value[kind]) for kind in _SAMPLE_KINDS if kind in value)
            calls = [
                Call(each["method"], **{k: _unplain(v) for k, v in each["settings"].items()})
                for each in (value["lens"], *value["interventions"])
            ]
            return Experiment(_linked(str(value["model"])), sample, calls[0], tuple(calls[1:]))
        except (KeyError, TypeError, AttributeError, StopIteration, ValueError, RecursionError) as problem:
            if isinstance(problem, Unsuitable):
                raise
            raise Unsuitable("This is not an experiment in Actiscope's JSON.") from None

    def to_query(self) -> dict[str, list[str]]:
        """The parameters of a link; settings at their defaults are left out."""
        kind, sample = _sample_text(self.sample)
        query = {"v": [LINK_VERSION], "model": [_shared(self.model)], kind: [sample], "lens": [str(self.lens)]}
        return query | ({"do": [str(call) for call in self.interventions]} if self.interventions else {})

    def to_url(self, base: str = "") -> str:
        """A link that opens this experiment."""
        return f"{base}?{urlencode(self.to_query(), doseq=True, quote_via=quote)}"

    @staticmethod
    def from_url(url: str) -> Experiment:
        """Read a link, or its query alone.

        Raises:
            Unsuitable: something in it is unknown or out of bounds. Missing: its upload or local model is not here.
        """
        _check_length(url)
        query: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(urlsplit(url).query or url.lstrip("?"), keep_blank_values=True, max_num_fields=100)
        except ValueError:
            raise Unsuitable("This is not a link to an experiment.") from None
        for key, value in pairs:
            query.setdefault(key, []).append(value)
        _check_version(query.get("v", [LINK_VERSION])[0])
        kind = next((each for each in _SAMPLE_KINDS if each in query), None)
        for key, what in (("model", "model"), ("lens", "lens")):
            if key not in query:
                raise Unsuitable(f"This link names no {what}.")
        if kind is None:
            raise Unsuitable("This link names no image and no prompt.")
        calls = [Call.parse(each) for each in (query["lens"][0], *query.get("do", []))]
        return Experiment(_linked(query["model"][0]), _sample(kind, query[kind][0]), calls[0], tuple(calls[1:]))

    def to_python(self) -> str:
        """A few lines that give the same result in a notebook."""
        calls = (self.lens, *self.interventions)
        used = {each for call in calls for value in call.changed.values() for each in _samples_in(value)} | {
            self.sample
        }
        used |= {image for each in used if isinstance(each, ImageSet) for image in each.images}
        names = ", ".join(sorted({type(each).__name__ for each in used}))
        lines = ["from interp.experiment import Call, Experiment", f"from interp.samples import {names}"]
        body = [f"model={self.model!r}", f"sample={_sample_python(self.sample)}"]
        if self.interventions:
            body.append(f"interventions=({' '.join(call.python() + ',' for call in self.interventions)})")
        body.append(f"lens={self.lens.python()}")
        text = (
            "\n".join(lines)
            + "\n\nexperiment = Experiment(\n"
            + "".join(f"    {line},\n" for line in body)
            + ")\nresult = experiment.run()\n"
        )
        if any(isinstance(each, Image) and each.reference.startswith("sha256:") for each in used):
            text = text.replace("\n\nexperiment", "\n\n# the file you uploaded, beside this script\nexperiment", 1)
        return text


def _method(key: str) -> Method:
    from interp.methods import METHODS

    if key not in METHODS:
        raise Unsuitable(f"There is no method called {key[:60]!r}.")
    return METHODS[key]


def _shared(model: str) -> str:
    from interp import zoo

    return zoo.shared_name(model)


def _linked(model: str) -> str:
    """The model that a link may name: whoever sends a link has no say over the folders of this machine."""
    from interp import zoo

    if zoo.is_path(model):
        raise Unsuitable("A link can't name a folder of this machine; load it on the Models page and share that link.")
    return model


def _samples_in(value: Any) -> list[Sample]:
    if isinstance(value, tuple):
        return [sample for each in value for sample in _samples_in(each)]
    return [value] if isinstance(value, Sample) else []


def _check_length(text: str) -> None:
    if len(text) > LONGEST:
        raise Unsuitable(f"This is longer than {LONGEST:,} characters, as no experiment is.")


def _check_version(version: str) -> None:
    if version != LINK_VERSION:
        raise Unsuitable(f"This link is of version {version[:10]!r}; this Actiscope reads version {LINK_VERSION}.")


def _plain(value: Any) -> Any:
    """A canonical value as JSON can hold it."""
    if isinstance(value, Site):
        return {"site": str(value)}
    if isinstance(value, Target):
        return {"target": value.name}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sample):
        kind, text = _sample_text(value)
        return {kind: text}
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_unplain(each) for each in value)
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "site":
            return Site.parse(str(inner))
        if kind == "target":
            return Target(inner)
        if kind in _SAMPLE_KINDS:
            return _sample(kind, inner)
    return value


_SAMPLE_KINDS = {
    "image": Image,
    "prompt": Prompt,
    "pair": PromptPair,
    "contrast": Contrast,
    "images": ImageSet,
    "texts": TextSet,
}


def _sample_text(sample: Sample) -> tuple[str, str]:
    kind = next(kind for kind, each in _SAMPLE_KINDS.items() if isinstance(sample, each))
    if isinstance(sample, Image):
        return kind, sample.reference
    if isinstance(sample, Prompt):
        return kind, sample.text
    if isinstance(sample, ImageSet):
        return kind, json.dumps([image.reference for image in sample.images])
    return kind, json.dumps(dataclasses.astuple(sample), ensure_ascii=False)


def _sample(kind: str, text: Any) -> Sample:
    if kind == "image":
        return Image.refer(str(text))
    if kind == "prompt":
        return Prompt(str(text))
    try:
        parts = json.loads(text)
        if kind == "images":
            if len(parts) > IMAGES:
                raise Unsuitable(f"A link names at most {IMAGES} images.")
            return ImageSet(tuple(Image.refer(str(each)) for each in parts))
        return _SAMPLE_KINDS[kind](*(tuple(each) if isinstance(each, list) else each for each in parts))
    except (ValueError, TypeError, RecursionError) as problem:
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable(f"The {kind} in this link can't be read.") from None


def _sample_python(sample: Sample) -> str:
    if isinstance(sample, Image):
        kept = not sample.reference.startswith("sha256:")
        return f"Image.gallery({sample.reference!r})" if kept else f"Image.open({sample.name or 'photo.png'!r})"
    if isinstance(sample, ImageSet):
        return f"ImageSet(({' '.join(_sample_python(image) + ',' for image in sample.images)}))"
    return repr(sample)


def _literal(value: Any) -> str:
    if isinstance(value, Target):
        return repr(value.name)
    if isinstance(value, Site):
        return repr(str(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return _sample_python(value) if isinstance(value, Sample) else repr(value)
