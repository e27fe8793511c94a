"""The bench of Transport: pairs of layers as a staircase, what fires at the target, the life of one feature."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable, sae, transport
from interp.experiment import Call, Experiment
from interp.figures import ramp
from interp.methods import METHODS
from interp.methods.transport._reading import HALF
from interp.model import LanguageModel
from interp.results import FeatureList, FeaturePage, Result, Table, TokenGrid
from interp.samples import Prompt, reference_texts
from interp.sites import Site
from interp.transport import Operators
from pages.ui import components, feature, jobs, labels, operators, share, show
from pages.ui.bar import add
from pages.ui.bench import COLOURED, View, bench, change, embedded, first_transport, remember, reshow, take_along
from pages.ui.controls import sae_name
from pages.ui.features import visible_label
from pages.ui.prompts import TITLES, ready, visible

COLOURS = {
    "efficiency": "Efficiency", "transported": "Explained", "ceiling": "Ceiling", "size": "Size", "this prompt": "Here",
}  # fmt: skip
QUANTITIES = {
    "efficiency": "of what a linear map can carry", "transported": "of the target's variance, held out",
    "ceiling": "of the variance, by the best linear map", "size": "directions are carried",
    "this prompt": "of the variance on this prompt",
}  # fmt: skip
HELP = (
    "Efficiency: the variance that the operator explains, over what the best linear map could. Explained: of the "
    "variance of unseen text. Ceiling: of the best linear map. Size: directions carried above chance. Here: on this "
    "prompt."
)
GROUPS = {
    "carried": ("Carried from {source}", "No feature that fires here is carried from there."),
    "made": ("Made in between", "No feature that fires here is made in between."),
    "open": ("Not clearly either", ""),
}
NOTICE = (
    "What stands at the token itself comes up from layer 0: “capital” (#879) is carried. What has to be gathered from "
    "other tokens is a spark: that a capital must follow (#705) is made in layer 1, and gone after layer 2."
)
MOST = 40
"""Tokens of a prompt up to which the matrix of a feature's life has numbers in it."""


def working(model: LanguageModel) -> None:
    """The whole bench under the experiment bar."""
    st.session_state["said"] = set()
    lens = bench().lens
    policy, key = lens.settings.get("policy", "same"), lens.settings.get("operators", "")
    fitted = transport.find(model, key, policy)
    if not embedded():
        _choices(model, fitted, policy)
    if fitted is None:
        why = "This view is of operators that are not kept here" if key else (
            f"There are no transport operators for {show.plain(model.name)} that read "
            f"{operators.POLICIES[policy].lower()}"
        )  # fmt: skip
        st.info(f"{why}: fit them, from texts of the kind that you will look at.", icon=":material/info:")
    if (fitted is None or st.session_state.get("own-open")) and not embedded():
        operators.fit(model, policy)
    if fitted is None:
        return
    running: list[Experiment] = []
    bar = st.container()
    experiment, (source, target) = bench().experiment, _pair(model, fitted)
    if embedded():
        _alone(model, experiment, fitted, source, target, running)
        if running:
            with bar:
                show.waiting(running, lambda: None)
        return
    if bench() == first_transport():
        st.caption(NOTICE)
    left, right = st.columns([4, 8], gap="medium")
    with left:
        _staircase(model, experiment, fitted, source, target, running)
    name = _sae_of(model, target)
    listed = None
    with right:
        if name:
            listed = _features(model, experiment, fitted, name, source, target, running)
        else:
            st.info(
                f"There is no SAE for what leaves {_layer(target)} of {show.plain(model.name)}: choose another target, "
                "or train one on the Features page.",
                icon=":material/info:",
            )
            st.page_link("pages/features.py", label="Train or add an SAE", icon=":material/scatter_plot:")
    chosen = _chosen(listed)
    if name and chosen is not None:
        _life(model, experiment, fitted, name, chosen, source, target, listed, running)
    if running:
        with bar:
            show.waiting(running, lambda: st.session_state.update({show.stopped(each): True for each in running}))


