"""The bench of Prompts: the token strip, what comes next, and one lens at a time, before and after any change."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable
from interp.experiment import Call, Experiment
from interp.figures import ramp
from interp.methods import METHODS
from interp.methods.reading._prompts import RESIDUALS
from interp.model import LanguageModel
from interp.results import Curve, Result, Table, TokenGrid, TokenScores
from interp.samples import Prompt, Target
from pages.ui import components, jobs, share, show
from pages.ui.bar import choose_lens
from pages.ui.bench import bench, change, embedded, remember, reshow

READY = Path(__file__).parents[2] / "assets" / "prompts.json"
TITLES = {
    "ioi": "Who is it given to?",
    "agreement": "Verb and subject",
    "capitals": "Capitals",
    "two_hops": "Two steps: born there, so speaks",
    "maps": "Pairs that share a relation",
    "sentiment": "Good or bad review",
    "refusal": "Help or refuse",
    "greater_than": "A later year",
    "induction": "Copying what came before",
}
NOTICE = {
    "ioi": "The name said once is the answer. Follow the last column up: it is not there until heads copy it.",
    "agreement": "The verb goes with the first noun, though the second stands nearer.",
    "capitals": "The country decides, layers before the last token reads it off.",
    "two_hops": "City to country to language: two facts in a row.",
    "maps": "The list never says what relates the pairs; the model finds out which fact is asked for.",
    "sentiment": "Two adjectives make the label; see which of them counts.",
    "refusal": "One verb turns help into refusal.",
    "greater_than": "All years after the first one are good answers; watch the mass move to them.",
    "induction": "One head notes what stood before each token; another finds the match and copies what came next.",
}
COLUMNS = 40
"""How many columns of a matrix are shown at once, around the chosen one."""
CONTINUED = 24
"""How many tokens a text is continued by."""
GLYPHS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """Text with all that can't be seen made visible: spaces, newlines, control characters, changes of direction."""

    def shown(each: str) -> str:
        if each in GLYPHS:
            return GLYPHS[each]
        code = ord(each)
        if code < 32:
            return chr(0x2400 + code)
        # the zero-width joiner and variation selectors belong to emoji and to some scripts
        if unicodedata.category(each) in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp") and code not in (0x200C, 0x200D):
            return f"⟨{code:04X}⟩"
        return each

    return "".join(map(shown, text)) or "∅"


@lru_cache(1)
def ready() -> dict[str, list[dict[str, str]]]:
    """The ready-made prompts by behaviour: prompt, answer, foil, corrupted."""
    found: dict[str, list[dict[str, str]]] = json.loads(READY.read_text())
    return found


def begin(case: dict[str, str], behaviour: str) -> None:
    """Lay a ready-made prompt on the bench, with its answer to follow."""
    have = {control.name for control in METHODS[bench().lens.method].controls}
    wanted = {"target": case["answer"], "foil": case["foil"]}
    settings = {name: Target(value) for name, value in wanted.items() if name in have}
    model = "induction" if behaviour == "induction" else "stories" if bench().model == "induction" else bench().model
    lens = Call(bench().lens.method, **settings)
    change(model=model, sample=Prompt(case["prompt"]), lens=lens, chips=(), second="", position=None, layer=None)


def looking(model: LanguageModel) -> None:
    """The whole bench under the experiment bar."""
    if not embedded():
        _prompt()
    experiments = [bench().experiment]
    if bench().second:
        try:
            experiments.append(dataclasses.replace(experiments[0], sample=Prompt(bench().second)))
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")
    places = st.columns(2, gap="medium") if len(experiments) == 2 else [st.container()]
    for index, (place, experiment) in enumerate(zip(places, experiments, strict=True)):
        with place:
            try:
                _strip(index, model, experiment)
            except Unsuitable as problem:
                st.warning(show.plain(str(problem)), icon=":material/info:")
                return
    if embedded():
        for index, experiment in enumerate(experiments):
            _lens(index, model, _placed(model, experiment))
        return
    _choose(model)
    narrow = len(experiments) == 1 and not experiments[0].interventions
    left, right = st.columns([3, 8] if narrow else [3, 9], gap="medium")
    with left:
        for index, experiment in enumerate(experiments):
            _next(index, model, experiment)
        continued(experiments)
    with right:
        _choose_layer(model)
        for index, experiment in enumerate(experiments):
            _lens(index, model, _placed(model, experiment))


