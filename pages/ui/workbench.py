"""The bench of Heatmaps and Pixels: hero maps, the model's guesses, the other methods, and the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import streamlit as st

from interp import Unsuitable, evidence
from interp.experiment import Call, Experiment
from interp.figures import FINE, scale_of
from interp.methods import METHODS
from interp.model import VisionModel
from interp.queue import Full
from interp.results import Heatmap, Table
from interp.samples import Image, Target, gallery
from pages.ui import components, jobs, share, show
from pages.ui.bar import add, choose_lens
from pages.ui.bench import again, bench, change, embedded, remember, reshow, restyle
from pages.ui.controls import site_name
from pages.ui.inputs import uploader

NAMES = {"blue-vermilion": "blue-vermilion", "viridis": "viridis", "cividis": "cividis", "grey": "grey"}


def maps(model: VisionModel, below: Callable[[Table, str], None] = lambda table, label: None) -> None:
    """The whole bench under the experiment bar.

    Args:
        below: shows what a page has of its own under the large map, told the guesses and the class explained.
    """
    experiment = bench().experiment
    try:
        table = jobs.run(
            Experiment(experiment.model, experiment.sample, Call("class_probabilities"), experiment.interventions)
        )
        plain = (
            jobs.run(Experiment(experiment.model, experiment.sample, Call("class_probabilities")))
            if experiment.interventions
            else None
        )
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    assert isinstance(table, Table)
    first = _label(model, bench().lens, table)
    changed = bool(experiment.interventions)
    if embedded():
        _heroes(experiment, first, changed)
        return
    wide = changed or bool(bench().second)
    if wide:
        _heroes(experiment, first, changed)
        left, right = st.columns([5, 7], gap="medium")
        with left:
            _guesses(table, plain, first)
    else:
        left, right = st.columns([5, 7], gap="medium")
        with left:
            _heroes(experiment, first, changed)
            _guesses(table, plain, first)
    with left:
        below(table, first)
        uploader("page-upload", "Drop in a photo of yours")
    with right:
        _grid(model, experiment)
        _ladder(model, experiment)
        _looks()


def _label(model: VisionModel, call: Call, table: Table) -> str:
    """The name of the class that the lens explains."""
    target = call.settings.get("target", Target())
    if target.name is None:
        return table.rows[int(table.values[:, 0].argmax())]
    try:
        return model.labels[model.class_index(target)]
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return table.rows[int(table.values[:, 0].argmax())]


# --------------------------------------------------------------------------------------------------------- hero maps


def _heroes(experiment: Experiment, first: str, changed: bool) -> None:
    """For each class: the map, or before | after | difference."""
    classes = [first] + ([bench().second] if bench().second and bench().second != first else [])
    pairs = [_with_target(experiment, name) for name in classes]
    if "target" not in experiment.lens.settings:
        pairs = [experiment]
    waiting = False
    found: list[list[Heatmap | None]] = []
    for each in pairs:
        row: list[Heatmap | None] = []
        for version in [each.before(), each] if changed else [each]:
            result = _result(version)
            waiting |= isinstance(result, jobs.Job)
            row.append(result if isinstance(result, Heatmap) else None)
        found.append(row)
    if waiting:
        quick = "grad_cam" if METHODS[experiment.lens.method].family == "cam" else "deeplift"
        show.waiting(
            [version for each in pairs for version in ([each.before(), each] if changed else [each])],
            lambda: choose_lens(quick),
        )
    only = changed and bench().view.only
    # without a change, two classes stand side by side; with one, each class has its own before | after | difference
    places = st.columns(len(pairs)) if not changed and len(pairs) > 1 else [st.container() for _ in pairs]
    for index, (place, each, row) in enumerate(zip(places, pairs, found, strict=True)):
        with place:
            _row(index, each, row, changed, only)
    shown = found[0][-1]
    if shown is not None:
        remember(pairs[0])
        show.strip(pairs[0], shown)
        if shown.note:
            st.info(show.plain(shown.note), icon=":material/info:")
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            if changed:
                show.difference_only()
            with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
                share.explain(METHODS[experiment.lens.method])
            with st.popover("Download", icon=":material/download:", type="tertiary"):
                picture = show.picture_of(pairs[0])
                share.downloads(
                    pairs[0], shown, picture, bench().look, scale_of(*(each for each in found[0] if each)), "hero"
                )


def _result(experiment: Experiment) -> Any:
    """The heatmap; or the job that makes it; or None where it can't be done, which is said."""
    try:
        return jobs.run(experiment) if jobs.estimate(experiment) <= jobs.QUICK else jobs.later(experiment)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None