def _alone(
    model: LanguageModel, experiment: Experiment, fitted: Operators, source: str, target: str, running: list[Experiment]
) -> None:
    """The one figure that the lens is about."""
    name, lens = _sae_of(model, target), experiment.lens.method
    number = _chosen(None)
    if lens == "feature_life" and name and number is not None:
        _life(model, experiment, fitted, name, number, source, target, None, running)
    elif lens == "transported_features" and name:
        _features(model, experiment, fitted, name, source, target, running)
    else:
        _staircase(model, experiment, fitted, source, target, running)


# --------------------------------------------------------------------------------------------------- what is looked at


def stream(name: str) -> Site:
    """The site of a stream by its name in tables."""
    return Site("resid_pre", 0) if name == "embed" else Site("resid_post", int(name))


def _layer(name: str) -> str:
    return "the embedding" if name == "embed" else f"layer {name}"


def _short(name: str) -> str:
    return name if name == "embed" else f"layer {name}"


def _saes(model: LanguageModel) -> dict[Site, str]:
    """The SAEs that read what they write, by their site: the one on the bench, then the first of each site."""
    found: dict[Site, str] = {}
    for each in (bench().lens.settings.get("sae", ""), *sae.available(model)):
        with contextlib.suppress(Unsuitable):  # its lens will say so
            if each and not (loaded := sae.load(each)).is_transcoder:
                found.setdefault(model.resolve(loaded.site), each)
    return found


def _sae_of(model: LanguageModel, target: str) -> str:
    """The SAE of a stream, or "" where there is none."""
    return _saes(model).get(stream(target), "")


