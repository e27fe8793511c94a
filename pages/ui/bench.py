"""The bench: the one experiment a visitor is working on. It is read from the URL, written to it, and remembered."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import streamlit as st

from interp import Unsuitable, sae, snapshot, zoo
from interp.directions import Direction
from interp.experiment import Call, Experiment, Sample
from interp.figures import Look
from interp.method import Method
from interp.methods import METHODS
from interp.model import LanguageModel, Model, VisionModel
from interp.results import FeaturePage, Result, TokenGrid
from interp.samples import Image, Prompt, PromptPair, Target
from interp.sites import Node, Site
from pages.ui import components, jobs, labels

M = TypeVar("M", bound=Model)
PAGES = {
    "cam": "pages/heatmaps.py", "attribution": "pages/pixels.py", "reading": "pages/prompts.py",
    "circuits": "pages/circuits.py", "features": "pages/features.py", "transport": "pages/transport.py",
    "steering": "pages/steering.py",
}  # fmt: skip
"""Where the lenses of a family are looked through."""


def page_of(method: Method) -> str | None:
    """Where a method is used."""
    if method.kind == "intervention":
        return None
    return PAGES.get(method.family) if method.key != "class_probabilities" else PAGES["cam"]


@dataclass(frozen=True)
class Chip:
    """An intervention on the bar; switched off, it keeps its settings."""

    call: Call
    on: bool = True


@dataclass(frozen=True)
class View:
    """How a circuit is shown: the share kept, the chosen node, pinned ones, groups, the weighting it is compared with.

    groups: (name, nodes) of each. side: "" as it is now, "before" the changes, their "difference", or of the "prompts".
    For features: the one that is open where the lens is no feature's page, `of` the SAE that is not the lens's own;
    shown: what lies where nothing is searched, a map coloured by "activation" or "density", or a "table".
    For transport: the chosen pair of streams, "embed>2", where the lens names none, and what colours the staircase,
    and the rank of the maps, 0 for all.
    For steering: which dial the curves are of, and which of the texts that are drawn by chance is shown, 0 for the
    likeliest.
    sheet: which of a lens's matrices is shown; only: the difference alone, without what it is of; region: the box on a
    photo in which maps are measured.
    """

    keep: float = 0.8
    node: str = ""
    pins: tuple[str, ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    beside: str = ""
    side: str = ""
    feature: int | None = None
    of: str = ""
    shown: str = "activation"
    between: str = ""
    colour: str = "transported"
    rank: int = 0
    dial: int = 0
    draw: int = 0
    sheet: int = 0
    only: bool = False
    region: tuple[float, ...] = ()


SHOWN = ("activation", "density", "table")
BETWEEN = re.compile(r"(embed|[0-9]{1,4})>[0-9]{1,4}")
COLOURED = ("efficiency", "transported", "ceiling", "size", "this prompt")
"""What the staircase of layer pairs can be coloured by."""


@dataclass(frozen=True)
class Bench:
    """What lies on the bench: the experiment with switched-off changes, a second class, how maps are drawn.

    For prompts: second is another prompt; position and layer are the token and layer that everything answers for.
    """

    model: str
    sample: Sample
    lens: Call
    chips: tuple[Chip, ...] = ()
    second: str = ""
    look: Look = Look()  # noqa: RUF009  (frozen)
    position: int | None = None
    layer: int | None = None
    view: View = View()

    @property
    def experiment(self) -> Experiment:
        return Experiment(self.model, self.sample, self.lens, tuple(chip.call for chip in self.chips if chip.on))

    @staticmethod
    def of(experiment: Experiment, **more: Any) -> Bench:
        return Bench(
            experiment.model,
            experiment.sample,
            experiment.lens,
            tuple(Chip(call) for call in experiment.interventions),
            **more,
        )


def first() -> Bench:
    """What a newcomer sees."""
    experiment = Experiment("photos", Image.gallery("cat_motorcycle"), Call("grad_cam_plus_plus", target="cat"))
    return Bench.of(experiment, second="motorbike")


def first_prompt() -> Bench:
    """What a newcomer to prompts sees."""
    prompt = Prompt("When Mary and John went to the store, John gave a drink to")
    return Bench.of(Experiment("stories", prompt, Call("logit_lens", target=" Mary")))


def first_pair() -> Bench:
    """What a newcomer to circuits sees."""
    pair = PromptPair(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to", " Mary", " John",
    )  # fmt: skip
    view = View(keep=0.9, node="z.1.1@14")
    return Bench.of(Experiment("stories", pair, Call("edge_attribution_patching")), view=view)


CAPITALS = 705
"""The feature of stories/resid_post.2 that promotes capitals where one is asked for."""


def first_feature() -> Bench:
    """What a newcomer to features sees."""
    lens = Call("feature_page", sae="stories/resid_post.2", feature=CAPITALS)
    return Bench.of(Experiment("stories", Prompt("The capital of France is"), lens))


def first_transport() -> Bench:
    """What a newcomer to transport sees."""
    lens = Call("transported_features", sae="stories/resid_post.2", source=Site("resid_post", 0))
    return Bench.of(Experiment("stories", Prompt("The capital of France is"), lens), view=View(feature=CAPITALS))


def first_steering() -> Bench:
    """What a newcomer to steering sees."""
    push = Call("steer", direction="stories/sentiment", layer=2, strength=-0.5)
    return Bench.of(Experiment("stories", Prompt("Review: The film was"), Call("side_effects"), (push,)))


FIRST = {
    Image: first, Prompt: first_prompt, PromptPair: first_pair, FeaturePage: first_feature, TokenGrid: first_transport,
    Direction: first_steering,
}  # fmt: skip


OWN: dict[str, type] = {
    "circuits": PromptPair, "features": FeaturePage, "transport": TokenGrid, "steering": Direction,
}  # fmt: skip
"""The kind of bench that the lenses of a family lie on, where it is one of their own."""


def kind_of(on: Bench) -> type:
    """Which kind of bench it is: images, prompts, circuits (with a prompt alone, too), or another page's own."""
    own = OWN.get(METHODS[on.lens.method].family)
    return own or (Image if isinstance(on.sample, Image) else Prompt)