def _row(index: int, experiment: Experiment, row: list[Heatmap | None], changed: bool, only: bool) -> None:
    look, name = bench().look, METHODS[experiment.lens.method].name
    row = [each and show.view(each) for each in row]
    scale = scale_of(*(each for each in row if each is not None))
    versions = [("Before", experiment.before()), ("After", experiment)] if changed else [("", experiment)]
    panels: list[tuple[str, Experiment, Heatmap | None]] = [
        (text, version, result) for (text, version), result in zip(versions, row, strict=True)
    ]
    gap = evidence.difference(row[0], row[1]) if changed and row[0] is not None and row[-1] is not None else None
    if only and gap is not None:
        panels = []
    columns = st.columns(len(panels) + (gap is not None))
    for column, (text, version, result) in zip(columns, panels, strict=False):
        with column:
            picture = show.picture_of(version)
            photo_key = version.sample.sha256 if text != "After" else version.digest  # type: ignore[union-attr]
            if result is None:
                show.bare(f"hero:{index}:{text}", picture, photo_key, f"{text} · {name}".strip(" ·"), "being made")
            else:
                title = " · ".join(part for part in (text, name, result.target) if part)
                show.hero(
                    f"hero:{index}:{text}",
                    result,
                    picture,
                    photo_key,
                    look,
                    scale,
                    title,
                    show.share_text(result),
                    _drawn,
                )
    if gap is not None:
        with columns[-1]:
            signed = dataclasses.replace(look, signed=True)
            show.hero(
                f"hero:{index}:difference",
                gap,
                show.picture_of(experiment),
                experiment.digest,
                signed,
                scale,
                f"Difference · {gap.target}",
                "after minus before",
            )


def _with_target(experiment: Experiment, name: str) -> Experiment:
    if "target" not in experiment.lens.settings:
        return experiment
    if experiment.lens.settings["target"].name is None and name != bench().second:
        return experiment
    return dataclasses.replace(experiment, lens=experiment.lens.but(target=name))


def _drawn(value: dict[str, Any]) -> None:
    """A box was drawn on the photo, and something is to be done with it."""
    box = tuple(float(each) for each in value["region"])
    if value["action"] == "measure":
        reshow(region=box)
    else:
        reshow(region=())
        add("hide_region", box=box, invert=value["action"] == "keep")


# --------------------------------------------------------------------------------------------- guesses, methods, layers


def _guesses(table: Table, plain: Table | None, first: str) -> None:
    order = (-table.values[:, 0]).argsort()[:6].tolist()
    order += [
        table.rows.index(name)
        for name in (first, bench().second)
        if name in table.rows and table.rows.index(name) not in order
    ]
    items = [
        {
            "label": table.rows[i],
            "p": float(table.values[i, 0]),
            "before": None if plain is None else float(plain.values[i, 0]),
            "first": table.rows[i] == first,
            "second": table.rows[i] == bench().second,
        }
        for i in order
    ]

    def picked(value: dict[str, Any]) -> None:
        if value["beside"] or "target" not in bench().lens.settings:
            change(second="" if value["label"] == bench().second else value["label"])
        else:
            change(lens=bench().lens.but(target=value["label"]))

    components.guesses(
        "guesses", items, picked, "Click a class to explain it; Shift-click (or key 2) to see two side by side."
    )
    rest = [name for name in table.rows if name != first]
    st.session_state["second-class"] = bench().second or None
    st.selectbox(
        "Beside it",
        [None, *rest],
        key="second-class",
        format_func=lambda name: "no second class" if name is None else name,
        on_change=lambda: change(second=st.session_state["second-class"] or ""),
    )


