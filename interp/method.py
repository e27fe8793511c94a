"""@lens, @intervention, @fit: what makes a plain, typed function a method, and the controls read from its signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import reprlib
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from interp import Unsuitable, hooks, progress, settings
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, Target, TextSet
from interp.sites import Site

MANY = 2**14
"""Numbers that a setting may be a list of: as many as the widest layers have neurons."""
FEW = 256
"""Members of any other list: sites, classes, texts."""
LARGEST = 1e30
"""Of a number without bounds of its own; float32 holds it, and its sums."""
SAMPLES = (Image, Prompt, PromptPair, Contrast, ImageSet, TextSet)


@dataclass(frozen=True)
class Range:
    """The bounds of a number, shown as a slider."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class Channels:
    """Marks a tuple of channel numbers; the bound is the width of the activation at the method's site."""


@dataclass(frozen=True)
class Region:
    """Marks a box (left, top, right, bottom) in fractions of the upright original."""


@dataclass(frozen=True)
class Unset:
    """Says in words what None stands for, where that is not "the last layer that still is a map"."""

    text: str


@dataclass(frozen=True)
class Heads:
    """Marks a tuple of (layer, head)."""


@dataclass(frozen=True)
class Positions:
    """Marks a tuple of token positions, from 0; none stands for all."""


@dataclass(frozen=True)
class Sites:
    """Marks a tuple of sites."""


@dataclass(frozen=True)
class SAEName:
    """Marks the name of an SAE or transcoder, as `interp.sae.load` takes it; none stands for the model's own."""


@dataclass(frozen=True)
class Features:
    """Marks a tuple of feature numbers of an SAE, from 0."""


@dataclass(frozen=True)
class DirectionName:
    """Marks the name of a direction, as `interp.directions.load` takes it; none stands for the model's first."""


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    authors: str
    title: str
    year: int
    venue: str
    url: str

    def __str__(self) -> str:
        first, *others = [each.split(",")[0] for each in self.authors.split(" and ")]
        names = first if not others else f"{first} and {others[0]}" if len(others) == 1 else f"{first} et al."
        return f"{names}, {self.title}, {self.venue} {self.year}"

    def bibtex(self) -> str:
        """The entry for a bibliography."""
        key = re.sub(r"\W", "", self.authors.split(",")[0]).lower() + str(self.year)
        return (
            f"@inproceedings{{{key},\n  author = {{{self.authors}}},\n  title = {{{{{self.title}}}}},\n"
            f"  booktitle = {{{self.venue}}},\n  year = {{{self.year}}},\n  url = {{{self.url}}}\n}}"
        )