def turn_to_kind(kind: type) -> None:
    """Take up the bench of a kind as it was left; no step for undo."""
    now = bench()
    if kind_of(now) is kind:
        return
    benches = st.session_state.setdefault("benches", {})
    benches[kind_of(now)] = now
    other: Bench = benches.get(kind) or FIRST[kind]()
    if kind is Prompt and isinstance(now.sample, PromptPair) and kind not in benches:
        other = dataclasses.replace(other, sample=Prompt(now.sample.clean), model=now.model, chips=now.chips)
    if kind in (FeaturePage, TokenGrid, Direction):
        other = _followed(now, other)
    st.session_state["bench"] = other
    st.session_state["undo"] = []


def _followed(now: Bench, other: Bench) -> Bench:
    """The bench of a page of its own with the model, input and changes that one comes with, if one touched them."""
    brought = (now.model, now.sample, now.chips)
    start = FIRST[kind_of(now)]()
    if brought in (st.session_state.get("brought"), (start.model, start.sample, start.chips)):
        return other
    st.session_state["brought"] = brought
    try:
        served = kind_of(other) is FeaturePage or isinstance(now.sample, Prompt | PromptPair)
        if not served or not zoo.here(now.model):
            return other
        if kind_of(other) is not Direction and not sae.available(zoo.load(now.model)):
            return other
    except Unsuitable:
        return other
    return _with(other, now)


def _with(other: Bench, now: Bench) -> Bench:
    """A bench with the model, input and changes of another; the lens asks for nothing that was another model's."""
    sample = Prompt(now.sample.clean) if isinstance(now.sample, PromptPair) else now.sample
    lens = other.lens if other.model == now.model else Call(other.lens.method)
    # a chosen node has a place in the prompt; an open feature has none
    apart = kind_of(other) in (FeaturePage, TokenGrid, Direction)
    same = other.model == now.model and (apart or other.sample == sample)
    if "positions" in lens.settings:  # of another prompt
        lens = lens.but(positions=())
    view = other.view if same else View()
    return dataclasses.replace(
        other, model=now.model, sample=sample, chips=now.chips, lens=lens, view=view, second="", position=None
    )


