"""The bench of Steering: dials that push, the plain and the pushed text, what it does and what it breaks."""

from __future__ import annotations

import dataclasses
import difflib
import html
import itertools
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable, directions
from interp.directions import Direction
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.methods.steering._conditions import best_layer
from interp.model import LanguageModel
from interp.results import Curve, Result, Table, TokenGrid, TokenScores
from interp.samples import Contrast, Prompt
from pages.ui import components, jobs, share, show
from pages.ui import directions as own
from pages.ui.bar import AMOUNTS, in_words
from pages.ui.bench import Chip, again, bench, change, embedded, first_steering, remember, reshow
from pages.ui.controls import controls
from pages.ui.prompts import TITLES, ready, visible

DIALS = {
    "steer": "Push", "conditional_steer": "Push if", "project_out": "Take away", "clamp_direction": "Hold",
}  # fmt: skip
"""What a dial does along its direction."""
BOUNDS = {"strength": (-4.0, 4.0), "share": (0.0, 2.0), "value": (-2.0, 3.0)}
AMOUNT_HELP = {
    "strength": "1 moves the mean of the negative examples onto that of the positive ones; below 0 the other way.",
    "share": "1 removes what lies along the direction, 2 turns it round.",
    "value": "0 is where the negative examples lie on average, 1 where the positive ones do.",
}
RIVALS = ("difference_of_means", "pca_direction", "probe_direction", "sae_direction", "grains")
"""Ways to a direction that are compared on the same examples."""
CONTINUED = 24
"""How many tokens a text is continued by."""
BINS = 60
"""Into how many bins of similarity examples of a condition are sorted."""
CONTROLS = 3
"""How many random directions stand beside a dial's own."""
REACH, STEPS = 2.0, 9
"""How far a curve goes, and at how many strengths it is drawn."""
LIVE = 3.0
"""Seconds that the page waits for its meters."""
COSTLY, BROKEN, REPEATS = 1.3, 2.0, 0.25
"""From which ratio of perplexity of ordinary text on is a worry, and counts as broken; so does that much repetition."""
SIDES = ("above", "below")
"""Where a condition may fire."""
MEASURES = {"behaviour": "Behaviour", "perplexity": "Perplexity", "KL": "KL", "repetition": "Repetition"}
NOTICE = (
    "The plain model calls this film wonderful. Pushed back by half the way from bad to good reviews it finds it poor, "
    "and labels it negative; ordinary text hardly changes, and random directions as long do nothing. Three times as "
    "far, and it is the text that falls apart."
)
STARTS = {
    "Sentiment": ("Review: The film was", Call("steer", direction="stories/sentiment", layer=2, strength=-0.5)),
    "Refusal": (
        "User: How do I kill a king?\nAssistant:",
        Call("project_out", direction="stories/refusal", share=1.0, every=True),
    ),
    "Topic": ("Wow, the movie and the", Call("steer", direction="stories/topic", layer=1, strength=0.8)),
}  # fmt: skip
"""Examples on the embedded model: a prompt, and what is done to it."""
PANELS = {
    "kl_by_token": "Token by token", "dose_response": "Dose and response", "condition_scores": "Condition",
    "compare_steering": "Compare", "direction_quality": "The direction", "tcav": "TCAV",
    "injection_map": "Heads of a task",
}  # fmt: skip
"""What is asked below the texts, by the lens that answers."""


def working(model: LanguageModel) -> None:
    """The whole bench under the experiment bar."""
    found = directions.available(model)
    running: list[Any] = []
    if embedded() and found:
        _alone(model, found, running)
        if running:
            show.waiting(running, lambda: None)
        return
    _prompt()
    if bench() == first_steering():
        st.caption(NOTICE)
    if not found:
        st.info(
            f"There is no direction for {show.plain(model.name)} here: make one from texts that show what you mean and "
            "texts that do not, or add a file.",
            icon=":material/info:",
        )
    if not found or st.session_state.get("own-direction"):
        own.make(model, put, running)
    # what runs is told beside the meters, so that nothing moves under the hand that turns a dial
    waiting = _bench(model, found, running) if found else st.container()
    if running:
        with waiting:
            show.waiting(running, lambda: st.session_state.update({show.stopped(each): True for each in running}))


def _bench(model: LanguageModel, found: list[Direction], running: list[Any]) -> Any:
    """Dials, texts and meters, and one question below; where what runs can be told."""
    with st.container(key="steering-bench"):
        left, middle, right = st.columns([10, 15, 9], gap="medium")
    with left:
        _dials(model, found, running)
    with middle, st.container(key="steering-texts"):
        _texts(bench().experiment)
    with right:
        _meters(bench().experiment, found, running)
        waiting = st.container()
    _panel(model, found, running)
    return waiting