def _pair(model: LanguageModel, fitted: Operators) -> tuple[str, str]:
    """The source and the target that are looked at, by name: of the lens, as chosen, or the middle of the model."""
    names, settings = fitted.names, bench().lens.settings
    source, _, target = bench().view.between.partition(">")
    with contextlib.suppress(Unsuitable):  # its lens will say so
        if "sae" in settings:
            target = names[fitted.number(model.resolve(sae.load(settings["sae"] or sae.first(model)).site))]
        if isinstance(settings.get("target"), Site):
            target = names[fitted.number(model.resolve(settings["target"]))]
        if isinstance(settings.get("source"), Site):
            source = names[fitted.number(model.resolve(settings["source"]))]
    if target not in names[1:]:
        target = names[max(2 * len(names) // 3, 1)]
    if source not in names[: names.index(target)]:
        source = names[names.index(target) - 1]
    return source, target


def choose(model: LanguageModel, source: str, target: str, position: int | None = None) -> None:
    """Look at another pair of streams; the open feature stays open where it is of the same layer."""
    lens, view, name = bench().lens, bench().view, _sae_of(model, target)
    kept = {each: lens.settings[each] for each in ("operators", "policy") if each in lens.settings}
    same = bool(name) and name == (lens.settings.get("sae") or name)
    number = lens.settings.get("feature", view.feature) if same else None
    shown = dataclasses.replace(view, feature=number, between="" if name else f"{source}>{target}")
    new = Call("transport_efficiency", **kept)
    if name:
        asked = {} if position is None else {"positions": (position,)}
        new = Call("transported_features", sae=name, source=stream(source), **kept, **asked)
    change(lens=new, view=shown, position=position)


def open_feature(number: int) -> None:
    """Look at the life of a feature of the target."""
    if bench().lens.method == "feature_life":
        change(lens=bench().lens.but(feature=number))
    else:
        change(view=dataclasses.replace(bench().view, feature=number))


def look_at(model: LanguageModel, source: str, target: str, place: int) -> None:
    """Ask which features fire at a token; once more, and all tokens are looked at again."""
    choose(model, source, target, None if bench().position == place else place)


def _chosen(listed: FeatureList | None) -> int | None:
    """The feature whose life is shown: the open one, or the first of the list."""
    settings = bench().lens.settings
    if bench().lens.method == "feature_life":
        return int(settings["feature"])
    if bench().view.feature is not None:
        return bench().view.feature
    return None if listed is None or not len(listed.features) else int(listed.features[0])


def _asked(experiment: Experiment, key: str, fitted: Operators, **settings: Any) -> Experiment:
    """The experiment through another lens of this page, with what both share; through its own, just as it is."""
    lens = experiment.lens
    if lens.method == key:
        return experiment
    have, own = {control.name for control in METHODS[key].controls}, lens.settings
    # what has no policy takes operators of the same token alone
    shared = ("operators", "policy") if "policy" in have or fitted.policy == "same" else ()
    kept = {name: own[name] for name in shared if name in own and name in have}
    return dataclasses.replace(experiment, lens=Call(key, **{**kept, **settings}))


def _run(experiment: Experiment, running: list[Experiment]) -> Any:
    return show.found(experiment, running, warn=_warn)


def _warn(problem: Unsuitable) -> None:
    """Say it once, though several views may be refused for the same reason."""
    said: set[str] = st.session_state["said"]
    if str(problem) not in said:
        said.add(str(problem))
        st.warning(show.plain(str(problem)), icon=":material/info:")


def _choices(model: LanguageModel, fitted: Operators | None, policy: str) -> None:
    """The prompt, where a layer is read from, and by which operators."""
    sample, settings = bench().sample, bench().lens.settings
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        with st.popover("Another prompt", icon=":material/edit:"):
            st.session_state["transport-prompt"] = sample.text if isinstance(sample, Prompt) else ""
            st.text_area("Prompt", key="transport-prompt", height=80, help="Ctrl+Enter to look.",
                         on_change=lambda: _sampled(st.session_state["transport-prompt"]))  # fmt: skip
            for behaviour, cases in ready().items():
                if behaviour != "induction" or bench().model == "induction":
                    st.button(
                        f"{TITLES[behaviour]} {show.plain(cases[0]['prompt'].splitlines()[0][:50])}", type="tertiary",
                        key=f"transport-ready:{behaviour}", on_click=_sampled, args=(cases[0]["prompt"],),
                    )  # fmt: skip
        if "policy" in settings:
            st.session_state["policy"] = fitted.policy if fitted else policy
            st.segmented_control(
                "A layer is read from", list(operators.POLICIES), key="policy", format_func=operators.POLICIES.get,
                required=True, label_visibility="collapsed", help="Where the source of each token stands.",
                on_change=lambda: operators.use("", st.session_state["policy"]),
            )  # fmt: skip
        kept = transport.listed(model, fitted.policy) if fitted else []
        have = {each: f"{name}, {count:,} tokens" for each, name, count in kept}
        if fitted and len(have) > 1:
            st.session_state["operators"] = fitted.key
            st.selectbox(
                "Operators", list(have), key="operators", label_visibility="collapsed", width=260,
                format_func=have.get,
                on_change=lambda: operators.use(st.session_state["operators"], fitted.policy),
            )  # fmt: skip
        st.button(
            "Fit operators", icon=":material/add:", key="own-operators", type="tertiary",
            help="For another model, from your own texts, or from other tokens",
            on_click=lambda: st.session_state.update({"own-open": not st.session_state.get("own-open", False)}),
        )  # fmt: skip


def _sampled(text: str) -> None:
    lens = bench().lens
    try:
        change(
            sample=Prompt(text), position=None, lens=lens.but(positions=()) if "positions" in lens.settings else lens
        )
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)


# ------------------------------------------------------------------------------------------------------- the staircase


def _staircase(
    model: LanguageModel, experiment: Experiment, fitted: Operators, source: str, target: str, running: list[Experiment]
) -> None:
    rank = _rank(fitted)
    asked = _asked(experiment, "transport_efficiency", fitted, rank=rank)
    found = _run(asked, running)
    if not isinstance(found, TokenGrid):
        return
    if bench().lens.method == "transport_efficiency":
        remember(asked)
    st.session_state["colour"] = bench().view.colour
    st.segmented_control(
        "Coloured by", [each for each in COLOURED if each in found.sheets], key="colour", format_func=COLOURS.get,
        required=True, label_visibility="collapsed", help=HELP,
        on_change=lambda: reshow(colour=st.session_state["colour"]),
    )  # fmt: skip
    colour = bench().view.colour
    values, low, high = (_sheet(found, name) for name in (colour, f"{colour} low", f"{colour} high"))
    most = float(fitted.width) if colour == "size" else 1.0
    if colour not in ("size", "efficiency"):  # up to the next tenth
        most = min(np.ceil(10 * float(np.nanmax(values, initial=0.1))) / 10, 1.0)
    rows, columns = found.rows[:-1], found.columns[1:]
    digits = ".0f" if colour == "size" else ".2f"
    cells: list[list[dict[str, Any] | None]] = []
    for r, row in enumerate(rows):
        line: list[dict[str, Any] | None] = []
        for c, column in enumerate(columns, start=1):
            value, least, largest = (float(each[r, c]) for each in (values, low, high))
            where = f"{_short(row)} to {_short(column)}"
            if c <= r:
                line.append(None)
            elif value != value:
                line.append({"value": None, "text": "–", "title": f"{where}: nothing is claimed. {found.note}".strip()})
            else:
                span = f"{least:{digits}}–{largest:{digits}}" if least == least else ""
                title = f"{where}: {COLOURS[colour].lower()} {value:{digits}}" + (f" ({span})" if span else "")
                line.append({
                    "value": value, "text": f"{value:{digits}}", "title": title,
                    **({"low": least, "high": largest, "span": span} if span else {}),
                })  # fmt: skip
        cells.append(line)
    components.staircase(
        "transport:staircase",
        {
            "rows": [_short(each) for each in rows], "columns": [_short(each) for each in columns], "cells": cells,
            "selected": [found.rows.index(source), found.columns.index(target) - 1], "range": [0.0, most],
            "stops": ramp("cividis"), "quantity": QUANTITIES[colour], "low": "0", "high": f"{most:g}",
            "none": "no claim" if any(each and each["value"] is None for line in cells for each in line) else "",
            "label": _finding(found, values, colour, digits),
        },
        lambda value: choose(model, found.rows[int(value["row"])], found.columns[1 + int(value["column"])]),
    )  # fmt: skip
    _choose_rank(fitted)
    _words(found, source, target, fitted)
    _foot(asked, found, "efficiency")
    if embedded():
        return
    _causal(experiment, fitted, source, target, running)
    _next(experiment)


def _rank(fitted: Operators) -> int:
    """The rank of the maps, of the lens or of the view; 0 is all there is."""
    return min(bench().lens.settings.get("rank", bench().view.rank), fitted.width)


def _choose_rank(fitted: Operators) -> None:
    """Maps of low rank carry less, and how much less is what the efficiency says."""
    ranks = [*(2**power for power in range(14) if 2**power < fitted.width), 0]
    now = _rank(fitted)
    st.session_state["rank-of-maps"] = now if now in ranks else min(ranks, key=lambda each: abs(each - now))

    def chosen() -> None:
        rank = int(st.session_state["rank-of-maps"])
        if "rank" in bench().lens.settings:
            change(lens=bench().lens.but(rank=rank))
        else:
            reshow(rank=rank)

    st.select_slider(
        "Rank of the map", ranks, key="rank-of-maps", on_change=chosen,
        format_func=lambda each: "all" if not each else f"{each}",
        help="How many directions an operator may carry. Of full rank it carries all that is linearly there, by "
        "construction: its efficiency is 1.",
    )  # fmt: skip


def _sheet(found: TokenGrid, name: str) -> np.ndarray:
    return found.sheet(name) if name in found.sheets else np.full(found.values.shape[1:], np.nan)


def _finding(found: TokenGrid, values: np.ndarray, colour: str, digits: str) -> str:
    """The staircase in words."""
    name = COLOURS[colour]
    if np.isnan(values).all():
        return f"{name} from layer to layer: nothing is claimed of any pair."
    ends = []
    for best, at in (("highest", np.nanargmax(values)), ("lowest", np.nanargmin(values))):
        row, column = np.unravel_index(int(at), values.shape)
        ends.append(f"{best} from {_layer(found.rows[row])} to {_layer(found.columns[column])}, "
                    f"{values[row, column]:{digits}}")  # fmt: skip
    return f"{name} from layer to layer: {'; '.join(ends)}."


def _words(found: TokenGrid, source: str, target: str, fitted: Operators) -> None:
    """The chosen pair in a sentence."""
    at = found.rows.index(source), found.columns.index(target)

    def number(name: str, percent: bool = True) -> str:
        value, low, high = (float(_sheet(found, each)[at]) for each in (name, f"{name} low", f"{name} high"))
        scale, sign = (100, " %") if percent else (1, "")
        digits = ".1f" if percent and high - low < 0.02 else ".0f"
        span = f" ({scale * low:{digits}}–{scale * high:{digits}})" if low == low else ""
        return f"**{scale * value:{digits}}{sign}**{span}"

    st.markdown(f"##### From {_layer(source)} to {_layer(target)}")
    if np.isnan(_sheet(found, "efficiency")[at]):
        st.caption(show.plain(found.note or "Nothing is claimed of this pair."))
        return
    same = float(_sheet(found, "identity")[at])
    here = float(_sheet(found, "this prompt")[at])
    parts = [
        f"The operator explains {number('transported')} of the variance of unseen text; no linear map could explain "
        f"more than {number('ceiling')}.",
        f"Left as it is, the stream explains {f'{100 * same:.0f} %' if same > 0 else 'nothing'}.",
        f"{number('size', False)} of {fitted.width} directions are carried.",
        f"On this prompt it explains {100 * here:.0f} %." if here == here else "",
    ]
    st.markdown(" ".join(filter(None, parts)))
    if found.note:
        st.caption(show.plain(found.note))


def _causal(experiment: Experiment, fitted: Operators, source: str, target: str, running: list[Experiment]) -> None:
    """Replace the target by the transport: as a change on the bar, or measured over texts beside cheaper ones."""
    if fitted.policy != "same":
        st.caption("Only operators that read the same token can stand in a layer's place.")
        return
    settings = {"source": stream(source), "target": stream(target), "rank": _rank(fitted), **_named(fitted)}
    place = () if bench().position is None else (bench().position,)
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Replace by the transport", icon=":material/swap_horiz:", key="replace", on_click=add,
            args=("transport_replace",), kwargs=settings | {"positions": place},
            help=f"What leaves {_layer(target)} becomes what the operator makes of {_layer(source)}"
            + (", at the chosen token." if place else ", at every token."),
        )  # fmt: skip
        asked = f"check:{source}>{target}>{_rank(fitted)}>{fitted.key}"
        st.button(
            "Does it matter?", icon=":material/fact_check:", type="tertiary",
            help="Puts the transport in the target's place over texts, and compares perplexities with the identity, "
            "the mean and a random map.",
            on_click=lambda: st.session_state.update({asked: True}),
        )  # fmt: skip
    if not (st.session_state.get(asked) or bench().lens.method == "transport_check"):
        return
    own = bench().lens.method == "transport_check"
    base = experiment if own else experiment.before()
    check = _asked(base, "transport_check", fitted, **settings, texts=reference_texts())
    found = _run(check, running)
    if isinstance(found, Table):
        number = st.column_config.NumberColumn(format="%.3g", width="small")
        st.dataframe(
            {"in its place": list(found.rows)} | dict(zip(found.columns, found.values.T, strict=True)),
            hide_index=True, column_config=dict.fromkeys(found.columns, number),
        )  # fmt: skip
        if found.note:
            st.caption(show.plain(found.note))
        _foot(check, found, "check")