def take_along(kind: type, lens: str = "") -> None:
    """Go to the bench of a kind with the model, input and changes of this one."""
    now = bench()
    turn_to_kind(kind)
    other = dataclasses.replace(bench(), lens=Call(lens)) if lens else bench()
    change(**{each.name: getattr(_with(other, now), each.name) for each in dataclasses.fields(Bench)})


def load(kind: type[M]) -> M | None:
    """The model on the bench, or None and a sentence why it can't be had, or can't be used here."""
    from pages.ui import (
        downloads,
        show,  # imports this module
    )

    try:
        if downloads.needed(bench().model):
            return None
        model = zoo.load(bench().model)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None
    if not isinstance(model, kind):
        reads, wanted = ("text", "an image") if kind is VisionModel else ("images", "a language")
        st.warning(f"{show.plain(model.name)} reads {reads}; choose {wanted} model in the bar.", icon=":material/info:")
        return None
    return model


def bench() -> Bench:
    return st.session_state["bench"]


def change(**fields: Any) -> None:
    """Put something else on the bench; the old state can be come back to."""
    st.session_state.pop("problem", None)
    new = dataclasses.replace(bench(), **fields)
    if new != bench():
        st.session_state["undo"] = [*st.session_state.get("undo", []), bench()][-50:]
        st.session_state["bench"] = new


def restyle(**fields: Any) -> None:
    """Draw maps differently; no step of its own for undo."""
    st.session_state["bench"] = dataclasses.replace(bench(), look=dataclasses.replace(bench().look, **fields))


def turn_to(family: str, key: str, **look: Any) -> None:
    """Look through a lens of that family, with the class chosen before; no step of its own for undo."""
    if METHODS[bench().lens.method].family != family:
        target = bench().lens.settings.get("target")
        lens = Call(key, **({} if target is None else {"target": target}))
        st.session_state["bench"] = dataclasses.replace(
            bench(), lens=lens, look=dataclasses.replace(bench().look, **look)
        )


def reshow(**fields: Any) -> None:
    """Show the circuit differently; no step of its own for undo."""
    st.session_state["bench"] = dataclasses.replace(bench(), view=dataclasses.replace(bench().view, **fields))


def undo() -> None:
    if past := st.session_state.get("undo"):
        st.session_state["bench"] = past[-1]
        st.session_state["undo"] = past[:-1]


def open_experiment(experiment: Experiment) -> None:
    """Lay an experiment on the bench of its kind."""
    turn_to_kind(kind_of(Bench.of(experiment)))
    change(
        model=experiment.model,
        sample=experiment.sample,
        lens=experiment.lens,
        chips=tuple(Chip(call) for call in experiment.interventions),
        second="",
        position=None,
        layer=None,
        view=View(),
    )


def use_model(name: str) -> None:
    """Take another model, and what of the present settings it can't serve back to the defaults.

    Raises:
        Unsuitable: it can't be loaded.
    """
    model = zoo.load(name)
    if isinstance(model, LanguageModel) == isinstance(bench().sample, Image):
        kind = Prompt if isinstance(model, LanguageModel) else Image
        if kind_of(bench()) is FeaturePage:
            sample = first_feature().sample if kind is Prompt else first().sample
            change(sample=sample, lens=Call("feature_page"), chips=(), position=None, view=View())
        else:
            turn_to_kind(kind)
    lens = _served(bench().lens, model)
    chips = tuple(Chip(_served(chip.call, model), chip.on) for chip in bench().chips)
    view = dataclasses.replace(bench().view, feature=None, of="", between="")
    change(model=zoo.shared_name(name), lens=lens, chips=chips, second="", view=view)


