"""One's own transport operators: from texts of one's own, at a known cost, with progress and Stop."""

from __future__ import annotations

import json

import streamlit as st

from interp import Unsuitable, store, transport
from interp.experiment import Call
from interp.model import LanguageModel
from interp.samples import TextSet, reference_texts
from pages.ui import jobs, show
from pages.ui.bench import bench, change

POLICIES = {"same": "The same token", "previous": "The token before", "attention": "Where attention looks"}
WAYS = ("Embedded", "Pasted", "From a file")
FITTED = 4 / 5
"""The share of the texts that a fit is fitted on; the others judge it."""


def fit(model: LanguageModel, policy: str) -> None:
    """Texts, a policy, what it costs; then a bar with Stop, and the page reads with what was fitted."""
    with st.container(border=True, key="own"):
        st.markdown("**Fit operators**")
        left, right = st.columns([3, 2], gap="medium")
        with left:
            data, name = _texts()
        with right:
            st.session_state.setdefault("fit-policy", policy)
            chosen = st.radio(
                "A layer is read from", list(POLICIES), key="fit-policy", format_func=POLICIES.get,
                help="Where the source stands: at the token itself, at the one before, or at all before it, as much as "
                "attention looks at each.",
            )  # fmt: skip
            context = st.number_input("Tokens read together", 16, 4096, 128, 16, key="fit-context")
        if data is None:
            return
        try:
            call = Call("transport_operator", policy=chosen, context=min(context, model.limit), name=name)
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")
            return
        _run(model, jobs.Fit(bench().model, data, call))


def _texts() -> tuple[TextSet | None, str]:
    """The texts that someone chooses and what they are called, or None and a sentence."""
    way = st.segmented_control("Texts", WAYS, default=WAYS[0], key="fit-way", required=True)
    if way == WAYS[0]:
        texts = reference_texts()
        st.caption(f"{len(texts.texts):,} short documents of the kind that the embedded models were trained on.")
        return texts, "embedded texts"
    name = "pasted texts"
    try:
        if way == WAYS[1]:
            lines = st.text_area("Texts, one on each line", key="fit-pasted", height=140).splitlines()
        else:
            file = st.file_uploader(
                "A .txt file with a text on each line, or .jsonl", type=["txt", "jsonl"], key="fit-file",
                help='Each line of a .jsonl file is a text in quotes, or an object with a "text".',
            )  # fmt: skip
            name = file.name if file else ""
            lines = _read(file.getvalue(), name.endswith(".jsonl")) if file else []
        texts = tuple(filter(None, (each.strip() for each in lines)))
        return (TextSet(texts) if texts else None), name
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None, ""


def _read(data: bytes, jsonl: bool) -> list[str]:
    """The texts in a file.

    Raises:
        Unsuitable: it is no text, or a line of it is none.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise Unsuitable("This file is no text in UTF-8; save it as that.") from None
    if not any(each.strip() for each in lines):
        raise Unsuitable("This file is empty; give one with a text on each line.")
    if not jsonl:
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise Unsuitable(f"Line {number} of this file is no JSON; save one value on each line.") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise Unsuitable(f'Line {number} of this file is no text, and no object with a "text".')
        texts.append(text)
    return texts


def _run(model: LanguageModel, wanted: jobs.Fit) -> None:
    """A button that says what it costs; then a bar with Stop; asked for again, it goes on where it was."""
    asked = f"asked:{wanted.digest}"
    if not st.session_state.get(asked):
        assert isinstance(wanted.sample, TextSet)
        tokens = _count(store.key_of(wanted.sample.texts), model.digest, wanted.sample, model)
        needed = transport.ENOUGH * model.config.hidden_size
        forwards, _ = jobs.passes(wanted)
        seconds = jobs.estimate(wanted)
        time = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        st.caption(
            f"{tokens:,} tokens: about {forwards:,.0f} forwards, {time} here. Stopped, it goes on from there when "
            "it is asked for again."
        )
        if FITTED * tokens < needed:
            st.warning(
                f"These texts are too few for {show.plain(model.name)}: it takes {transport.ENOUGH} tokens for each of "
                f"the {model.config.hidden_size:,} directions of its stream to claim an efficiency, which is about "
                f"{needed / FITTED:,.0f} tokens of text.",
                icon=":material/info:",
            )
        st.button("Fit them", icon=":material/play_arrow:", type="primary", key="fit",
                  on_click=lambda: st.session_state.update({asked: True, "own-open": True}))  # fmt: skip
        return
    try:
        state = jobs.later(wanted)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    if isinstance(state, jobs.Job):
        show.waiting([wanted], lambda: st.session_state.pop(asked, None))
        if state.error:
            st.button("Again", key="fit-again", on_click=lambda: st.session_state.pop(asked, None))
        return
    st.session_state.pop(asked)
    use(state.text, wanted.lens.settings["policy"])
    st.session_state["own-open"] = False
    st.rerun()


def use(key: str, policy: str) -> None:
    """Read with these operators; every lens of transport that has a policy, with theirs."""
    lens = bench().lens
    settings = {"operators": key, "policy": policy}
    change(lens=lens.but(**{name: value for name, value in settings.items() if name in lens.settings}))


@st.cache_data(max_entries=64, show_spinner=False)
def _count(texts: str, model: str, _data: TextSet, _model: LanguageModel) -> int:
    """How many tokens texts have."""
    return sum(map(len, _model.tokenizer(list(_data.texts), add_special_tokens=False)["input_ids"]))
