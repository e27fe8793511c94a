"""A direction of one's own: from two sets of texts, typed or in a file; and directions as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import streamlit as st

from interp import Unsuitable, direction_files, directions
from interp.directions import Direction
from interp.experiment import Call
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.samples import Contrast
from pages.ui import jobs, show
from pages.ui.bench import bench
from pages.ui.controls import controls, lines, texts
from pages.ui.prompts import ready

FITS = {
    "difference_of_means": "Difference of means", "pca_direction": "PCA", "probe_direction": "Probe",
    "sae_direction": "SAE feature", "condition_vector": "Condition", "grains": "GrAInS", "reft_direction": "Trained",
    "soft_injection": "Task of heads",
}  # fmt: skip
"""The ways to a direction, by the fit that goes it."""
WAYS = ("Typed", "From a file", "A direction's file")
SIDES = {"sentiment": " positive", "refusal": " Sorry"}
"""Ready-made prompts that have two sides, and the answer of the positive one."""
SHOWN = {"positive", "yes", "true", "1", "+", "pos"}
HIDDEN = {"negative", "no", "false", "0", "-1", "-", "neg"}
MOST = 5000
"""How many examples a side may have."""


def ready_made(name: str) -> Contrast:
    """The ready-made prompts of a behaviour, by their answers."""
    sides: tuple[list[str], list[str]] = [], []
    for case in ready()[name]:
        positive = case["answer"] == SIDES[name]
        sides[not positive].append(case["prompt"])
        sides[positive].append(case["corrupted"])
    return Contrast(tuple(sides[0]), tuple(sides[1]))


def examples(key: str) -> Contrast | None:
    """Two boxes of texts, one example on each line; None while a side is empty."""
    if key not in st.session_state.setdefault("examples", {}):
        st.session_state["examples"][key] = ready_made("refusal" if key == "condition" else "sentiment")
    kept: Contrast = st.session_state["examples"][key]

    def typed() -> None:
        sides = (st.session_state[f"{key}:positive"], st.session_state[f"{key}:negative"])
        try:
            st.session_state["examples"][key] = Contrast(*map(texts, sides))
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)

    left, right = st.columns(2, gap="small")
    for column, side, title in ((left, "positive", "Texts that show it"), (right, "negative", "Texts that do not")):
        with column:
            st.session_state[f"{key}:{side}"] = lines(getattr(kept, side))
            st.text_area(title, key=f"{key}:{side}", height=170, on_change=typed,
                         help="One example on each line; \\n stands for a line break within one.")  # fmt: skip
    with st.container(horizontal=True, gap="small"):
        for name in SIDES:
            st.button(
                f"Ready-made: {name}", key=f"{key}:ready:{name}", type="tertiary",
                on_click=lambda name=name: st.session_state["examples"].update({key: ready_made(name)}),
            )  # fmt: skip
    return kept if kept.positive and kept.negative else None


def make(model: LanguageModel, made: Callable[[str, str], None], running: list[Any]) -> None:
    """Texts, a method, and what it costs; or a file. `made(key, fit)` gets what comes of it.

    running: what takes long is added to it.
    """
    with st.container(border=True, key="own-direction-box"):
        st.markdown("**Make a direction**")
        way = st.segmented_control("From", WAYS, default=WAYS[0], key="direction-way", required=True)
        if way == WAYS[2]:
            _import(model, made)
            return
        left, right = st.columns([3, 2], gap="medium")
        with left:
            data = examples("direction") if way == WAYS[0] else _uploaded()
        with right:
            served = [each for each in FITS if each in METHODS and not METHODS[each].refuses(model)]
            chosen = st.segmented_control(
                "How", served, default=served[0], key="direction-fit", required=True, wrap=True, format_func=FITS.get
            )
            st.caption(show.plain(METHODS[chosen].doc.summary))
            kept: dict[str, Call] = st.session_state.setdefault("direction-calls", {})
            call = kept.setdefault(chosen, Call(chosen))
            name = st.text_input("Its name", key="direction-name", max_chars=60, placeholder="what it stands for")
            with st.popover("More", icon=":material/tune:"):
                controls(call, model, bench().sample, "fit", lambda new: kept.update({chosen: new}), ("name",))
        if data is None:
            st.caption("Give at least one text for each side; from ten on the held-out accuracy says something.")
            return
        if min(len(data.positive), len(data.negative)) < 10:
            st.caption(
                f"{len(data.positive)} and {len(data.negative)} examples: enough to push, too few for the held-out "
                "accuracy to say much."
            )
        try:
            _fit(jobs.Fit(bench().model, data, call.but(name=name.strip())), made, running)
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")


def _fit(wanted: jobs.Fit, made: Callable[[str, str], None], running: list[Any]) -> None:
    asked = f"asked:{wanted.digest}"
    if st.session_state.pop(f"stopped:{wanted.digest}", False):
        st.session_state.pop(asked, None)
    if not st.session_state.get(asked):
        seconds = jobs.estimate(wanted)
        st.button("Make it", icon=":material/play_arrow:", type="primary", key="fit-direction",
                  help=f"About {seconds:.0f} s" if seconds >= 1 else None,
                  on_click=lambda: st.session_state.update({asked: True}))  # fmt: skip
        return
    found = fitted(wanted, running)
    if found is not None:
        st.session_state.pop(asked)
        _done(found, wanted.lens.method, made)
    elif wanted not in running:
        st.button("Again", key="fit-direction-again", on_click=lambda: st.session_state.pop(asked, None))


def fitted(wanted: jobs.Fit, running: list[Any]) -> str | None:
    """What a fit comes to, or None: it is added to what runs, or what is wrong is said."""
    try:
        if jobs.known(wanted) is None and jobs.estimate(wanted) <= jobs.QUICK:
            return jobs.run(wanted).text  # type: ignore[attr-defined]
        state = jobs.later(wanted)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None
    if not isinstance(state, jobs.Job):
        return state.text  # type: ignore[attr-defined]
    if state.error:
        st.warning(show.plain(state.error), icon=":material/info:")
    else:
        running.append(wanted)
    return None


def _done(key: str, fit: str, made: Callable[[str, str], None]) -> None:
    made(key, fit)
    st.session_state["own-direction"] = False
    st.rerun()


def _uploaded() -> Contrast | None:
    file = st.file_uploader(
        "A .csv or .jsonl file", type=["csv", "jsonl"], key="direction-examples",
        help="Columns positive and negative; or text and label, where the label is positive or negative (1 or 0).",
    )  # fmt: skip
    if file is None:
        return None
    try:
        found = contrast(file.getvalue(), file.name.endswith(".jsonl"))
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None
    for side, some in (("show it", found.positive), ("do not", found.negative)):
        first = show.plain(some[0].replace("\n", " ↵ ")[:80]) if some else "none"
        st.caption(f"{len(some):,} texts that {side}: {first} …")
    return found if found.positive and found.negative else None


def contrast(data: bytes, jsonl: bool) -> Contrast:
    """The two sides in a file: columns (JSON: names) positive and negative, or text and label.

    Raises:
        Unsuitable: it is no text, has other columns, or a line of it can't be read.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unsuitable("This file is no text in UTF-8; save it as that.") from None
    sides: tuple[list[str], list[str]] = [], []
    for number, row in _rows(text, jsonl):
        if "text" in row and "label" in row:
            label = str(row["label"]).strip().lower()
            if label not in SHOWN | HIDDEN:
                raise Unsuitable(f"Line {number} has the label {label[:20]!r}; write positive or negative, or 1 or 0.")
            cells = [(label in HIDDEN, row["text"])]
        elif "positive" in row or "negative" in row:
            cells = [(number, row.get(name)) for number, name in enumerate(("positive", "negative"))]
        else:
            raise Unsuitable(f"Line {number} has neither positive and negative nor text and label; name columns so.")
        for side, cell in cells:
            if cell is None or cell == "":
                continue
            if not isinstance(cell, str):
                raise Unsuitable(f"Line {number} holds something that is no text; put texts in quotes.")
            sides[side].append(cell)
    if max(map(len, sides)) > MOST:
        raise Unsuitable(f"This file has over {MOST:,} examples on a side; a few hundred are enough.")
    return Contrast(tuple(sides[0]), tuple(sides[1]))