# --------------------------------------------------------------------------------------------------------- the prompt


def _prompt() -> None:
    """Where one types, with ready-made prompts, and a second prompt beside."""

    def typed() -> None:
        try:
            sample = Prompt(st.session_state["prompt-text"])
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)
            return
        # what was asked of the last prompt says nothing about this one
        keep = {name: Target() for name in ("target", "foil") if name in bench().lens.settings}
        change(sample=sample, lens=bench().lens.but(**keep), position=None)

    def second() -> None:
        change(second=st.session_state["second-text"])

    sample = bench().sample
    assert isinstance(sample, Prompt)
    st.session_state["prompt-text"] = sample.text
    two = bool(bench().second) or st.session_state.get("second-open", False)
    places = st.columns(2, gap="medium") if two else [st.container()]
    with places[0]:
        st.text_area("Prompt", key="prompt-text", height=80, on_change=typed, help="Ctrl+Enter to look.")
    if two:
        with places[1]:
            st.session_state["second-text"] = bench().second
            st.text_area("Beside it", key="second-text", height=80, on_change=second)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        with st.popover("Ready-made", icon=":material/library_books:", help="Prompts whose right answer is known"):
            for behaviour, cases in ready().items():
                st.markdown(f"**{TITLES[behaviour]}**")
                for number, case in enumerate(cases[:3]):
                    st.button(
                        _cut(case["prompt"], 70),
                        key=f"ready:{behaviour}:{number}",
                        on_click=begin,
                        args=(case, behaviour),
                        type="tertiary",
                        help=f"The answer is {case['answer'].strip()}, not {case['foil'].strip()}.",
                    )
        found = case_of(sample)
        if found and not bench().second:
            st.button(
                "Its twin beside it",
                icon=":material/compare:",
                type="tertiary",
                on_click=lambda: change(second=found[1]["corrupted"]),
                help="The same prompt, changed so that another answer is right.",
            )
        if not two:
            st.button(
                "A second prompt",
                icon=":material/add:",
                type="tertiary",
                on_click=lambda: st.session_state.update({"second-open": True}),
            )
        else:
            st.button("One prompt only", icon=":material/close:", type="tertiary", on_click=_alone)
    if found and not bench().chips:
        st.caption(NOTICE[found[0]])


def _alone() -> None:
    st.session_state["second-open"] = False
    change(second="")


def case_of(sample: Prompt) -> tuple[str, dict[str, str]] | None:
    """The behaviour and case that a ready-made prompt belongs to."""
    for behaviour, cases in ready().items():
        for case in cases:
            if case["prompt"] == sample.text:
                return behaviour, case
    return None


def _cut(text: str, most: int) -> str:
    """Text in one line for a button, where nothing is taken as Markdown."""
    text = text.replace("\n", " ↵ ")
    text = text if len(text) <= most else text[: most - 1] + "…"
    return show.plain(text)


# ---------------------------------------------------------------------------------------------- the strip and what next


def _strip(index: int, model: LanguageModel, experiment: Experiment) -> None:
    """The tokens, marked by how much each speaks for the likeliest next token."""
    sample = experiment.sample
    assert isinstance(sample, Prompt)
    tokens = model.tokens(sample.text)
    if len(tokens) > model.limit:
        raise Unsuitable(f"The prompt has {len(tokens)} tokens; {model.name} reads at most {model.limit}.")
    scores = _attribution(model, experiment)
    items = [{"text": visible(token)} for token in tokens]
    note = ""
    if scores is not None:
        for item, score in zip(items, scores.values, strict=True):
            item["score"] = float(score)  # type: ignore[assignment]
        gap = "" if scores.residual is None else f"; they miss {scores.residual.value:.1g} of it"
        note = f"Marked by what each token adds to the logit of {visible(scores.target)} ({scores.score:.3g}){gap}."
    position = _position(len(tokens))

    def picked(value: dict[str, Any]) -> None:
        change(position=None if value["at"] == len(tokens) - 1 else int(value["at"]))

    components.strip(
        f"strip:{index}",
        {
            "tokens": items,
            "selected": position,
            "scale": float(np.abs(scores.values).max()) or 1.0 if scores is not None else 1.0,
            "units": "logit",
            "label": "The prompt's tokens",
            "note": f"{len(tokens)} tokens. {note}",
        },
        picked,
    )