def _grid(model: VisionModel, experiment: Experiment) -> None:
    """The other methods on the same image and class; slow ones only when asked for."""
    family = [
        m
        for m in METHODS.values()
        if m.kind == "lens" and m.family == METHODS[experiment.lens.method].family and not m.refuses(model)
    ]
    have = experiment.lens.settings
    experiments = {}
    for method in family:
        keep = {
            control.name: have[control.name]
            for control in method.controls
            if control.name in ("target", "site") and control.name in have
        }
        experiments[method.key] = (
            experiment
            if method.key == experiment.lens.method
            else dataclasses.replace(experiment, lens=Call(method.key, **keep))
        )
    slow = {
        key: each for key, each in experiments.items() if jobs.known(each) is None and jobs.estimate(each) > jobs.QUICK
    }
    asked = st.session_state.get("slow-methods") == experiment.before().sample
    st.markdown("##### The same through other methods")

    def start() -> None:
        st.session_state["slow-methods"] = experiment.before().sample

    def picked(key: str) -> None:
        choose_lens(key)
        st.session_state["picked"] = True

    @st.fragment(run_every=0.7 if slow and asked else None)
    def grid() -> None:
        if st.session_state.pop("picked", False):
            again()  # a click inside a fragment runs the fragment alone
        picture, items, running = show.picture_of(experiment), [], 0
        for key, each in experiments.items():
            item: dict[str, Any] = {
                "key": key,
                "title": METHODS[key].name,
                "selected": key == experiment.lens.method,
                "help": METHODS[key].doc.summary,
            }
            state: Any = None
            try:
                if key in slow and not asked and key != experiment.lens.method:
                    state = jobs.known(each)
                    seconds = jobs.estimate(each)
                    item["wait"], item["note"] = f"about {seconds:.0f} s" if seconds >= 1 else "about 1 s", "slow"
                else:
                    state = jobs.later(each) if key in slow else jobs.run(each)
            except Full as problem:  # asked for again while the others run
                own = problem.reason == "share"
                item["wait"] = "after those before it" if own else str(problem).partition(";")[0]
            except Unsuitable as problem:
                item["wait"] = str(problem)[:90]
            if isinstance(state, Heatmap):
                item["image"] = show.card_picture(
                    show.view(state), picture, bench().look, f"{jobs.key_of(each)}{bench().look}"
                )
                item["alt"] = f"{METHODS[key].name}: {state.finding}"
                item["note"] = (
                    (f"residual {abs(state.residual.value):.1g}" if state.residual and state.values.size > FINE else "")
                    or show.share_text(state)
                    or ("nowhere positive" if state.values.max() <= 0 else "")
                )
            elif isinstance(state, jobs.Job):
                item["wait"] = state.error or (
                    show.place_of(state)
                    if state.progress is None
                    else f"{state.progress.left:.0f} s left"
                    if state.progress.left is not None
                    else "starting"
                )
                item["progress"] = 0 if state.progress is None else state.progress.done / max(state.progress.total, 1)
                running += not state.error
            items.append(item)
        components.cards("methods", items, picked, "Methods", least=118, shape=picture.width / picture.height)
        if slow and asked and not running:
            again()

    grid()
    if slow and not asked:
        total = sum(jobs.estimate(each) for each in slow.values())
        st.button(
            f"Run the slow ones too (about {total:.0f} s)",
            key="run-slow",
            icon=":material/play_arrow:",
            on_click=start,
            help="They run in the background, and stop when you move on.",
        )
    elif slow:
        st.button(
            "Stop",
            key="stop-slow",
            icon=":material/stop:",
            on_click=lambda: (st.session_state.pop("slow-methods", None), [jobs.stop(each) for each in slow.values()]),
        )


