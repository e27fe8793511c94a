"""Drawing heatmaps: photo and overlay for the hero component, thumbnails for the cards, the evidence strip."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
import streamlit as st

from interp import Unsuitable, evidence
from interp.experiment import Call, Experiment
from interp.figures import Look, backdrop, colours_of, data_url, draw, fitted, legend, overlay, viewed
from interp.methods import METHODS
from interp.queue import spoken
from interp.results import FeatureList, FeaturePage, Graph, Heatmap, Result, Table, TokenGrid
from interp.samples import Image
from interp.sites import Node
from kernels.superpixels import superpixels
from pages.ui import components, jobs
from pages.ui.bench import again, bench, headline, reproduced, reshow

SIDE = 640


@st.cache_data(max_entries=64, show_spinner=False)
def photo_url(_picture: PIL.Image.Image, key: str) -> str:
    return data_url(fitted(_picture, SIDE), "JPEG")


@st.cache_data(max_entries=64, show_spinner=False)
def _segments(_sample: Image, sha256: str, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    picture, (left, top, right, bottom) = _sample.picture, box
    whole = picture.width, picture.height
    edges = tuple(round(each * whole[i % 2]) for i, each in enumerate((left, top, right, bottom)))
    part = picture.crop(edges).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    return superpixels(np.asarray(part), 150)


def view(result: Heatmap, sample: Any = None, look: Look | None = None) -> Heatmap:
    """The map as a look has it: of pixels, patches or superpixels; of what is on the bench unless told otherwise."""
    image, look = sample or bench().sample, look or bench().look
    assert isinstance(image, Image)
    return viewed(result, look.view, lambda: _segments(image, image.sha256, result.box, result.size))


@lru_cache(maxsize=12)
def _decoded(image: Image) -> PIL.Image.Image:
    return image.picture


def picture_of(experiment: Experiment) -> PIL.Image.Image:
    """The photo as the interventions leave it, shared: to be looked at, not to be drawn on."""
    assert isinstance(experiment.sample, Image)
    if not experiment.interventions:
        return _decoded(experiment.sample)
    return _changed_picture(experiment, experiment.digest)


@st.cache_data(max_entries=32, show_spinner=False)
def _changed_picture(_experiment: Experiment, key: str) -> PIL.Image.Image:
    with jobs.turn():
        return evidence.picture_after(_experiment)


def hero(
    key: str,
    result: Heatmap,
    photo: PIL.Image.Image,
    photo_key: str,
    look: Look,
    scale: float,
    title: str,
    note: str = "",
    on: Any = None,
) -> None:
    """The photo with one map over it, values on hover, and a box to draw."""
    stops, low, high = legend(scale, look, result.units)
    digest = hashlib.sha256(result.values.tobytes()).hexdigest()
    layer, values = _layer(result, digest, result.values.shape, result.box, photo.size, scale, look)
    components.hero(
        key,
        {
            "photo": _behind(photo, result, photo_key, result.site),
            "overlay": layer,
            "values": values,
            "box": result.box,
            "scale": scale,
            "units": result.units,
            "title": title,
            "note": note,
            "alt": f"{title}. {result.finding}",
            "legend": {"stops": stops, "low": low, "high": high},
            "actions": [["hide", "Hide this region"], ["keep", "Keep only this"], ["measure", "Measure the map in it"]]
            if on
            else [],
            "region": bench().view.region or None,
        },
        on,
    )


@st.cache_data(max_entries=64, show_spinner=False)
def _behind(_photo: PIL.Image.Image, _result: Heatmap, key: str, site: str) -> str:
    return data_url(fitted(backdrop(_photo, _result), SIDE), "JPEG")


@st.cache_data(max_entries=300, show_spinner=False)
def _layer(
    _result: Heatmap, digest: str, shape: tuple[int, ...], box: tuple[float, ...], size: tuple[int, int], scale: float,
    look: Look,
) -> tuple[str, list[list[float]]]:  # fmt: skip
    """A map as a layer over a photo of that size, and its numbers."""
    width, height = (round(each * 320 / max(size)) for each in size)
    layer = PIL.Image.fromarray(overlay(_result.at_original(height, width), scale, look))
    return data_url(layer, "WEBP"), [[float(f"{value:.4g}") for value in row] for row in _coarse(_result.values)]


def _coarse(values: np.ndarray, most: int = 64) -> np.ndarray:
    """Means of cells, at most `most` a side: what a pointer can tell apart."""
    if max(values.shape) <= most:
        return values
    rows, columns = (np.linspace(0, side, min(side, most), endpoint=False).astype(int) for side in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1)
    counts = np.outer(np.diff([*rows, values.shape[0]]), np.diff([*columns, values.shape[1]]))
    return sums / counts


def bare(key: str, photo: PIL.Image.Image, photo_key: str, title: str, note: str) -> None:
    """The photo alone, while its map is being made or can't be."""
    components.hero(
        key,
        {
            "photo": photo_url(photo, photo_key),
            "title": title,
            "note": note,
            "alt": title,
            "box": [0, 0, 1, 1],
            "actions": [],
        },
    )