def _rows(text: str, jsonl: bool) -> list[tuple[int, dict[str, Any]]]:
    """Rows by the number of the line that each begins on."""
    if not jsonl:
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""))
            return [(reader.line_num, row) for row in reader]
        except csv.Error:
            raise Unsuitable("This is no CSV that can be read; save it with commas and quotes.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise Unsuitable(f'Line {number} of this file is no JSON object, as {{"positive": "…", "negative": "…"}}.')
        rows.append((number, row))
    return rows


# ---------------------------------------------------------------------------------------------------------- as files


def _import(model: LanguageModel, made: Callable[[str, str], None]) -> None:
    file = st.file_uploader(
        "A .safetensors or .gguf file", type=["safetensors", "gguf"], key="direction-file",
        help="One of Actiscope's; a vector for each layer named by its number; or a control vector of repeng's.",
    )  # fmt: skip
    if file is None:
        return
    name = st.text_input("Its name", key="direction-file-name", max_chars=60, placeholder="as in the file")

    def read() -> None:
        try:
            key = direction_files.imported(file.getvalue(), name, model)
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)
            return
        made(key, "")
        st.session_state["own-direction"] = False

    st.button("Read it", icon=":material/upload:", type="primary", key="read-direction", on_click=read)


def downloads(direction: Direction) -> None:
    """The direction as files."""
    name = "".join(each if each.isalnum() or each in "-_" else "-" for each in direction.name)[:60] or "direction"
    with st.container(horizontal=True, gap="small"):
        kinds: dict[str, direction_files.Kind] = {"safetensors": "safetensors", "GGUF": "gguf"}
        for title, kind in kinds.items():
            st.download_button(
                title, lambda kind=kind: direction_files.exported(direction, kind), f"{name}.{kind}",
                "application/octet-stream", key=f"direction:{kind}",
                on_click="ignore", icon=":material/download:", type="tertiary",
            )  # fmt: skip


def named(model: LanguageModel, key: str) -> Direction | None:
    """The direction of that key among the model's, the first where none is named."""
    found = directions.available(model)
    return next((each for each in found if each.key == key or not key), None)