def _served(call: Call, model: Any) -> Call:
    settings = call.settings
    for name in ("site", "source"):
        if isinstance(site := settings.get(name), Site) and model.refuses(site):
            settings[name] = None
    target = settings.get("target")
    if isinstance(target, Target) and target.name is not None:
        try:
            model.class_index(target) if hasattr(model, "class_index") else model.token_index(target)
        except Unsuitable:
            settings["target"] = Target()
    for name in ("channels", "heads", "neurons", "features"):
        if name in settings:
            settings[name] = ()
    names = ("sae", "index", "operators", "direction", "condition", "other")
    for name, plain in (*((each, "") for each in names), ("feature", 0)):
        if name in settings:
            settings[name] = plain
    for name in ("layer", "count"):
        if isinstance(settings.get(name), int):
            settings[name] = min(settings[name], model.layers - 1)
    return Call(call.method, **settings)


# ------------------------------------------------------------------------------------------------------------ the URL


def read_url() -> None:
    """Fill the bench from a URL that this page did not write itself; else with the first sight."""
    arrived = {key: st.query_params.get_all(key) for key in st.query_params}
    if not st.session_state.pop("again", False) and "model" in arrived and arrived != st.session_state.get("url"):
        try:
            experiment = Experiment.from_url(
                "&".join(_pair(key, each) for key, values in arrived.items() for each in values)
            )
            if zoo.here(experiment.model) or zoo.look(experiment.model).here:  # else it is asked for first
                experiment.check()
            st.session_state["bench"] = viewed(experiment, arrived)
            st.session_state["opened"] = arrived.get("check", [""])[0]
            if "labels" in arrived:
                labels.take(labels.unpack(arrived["labels"][-1]))
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)
    if "bench" not in st.session_state:
        st.session_state["bench"] = first()


def again() -> NoReturn:
    """From a fragment, run the whole page with the bench as it is: a fragment that was asked for while the page still
    ran knows only the URL of before, which would be taken for one that just arrived."""
    st.session_state["again"] = True
    st.rerun()


def open_snapshot(found: snapshot.Snapshot) -> str:
    """Lay what a short link keeps on the bench, and say on which page it lies; undo brings the visitor's own back.

    Raises:
        Unsuitable: its model is not here, or something in it can't be read.
    """
    experiment = found.experiment
    if "bench" in found.view:  # the numbers are of what the page asks for, not of the bench itself
        lens, *changes = map(Call.parse, found.view["bench"])
        kept = experiment.interventions  # which name what was left unnamed where the link was made
        same = [each.method for each in kept] == [each.method for each in changes]
        experiment = dataclasses.replace(experiment, lens=lens, interventions=kept if same else tuple(changes))
    experiment.check()
    page = page_of(METHODS[experiment.lens.method])
    if page is None:
        raise Unsuitable("This link is about nothing that has a page here.")
    new, own = viewed(experiment, found.view), st.session_state.get("bench")
    if own is not None:
        st.session_state.setdefault("benches", {})[kind_of(own)] = own
    st.session_state["undo"] = [own] if own is not None and kind_of(own) is kind_of(new) else []
    st.session_state["bench"], st.session_state["opened"] = new, found
    st.session_state.pop("compared-with-link", None)
    st.session_state.pop("problem", None)
    if "labels" in found.view:
        labels.take(labels.unpack(found.view["labels"][-1]))
    return page


def kept_view(of: Experiment) -> dict[str, list[str]]:
    """What a short link keeps beside an experiment that the page shows: how, and the bench where that is another."""
    now = bench().experiment
    calls = [now.lens, *now.interventions]
    return query() | ({} if of == now else {"bench": [str(each) for each in calls]})