def _ladder(model: VisionModel, experiment: Experiment) -> None:
    """The same map at every layer, from shallow to deep; the chosen one is marked."""
    if "site" not in experiment.lens.settings:
        return
    sites = model.spatial_sites()
    call = experiment.lens
    if jobs.estimate(experiment) * len(sites) > 3 * jobs.QUICK or call.method == "cam":
        call = Call("grad_cam", target=experiment.lens.settings.get("target"))
    now = experiment.lens.settings["site"] or model.last_spatial
    picture, items = show.picture_of(experiment), []
    for site in sites:
        each = dataclasses.replace(experiment, lens=call.but(site=None if site == model.last_spatial else site))
        item: dict[str, Any] = {"key": str(site), "title": site_name(model, site), "selected": site == now}
        try:
            result = jobs.run(each)
            assert isinstance(result, Heatmap)
            item |= {
                "image": show.card_picture(result, picture, bench().look, f"{jobs.key_of(each)}{bench().look}", 120),
                "alt": result.finding,
                "note": f"{result.values.shape[0]} x {result.values.shape[1]}",
            }
        except Unsuitable as problem:
            item["wait"] = str(problem)[:60]
        items.append(item)

    def chosen(site: str) -> None:
        change(lens=bench().lens.but(site=None if site == str(model.last_spatial) else site))

    st.markdown(f"##### Through the layers ({METHODS[call.method].name}), input to output")
    components.cards(
        "ladder",
        items,
        chosen,
        f"Layers, {METHODS[call.method].name}",
        least=76,
        shape=picture.width / picture.height,
        row=True,
    )


def _looks() -> None:
    """How the maps are drawn."""
    look = bench().look
    with st.expander("How maps are drawn", icon=":material/palette:"):
        for key, value in (
            ("signed", look.signed),
            ("opacity", look.opacity),
            ("threshold", look.threshold),
            ("colours", look.colours),
            ("view", look.view),
        ):
            st.session_state[f"look:{key}"] = value
        st.toggle(
            "Signed: evidence against the class too",
            key="look:signed",
            on_change=lambda: restyle(signed=st.session_state["look:signed"]),
        )
        st.slider(
            "Opacity",
            0.0,
            1.0,
            step=0.05,
            key="look:opacity",
            on_change=lambda: restyle(opacity=st.session_state["look:opacity"]),
        )
        st.slider(
            "Show from this share of the scale",
            0.0,
            0.95,
            step=0.05,
            key="look:threshold",
            on_change=lambda: restyle(threshold=st.session_state["look:threshold"]),
        )
        st.segmented_control(
            "Colours",
            list(NAMES),
            key="look:colours",
            required=True,
            on_change=lambda: restyle(colours=st.session_state["look:colours"]),
            help="All of them can be told apart by the colour-blind.",
        )
        if METHODS[bench().lens.method].family == "attribution":
            st.segmented_control(
                "A map of pixels as",
                ["pixels", "patches", "superpixels"],
                key="look:view",
                required=True,
                on_change=lambda: restyle(view=st.session_state["look:view"]),
                help="Patches are sums over a 16 x 16 grid; superpixels are means over pieces of one colour.",
            )
        if bench().view.region:
            st.button(
                "Forget the measured box",
                icon=":material/close:",
                on_click=lambda: reshow(region=()),
            )


def notice() -> None:
    """What to notice in an example of the gallery, while nothing has been changed about it."""
    sample = bench().sample
    if (
        isinstance(sample, Image)
        and not bench().chips
        and not embedded()
        and (text := gallery().get(sample.reference, {}).get("notice"))
    ):
        st.write(text)