@dataclass(frozen=True)
class Control:
    """One setting of a method: its name, type hint (with bounds), default and help text."""

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def kind(self) -> str:
        """toggle, choice, slider, number, site, sites, target, region, channels, heads, positions, features, sae,
        direction, text or sample."""
        base, marks = _unwrap(self.hint)
        for mark in marks:
            if isinstance(mark, Channels | Region | Heads | Positions | Sites | Features):
                return type(mark).__name__.lower()
            if isinstance(mark, SAEName | DirectionName):
                return "sae" if isinstance(mark, SAEName) else "direction"
        if get_origin(base) is Literal:
            return "choice"
        if base is bool:
            return "toggle"
        if base in (int, float):
            return "slider" if self.range else "number"
        return {Site: "site", Target: "target", str: "text"}.get(base, "sample")

    @property
    def range(self) -> Range | None:
        return next((mark for mark in _unwrap(self.hint)[1] if isinstance(mark, Range)), None)

    @property
    def unset(self) -> str | None:
        """What None stands for, where the signature says so."""
        return next((mark.text for mark in _unwrap(self.hint)[1] if isinstance(mark, Unset)), None)

    @property
    def whole(self) -> bool:
        """Whether the number is an integer."""
        return _unwrap(self.hint)[0] is int

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(_unwrap(self.hint)[0])


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Strip Optional and Annotated: the plain type and the marks."""
    marks: tuple[Any, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            hint, marks = hint.__origin__, (*marks, *hint.__metadata__)
        elif get_origin(hint) in (Union, types.UnionType):
            rest = [each for each in get_args(hint) if each is not type(None)]
            if len(rest) != 1:
                return hint, marks
            hint = rest[0]
        else:
            return hint, marks


@dataclass(frozen=True)
class Doc:
    """A docstring taken apart: the first sentence, the indented equations, the prose about them, the sections."""

    summary: str
    formula: str
    remarks: str
    sections: Mapping[str, str]

    @staticmethod
    def of(function: Callable[..., Any]) -> Doc:
        text = inspect.getdoc(function) or ""
        head, *rest = re.split(r"^(Args|Returns|Raises|Assumes|Misleads):\n", text, flags=re.MULTILINE)
        summary, *paragraphs = head.strip("\n").rstrip().split("\n\n")
        formula = [textwrap.dedent(each) for each in paragraphs if each.startswith("    ")]
        remarks = [" ".join(each.split()) for each in paragraphs if not each.startswith("    ")]
        sections = {name: textwrap.dedent(body).strip() for name, body in zip(rest[::2], rest[1::2], strict=True)}
        return Doc(" ".join(summary.split()), "\n\n".join(formula), "\n\n".join(remarks), sections)

    def help(self, name: str) -> str:
        match = re.search(rf"^{name}: (.*?)(?=^\w+: |\Z)", self.sections.get("Args", ""), re.MULTILINE | re.DOTALL)
        return " ".join(match[1].split()) if match else ""


@dataclass(frozen=True)
class Method:
    """A lens, intervention or fit: a function that can be called as it is, and what the app has to know about it."""

    kind: Literal["lens", "intervention", "fit"]
    key: str
    name: str
    family: str
    paper: Paper
    version: int
    function: Callable[..., Any] = dataclasses.field(repr=False)
    needs: Callable[[Any], str | None] = dataclasses.field(repr=False)
    cost: Callable[..., tuple[float, float]] | None = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for name in ("__doc__", "__name__", "__module__"):  # so that help() shows the function
            object.__setattr__(self, name, getattr(self.function, name))
        object.__setattr__(self, "__wrapped__", self.function)

    @functools.cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.function, include_extras=True)

    @functools.cached_property
    def doc(self) -> Doc:
        return Doc.of(self.function)

    @functools.cached_property
    def controls(self) -> tuple[Control, ...]:
        """The keyword-only settings, in the order they are shown."""
        parameters = inspect.signature(self.function).parameters.values()
        keyword = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
        return tuple(Control(p.name, self._hints[p.name], p.default, self.doc.help(p.name)) for p in keyword)

    @functools.cached_property
    def model_type(self) -> type:
        """The kind of model it reads: the annotation of its first parameter."""
        found: type = self._hints[next(iter(inspect.signature(self.function).parameters))]
        return found

    @property
    def samples(self) -> tuple[type, ...]:
        """The kinds of sample it looks at: the annotation of its second parameter."""
        hint = _unwrap(list(self._hints.values())[1])[0]
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        return tuple(each for each in kinds if each in SAMPLES)

    @property
    def returns(self) -> Any:
        return self._hints["return"]

    def refuses(self, model: Any) -> str | None:
        """The reason why it can't serve this model, or None."""
        if not isinstance(model, self.model_type):
            wanted = "an image model" if self.model_type.__name__ == "VisionModel" else "a language model"
            return f"{self.name} needs {wanted}; {model.name} is none."
        return self.needs(model)

    def estimate(self, model: Any, settings: Mapping[str, Any], sample: Any = None) -> tuple[float, float] | None:
        """Forwards (in examples) and backwards it will take on this model with these settings; None: a few.

        sample: what it will look at, where that is known; otherwise something of the usual size.
        """
        return self.cost(model, sample=sample, **self.canonical(settings)) if self.cost else None

    def canonical(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All settings in order, defaults filled in, as plain hashable values of their declared types.

        Raises:
            Unsuitable: an unknown setting, a missing one, or a value out of bounds.
        """
        known = {control.name for control in self.controls}
        if unknown := set(settings) - known:
            raise Unsuitable(
                f"{self.name} has no setting {reprlib.repr(min(unknown))}; it has {', '.join(sorted(known)) or 'none'}."
            )
        filled = {}
        for control in self.controls:
            value = settings.get(control.name, control.default)
            if value is inspect.Parameter.empty:
                raise Unsuitable(f"{self.name} needs a value for {control.name!r}.")
            filled[control.name] = canonical(control.hint, value, f"{self.name}: {control.name}")
        return filled

    def __call__(self, model: Any, sample: Any, **settings: Any) -> Any:
        if reason := self.refuses(model):
            raise Unsuitable(reason)
        wanted = self.samples
        if isinstance(sample, PromptPair) and PromptPair not in wanted and Prompt in wanted:
            sample = Prompt(sample.clean)  # a pair stands for its clean prompt wherever one prompt is asked for
        if wanted and not isinstance(sample, wanted):
            names = " or ".join(each.__name__ for each in wanted)
            raise Unsuitable(
                f"{self.name} looks at {names}, not at {type(sample).__name__}; make one with interp.samples."
            )
        filled = self.canonical(settings)
        if self.kind == "intervention":
            inner = self.function(model, sample, **filled)
            # the sample belongs to it: what hides a region of one photo does something else on another
            call = (self.key, self.version, sample, tuple(filled.items()))
            return nullcontext() if inner is None else hooks.calling(call, inner)
        if self.kind == "fit":
            return self.function(model, sample, **filled)
        with progress.meter() as spent:
            result = self.function(model, sample, **filled)
        return dataclasses.replace(result, method=self.key, forwards=spent.forwards, backwards=spent.backwards)


def canonical(hint: Any, value: Any, what: str) -> Any:
    """`value` as the plain hashable value that `hint` declares; JSON's lists and texts are taken too."""
    base, marks = _unwrap(hint)
    plain = hint.__origin__ if get_origin(hint) is Annotated else hint
    optional = get_origin(plain) in (Union, types.UnionType) and type(None) in get_args(plain)
    if base is Target:
        return Target(canonical(str | int | None, value.name if isinstance(value, Target) else value, what))
    if value is None and optional:
        return None
    if get_origin(base) in (Union, types.UnionType):
        for each in get_args(base):
            try:
                return canonical(each, value, what)
            except Unsuitable:
                continue
        return _refuse(what, "something else", value)
    if get_origin(base) is Literal:
        if not isinstance(value, str | int) or value not in get_args(base):
            return _refuse(what, f"one of {', '.join(map(str, get_args(base)))}", value)
        return next(each for each in get_args(base) if each == value)
    if get_origin(base) is tuple:
        if not isinstance(value, list | tuple | range):
            return _refuse(what, "a list", value)
        inner = get_args(base)
        most = MANY if inner[0] in (int, float) or get_origin(inner[0]) is tuple else FEW
        if len(value) > most:
            raise Unsuitable(f"{what} is a list of at most {most:,}, not {len(value):,}.")
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = (inner[0],) * len(value)
        if len(inner) != len(value):
            raise Unsuitable(f"{what} needs {len(inner)} values, not {len(value)}.")
        out = tuple(canonical(each, item, what) for each, item in zip(inner, value, strict=True))
        if any(isinstance(mark, Region) for mark in marks):
            left, top, right, bottom = out
            if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
                return _refuse(what, "left, top, right, bottom as fractions from 0 to 1", out)
        if any(isinstance(mark, Channels | Positions | Features) for mark in marks):
            if any(each < 0 for each in out):
                raise Unsuitable(f"{what} are numbers from 0.")
            out = tuple(sorted(set(out)))
        return out
    if base is Site:
        return Site.parse(value) if isinstance(value, str | Site) else _refuse(what, "a site", value)
    if base is bool:
        return value if isinstance(value, bool) else _refuse(what, "true or false", value)
    if base is str:
        # lone surrogates, which JSON can carry, have no place in a hash, a file or a tokenizer
        if not isinstance(value, str) or value != value.encode(errors="replace").decode():
            return _refuse(what, "a text", value)
        if len(value) > settings.SETTINGS.characters:
            return _refuse(what, f"a text of at most {settings.SETTINGS.characters:,} characters", value)
        if value and any(isinstance(mark, SAEName) for mark in marks):
            from interp.sae import NAME  # imports this module's users

            # never a path: whoever sends a link has no say over the folders of this machine
            return value if NAME.fullmatch(value) and ".." not in value else _refuse(what, "the name of an SAE", value)
        if value and any(isinstance(mark, DirectionName) for mark in marks):
            from interp.directions import NAME as DIRECTION  # imports this module's users

            known = DIRECTION.fullmatch(value) and ".." not in value
            return value if known else _refuse(what, "the name of a direction", value)
        return value
    if base in (int, float):
        whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, Real) or (base is int and not whole):
            return _refuse(what, "a whole number" if base is int else "a number", value)
        try:
            number = int(value) if isinstance(value, Integral) else float(value)  # numpy's numbers too
            # torch's generators and indices take 64 bits
            finite = abs(number) <= LARGEST if base is float else -(2**63) <= number < 2**63
        except OverflowError:  # an int beyond any float
            finite = False
        if not finite:
            return _refuse(what, "a finite number that is not too large", value)
        for mark in marks:
            if isinstance(mark, Range) and not mark.low <= number <= mark.high:
                return _refuse(what, f"a number from {mark.low:g} to {mark.high:g}", value)
        return base(number)
    if base in SAMPLES and isinstance(value, base):
        return value
    return _refuse(what, getattr(base, "__name__", str(base)), value)