def viewed(experiment: Experiment, arrived: Mapping[str, list[str]]) -> Bench:
    """An experiment on the bench, shown as the parameters of a link say; what can't be read is left out."""

    def get(name: str) -> str:
        return arrived[name][-1] if arrived.get(name) else ""

    look = Look(
        signed=get("signed") == "1",
        opacity=_number(get("opacity"), Look.opacity),
        threshold=_number(get("threshold"), 0.0),
        colours=_among(get("colours"), ("viridis", "cividis", "blue-vermilion", "grey"), "viridis"),  # type: ignore[arg-type]
        view=_among(get("view"), ("pixels", "patches", "superpixels"), "pixels"),  # type: ignore[arg-type]
    )
    on = Bench.of(
        experiment, look=look, second=get("second"), position=_whole(get("position")), layer=_whole(get("layer")),
        view=_view(arrived, get),
    )  # fmt: skip
    chips = list(on.chips)
    for each in arrived.get("off", [])[:50]:
        at, _, text = each.partition(":")
        with contextlib.suppress(Unsuitable):
            call = Call.parse(text)
            if METHODS[call.method].kind == "intervention" and _whole(at) is not None:
                chips.insert(int(at), Chip(call, on=False))
    return dataclasses.replace(on, chips=tuple(chips))


def _view(arrived: Mapping[str, list[str]], get: Callable[[str], str]) -> View:
    """How a circuit, features, transport and steering are shown."""

    def nodes(text: str) -> tuple[str, ...]:
        found = []
        for part in text.split(",")[:200]:
            with contextlib.suppress(Unsuitable):
                found.append(str(Node.parse(part)))
        return tuple(found)

    named = (each.partition(":") for each in arrived.get("group", [])[:20])
    groups = tuple((name[:40], nodes(rest)) for name, _, rest in named)
    lens, of, between = METHODS.get(get("beside")), get("of"), get("between")
    return View(
        _number(get("keep"), View.keep), "".join(nodes(get("node"))[:1]),
        nodes(",".join(arrived.get("pin", []))), tuple(each for each in groups if each[1]),
        lens.key if lens and lens.family == "circuits" else "",
        _among(get("side"), ("before", "difference", "prompts"), ""), _whole(get("feature")),
        of if sae.NAME.fullmatch(of) and ".." not in of else "", _among(get("shown"), SHOWN, View.shown),
        between if BETWEEN.fullmatch(between) else "", _among(get("colour"), COLOURED, View.colour),
        _whole(get("rank")) or 0, _whole(get("dial")) or 0, _whole(get("draw")) or 0, _whole(get("sheet")) or 0,
        get("only") == "1", _region(get("region")),
    )  # fmt: skip


def _region(text: str) -> tuple[float, ...]:
    """A box on a photo: left, top, right, bottom as shares of it."""
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"[01]|0\.[0-9]{1,4}|1\.0", each) for each in parts):
        return ()
    left, top, right, bottom = map(float, parts)
    return (left, top, right, bottom) if left < right and top < bottom else ()


def _among(text: str, known: tuple[str, ...], default: str) -> str:
    return text if text in known else default


def _pair(key: str, value: str) -> str:
    return f"{quote(key)}={quote(value)}"


def _number(text: str | None, default: float) -> float:
    try:
        return min(max(0.0, float(text)), 1.0) if text else default  # in this order NaN becomes 0
    except ValueError:
        return default


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,6}", text) else None


def query() -> dict[str, list[str]]:
    """The parameters of the link to what is on the bench."""
    now, plain = bench(), Look()
    found = now.experiment.to_query()
    if now.second:
        found["second"] = [now.second]
    for name in ("position", "layer"):
        if (place := getattr(now, name)) is not None:
            found[name] = [str(place)]
    view = now.view
    if view.keep != View.keep:
        found["keep"] = [f"{view.keep:g}"]
    for name in ("node", "beside", "side", "of", "shown", "between", "colour"):
        if getattr(view, name) != getattr(View, name):
            found[name] = [getattr(view, name)]
    for at, chip in enumerate(now.chips):
        if not chip.on:
            found.setdefault("off", []).append(f"{at}:{chip.call}")
    if view.only:
        found["only"] = ["1"]
    if view.region:
        found["region"] = [",".join(f"{each:g}" for each in view.region)]
    for name in ("rank", "dial", "draw", "sheet"):
        if getattr(view, name):
            found[name] = [str(getattr(view, name))]
    if view.feature is not None:
        found["feature"] = [str(view.feature)]
    if kind_of(now) is FeaturePage and (packed := labels.packed()):
        found["labels"] = [packed]
    if view.pins:
        found["pin"] = [",".join(view.pins)]
    if view.groups:
        found["group"] = [f"{name}:{','.join(nodes)}" for name, nodes in view.groups]
    for name in ("signed", "opacity", "threshold", "colours", "view"):
        value = getattr(now.look, name)
        if value != getattr(plain, name):
            found[name] = [
                "1" if value is True else "0" if value is False else f"{value:g}" if isinstance(value, float) else value
            ]
    return found