def _named(fitted: Operators) -> dict[str, str]:
    """The operators by their key, where the bench names them: a link to the first there are should stay short."""
    return {"operators": fitted.key} if bench().lens.settings.get("operators") and fitted.policy == "same" else {}


def _foot(experiment: Experiment, found: Result, key: str) -> None:
    """What it cost, what it is, its numbers."""
    show.cost(experiment, found)
    with st.container(horizontal=True, gap="small"):
        with st.popover("What am I seeing?", icon=":material/help:", type="tertiary", key=f"what:{key}"):
            share.explain(METHODS[experiment.lens.method])
        with st.popover("Download", icon=":material/download:", type="tertiary", key=f"numbers:{key}"):
            share.numbers(experiment, found, f"transport:{key}")


# -------------------------------------------------------------------------------------------- what fires at the target


def _features(
    model: LanguageModel, experiment: Experiment, fitted: Operators, name: str, source: str, target: str,
    running: list[Experiment],
) -> FeatureList | None:  # fmt: skip
    """The drawing and the list, before and after any change."""
    at, sample = bench().position, experiment.sample
    there = at is not None and isinstance(sample, Prompt) and at < len(model.tokens(sample.text))
    place = (at,) if there else ()
    asked = _asked(experiment, "transported_features", fitted, sae=name, source=stream(source), positions=place)
    versions = [("Before", asked.before()), ("After", asked)] if asked.interventions else [("", asked)]
    results = [(title, _run(each, running)) for title, each in versions]
    if not all(isinstance(found, FeatureList) for _, found in results):
        return None
    found: FeatureList = results[-1][1]
    remember(asked)
    tokens = [visible(each) for each in found.tokens]
    scale = max(float(np.nanmax(each.grid, initial=0)) for _, each in results) or 1.0
    items = _items(model, name, tokens, [each for _, each in results])
    groups = [
        {"kind": kind, "title": title.format(source=_layer(source)), "empty": empty,
         "items": [each for each in items if each["kind"] == kind]}
        for kind, (title, empty) in GROUPS.items()
    ]  # fmt: skip
    panels = [
        {"title": title, "alt": _drawing(each, tokens, source, target), "marks": _marks(each, tokens, scale)}
        for title, each in results
    ]
    places = [each for each in asked.lens.settings["positions"] if each < len(tokens)]
    where = " at " + ", ".join(f"{tokens[each]} (token {each})" for each in places[:3]) if places else ""
    st.markdown(f"##### {show.plain(f'What fires at {_layer(target)}{where}')}")

    def acted(value: dict[str, Any]) -> None:
        if "open" in value:
            open_feature(int(value["open"]))
        else:
            look_at(model, source, target, int(value["at"]))

    components.transport(
        "transport:features",
        {
            "tokens": tokens, "source": _short(source), "target": _short(target), "policy": fitted.policy,
            "panels": panels, "groups": [each for each in groups if each["items"] or each["kind"] != "open"],
            "selected": (chosen := _chosen(found)), "position": places[0] if places else None,
            "focus": places[0] if places else _strongest(found, chosen),
        },
        acted,
    )  # fmt: skip
    st.caption(show.plain(" ".join(filter(None, (
        f"Features of {sae_name(name)}. Carried: the whole interval of the held-out R² lies above {HALF:g}; made: "
        "below; where it is not known, the share here decides.", found.note,
    )))))  # fmt: skip
    _foot(asked, found, "features")
    return found