def _attribution(model: LanguageModel, experiment: Experiment) -> TokenScores | None:
    """Token scores for the strip; None where they take too long, or can't be had."""
    lens = experiment.lens
    call = lens
    if lens.method != "token_attribution":
        kept = {name: lens.settings[name] for name in ("target", "foil") if name in lens.settings}
        call = Call("token_attribution", by="gradient x input" if model.limit > 2**19 else "DeepLIFT", **kept)
    for attempt in (call, call.but(by="integrated gradients")):
        try:
            each = dataclasses.replace(experiment, lens=attempt)
            if jobs.known(each) is None and jobs.estimate(each) > jobs.QUICK:
                return None
            result = jobs.run(each)
            assert isinstance(result, TokenScores)
            return result
        except Unsuitable:
            continue
    return None


def _position(length: int) -> int:
    position = bench().position
    return length - 1 if position is None or position >= length else position


def _next(index: int, model: LanguageModel, experiment: Experiment) -> None:
    """The likeliest next tokens after the chosen one, before and after; a click makes one the target."""
    sample = experiment.sample
    assert isinstance(sample, Prompt)
    length = len(model.tokens(sample.text))
    position = _position(length)
    call = Call("next_tokens", position=None if position == length - 1 else position, top=8)
    table = jobs.run(dataclasses.replace(experiment, lens=call))
    assert isinstance(table, Table)
    earlier: dict[int, float] = {}
    if experiment.interventions:
        plain = jobs.run(dataclasses.replace(experiment.before(), lens=call.but(top=100)))
        assert isinstance(plain, Table)
        earlier = {int(row[2]): float(row[0]) for row in plain.values}
    settings = experiment.lens.settings
    target, foil = (_index(model, settings.get(name)) for name in ("target", "foil"))
    ids = [int(each) for each in table.values[:, 2]]
    items = [
        {
            "label": visible(text),
            "p": float(row[0]),
            "before": earlier.get(token, 0.0) if earlier else None,
            "first": token == target or (target is None and place == 0),
            "second": token == foil,
        }
        for place, (text, row, token) in enumerate(zip(table.rows, table.values, ids, strict=True))
    ]

    def picked(value: dict[str, Any]) -> None:
        token = ids[[item["label"] for item in items].index(value["label"])]
        name = "foil" if value["beside"] else "target"
        lens = bench().lens
        if name in lens.settings:
            change(lens=lens.but(**{name: Target(token)}))
        elif "target" in METHODS["direct_logit_attribution"].doc.sections.get("Args", ""):
            change(lens=Call("direct_logit_attribution", **{name: Target(token)}))

    token = visible(model.tokens(sample.text)[position])
    st.markdown(f"##### After {show.plain(token)}" + (" (beside)" if index else ""))
    components.guesses(
        f"next:{index}", items, picked, "Click a token to explain it; Shift-click (or key 2) to compare it with one."
    )


def continued(experiments: list[Experiment], beside: bool = False) -> None:
    """The text as the model goes on with it, plain and changed, token by token; one under the other, or beside it."""
    versions = [(title, version) for each in experiments for title, version in _versions(each)]
    kept: dict[str, str] = st.session_state.setdefault("continued", {})
    asked = st.button(
        "Continue the text",
        icon=":material/play_arrow:",
        help=f"The likeliest token each time, {CONTINUED} at most; with and without your changes.",
    )
    columns = st.columns(len(versions), gap="medium") if beside else [st.container() for _ in versions]
    for column, (title, version) in zip(columns, versions, strict=True):
        if not asked and version.digest not in kept:
            continue
        assert isinstance(version.sample, Prompt)
        with column:
            st.caption(title)
            place, text = st.empty(), kept.get(version.digest, "")
        if version.digest not in kept:
            for piece in jobs.paced(version.stream(CONTINUED)):
                text += piece
                place.text(version.sample.text + text)
            kept[version.digest] = text
            while len(kept) > 50:
                kept.pop(next(iter(kept)))
        place.text(version.sample.text + text)