@st.cache_data(max_entries=2000, show_spinner=False)
def card_picture(_result: Heatmap, _photo: PIL.Image.Image, look: Look, key: str, side: int = 168) -> str:
    """A small overlay, cropped to nothing, on its own scale."""
    return data_url(draw(_result, _photo, look, side=side))


@st.cache_data(max_entries=500, show_spinner=False)
def grid_picture(_result: TokenGrid, key: str) -> str:
    """A small picture of a matrix's first sheet, a square for each cell."""
    values = np.nan_to_num(_result.values[0])
    look = Look(signed=_result.signed, colours="blue-vermilion" if _result.signed else "cividis", opacity=1.0)
    shares = values / (np.abs(values).max() or 1.0)
    picture = PIL.Image.fromarray(colours_of(shares, look))
    return data_url(picture.resize((216, 144), PIL.Image.Resampling.NEAREST))


@st.cache_data(max_entries=500, show_spinner=False)
def feature_picture(_result: FeatureList | FeaturePage, key: str) -> str:
    """A small picture of features: where each of a list fires, or what one does in its contexts; a row for each."""
    if isinstance(_result, FeaturePage):
        rows = _result.grids.reshape(len(_result.grids), -1) if len(_result.grids) else _result.activations
    else:
        rows = _result.grid.reshape(len(_result.features), -1) if len(_result.features) else np.zeros((1, 1))
    rows = np.nan_to_num(np.abs(rows[:12, :48])) if rows.size else np.zeros((1, 1))
    if isinstance(_result, FeatureList) and not rows.any() and len(_result.values):  # silent here: their ranks, as bars
        sizes = np.abs(_result.values[:12])
        rows = (np.arange(24) < 24 * (sizes / max(float(sizes.max()), 1e-12))[:, None]).astype(float)
    shares = rows / np.maximum(rows.max(1, keepdims=True), 1e-12)
    picture = PIL.Image.fromarray(colours_of(shares, Look(colours="cividis", opacity=1.0)))
    return data_url(picture.resize((216, 144), PIL.Image.Resampling.NEAREST))


def feature_words(result: FeatureList | FeaturePage) -> str:
    """The same in words."""
    if isinstance(result, FeaturePage):
        return f"Feature {result.feature}, which promotes {', '.join(visibly(result.promoted[:3])) or 'no tokens'}"
    names = [f"#{number}" for number in result.features[:3].tolist()]
    return f"{len(result.features)} features, first {', '.join(names)}" if names else "No feature"


def visibly(words: Sequence[str]) -> list[str]:
    """Words without the space before them."""
    return [each.strip() or repr(each) for each in words]


@st.cache_data(max_entries=500, show_spinner=False)
def graph_picture(_result: Graph, key: str) -> str:
    """A small picture of a circuit: for each layer and token, the strongest part."""
    found: dict[tuple[int, int], float] = {}
    for name, value in zip(_result.nodes, _result.values, strict=True):
        node = Node.parse(name)
        place = (node.layer or 0, node.position or 0)
        if node.layer is not None and abs(value) >= abs(found.get(place, 0.0)):
            found[place] = float(value)
    values = np.zeros((1 + max((row for row, _ in found), default=0), max(len(_result.tokens), 1)))
    for (row, column), value in found.items():
        values[row, min(column, values.shape[1] - 1)] = value
    look = Look(signed=bool(values.min() < 0), colours="blue-vermilion" if values.min() < 0 else "cividis", opacity=1.0)
    picture = PIL.Image.fromarray(colours_of(values[::-1] / (np.abs(values).max() or 1.0), look))
    return data_url(picture.resize((216, 144), PIL.Image.Resampling.NEAREST))