def _alone(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """The texts and meters, or what the lens of the bench shows."""
    if bench().lens.method not in PANELS:
        left, right = st.columns([15, 9], gap="medium")
        with left:
            _texts(bench().experiment)
        with right:
            _meters(bench().experiment, found, running)
    else:
        _ask(bench().lens.method, model, found, running)


# ---------------------------------------------------------------------------------------------------------- the prompt


def _prompt() -> None:
    sample = bench().sample
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        with st.popover("Another prompt", icon=":material/edit:"):
            st.session_state["steering-prompt"] = sample.text if isinstance(sample, Prompt) else ""
            st.text_area("Prompt", key="steering-prompt", height=80, help="Ctrl+Enter to go on with it.",
                         on_change=lambda: _sampled(st.session_state["steering-prompt"]))  # fmt: skip
            for behaviour, cases in ready().items():
                if behaviour != "induction" or bench().model == "induction":
                    st.button(
                        f"{TITLES[behaviour]} {show.plain(cases[0]['prompt'].splitlines()[0][:50])}", type="tertiary",
                        key=f"steering-ready:{behaviour}", on_click=_sampled, args=(cases[0]["prompt"],),
                    )  # fmt: skip
        for name, (text, call) in STARTS.items():
            if bench().model == "stories":
                st.button(
                    name, key=f"start:{name.lower()}", type="tertiary", on_click=_begin, args=(text, call),
                    help=show.plain(text.replace("\n", " ↵ ")),
                )  # fmt: skip
        st.button(
            "Make a direction", icon=":material/add:", key="make-direction", type="tertiary",
            help="From two sets of texts of your own, or from a file",
            on_click=lambda: st.session_state.update({"own-direction": not st.session_state.get("own-direction")}),
        )  # fmt: skip


def _sampled(text: str) -> None:
    try:
        change(sample=Prompt(text), position=None)
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)


def _begin(text: str, call: Call) -> None:
    change(sample=Prompt(text), chips=(Chip(call),), position=None)


def put(key: str, fit: str = "") -> None:
    """A direction that was just made or read, on a new dial; a task is injected."""
    call = Call("inject_task", task=key, share=1.0) if fit == "soft_injection" else None
    change(chips=(*bench().chips, Chip(call or Call("steer", direction=key, strength=1.0))))


# ----------------------------------------------------------------------------------------------------------- the dials


def dials() -> list[int]:
    """Which chips on the bar are dials."""
    return [at for at, chip in enumerate(bench().chips) if chip.call.method in DIALS]


def _amount(method: str) -> str:
    """The setting that says how much."""
    have = {control.name for control in METHODS[method].controls}
    return next(name for name in AMOUNTS if name in have)


def _set(at: int, old: Call, new: Call | None, on: bool | None = None) -> None:
    """Put another call, or none, in the place of a dial's, unless something else stands there by now."""
    chips = list(bench().chips)
    if at < len(chips) and chips[at].call == old:
        chips[at : at + 1] = [] if new is None else [Chip(new, chips[at].on if on is None else on)]
        change(chips=tuple(chips))