def _strongest(found: FeatureList, number: int | None) -> int:
    """The token where a feature fires most; the last one where it is silent."""
    at = np.flatnonzero(found.features == number)
    return int(found.grid[at[0]].argmax()) if len(at) else len(found.tokens) - 1


def _kind(found: FeatureList, at: int) -> str:
    """The verdict on a feature: carried, made or open."""
    verdict = found.reasons[at].partition(" ")[0] if found.reasons else ""
    return verdict if verdict in GROUPS else "open"


def _items(model: LanguageModel, name: str, tokens: list[str], results: list[FeatureList]) -> list[dict[str, Any]]:
    """The features of a list, and those of the list before that are silent now."""
    last = results[-1]
    own, fires = labels.of(name), feature.names(model, name)
    found = []
    for at, result in [(at, each) for each in reversed(results) for at in range(len(each.features))]:
        number = int(result.features[at])
        if number in {each["feature"] for each in found}:
            continue
        promotes = visible_label(result.labels[at]) if result.labels else ""
        r2 = result.held_out[at]
        places = np.flatnonzero(result.grid[at] > 0)
        best = sorted(places[np.argsort(-result.grid[at][places], kind="stable")][:3].tolist())
        where = ", ".join(tokens[each] for each in best) + (" …" if len(places) > 3 else "")
        shares = result.carried[at][places]
        mean = float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan")
        strength = f"{float(result.grid[at].max(initial=0)):.3g}"
        if result is not last:
            strength += " before, silent now"
        elif len(results) == 2 and number in results[0].features:
            earlier = results[0].grid[results[0].features.tolist().index(number)]
            strength = f"{float(earlier.max(initial=0)):.3g} → {strength}"
        found.append(
            {
                "feature": number, "kind": _kind(result, at),
                "label": own.get(number) or fires.get(number) or promotes or "no tokens",
                "promotes": promotes if fires or number in own else "",
                "value": _interval(r2) if np.isfinite(r2).all() else "too rare to say",
                "r2": [float(each) for each in r2] if np.isfinite(r2).all() else None,
                "note": " · ".join(filter(None, (
                    f"at {where}" if where else "", f"{100 * mean:.0f} % was there" if mean == mean else "",
                    f"activation {strength}",
                ))),
                "order": float(np.nan_to_num(r2[0], nan=HALF)),
            }
        )  # fmt: skip
    carried = sorted((each for each in found if each["kind"] != "made"), key=lambda each: -each["order"])
    return carried + sorted((each for each in found if each["kind"] == "made"), key=lambda each: each["order"])