def share_text(result: Heatmap) -> str:
    """What share of the map lies in the object's mask, or in the box that was drawn."""
    sample = bench().sample
    assert isinstance(sample, Image)
    mask, what = sample.object_mask, "in the object"
    if region := bench().view.region:
        mask, what = evidence.mask_of(region, sample.picture.size), "in the box"
    if mask is None:
        return ""
    share = result.share(mask)
    return "" if share != share else f"{share:.0%} {what} ({mask.mean():.0%} of the area)"


def strip(experiment: Experiment, result: Heatmap) -> None:
    """The evidence strip: residual, cost, share, and the checks, each an experiment of its own."""
    inside = share_text(result)
    st.caption(
        " · ".join([*_measured(experiment, result), *([inside] if inside else []), *_checks(experiment, result)])
    )


def cost(experiment: Experiment, result: Result) -> None:
    """The evidence strip of what is no heatmap."""
    st.caption(" · ".join(_measured(experiment, result)))


def _measured(experiment: Experiment, result: Result) -> list[str]:
    """Residual, cost, and whether the numbers of a link were reproduced."""
    parts = []
    if result.residual:
        # the residual's scale is the logit, so a per cent of it is already worth a look
        colour = (
            "green" if abs(result.residual.value) < 0.01 else "orange" if abs(result.residual.value) < 0.2 else "red"
        )
        parts.append(f":{colour}[**residual {result.residual.value:.2g}**] ({plain(result.residual.meaning)})")
    taken = jobs.seconds(experiment)
    cost = (
        f"{_count(result.forwards, 'forward')}, {_count(result.backwards, 'backward')}"
        if result.forwards or result.backwards
        else "no pass (captured before)"
    )
    parts.append(cost + (f", {taken:.1f} s" if taken and taken > 1 else f", {1000 * taken:.0f} ms" if taken else ""))
    headline(experiment, result)
    again = reproduced(experiment, result)
    if again is not None:
        same, words = again
        parts.append(f":{'green' if same else 'red'}[{plain(words)}]")
    return parts


def difference_only() -> None:
    """Whether the difference is shown without what it is of."""
    st.session_state["only-difference"] = bench().view.only
    st.toggle("Difference only", key="only-difference",
              on_change=lambda: reshow(only=st.session_state["only-difference"]))  # fmt: skip


def stopped(experiment: Experiment | jobs.Fit) -> str:
    """Where it is noted that someone has stopped this work."""
    return f"stopped:{experiment.digest}"


def found(
    experiment: Experiment | jobs.Fit,
    running: list[Any],
    most: float = jobs.QUICK,
    warn: Callable[[Unsuitable], object] | None = None,
) -> Any:
    """A result, or None: what takes over `most` seconds is added to what runs, can be stopped and asked for again."""
    try:
        if jobs.known(experiment) is not None or jobs.estimate(experiment) <= most:
            return jobs.run(experiment)
        if st.session_state.get(stopped(experiment)):
            name = METHODS[experiment.lens.method].name
            st.button(f"{name}: about {jobs.estimate(experiment):.0f} s", key=f"run:{experiment.digest[:12]}",
                      icon=":material/play_arrow:",
                      on_click=lambda: st.session_state.pop(stopped(experiment), None))  # fmt: skip
            return None
        state = jobs.later(experiment)
        if isinstance(state, jobs.Job):
            running.append(experiment)
            return None
        return state
    except Unsuitable as problem:
        if warn is None:
            st.warning(plain(str(problem)), icon=":material/info:")
        else:
            warn(problem)
        return None