def write_url() -> None:
    """Let the URL say what is on the bench."""
    found = query()
    st.session_state["url"] = found
    now = {key: st.query_params.get_all(key) for key in st.query_params}
    if now != found:
        st.query_params.from_dict(found)


# -------------------------------------------------------------------------------------------------------- remembering


def remember(experiment: Experiment) -> None:
    """Add to this visit's history, newest last, each once."""
    past: list[Experiment] = st.session_state.setdefault("history", [])
    if experiment in past:
        past.remove(experiment)
    past.append(experiment)
    del past[:-60]


def headline(experiment: Experiment, result: Result) -> None:
    """Note a result that the page shows. What the page is about is the first one through the bench's own lens, or else
    the first: this is kept with a short link, and checked where a link is opened."""
    if jobs.known(experiment) is not result:  # as the difference of two circuits
        return
    on, now = bench(), st.session_state.get("headline")
    if experiment.sample != on.sample:
        return
    if now is None or now[0] != on or (experiment.lens.method == on.lens.method != now[1].lens.method):
        st.session_state["headline"] = (bench(), experiment)
    if st.session_state["headline"][1] == experiment:
        components.shown().about = (experiment, result)


def headlined() -> tuple[Experiment, Result] | None:
    """What the page is about, and its result; None while there is none."""
    on, experiment = st.session_state.get("headline", (None, None))
    result = jobs.known(experiment) if on is not None and on == bench() else None
    return None if result is None else (experiment, result)


def check(experiment: Experiment, result: Result) -> str:
    """What a link carries of a result, so that whoever opens it sees whether the numbers are the same."""
    return f"{experiment.digest[:8]}.{result.fingerprint()}"


def reproduced(experiment: Experiment, result: Result) -> tuple[bool, str] | None:
    """Whether a result is what the opened link was made of, and that in words; None where the link was of no such."""
    opened = st.session_state.get("opened")
    if not opened or jobs.known(experiment) is not result:
        return None
    if isinstance(opened, snapshot.Snapshot):
        compared = st.session_state.setdefault("compared-with-link", {})
        key = jobs.key_of(experiment)
        if opened.experiment.digest == experiment.digest and key not in compared:
            compared[key] = _compared(opened, result)
        return compared.get(key)
    digest, _, fingerprint = opened.partition(".")
    if experiment.digest[:8] != digest:
        return None
    same = result.matches(fingerprint)
    words = "Reproduced: the same numbers as" if same else "Differs: other numbers than"
    return same, f"{words} when the link was made"


def _compared(found: snapshot.Snapshot, result: Result) -> tuple[bool, str] | None:
    """A result beside the numbers that a short link keeps."""
    try:
        stored = snapshot.numbers(found)
    except Unsuitable as problem:
        return False, str(problem)
    if stored is None:
        return None
    if type(result).__name__ == found.kind and result.reproduces(stored):
        return True, "Reproduced: the same numbers as when the link was made"
    words = f"Differs: by up to {100 * result.apart(stored):.2g} % of the scale from when the link was made"
    if zoo.load(found.experiment.model).digest != found.weights:
        words += "; the model has other weights now"
    return False, words


def embedded() -> bool:
    """Whether the page is shown inside a page of someone else's, by ?embed=true."""
    return bool(st.context.is_embedded)


# What has been imported stays: half a million objects that no collection of garbage has to go through again.
gc.collect()
gc.freeze()