def _marks(found: FeatureList, tokens: list[str], scale: float) -> list[dict[str, Any]]:
    """A mark for each feature and token where it fires."""
    marks = []
    for at, place in np.argwhere(np.nan_to_num(found.grid) > 0).tolist():
        share, number = float(found.carried[at, place]), int(found.features[at])
        said = f", {100 * share:.0f} % was there" if share == share else ""
        marks.append({
            "feature": number, "token": place, "size": float(found.grid[at, place]) / scale,
            "carried": share if share == share else None,
            "note": f"#{number} at {tokens[place]}: {float(found.grid[at, place]):.3g}{said}",
        })  # fmt: skip
    return marks


def _drawing(found: FeatureList, tokens: list[str], source: str, target: str) -> str:
    """The drawing in words."""
    kinds = [_kind(found, at) for at in range(len(found.features))]
    return (
        f"Of {len(kinds)} features that fire at {_layer(target)}, {kinds.count('carried')} are carried from "
        f"{_layer(source)} and {kinds.count('made')} are made in between."
    )


# ------------------------------------------------------------------------------------------------- one feature's life


def _life(
    model: LanguageModel, experiment: Experiment, fitted: Operators, name: str, number: int, source: str, target: str,
    listed: FeatureList | None, running: list[Experiment],
) -> None:  # fmt: skip
    asked = _asked(experiment, "feature_life", fitted, sae=name, feature=number)
    own, fires = labels.of(name).get(number), feature.names(model, name).get(number)
    called = " → ".join(filter(None, (own or fires, _promotes(listed, number))))
    st.markdown(f"##### {show.plain(f'Life of feature #{number}' + (f', {called}' if called else ''))}")
    left, right = (st.container(), None) if embedded() else st.columns([9, 3], gap="medium")
    with left:
        found = _run(asked, running)
        if isinstance(found, TokenGrid):
            if bench().lens.method == "feature_life":
                remember(asked)
            _through(model, found, source, target)
            _foot(asked, found, "life")
    if right is not None:
        with right:
            _steer(name, number, fitted, source, target, listed)