def waiting(experiments: list[Experiment], stopped: Callable[[], object]) -> None:
    """A thin bar with the time left and Stop, until the jobs are done; before they begin, their place and Cancel."""
    over = any(_failed(each) for each in experiments)  # nothing will change by itself

    @st.fragment(run_every=None if over else 0.5)
    def bar() -> None:
        try:
            states = [jobs.later(each) if jobs.estimate(each) > jobs.QUICK else None for each in experiments]
        except Unsuitable as problem:  # it was dropped, and there is no place for it now
            st.warning(plain(str(problem)), icon=":material/info:")
            return
        running = [each for each in states if isinstance(each, jobs.Job)]
        if not running:
            again()
        failed = next((each for each in running if each.error), None)
        if failed is not None:
            if not over:
                again()
            st.warning(plain(failed.error), icon=":material/info:")
            if failed.again and st.button("Try again", key="try-again", icon=":material/refresh:"):
                jobs.again(failed.experiment)
                again()
            return
        job = next((each for each in running if each.place is None), None)
        if job is None:
            first = min(running, key=lambda each: each.place.before if each.place else 0)
            st.progress(0.0, place_of(first))
        elif job.progress is None:
            st.progress(0.0, f"Starting; about {jobs.estimate(job.experiment):.0f} s of work")
        else:
            progress = job.progress
            left = f", about {progress.left:.0f} s left" if progress.left is not None else ""
            st.progress(
                min(progress.done / max(progress.total, 1), 1.0),
                f"{progress.label}: {progress.done} of {progress.total}{left}",
            )
        words = ("Cancel", ":material/close:") if job is None else ("Stop", ":material/stop:")
        if st.button(words[0], key="stop", icon=words[1]):
            for each in running:
                jobs.stop(each.experiment)
            stopped()
            again()

    bar()


def _failed(experiment: Experiment) -> bool:
    try:
        state = jobs.later(experiment) if jobs.estimate(experiment) > jobs.QUICK else None
    except Unsuitable:
        return False
    return isinstance(state, jobs.Job) and bool(state.error)


ORDINALS = ("Next", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth")


def place_of(job: jobs.Job) -> str:
    """Where a job that waits stands, and about when it begins."""
    place = job.place
    if place is None:
        return "Starting"
    number = place.before + 1
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    ordinal = ORDINALS[number - 1] if number <= len(ORDINALS) else f"{number}{ending}"
    return f"{ordinal} in line, about {spoken(place.seconds)}"


def _checks(experiment: Experiment, result: Heatmap) -> list[str]:
    slow = jobs.estimate(experiment) > jobs.QUICK
    if slow and not st.session_state.get(f"checked:{experiment.digest}"):
        st.button(
            "Check this map",
            key="check",
            icon=":material/fact_check:",
            type="tertiary",
            help="Randomised weights, and hiding its peak.",
            on_click=lambda: st.session_state.update({f"checked:{experiment.digest}": True}),
        )
        return []
    found = []
    if "randomize_weights" in METHODS and not any(
        call.method == "randomize_weights" for call in experiment.interventions
    ):
        other = jobs.later(evidence.randomised(experiment)) if slow else jobs.run(evidence.randomised(experiment))
        if isinstance(other, Heatmap):
            rho = evidence.agreement(result, other)
            verdict = (
                "orange[survives randomised weights: yes" if rho > 0.7 else "green[survives randomised weights: no"
            )
            found.append(
                f":{verdict} (rank correlation {rho:.2f})]" if rho == rho else "randomised weights: constant map"
            )
    if "hide_region" in METHODS and result.values.max() > 0:
        # the peak of a map of pixels is one pixel: there it is the strongest patch
        box = evidence.peak_box(viewed(result, "patches", lambda: result.values))
        texts = []
        for region in (box, evidence.elsewhere(box)):
            table, plain = (
                jobs.run(evidence.hidden(experiment, region)),
                jobs.run(
                    Experiment(
                        experiment.model, experiment.sample, Call("class_probabilities"), experiment.interventions
                    )
                ),
            )
            assert isinstance(table, Table) and isinstance(plain, Table)
            texts.append(evidence.probability(table, result.target))
        before = evidence.probability(plain, result.target)
        found.append(
            f"blurring its peak: {_percent(before)} → {_percent(texts[0])} "
            f"(a box of that size elsewhere: {_percent(texts[1])})"
        )
    return found


def _percent(p: float) -> str:
    return f"{100 * p:.2g} %" if p < 0.995 else "> 99 %"


def _count(n: float, what: str) -> str:
    return f"{n:g} {what}{'' if n == 1 else 's'}"


def plain(text: str) -> str:
    """Text from anywhere, with nothing left that Markdown would take as its own."""
    # addresses become links whatever is escaped; a word joiner, which nobody sees, makes them none
    text = re.sub(r"(://|www(?=\.)|@(?=[-\w]+\.[a-z]))", "\\1\u2060", text, flags=re.IGNORECASE)
    return "".join("\\" + each if each in "\\`*_{}[]()#+-.!|$:<>~" else each for each in text)