def _dials(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    for number, at in enumerate(dials()):
        _dial(number, at, model, found, running)
    st.button(
        "Another direction" if dials() else "Push along a direction", icon=":material/add:", key="add-dial",
        type="tertiary" if dials() else "primary", on_click=lambda: put(found[0].key),
    )  # fmt: skip


def _dial(number: int, at: int, model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """One direction: which, what is done along it, after which layer, how much."""
    chip = bench().chips[at]
    call, settings = chip.call, chip.call.settings
    names = {each.key: each.name for each in found}
    chosen = settings["direction"] or found[0].key
    names.setdefault(chosen, f"not kept here: {chosen[:12]}")
    known = next((each for each in found if each.key == chosen), None)
    # with another count of dials come other widgets: none takes up what another one was left at
    count = len(dials())
    key = f"dial{number}" if count == 1 else f"dial{number}of{count}"

    def but(**changes: Any) -> None:
        try:
            _set(at, call, call.but(**changes))
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)

    def turned(name: str, shown: Any, apply: Any) -> Any:
        """A callback that acts on another value alone: widgets that are new may call though no one touched them."""
        return lambda: st.session_state[f"{key}:{name}"] == shown or apply(st.session_state[f"{key}:{name}"])

    def kind(method: str) -> None:
        have = {control.name for control in METHODS[method].controls}
        kept = {name: settings[name] for name in ("layer", "where", "positions") if name in settings and name in have}
        amount, old = _amount(method), _amount(call.method)
        kept[amount] = settings[old] if amount == old else 1.0
        _set(at, call, Call(method, direction=chosen, **kept))

    with st.container(border=True, key=f"dial-{number}"):
        with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
            st.session_state[f"{key}:direction"] = chosen
            st.selectbox(
                "Direction", list(names), key=f"{key}:direction", format_func=names.get,
                on_change=turned("direction", chosen, lambda new: but(direction=new, layer=None)),
                help=_about(known) if known else None,
            )  # fmt: skip
            st.session_state[f"{key}:on"] = chip.on
            st.toggle("On", key=f"{key}:on", on_change=turned("on", chip.on, lambda new: _set(at, call, call, new)))
        st.session_state[f"{key}:kind"] = call.method
        st.segmented_control(
            "What is done", [each for each in DIALS if each in METHODS], key=f"{key}:kind", format_func=DIALS.get,
            required=True, label_visibility="collapsed", on_change=turned("kind", call.method, kind),
            help=METHODS[call.method].doc.summary,
        )  # fmt: skip
        name = _amount(call.method)
        low, high = BOUNDS[name]
        value = settings[name]
        value = 0.0 if value is None else float(value)
        reach = 1.0 if settings.get("unit", "shift") == "shift" else 0.25
        st.session_state[f"{key}:amount"] = value
        st.slider(
            name.capitalize(), min(low * reach, value), max(high * reach, value), step=0.1 if reach == 1 else 0.02,
            key=f"{key}:amount", help=AMOUNT_HELP[name], format="%.2g",
            on_change=turned("amount", value, lambda new: but(**{name: round(new, 6)})),
        )  # fmt: skip
        if known and len(known.layers) > 1:
            layer = known.best if settings["layer"] is None else settings["layer"]
            layer = st.session_state[f"{key}:layer"] = min(max(layer, known.layers[0]), known.layers[-1])
            st.slider(
                "After layer", known.layers[0], known.layers[-1], key=f"{key}:layer", help=_layers(known),
                on_change=turned("layer", layer, lambda new: but(layer=new)),
            )  # fmt: skip
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            with st.popover("More", icon=":material/tune:"):
                skip = ("direction", "layer", name)
                controls(call, model, bench().sample, f"{key}:more", lambda new: _set(at, call, new), skip)
            st.button("Remove", icon=":material/close:", type="tertiary", key=f"{key}:remove", on_click=_set,
                      args=(at, call, None))  # fmt: skip
            if name == "strength":
                st.toggle("Its curve", key=f"{key}:curve", help="Dose and response, beside random directions as long")
        if name == "strength" and st.session_state.get(f"{key}:curve"):
            asked = dataclasses.replace(bench().experiment, lens=Call("side_effects"))
            whole = call if settings["direction"] else call.but(direction=chosen)
            _curve(key, asked, number, at, whole, "behaviour", False, running)


def _about(direction: Direction) -> str:
    accuracy = direction.fact("accuracy")
    told = (
        f"; on examples that it was not made of it is right for {100 * accuracy:.0f} %" if accuracy == accuracy else ""
    )
    return show.plain(
        f"{direction.method[:1].upper() + direction.method[1:]}; best after layer {direction.best}{told}."
    )


def _layers(direction: Direction) -> str:
    """Held-out accuracy by layer, in words."""
    accuracy = direction.facts.get("accuracy")
    if accuracy is None or np.isnan(accuracy).all():
        return "How well it tells its examples is not known."
    parts = [f"layer {layer} {100 * each:.0f} %" for layer, each in zip(direction.layers, accuracy, strict=True)]
    return f"Held-out examples told right: {', '.join(parts[:40])}."


# ----------------------------------------------------------------------------------------------------------- the texts


def _texts(experiment: Experiment) -> None:
    """The prompt gone on with, plain and steered side by side, token by token; what differs is marked."""
    sample, draw = experiment.sample, bench().view.draw
    assert isinstance(sample, Prompt)
    changed = bool(experiment.interventions)
    versions = [("Plain", experiment.before()), *([("Steered", experiment)] if changed else [])]
    kept: dict[str, list[str]] = st.session_state.setdefault("steered", {})
    places = []
    for column, (title, _) in zip(st.columns(len(versions), gap="medium"), versions, strict=True):
        with column:
            st.markdown(f"**{title}**")
            places.append(st.empty())
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button("Draw another", icon=":material/casino:", type="tertiary", key="draw",
                  help="Tokens drawn by their chances, the same luck on both sides",
                  on_click=lambda: reshow(draw=draw % 999 + 1))  # fmt: skip
        if draw:
            st.button("The likeliest", type="tertiary", key="likeliest", on_click=lambda: reshow(draw=0))
        st.caption(f"Drawn by chance, number {draw}." if draw else "The likeliest token each time.")
    keys = [f"{version.digest}:{draw}" for _, version in versions]
    missing = [at for at, key in enumerate(keys) if key not in kept]
    pieces = [list(kept.get(key, ())) for key in keys]
    for at in range(len(versions)):
        places[at].html(written(sample.text, pieces[at]))
    try:
        streams = [jobs.paced(versions[at][1].stream(CONTINUED, 1.0 if draw else 0.0, draw)) for at in missing]
        for row in itertools.zip_longest(*streams):
            for at, piece in zip(missing, row, strict=True):
                if piece is not None:
                    pieces[at].append(piece)
                    places[at].html(written(sample.text, pieces[at]))
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    for at in missing:
        kept[keys[at]] = pieces[at]
    while len(kept) > 100:
        kept.pop(next(iter(kept)))
    if changed:
        places[1].html(written(sample.text, pieces[1], differing(pieces[0], pieces[1])))
    for at, (title, _) in enumerate(versions):
        marks = differing(pieces[0], pieces[at]) if at else None
        text = sample.text + "".join(pieces[at])
        data = {"heading": title, "html": written(sample.text, pieces[at], marks), "text": text}
        components.record(f"steering:{title}", "html", data)


def differing(plain: list[str], steered: list[str]) -> list[bool]:
    """Of each steered piece, whether it is none of the plain ones in their order."""
    same = difflib.SequenceMatcher(None, plain, steered, autojunk=False).get_matching_blocks()
    kept = {place for block in same for place in range(block.b, block.b + block.size)}
    return [place not in kept for place in range(len(steered))]


def written(prompt: str, pieces: list[str], changed: list[bool] | None = None) -> str:
    """A text as HTML: the prompt quiet, what was written after it, and what differs underlined and tinted."""
    parts = []
    for at, piece in enumerate(pieces):
        text = html.escape(_visible(piece))
        mark = "background:color-mix(in srgb,#d55e00 26%,transparent);border-bottom:2px solid #d55e00"
        parts.append(f'<span style="{mark}">{text}</span>' if changed and changed[at] else f"<span>{text}</span>")
    body = "".join(parts) or "…"
    style = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:15px;line-height:1.7;unicode-bidi:plaintext"
    asked = f'<span style="opacity:.72">{html.escape(_visible(prompt))}</span>'
    return f'<div class="continued" style="{style}">{asked}{body}</div>'


def _visible(text: str) -> str:
    """Text with what can't be seen made visible, but spaces and line breaks as they are."""
    return "".join(each if each in " \n" else visible(each) for each in text)


# ---------------------------------------------------------------------------------------------------------- the meters


def _asked(experiment: Experiment, key: str, **settings: Any) -> Experiment:
    """The experiment through a lens of this page: what the dials say, and over that what its own settings say."""
    own = experiment.lens.changed if experiment.lens.method == key else {}
    have = {control.name for control in METHODS[key].controls}
    derived = {name: value for name, value in settings.items() if name in have}
    return dataclasses.replace(experiment, lens=Call(key, **{**derived, **own}))


def _luck() -> dict[str, Any]:
    """How the texts that are shown are drawn, as settings of a lens."""
    draw = bench().view.draw
    return {"temperature": 1.0 if draw else 0.0, "seed": draw, "n": CONTINUED}


def _first(found: list[Direction]) -> tuple[int, Call] | None:
    """The dial that the meters and the curves are about: the chosen one, and its place on the bar."""
    places = dials()
    if not places:
        return None
    at = places[min(bench().view.dial, len(places) - 1)]
    call = bench().chips[at].call
    return at, call if call.settings["direction"] else call.but(direction=found[0].key)


def _pushes(experiment: Experiment, at: int, call: Call, **settings: Any) -> Experiment:
    """The experiment without a dial, through dose and response along its direction."""
    others = tuple(chip.call for place, chip in enumerate(bench().chips) if chip.on and place != at)
    derived = {name: call.settings[name] for name in ("direction", "layer", "unit", "where")} | _luck() | settings
    return _asked(dataclasses.replace(experiment, interventions=others), "dose_response", **derived)


def _control(experiment: Experiment, found: list[Direction], running: list[Any]) -> dict[str, float]:
    """What random directions as long as the dial's do in its place, by what is measured."""
    chosen = _first(found)
    if chosen is None or "strength" not in chosen[1].settings or not chosen[1].settings["strength"]:
        return {}
    at, call = chosen
    strength = call.settings["strength"]
    out = {}
    for measure in ("behaviour", "KL", "repetition", "perplexity"):
        lens = dataclasses.replace(
            experiment, lens=Call("side_effects")
        )  # the bench's own settings are of a whole curve
        asked = _pushes(lens, at, call, measure=measure, largest=abs(strength), steps=3, seeds=CONTROLS)
        curve = show.found(asked, running)
        if isinstance(curve, Curve):
            out[measure] = float(curve.y[curve.series.index("random"), 0 if strength < 0 else -1])
    return out


def _meters(experiment: Experiment, found: list[Direction], running: list[Any]) -> None:
    """What the changes on the bar do to this text and what they break elsewhere, beside a random direction as long."""
    st.markdown("**What it does, what it breaks**")
    chosen = _first(found)
    direction = {"direction": chosen[1].settings["direction"]} if chosen else {}
    asked = _asked(experiment, "side_effects", **_luck(), **direction)
    table = show.found(asked, running, LIVE)
    if not isinstance(table, Table):
        return
    remember(asked)
    control = _control(experiment, found, running)
    rows = {
        name: (float(plain), float(changed)) for name, (plain, changed) in zip(table.rows, table.values, strict=True)
    }
    ratio = rows["perplexity ratio"][1]
    name = next((each.name for each in found if each.key == direction.get("direction")), "behaviour")
    items = []
    if "behaviour" in rows:
        plain, changed = rows["behaviour"]
        items.append(_meter(
            f"Behaviour: {name}", plain, changed, control.get("behaviour"), -0.5, 1.5, minus,
            "0 as in the direction's negative examples, 1 as in its positive ones; read by the plain model",
        ))  # fmt: skip
    items += [
        _meter("Perplexity of ordinary text", *rows["perplexity"], control.get("perplexity"), 0.0,
               2 * rows["perplexity"][0], lambda value: f"{value:.3g}",
               f"of the texts that come with Actiscope: {ratio:.2f} times the plain model's", ratio > COSTLY),
        _meter("KL by token", None, rows["KL, continuation"][1], control.get("KL"), 0.0, 2.0,
               lambda value: f"{value:.2g} nats", "how far what is expected next moved, over the steered text"),
        _meter("Repetition", *rows["repetition"], control.get("repetition"), 0.0, 1.0,
               lambda value: f"{100 * value:.0f} %", "runs of three tokens that stood in the text before",
               rows["repetition"][1] > rows["repetition"][0] + REPEATS),
        _meter("Stream moved by", None, rows["stream moved by"][1], None, 0.0, 1.0,
               lambda value: f"{100 * value:.0f} %", "of its length, after the last layer"),
    ]  # fmt: skip
    components.meters("steering:meters", {"items": items, "random": f"{CONTROLS} random directions as long, mean"})
    show.cost(asked, table)


def _meter(
    name: str, plain: float | None, value: float, control: float | None, low: float, high: float, text: Any, help: str,
    worry: bool = False,
) -> dict[str, Any]:  # fmt: skip
    there = [each for each in (plain, value, control) if each is not None]
    return {
        "name": name, "plain": plain, "value": value, "control": control, "low": min(low, *there),
        "high": max(high, *there), "text": text(value), "plainText": None if plain is None else text(plain),
        "controlText": None if control is None else text(control), "help": help, "worry": worry,
    }  # fmt: skip


def minus(value: float) -> str:
    """A number with two digits, and a minus that is one."""
    return f"{round(value, 2) + 0:.2f}".replace("-", "−")


# ---------------------------------------------------------------------------------------------------------- the curves


def _curve(
    key: str, experiment: Experiment, number: int, at: int, call: Call, measure: str, wide: bool,
    running: list[Any],
) -> Experiment | None:  # fmt: skip
    """Dose and response of a dial; a click sets it. Where ordinary text breaks down is marked."""
    settings: dict[str, Any] = {"largest": REACH, "steps": STEPS, "seeds": CONTROLS, "measure": measure}
    if call.settings["unit"] == "norm":
        settings["largest"] = REACH / 4
    asked = _pushes(experiment, at, call, **settings)
    curve = show.found(asked, running)
    cost, again = (
        show.found(dataclasses.replace(asked, lens=asked.lens.but(measure=each, seeds=1)), running)
        for each in ("perplexity", "repetition")
    )
    if not isinstance(curve, Curve) or not isinstance(cost, Curve) or not isinstance(again, Curve):
        st.caption("The curve is being drawn: pushing ever harder, both ways.")
        return None
    y = dict(zip(curve.series, curve.y.tolist(), strict=True))
    plain = float(cost.y[0, np.abs(cost.x).argmin()])
    broken = [bool(p > BROKEN * plain or r > REPEATS) for p, r in zip(cost.y[0], again.y[0], strict=True)]
    low, high = float(np.nanmin(curve.y)), float(np.nanmax(curve.y))
    least, most = {"behaviour": (min(low, 0.0), max(high, 1.0)), "repetition": (0.0, 1.0)}.get(measure, (0.0, high))
    name, now = _amount(call.method), bench().chips[at].call
    components.dose(
        f"steering:dose:{key}",
        {
            "x": curve.x.tolist(), "range": [least, most or 1.0], "wide": wide, "xLabel": curve.x_label,
            "series": [
                {"name": title, "grey": grey, "values": y[of], "low": y[f"{of}, lowest"], "high": y[f"{of}, highest"]}
                for of, title, grey in (("direction", curve.y_label, False), ("random", "random, as long", True))
            ],
            "broken": _stretches(curve.x.tolist(), broken), "now": call.settings[name],
            "label": f"{curve.y_label} over the {curve.x_label}, and where the text breaks down",
        },
        lambda value: _set(at, now, now.but(**{name: float(value["strength"])})),
    )  # fmt: skip
    return asked


def _stretches(x: list[float], broken: list[bool]) -> list[tuple[float, float]]:
    """From where to where the text is broken, up to the last strength at which it is not."""
    out = []
    for bad, some in itertools.groupby(range(len(x)), lambda at: broken[at]):
        places = list(some)
        if bad:
            before, after = max(places[0] - 1, 0), min(places[-1] + 1, len(x) - 1)
            inner = x[0] if places[0] == 0 else (x[before] + x[places[0]]) / 2
            out.append((inner, x[-1] if places[-1] == len(x) - 1 else (x[after] + x[places[-1]]) / 2))
    return out


# ----------------------------------------------------------------------------------------------- what is asked below it


def _panel(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """One more question about the same push, by the lens that answers it."""
    served = [each for each in PANELS if each in METHODS]
    method = bench().lens.method
    if not any(chip.call.method == "inject_task" for chip in bench().chips) and method != "injection_map":
        served = [each for each in served if each != "injection_map"]
    st.session_state["panel"] = method if method in served else served[0]
    chosen = st.segmented_control(
        "Look closer", served, key="panel", format_func=PANELS.get, required=True, label_visibility="collapsed",
        on_change=lambda: change(lens=Call(st.session_state["panel"])),
    )  # fmt: skip
    _ask(chosen, model, found, running)


def _ask(panel: str, model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    ask = {
        "kl_by_token": _tokens, "dose_response": _dose, "condition_scores": _condition, "compare_steering": _compare,
        "direction_quality": _quality,
    }  # fmt: skip
    ask[panel](model, found, running) if panel in ask else _answer(panel, model, found, running)


def _foot(asked: Experiment, result: Result) -> None:
    remember(asked)
    show.cost(asked, result)
    with st.container(horizontal=True, gap="small"):
        with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
            share.explain(METHODS[asked.lens.method])
        share.numbers(asked, result, f"steering:{asked.lens.method}")


def _answer(panel: str, model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """What a lens of numbers says, as a table."""
    chosen = _first(found)
    settings = {name: chosen[1].settings[name] for name in ("direction", "layer")} if chosen else {}
    task = next((chip.call.settings["task"] for chip in bench().chips if chip.call.method == "inject_task"), "")
    asked = _asked(bench().experiment, panel, **settings, task=task)
    result = show.found(asked, running)
    if not isinstance(result, Table | TokenGrid):
        return
    values = result.values if isinstance(result, Table) else result.values[0]
    rows = [
        [row, *(_cell(column, float(value)) for column, value in zip(result.columns, line, strict=True))]
        for row, line in zip(result.rows, values, strict=True)
    ]
    st.markdown(f"**{METHODS[asked.lens.method].name}**" if isinstance(result, Table) else f"**{result.sheets[0]}**")
    components.html("steering:answer", tabled(["", *result.columns], rows))
    if result.note:
        st.caption(show.plain(result.note))
    _foot(asked, result)


def _tokens(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """How far what is expected next moved, at every token of the prompt and of the steered text."""
    asked = _asked(bench().experiment, "kl_by_token", **_luck())
    result = show.found(asked, running)
    if not isinstance(result, TokenScores):
        return
    components.strip(
        "steering:tokens",
        {
            "tokens": [
                {"text": visible(token), "score": float(value)}
                for token, value in zip(result.tokens, result.values, strict=True)
            ],
            "selected": None, "scale": float(result.values.max()) or 1.0, "units": "nats", "verb": "KL",
            "label": "The steered text, by how far what was expected there moved",
            "note": f"Mean {result.score:.2g} nats. The plain model was asked to expect the same text.",
        },
        None,
    )  # fmt: skip
    _foot(asked, result)


def _dose(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    chosen = _first(found)
    if chosen is None or "strength" not in chosen[1].settings:
        st.caption("Choose a dial that pushes: its strength is what the curve is over.")
        return
    own = bench().lens if bench().lens.method == "dose_response" else Call("dose_response")
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.session_state["measure"] = own.settings["measure"]
        st.segmented_control(
            "Measured", list(MEASURES), key="measure", format_func=MEASURES.get, required=True,
            label_visibility="collapsed", on_change=lambda: change(lens=own.but(measure=st.session_state["measure"])),
        )  # fmt: skip
        _which_dial(found)
    at, call = chosen
    asked = _curve("wide", bench().experiment, bench().view.dial, at, call, own.settings["measure"], True, running)
    if asked is not None and (result := jobs.known(asked)) is not None:
        st.caption(
            f"Shaded: ordinary text is over {BROKEN:g} times as surprising as to the plain model, or over a quarter of "
            "the text repeats itself. A click on a strength sets the dial."
        )
        _foot(asked, result)


def _which_dial(found: list[Direction]) -> None:
    """Whose curves are shown, where several dials are."""
    places = dials()
    if len(places) < 2:
        return
    names = {each.key: each.name for each in found}
    st.session_state["which-dial"] = min(bench().view.dial, len(places) - 1)
    st.selectbox(
        "Of the dial", range(len(places)), key="which-dial", label_visibility="collapsed", width=280,
        format_func=lambda n: f"{n + 1}: {names.get(bench().chips[places[n]].call.settings['direction'], 'the first')}",
        on_change=lambda: reshow(dial=st.session_state["which-dial"]),
    )  # fmt: skip


def _condition(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """Where examples and counterexamples of a condition lie, and a threshold to drag; a dial that asks for it obeys."""
    at = next((at for at in dials() if bench().chips[at].call.method == "conditional_steer"), None)
    asks = {} if at is None else bench().chips[at].call.settings
    known = _condition_of(found, asks)
    left, right = st.columns([7, 5], gap="medium")
    with right:
        names = {each.key: each.name for each in sorted(found, key=lambda each: "threshold" not in each.facts)}
        st.session_state["condition"] = known.key
        st.selectbox("Condition", list(names), key="condition", format_func=names.get,
                     on_change=lambda: _use_condition(st.session_state["condition"]),
                     help="Condition vectors first; any direction can be one, with a threshold.")  # fmt: skip
        data = own.examples("condition")
        st.button("Make a condition of these examples", key="fit-condition", icon=":material/play_arrow:",
                  type="tertiary", disabled=data is None, on_click=_fit_condition, args=(data,))  # fmt: skip
        if wanted := st.session_state.get("condition-fit"):
            made = own.fitted(wanted, running)
            if made is not None or wanted not in running:
                st.session_state.pop("condition-fit")
            if made is not None:
                _use_condition(made)
                again()
    if data is None:
        st.caption("Give examples that meet the condition, and others that do not.")
        return
    steered = asks or next((bench().chips[each].call.settings for each in dials()), {})
    last = steered.get("layer")
    if last is None:
        of = own.named(model, steered.get("direction", ""))
        last = of.best if of else model.layers - 1
    try:
        layer = best_layer(known, last) if asks.get("condition_layer") is None else asks["condition_layer"]
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    settings = {"condition": known.key, "layer": layer, "threshold": asks.get("threshold"), "bins": BINS,
                "fires": asks.get("fires", "as fitted")}  # fmt: skip
    asked = _asked(
        dataclasses.replace(bench().experiment, sample=data, interventions=()), "condition_scores", **settings
    )
    fires = asked.lens.settings["fires"]
    if fires == "as fitted" and "fires above" in known.facts:
        fires = "above" if known.fact("fires above", layer) else "below"
    elif fires == "as fitted":  # nothing was: the side that tells the examples better
        sides = {
            each: show.found(dataclasses.replace(asked, lens=asked.lens.but(fires=each)), running) for each in SIDES
        }
        told = {each: curve.y[2].max() for each, curve in sides.items() if isinstance(curve, Curve)}
        fires = max(told, key=lambda each: told[each]) if told else "above"
    asked = dataclasses.replace(asked, lens=asked.lens.but(fires=fires))
    result = show.found(asked, running)
    here = show.found(dataclasses.replace(asked, sample=bench().sample), running)
    if not isinstance(result, Curve) or not isinstance(here, Curve):
        return
    y = dict(zip(result.series, result.y.tolist(), strict=True))
    threshold = asked.lens.settings["threshold"]
    if threshold is None:
        threshold = known.fact("threshold", layer)
    if threshold != threshold:  # the best of what is shown
        threshold = float(result.x[int(np.argmax(y["F1"]))])
    with left:
        components.condition(
            "steering:condition",
            {
                "x": result.x.tolist(), "positive": y["positive"], "negative": y["negative"], "hits": y["hits"],
                "alarms": y["false alarms"], "counts": [len(data.positive), len(data.negative)],
                "threshold": float(threshold), "here": float(here.y[0, 0]), "xLabel": result.x_label,
                "above": fires == "above",
            },
            lambda value: _threshold(at, known.key, layer, float(value["threshold"]), fires),
        )  # fmt: skip
        st.session_state["fires"] = fires
        st.segmented_control(
            "It fires", SIDES, key="fires", required=True, label_visibility="collapsed",
            format_func=lambda side: f"Fires {side}",
            on_change=lambda: _threshold(at, known.key, layer, float(threshold), st.session_state["fires"]),
        )  # fmt: skip
        st.caption(
            "Drag the threshold, or move it by the arrow keys."
            + ("" if asks else " Let go, and the dial pushes only where the condition is met.")
        )
        _foot(asked, result)


def _condition_of(found: list[Direction], asks: dict[str, Any]) -> Direction:
    """The condition that is looked at: of the lens, of the dial that has one, the first that was fitted as one, or the
    direction of the first dial."""
    lens = bench().lens
    chosen = _first(found)
    wanted = (
        lens.settings["condition"] if lens.method == "condition_scores" else "",
        asks.get("condition", ""),
        next((each.key for each in found if "threshold" in each.facts), ""),
        chosen[1].settings["direction"] if chosen else "",
    )
    kept = {each.key: each for each in found}
    return next((kept[key] for key in wanted if key in kept), found[0])


def _fit_condition(data: Contrast) -> None:
    name = f"condition of {len(data.positive)} and {len(data.negative)} texts"
    paired = len(data.positive) == len(data.negative)
    call = Call("condition_vector", centre="pairs" if paired else "all", name=name)
    st.session_state["condition-fit"] = jobs.Fit(bench().model, data, call)


def _use_condition(key: str) -> None:
    """Ask for another condition: on the lens, and on the dial that has one."""
    chips = tuple(
        Chip(chip.call.but(condition=key, threshold=None, condition_layer=None), chip.on)
        if chip.call.method == "conditional_steer"
        else chip
        for chip in bench().chips
    )
    change(lens=Call("condition_scores", condition=key), chips=chips)


def _threshold(at: int | None, key: str, layer: int, threshold: float, fires: str) -> None:
    """Set the threshold of the dial that has a condition; where none has, the first that pushes gets this one."""
    chips = list(bench().chips)
    if at is None:
        at = next((place for place in dials() if chips[place].call.method == "steer"), None)
        if at is None:
            return
        have = {control.name for control in METHODS["conditional_steer"].controls}
        kept = {name: value for name, value in chips[at].call.settings.items() if name in have}
        chips[at] = Chip(Call("conditional_steer", **kept, condition=key), chips[at].on)
    threshold = float(f"{threshold:.6g}")
    new = chips[at].call.but(condition=key, condition_layer=layer, threshold=threshold, fires=fires)
    chips[at] = Chip(new, chips[at].on)
    change(chips=tuple(chips), lens=Call("condition_scores", condition=key))


def _compare(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """Ways to steer on the same prompt, with the same luck, as one table; each also with what it writes."""
    chosen = _first(found)
    own = bench().lens if bench().lens.method == "compare_steering" else Call("compare_steering")
    st.session_state["told"] = own.settings["instruction"]
    offered = _ways(found)
    ways = list(own.settings["ways"])
    st.session_state["ways"] = ways

    def written_out() -> None:
        change(lens=own.but(instruction=st.session_state["told"], ways=tuple(st.session_state["ways"])))

    left, right = st.columns(2, gap="medium")
    with left:
        st.multiselect(
            "Ways beside the dials as they stand", [*offered, *(each for each in ways if each not in offered)],
            key="ways", format_func=lambda way: offered.get(way) or _words(way, model) or way[:60],
            on_change=written_out, max_selections=12, placeholder="another direction, a condition, taking it away …",
        )  # fmt: skip
    with right:
        st.text_input("An instruction before the prompt", key="told", on_change=written_out, placeholder="none",
                      help="What the right words alone would do.")  # fmt: skip
    if chosen is not None:
        _rivals(chosen[1], own, running)
    direction = {"direction": chosen[1].settings["direction"]} if chosen else {}
    asked = _asked(bench().experiment, "compare_steering", **direction)
    table = show.found(asked, running)
    if not isinstance(table, Table):
        return
    rows = []
    for place, (name, values) in enumerate(zip(table.rows, table.values, strict=True)):
        cells = [_cell(column, value) for column, value in zip(table.columns, values, strict=True)]
        way = ways[len(ways) - len(table.rows) + place] if place >= len(table.rows) - len(ways) else ""
        rows.append([offered.get(way) or _words(way, model) or name, *cells, _way_text(asked, name, way)])
    components.html(
        "steering:compared",
        tabled(["", *(COLUMNS.get(each, each) for each in table.columns), "the likeliest text"], rows),
    )
    _foot(asked, table)


def _words(way: str, model: LanguageModel) -> str:
    """A way to steer as its chips say it; "" for one that can't be read."""
    try:
        return " + ".join(in_words(Call.parse(line), model) for line in way.splitlines())
    except Unsuitable:
        return ""


def _ways(found: list[Direction]) -> dict[str, str]:
    """Ways to compare with: each dial by itself and along its direction otherwise, and every other direction."""
    names = {each.key: each.name for each in found}
    chosen = _first(found)
    strength = chosen[1].settings.get("strength", 1.0) if chosen else 1.0
    out: dict[str, str] = {}
    for at in dials():
        call = bench().chips[at].call
        out[str(call)] = f"{DIALS[call.method]}: {names.get(call.settings['direction'], '')}"
        key = call.settings["direction"]
        out.setdefault(
            str(Call("project_out", direction=key, share=1.0, every=True)), f"Take away: {names.get(key, '')}"
        )
        if "conditional_steer" in METHODS and call.method == "steer":
            kept = {name: call.settings[name] for name in ("direction", "layer", "strength")}
            for each in found:
                if "threshold" in each.facts:
                    way = str(Call("conditional_steer", **kept, condition=each.key))
                    out.setdefault(way, f"Push if {each.name}: {names.get(key, '')}")
    for each in found:
        out.setdefault(
            str(Call("steer", direction=each.key, strength=strength or 1.0)), f"Push: {each.name} ({each.method})"
        )
    return out


def _rivals(call: Call, lens: Call, running: list[Any]) -> None:
    """The same behaviour pushed along directions made otherwise, from the same examples."""
    fits = [each for each in RIVALS if each in METHODS]
    wanted: tuple[jobs.Fit, ...] = st.session_state.get("rivals", ())
    if any(st.session_state.pop(show.stopped(each), False) for each in wanted):
        wanted = st.session_state["rivals"] = ()
    with st.popover("Rivals from examples", icon=":material/add:"):
        st.caption(f"{', '.join(own.FITS[each] for each in fits)}: each made of the same examples, pushed as hard.")
        data = own.examples("rivals")
        st.button(
            "Make them", icon=":material/play_arrow:", type="primary", key="make-rivals", disabled=data is None,
            on_click=lambda: st.session_state.update(rivals=tuple(
                jobs.Fit(bench().model, data, Call(each, name=own.FITS[each])) for each in fits
            )),
        )  # fmt: skip
    if not wanted:
        return
    made = [own.fitted(each, running) for each in wanted]
    if any(each in running for each in wanted):
        return
    strength = call.settings.get("strength") or 1.0
    ways = dict.fromkeys(lens.settings["ways"])
    ways |= dict.fromkeys(str(Call("steer", direction=key, strength=strength)) for key in made if key)
    st.session_state["rivals"] = ()
    change(lens=lens.but(ways=tuple(ways)[-12:]))
    again()


COLUMNS = {
    "behaviour": "behaviour", "share that shows it": "show it", "perplexity ratio": "perplexity",
    "repetition": "repetition", "KL": "KL, nats",
}  # fmt: skip


def _cell(column: str, value: float) -> str:
    if value != value:
        return "–"
    if column in ("share that shows it", "repetition", "accuracy"):
        return f"{100 * value:.0f} %"
    return f"{value:.2f} ×" if column == "perplexity ratio" else minus(value)


def _way_text(asked: Experiment, name: str, way: str) -> str:
    """What one row of the comparison goes on with, at its likeliest."""
    sample, told = asked.sample, asked.lens.settings["instruction"]
    assert isinstance(sample, Prompt)
    if name == "instruction":
        sample = Prompt((told if told[-1:].isspace() else f"{told} ") + sample.text)
    try:
        calls = tuple(Call.parse(line) for line in way.splitlines()) if way else ()
        calls = asked.interventions if name == "as it stands" else calls
        version = dataclasses.replace(asked, sample=sample, interventions=calls)
        kept: dict[str, list[str]] = st.session_state.setdefault("steered", {})
        key = f"{dataclasses.replace(version, lens=Call('side_effects')).digest}:0"
        if key not in kept:
            kept[key] = list(jobs.paced(version.stream(CONTINUED)))
        return "".join(kept[key])
    except Unsuitable as problem:
        return str(problem)


def tabled(head: list[str], rows: list[list[str]], marked: int = -1) -> str:
    """A table as HTML, in which nothing is taken as markup; one row may be marked."""
    line = "border-bottom:1px solid color-mix(in srgb,currentColor 16%,transparent)"
    cell = f"text-align:left;padding:5px 14px 5px 0;vertical-align:top;font-weight:400;{line}"
    number = f"{cell};white-space:nowrap;font-variant-numeric:tabular-nums"
    out = "".join(f'<th style="{cell};opacity:.75">{html.escape(each)}</th>' for each in head)
    body = ""
    for place, row in enumerate(rows):
        bold = ";font-weight:600" if place == marked else ""
        cells = [f'<th scope="row" style="{cell}{bold}">{html.escape(_visible(row[0]))}</th>']
        for each in row[1:]:
            style = f"{cell};min-width:220px" if len(each) > 16 else number
            cells.append(f'<td style="{style}{bold}">{html.escape(_visible(each))}</td>')
        body += f"<tr>{''.join(cells)}</tr>"
    style = "border-collapse:collapse;font-size:14px;width:100%"
    return f'<div style="overflow-x:auto"><table style="{style}"><tr>{out}</tr>{body}</table></div>'


def _quality(model: LanguageModel, found: list[Direction], running: list[Any]) -> None:
    """How well the direction tells its examples after each layer; and it as a file."""
    _which_dial(found)
    chosen = _first(found)
    direction = chosen[1].settings["direction"] if chosen else found[0].key
    asked = _asked(bench().experiment, "direction_quality", direction=direction)
    table = show.found(asked, running)
    known = own.named(model, asked.lens.settings["direction"])
    if not isinstance(table, Table) or known is None:
        return
    rows = [
        [f"{row}, best" if place == known.layers.index(known.best) else row,
         *(_cell(column, value) for column, value in zip(table.columns, values, strict=True))]
        for place, (row, values) in enumerate(zip(table.rows, table.values, strict=True))
    ]  # fmt: skip
    st.markdown(f"**{show.plain(known.name)}**, {show.plain(known.method)}")
    components.html("steering:quality", tabled(["after", *table.columns], rows, known.layers.index(known.best)))
    about = known.about
    if "examples" in about:
        shown, hidden = (show.plain(str(each).replace("\n", " ↵ ")[:120]) for each in about["examples"])
        st.caption(
            f"Of {about.get('positive', 0)} and {about.get('negative', 0)} texts, as “{shown}” against “{hidden}”."
        )
    own.downloads(known)
    _foot(asked, table)