def _versions(experiment: Experiment) -> list[tuple[str, Experiment]]:
    """The experiment, with the unchanged one before it where something is changed."""
    return [("Before", experiment.before()), ("After", experiment)] if experiment.interventions else [("", experiment)]


def _index(model: LanguageModel, target: Target | None) -> int | None:
    try:
        return None if target is None or target.name is None else model.token_index(target)
    except Unsuitable:
        return None


# ------------------------------------------------------------------------------------------------------------ the lens


def lenses(model: LanguageModel) -> list[str]:
    """The lenses of this page that can serve the model, in the order of the way through the network."""
    order = ("logit_lens", "direct_logit_attribution", "attention_pattern", "token_attribution", "tuned_lens",
             "activation_statistics", "layer_similarity", "next_tokens")  # fmt: skip
    return [key for key in order if METHODS[key].refuses(model) is None]


def _choose(model: LanguageModel) -> None:
    def chosen() -> None:
        if key := st.session_state["prompt-lens"]:
            choose_lens(key)
            reshow(sheet=0)
            if key == "token_attribution" and model.family != "mixtral":  # complete in two passes
                change(lens=bench().lens.but(by="DeepLIFT"))

    keys = lenses(model)
    now = bench().lens.method
    st.session_state["prompt-lens"] = now if now in keys else None
    st.segmented_control(
        "Look through",
        keys,
        key="prompt-lens",
        format_func=lambda key: METHODS[key].name,
        on_change=chosen,
        label_visibility="collapsed",
    )


def _choose_layer(model: LanguageModel) -> None:
    """For lenses of one layer, which."""
    if bench().lens.method != "attention_pattern" or model.layers == 1:
        return
    st.session_state["prompt-layer"] = min(bench().lens.settings["layer"], model.layers - 1)
    st.segmented_control(
        "Layer",
        range(model.layers),
        key="prompt-layer",
        required=True,
        format_func=lambda layer: f"layer {layer}",
        on_change=lambda: change(lens=bench().lens.but(layer=st.session_state["prompt-layer"])),
        label_visibility="collapsed",
    )


def _placed(model: LanguageModel, experiment: Experiment) -> Experiment:
    """The experiment asked of the chosen token, where its lens answers for one and none was set."""
    assert isinstance(experiment.sample, Prompt)
    length = len(model.tokens(experiment.sample.text))
    position = _position(length)
    if experiment.lens.settings.get("position", 0) is None and position < length - 1:
        return dataclasses.replace(experiment, lens=experiment.lens.but(position=position))
    return experiment


def _lens(index: int, model: LanguageModel, experiment: Experiment) -> None:
    """What the lens shows: before | after | difference where something is changed."""
    results: list[Result] = []
    for _, each in _versions(experiment):
        try:
            if jobs.known(each) is None and jobs.estimate(each) > jobs.QUICK:
                state = _asked(index, each)
                if not isinstance(state, Result):
                    return
                results.append(state)
            else:
                results.append(jobs.run(each))
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")
            return
    first, last = results[0], results[-1]
    if isinstance(last, TokenGrid) and isinstance(first, TokenGrid):
        words = tuple(model.tokens(experiment.sample.text))  # type: ignore[union-attr]
        _grid(index, words, [first, last] if len(results) == 2 else [last])
    elif isinstance(last, TokenScores) and isinstance(first, TokenScores):
        _scores(index, [first, last] if len(results) == 2 else [last])
    elif isinstance(last, Table) and isinstance(first, Table):
        _table(model, [first, last] if len(results) == 2 else [last], experiment)
    elif isinstance(last, Curve):
        st.line_chart({name: y for name, y in zip(last.series, last.y, strict=True)})
    remember(experiment)
    if last.note:
        st.caption(show.plain(last.note))
    show.cost(experiment, last)
    if index == 0:
        with st.container(horizontal=True, gap="small"):
            with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
                share.explain(METHODS[experiment.lens.method])
            with st.popover("Download", icon=":material/download:", type="tertiary"):
                share.numbers(experiment, last, "prompt")