def _refuse(what: str, wanted: str, value: Any) -> Any:
    raise Unsuitable(f"{what} is {wanted}, not {reprlib.repr(value)}.")


def _decorate(
    kind: Any, name: str, paper: Paper, version: int, needs: Any, cost: Any
) -> Callable[[Callable[..., Any]], Method]:
    def wrap(function: Callable[..., Any]) -> Method:
        family = function.__module__.split(".")[-2] if "." in function.__module__ else ""
        return Method(
            kind, function.__name__, name, family, paper, version, function, needs or (lambda model: None), cost
        )

    return wrap


def lens(
    name: str, paper: Paper, version: int = 1, needs: Any = None, cost: Any = None
) -> Callable[[Callable[..., Any]], Method]:
    """Make `function(model, sample, *, ...) -> Result` a lens.

    Args:
        name: as the paper prints it.
        version: raised when the numbers change, so that old links and stored results are not confused with new ones.
        needs: `needs(model)` gives the reason why it can't serve a model, or None.
        cost: `cost(model, **settings)` gives its forwards and backwards, for the estimate of long work.
    """
    return _decorate("lens", name, paper, version, needs, cost)


def intervention(
    name: str, paper: Paper, version: int = 1, needs: Any = None
) -> Callable[[Callable[..., Any]], Method]:
    """Make `function(model, sample, *, ...) -> Block | None` an intervention. None: at its identity setting."""
    return _decorate("intervention", name, paper, version, needs, None)


def fit(
    name: str, paper: Paper, version: int = 1, needs: Any = None, cost: Any = None
) -> Callable[[Callable[..., Any]], Method]:
    """Make `function(model, data, *, ...) -> artefact` a fit."""
    return _decorate("fit", name, paper, version, needs, cost)
