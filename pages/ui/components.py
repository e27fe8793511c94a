"""The page components, written as plain ES modules in assets/components."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from interp.experiment import Experiment
from interp.results import Result

FOLDER = Path(__file__).parents[2] / "assets" / "components"


def style(name: str) -> str:
    """The CSS of a component."""
    return (FOLDER / "common.css").read_text() + (FOLDER / f"{name}.css").read_text()


@st.cache_resource
def _component(name: str) -> Any:
    html, js = '<div class="root"></div>', (FOLDER / f"{name}.js").read_text()
    return st.components.v2.component(f"actiscope_{name}", html=html, css=style(name), js=js)


@dataclass
class Shown:
    """What a run of a page shows: parts by key (the name of a component, and what it was mounted with), and the result
    that it is about."""

    title: str = ""
    parts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    about: tuple[Experiment, Result] | None = None


def begin(title: str) -> None:
    """A run of a page begins."""
    st.session_state["page-shown"] = Shown(title)


def shown() -> Shown:
    """What this run of the page shows so far; in a callback, all that the last one showed."""
    found: Shown = st.session_state.setdefault("page-shown", Shown())
    return found


def record(key: str, name: str, data: dict[str, Any]) -> None:
    """Note what this run of the page shows, for a file to be saved of it.

    Args:
        name: of a component; or "html" (data: html, of our own making) or "table" (columns, rows).
    """
    shown().parts[key] = (name, data)


def html(key: str, text: str) -> None:
    """HTML of our own making, with everything in it escaped."""
    record(key, "html", {"html": text})
    st.html(text)


def table(key: str, columns: dict[str, Any]) -> None:
    """Columns by name, of as many rows."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    record(key, "table", {"columns": list(columns), "rows": rows})
    st.dataframe(columns, hide_index=True)


def _mount(name: str, key: str, event: str, data: dict[str, Any], on: Any) -> None:
    """Mount a component; `on(value)` is called when its event fires."""
    record(key, name, data)

    def fired() -> None:
        value = getattr(st.session_state[key], event, None)
        if value is not None and on is not None:
            on(value)

    _component(name)(key=key, data=data, **{f"on_{event}_change": fired})


def cards(
    key: str, items: list[dict[str, Any]], on: Any, label: str, least: int = 120, shape: float = 1.0, row: bool = False
) -> None:
    """Picture buttons. Items: key, title, image, note, alt, selected, wait, progress, help."""
    _mount("cards", key, "pick", {"items": items, "label": label, "least": least, "shape": shape, "row": row}, on)


def guesses(key: str, items: list[dict[str, Any]], on: Any, hint: str) -> None:
    """Class probabilities as clickable bars. Items: label, p, before, first, second."""
    _mount("guesses", key, "pick", {"items": items, "hint": hint}, on)


def hero(key: str, data: dict[str, Any], on: Any = None) -> None:
    """A photo with a map: photo, overlay, values, box, scale, units, title, note, alt, legend, actions, region."""
    _mount("hero", key, "box", data, on)


def strip(key: str, data: dict[str, Any], on: Any) -> None:
    """A prompt as tokens: tokens (text, score), selected, scale, units, label, note."""
    _mount("strip", key, "pick", data, on)


def matrix(key: str, data: dict[str, Any], on: Any) -> None:
    """A matrix of cells: rows, columns, values, texts, selected, range, stops, quantity, least, label, title."""
    _mount("matrix", key, "pick", data, on)


def graph(key: str, data: dict[str, Any], on: Any) -> None:
    """A circuit: tokens, others, layers, nodes, edges, selected, signed, units, title, note, label, file, meta.

    Its events: {kind: "select" or "pin", id}, {kind: "group", ids}, {kind: "ungroup", group}.
    """
    _mount("graph", key, "act", data, on)


def feature_map(key: str, data: dict[str, Any], on: Any) -> None:
    """Features as points: count, x, y (base64 uint16), value (base64 uint8), labels, examples, notes, own, found,
    selected, by, low, high, note, label. Its event: {open: feature}."""
    _mount("feature_map", key, "act", data, on)


def feature_list(key: str, items: list[dict[str, Any]], on: Any, label: str, empty: str) -> None:
    """Features with a reason. Items: feature, sae, label, own, where, value, share, tokens, reason, density, selected.

    Its events: {open: feature, sae}, {like: feature, sae}.
    """
    _mount("feature_list", key, "act", {"items": items, "label": label, "empty": empty}, on)


def feature(key: str, data: dict[str, Any], on: Any) -> None:
    """What is known of a feature: key, maximum, logits, histogram, groups of contexts, links. Its event: {open}."""
    _mount("feature", key, "act", data, on)


def try_text(key: str, data: dict[str, Any], on: Any) -> None:
    """A box to type in, whose tokens are coloured: text, tokens (text, value), maximum, placeholder, message, label."""
    _mount("try_text", key, "typed", data, on)


def patches(key: str, data: dict[str, Any], on: Any) -> None:
    """A photo whose patches are buttons: photo, box, grid, scale, selected, alt, label, note."""
    _mount("patches", key, "pick", data, on)


def staircase(key: str, data: dict[str, Any], on: Any) -> None:
    """Pairs of layers: rows, columns, cells (value, low, high, text, span, title), selected, range, stops, quantity,
    low, high, none, label. Its event: {row, column}."""
    _mount("staircase", key, "pick", data, on)


def transport(key: str, data: dict[str, Any], on: Any) -> None:
    """What fires at a layer, as lines from the layer below and sparks: tokens, source, target, policy, panels (title,
    alt, marks), groups of items, selected, position, focus. Its events: {open: feature}, {at: token}."""
    _mount("transport", key, "act", data, on)


def life(key: str, data: dict[str, Any], on: Any) -> None:
    """A feature through the layers: rows, columns, values, texts, notes, curve, sources, source, position, focus,
    range, stops, quantity, low, high, label, curveLabel. Its events: {row}, {row, column}."""
    _mount("life", key, "pick", data, on)


def meters(key: str, data: dict[str, Any]) -> None:
    """Gauges: items (name, plain, value, control, low, high, their texts, help, worry), random."""
    _mount("meters", key, "act", data, None)


def dose(key: str, data: dict[str, Any], on: Any) -> None:
    """Response over dose: x, range, series (name, grey, values, low, high), broken, now, wide, xLabel, label.

    Its event: {strength}.
    """
    _mount("dose", key, "act", data, on)


def condition(key: str, data: dict[str, Any], on: Any) -> None:
    """Two histograms and a threshold to drag: x, positive, negative, threshold, above, here, xLabel.

    Its event: {threshold}.
    """
    _mount("condition", key, "act", data, on)