def _asked(index: int, experiment: Experiment) -> Any:
    """A long experiment: said what it costs, run when asked, with progress and Stop."""
    asked = f"asked:{experiment.digest}"
    if not st.session_state.get(asked):
        st.write(f"{METHODS[experiment.lens.method].name} takes about {jobs.estimate(experiment):.0f} s here.")
        st.button(
            "Run it",
            key=f"run:{index}:{experiment.digest[:8]}",
            icon=":material/play_arrow:",
            on_click=lambda: st.session_state.update({asked: True}),
        )
        return None
    state = jobs.later(experiment)
    if isinstance(state, jobs.Job):
        show.waiting([experiment], lambda: st.session_state.pop(asked, None))
    return state


def _grid(index: int, words: tuple[str, ...], results: list[TokenGrid]) -> None:
    """Matrices of one sheet on one scale, and what is in the chosen cell."""
    last = results[-1]
    sheet = _sheet(index, last)
    tokens = last.columns == words
    query_rows = tokens and last.rows == words  # attention: those who look are tokens too
    upward = not query_rows and last.rows[0] == RESIDUALS  # layers grow upwards, as the residual stream is drawn
    same = len(results) == 2 and results[0].values.shape == last.values.shape
    parts = [result.values[min(sheet, len(result.values) - 1)] for result in results]
    titles = ["Before", "After"] if len(results) == 2 else [""]
    grids: list[tuple[str, np.ndarray, TokenGrid | None, bool]] = [
        (title, part, result, last.signed) for title, part, result in zip(titles, parts, results, strict=True)
    ]
    if same:
        grids.append(("After minus before", parts[1] - parts[0], None, True))
    only = len(results) == 2 and same and bench().view.only
    if len(results) == 2 and same and index == 0:
        show.difference_only()
    largest = max(float(np.nanmax(np.abs(part), initial=0)) for part in parts) or 1.0
    position = _position(len(last.columns)) if tokens else None
    columns = _columns(parts, position)
    for place, (title, values, result, signed) in enumerate(grids):
        if only and place < 2:
            continue
        rows, shown = list(last.rows), values[:, columns]
        texts = None
        if result and result.choices:
            texts = [[visible(row[column][0]) for column in columns] for row in result.choices]
        elif not tokens and len(last.columns) <= 16:  # room for the numbers
            texts = [[f"{v:.2g}" if abs(v) > 0.005 * largest else "" for v in row] for row in shown.tolist()]
        if query_rows:
            rows, shown = [rows[column] for column in columns], shown[columns]
        if upward:
            rows, shown, texts = rows[::-1], shown[::-1], texts[::-1] if texts else None
        limit = largest if not (place == 2 and only) else float(np.nanmax(np.abs(values), initial=0)) or 1.0
        selected = None
        if position is not None:
            layer = bench().layer
            column = columns.index(position)
            row = column if query_rows else len(rows) - 1 if layer is None else min(layer, len(rows) - 1)
            selected = [len(rows) - 1 - row if upward else row, column]

        def picked(value: dict[str, Any], count: int = len(rows)) -> None:
            at = columns[int(value["row"] if query_rows else value["column"])]
            place = None if at == len(last.columns) - 1 else at
            if query_rows:
                change(position=place)
            elif tokens:
                change(position=place, layer=int(count - 1 - value["row"] if upward else value["row"]))

        components.matrix(
            f"matrix:{index}:{place}",
            {
                "title": title,
                "rows": [visible(row) if query_rows else row for row in rows],
                "columns": [visible(name) if tokens else name for name in (last.columns[each] for each in columns)],
                "values": [[None if v != v else float(f"{v:.4g}") for v in row] for row in shown.tolist()],
                "texts": texts,
                "selected": selected,
                "range": [-limit, limit] if signed else [0.0, limit],
                "stops": ramp("blue-vermilion" if signed else "cividis"),
                "quantity": last.sheets[sheet],
                "least": 58 if texts else 22,
                "label": f"{title} {last.sheets[sheet]}".strip(),
            },
            picked,
        )
    if len(last.columns) > COLUMNS:
        which = "around the chosen token" if tokens else "those with the largest values"
        st.caption(f"{len(columns)} of {len(last.columns)} columns: {which}.")
    if last.choices and position is not None:
        _cell(results, min(bench().layer if bench().layer is not None else 10**6, len(last.rows) - 1), position)