def _promotes(listed: FeatureList | None, number: int) -> str:
    """What a feature of a list promotes."""
    if listed is None or not listed.labels or number not in listed.features:
        return ""
    return visible_label(listed.labels[listed.features.tolist().index(number)])


def _through(model: LanguageModel, found: TokenGrid, source: str, target: str) -> None:
    """Layers against tokens, the last layer on top, with the curve of R² beside it."""
    sheet = found.sheet("activation")
    largest = float(np.nanmax(np.abs(sheet), initial=0)) or 1.0
    tokens, rows = [visible(each) for each in found.columns], list(found.rows)[::-1]
    # what is read where nothing fires is small and of no interest
    values = [
        [float(f"{v:.4g}") if v == v and v > 0.03 * largest else None for v in row] for row in sheet[::-1].tolist()
    ]
    curve = [[float(each) for each in row] if np.isfinite(row).all() else None for row in found.row_values[::-1]]
    before = found.rows.index(target)

    def picked(value: dict[str, Any]) -> None:
        row = rows[int(value["row"])]
        choose(model, row if found.rows.index(row) < before else source, target, value.get("column", bench().position))

    components.life(
        "transport:life",
        {
            "rows": [_short(each) for each in rows], "columns": tokens, "values": values,
            "texts": [[f"{v:.2g}" if v is not None else "" for v in row] for row in values]
            if len(tokens) <= MOST else None,
            "notes": [[f"{v:.3g}" if v == v else "not read here" for v in row] for row in sheet[::-1].tolist()],
            "curve": curve,
            "sources": [found.rows.index(each) < before for each in rows], "source": rows.index(source),
            "position": bench().position, "range": [0.0, largest],
            "focus": int(np.nan_to_num(sheet[before]).argmax()) if bench().position is None else bench().position,
            "stops": ramp("cividis"),
            "quantity": "activation, as read from that layer", "low": "0", "high": f"{largest:.2g}",
            "label": "What is read of the feature, by layer and token",
            "curveLabel": found.note,
        },
        picked,
    )  # fmt: skip
    silent = "" if np.nan_to_num(sheet[before]).any() else " It does not fire on this prompt."
    st.markdown(show.plain(found.note) + silent)