def _columns(parts: list[np.ndarray], position: int | None) -> list[int]:
    """Which columns are shown: those around a position, or those that hold the largest values."""
    count = parts[-1].shape[1]
    if position is not None:
        start = max(0, min(position - COLUMNS // 2, count - COLUMNS))
        return list(range(start, min(start + COLUMNS, count)))
    largest = np.max([np.nanmax(np.abs(part), axis=0, initial=0) for part in parts if part.shape[1] == count], axis=0)
    return sorted(np.argsort(-largest, kind="stable")[:COLUMNS].tolist())


def _sheet(index: int, result: TokenGrid) -> int:
    """Which of the sheets is shown; chosen once for both prompts."""
    if len(result.sheets) == 1:
        return 0
    names = list(range(len(result.sheets)))
    key = f"sheet:{result.method}"
    kept = min(bench().view.sheet, len(names) - 1)
    if index == 0:
        st.session_state[key] = kept
        st.segmented_control(
            "Show",
            names,
            key=key,
            required=True,
            format_func=lambda each: show.plain(visible_quantity(result.sheets[each])),
            on_change=lambda: reshow(sheet=st.session_state[key]),
            label_visibility="collapsed",
        )
    return kept


def visible_quantity(name: str) -> str:
    """A sheet's name, its token made visible."""
    head, quote, token = name.partition("'")
    return head + (visible(token.rstrip("'")) if quote else "")


def _cell(results: list[TokenGrid], row: int, column: int) -> None:
    """The likeliest tokens of the chosen cell, before and after."""
    last = results[-1]
    lines = []
    for title, result in zip(("before: ", "after: ") if len(results) == 2 else ("",), results, strict=True):
        if row < len(result.rows) and column < len(result.columns):
            words = [
                f"{show.plain(visible(word))} {chance:.2g}"
                for word, chance in zip(result.choices[row][column], result.chances[row, column], strict=True)
            ]
            lines.append(title + ", ".join(words))
    st.caption(f"{last.rows[row]}, at {show.plain(visible(last.columns[column]))}: " + "; ".join(lines))


def _scores(index: int, results: list[TokenScores]) -> None:
    """Token scores as one row, or before, after and difference."""
    last = results[-1]
    rows = ["before", "after", "difference"] if len(results) == 2 else [show.plain(visible(last.target))]
    values = [result.values for result in results]
    if len(results) == 2:
        values.append(last.values - results[0].values)
    scale = max(float(np.abs(each).max()) for each in values) or 1.0
    position = _position(len(last.tokens))
    start = max(0, min(position - COLUMNS // 2, len(last.tokens) - COLUMNS))
    window = slice(start, start + COLUMNS)

    def picked(value: dict[str, Any]) -> None:
        change(position=int(value["column"]) + start)

    components.matrix(
        f"scores:{index}",
        {
            "title": f"For {visible(last.target)}",
            "rows": rows,
            "columns": [visible(each) for each in last.tokens[window]],
            "values": [[float(f"{v:.4g}") for v in row[window]] for row in values],
            "texts": [[f"{v:.2g}" for v in row[window]] for row in values],
            "selected": None,
            "range": [-scale, scale],
            "stops": ramp("blue-vermilion"),
            "quantity": "logit",
            "least": 46,
            "label": "Token attribution",
        },
        picked,
    )


def _table(model: LanguageModel, results: list[Table], experiment: Experiment) -> None:
    """Numbers by row; two of them where something is changed."""
    last = results[-1]
    shown: dict[str, Any] = {"": [visible(row) if "token" in last.columns else row for row in last.rows]}
    for column, name in enumerate(last.columns):
        shown[name] = last.values[:, column]
        if len(results) == 2 and results[0].rows == last.rows:
            shown[f"{name}, before"] = results[0].values[:, column]
    components.table("prompts:table", shown)