def minus(value: float) -> str:
    """A number with two digits, and a minus that is one; no minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _interval(r2: np.ndarray) -> str:
    return f"R² {minus(r2[0])} ({minus(r2[1])} to {minus(r2[2])})"


def _next(experiment: Experiment) -> None:
    """What comes next, before and after the changes on the bar."""
    lens = Call("next_tokens", top=5)
    try:
        after = jobs.run(dataclasses.replace(experiment, lens=lens))
        plain = jobs.run(dataclasses.replace(experiment.before(), lens=lens.but(top=100)))
    except Unsuitable as problem:
        _warn(problem)
        return
    assert isinstance(after, Table) and isinstance(plain, Table)
    changed = bool(experiment.interventions)
    earlier = dict(zip(plain.rows, plain.values[:, 0], strict=True))
    rows = list(zip(after.rows, after.values[:, 0], strict=True))
    items = [
        {"label": visible(row), "p": float(p), "before": float(earlier.get(row, 0.0)) if changed else None,
         "first": not place, "second": False}
        for place, (row, p) in enumerate(rows)
    ]  # fmt: skip
    st.markdown("**What comes next**")
    components.guesses("transport:next", items, None, "thick: after your changes, thin: before" if changed else "")


def _steer(name: str, number: int, fitted: Operators, source: str, target: str, listed: FeatureList | None) -> None:
    """Move the feature by moving the source along what the operator reads; or replace it alone."""
    if fitted.policy != "same":
        st.caption("The life of a feature is read from the same token, whatever is chosen above.")
        return
    there = listed is not None and number in listed.features
    here = float(listed.grid[listed.features.tolist().index(number)].max(initial=0)) if listed and there else 0.0
    place = () if bench().position is None else (bench().position,)
    most = float(f"{2 * max(here, 1.0):.2g}")
    st.slider(
        f"Move it at {_layer(target)} by", -most, most, -here or most / 2, most / 40, key=f"steer:{name}:{number}",
        help=f"In units of its activation, which is {here:.3g} here at most.", format="%.2g",
    )  # fmt: skip
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Steer upstream", icon=":material/moving:", key="steer", on_click=lambda: add(
                "steer_upstream", source=stream(source), sae=name, feature=number,
                by=float(st.session_state[f"steer:{name}:{number}"]), positions=place, **_named(fitted),
            ),
            help=f"Moves {_layer(source)} along the direction that the operator turns into this feature"
            + (", at the chosen token." if place else ", at every token."),
        )  # fmt: skip
        st.button(
            "Replace it alone", icon=":material/swap_horiz:", type="tertiary", key="replace-alone", on_click=add,
            args=("transport_replace",),
            kwargs={"source": stream(source), "target": stream(target), "sae": name, "features": (number,),
                    "positions": place, **_named(fitted)},
            help=f"This feature becomes what {_layer(source)} has of it; all else stays.",
        )  # fmt: skip
    if st.button("Its page among the features", icon=":material/scatter_plot:", type="tertiary", key="to:features"):
        take_along(FeaturePage)
        change(lens=Call("feature_page", sae=name, feature=number), view=View())
        st.switch_page("pages/features.py")
