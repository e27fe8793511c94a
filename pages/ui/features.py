"""The bench of Features: a search, the prompt or photo coloured by the open feature, a list or the map, a panel."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable, feature_index, sae
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.model import LanguageModel, Model, VisionModel
from interp.results import FeatureList, FeaturePage, Table
from interp.samples import Image, Prompt
from pages.ui import components, feature, jobs, labels, saes, share, show
from pages.ui.bench import bench, change, embedded, first_feature, remember, reshow
from pages.ui.controls import sae_name
from pages.ui.prompts import TITLES, ready, visible

KINDS = {
    "best": "Best of all", "contexts": "In contexts", "promoted": "Promoted tokens", "spreading": "Spreading",
}  # fmt: skip
HERE = "lookup"
"""The kind of search that asks what fires on the prompt or photo."""
RANKS = {"activation": "Activation", "attribution": "Attribution", "surprise": "Surprise"}
HELP = {
    "best": "All kinds of search, merged by rank.",
    "contexts": "Features that fire on these words in their best contexts.",
    "promoted": "Features that make these words likelier next.",
    "spreading": "From the words to features, their contexts, and the features near those.",
    HERE: "Features that fire on the prompt.",
}
SHOWN = {"activation": "Map: fires here", "density": "Map: how often", "table": "Table"}
NOTICE = (
    "This feature fires where a capital has to follow, and promotes capitals of all countries. Turn its dial to 0: the "
    "model still knows that it is about France, and answers French."
)
AROUND = 9, 5
"""Tokens of a context that a list shows before and after the one that fired."""


def working(model: Model) -> None:
    """The whole bench under the experiment bar."""
    names = sae.available(model)
    call = bench().lens
    name = call.settings.get("sae") or (sae.first(model) if names else "")
    if not name:
        st.info(f"There is no SAE for {show.plain(model.name)} here yet: add your own, or train one.")
        saes.own(model, "")
        return
    if not embedded():
        _search(model, name, names)
        if st.session_state.get("own-open"):
            saes.own(model, name)
    try:
        sae.load(name).check(model)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    experiment = bench().experiment
    found = _found(experiment)
    opened = _opened(experiment, name, found)
    of = opened.lens.settings["sae"] if opened else name
    bare = saes.indexless(model, of)
    page = _page(opened) if opened and not bare else None
    if page is None and found is None:
        if bare and not st.session_state.get("own-open"):
            saes.index(model, of)
        return
    sample = experiment.sample
    if isinstance(model, LanguageModel) and isinstance(sample, Prompt):
        _strip(model, sample, page)
    if embedded():
        if isinstance(found, FeatureList):
            _list(model, experiment, found, name, page)
        elif page is not None and opened is not None:
            if isinstance(model, VisionModel) and isinstance(sample, Image):
                _patches(model, sample, page)
            feature.shown(model, opened, page)
        return
    if experiment == first_feature().experiment:
        st.caption(NOTICE)
    with st.container(key="features-map" if found is None else "features-list"):
        finder, panel = st.columns([5, 7], gap="medium")
    with finder:
        if isinstance(model, VisionModel) and isinstance(sample, Image):
            _patches(model, sample, page)
        if isinstance(found, FeatureList):
            _list(model, experiment, found, name, page)
        elif page is not None and opened is not None:
            _map(model, opened, page)
        if page is not None and opened is not None:
            feature.near(model, opened, page)
    with panel:
        if page is not None and opened is not None:
            feature.panel(model, experiment, opened, page)
        elif bare and not st.session_state.get("own-open"):
            saes.index(model, of)


def close() -> None:
    """Back from a list to the map, with the same feature open."""
    view, call = bench().view, bench().lens
    number = view.feature if view.feature is not None else st.session_state.get("open-feature", 0)
    lens = Call("feature_page", sae=view.of or call.settings["sae"], feature=number)
    change(lens=lens, position=None, view=dataclasses.replace(view, feature=None, of=""))


def _found(experiment: Experiment) -> FeatureList | None:
    """The list that is searched for, if anything is."""
    if experiment.lens.method in ("feature_page", "feature_map"):
        return None
    found = run(experiment)
    if isinstance(found, FeatureList):
        remember(experiment)
        return found
    return None


def _opened(experiment: Experiment, name: str, found: FeatureList | None) -> Experiment | None:
    """The experiment that is the open feature's page."""
    call, view = experiment.lens, bench().view
    settings = {"sae": name, "index": call.settings.get("index", "")}
    if call.method == "feature_page":
        settings["feature"] = call.settings["feature"]
    elif view.feature is not None:
        settings |= {"feature": view.feature} | ({"sae": view.of, "index": ""} if view.of else {})
    elif found is not None and len(found.features):
        of = found.saes[0]
        settings |= {"feature": int(found.features[0])} | ({"sae": of, "index": ""} if of != name else {})
    elif found is not None:
        return None
    else:
        settings["feature"] = 0
    st.session_state["open-feature"] = settings["feature"]
    lens = Call("feature_page", **settings)
    # its own dial left out: where it fires is asked of what comes to the dial
    others = tuple(each for each in experiment.interventions if not feature.turns(each, lens))
    return dataclasses.replace(experiment, lens=lens, interventions=others)


def _page(opened: Experiment) -> FeaturePage | None:
    found = run(opened)
    if isinstance(found, FeaturePage):
        remember(opened)
        return found
    return None


def run(experiment: Experiment) -> Any:
    """A result, or None and a sentence why there is none; long work under a bar, with Stop."""
    try:
        if jobs.known(experiment) is not None or jobs.estimate(experiment) <= jobs.QUICK:
            return jobs.run(experiment)
        state = jobs.later(experiment)
        if isinstance(state, jobs.Job):
            show.waiting([experiment], close)
            return None
        return state
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None


# ---------------------------------------------------------------------------------------------------------- the search


def _search(model: Model, name: str, names: list[str]) -> None:
    """The search box, its kinds, and which SAE is looked through."""
    call = bench().lens
    here = call.method == "feature_lookup"
    words = isinstance(model, LanguageModel)
    other = {"contexts": "In photos", "promoted": "Promoted classes", HERE: "Fires on the photo"}
    kinds = {**KINDS, HERE: "Fires on the prompt", **({} if words else other)}
    wide, narrow = st.columns([5, 2], gap="medium", vertical_alignment="bottom")
    with narrow, st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        st.session_state["sae-choice"] = name
        st.selectbox(
            "SAE", [*names, *([] if name in names else [name])], key="sae-choice", format_func=sae_name,
            help="Which SAE or transcoder is looked through.",
            on_change=lambda: _use(st.session_state["sae-choice"]),
        )  # fmt: skip
        st.button(
            "Your own", icon=":material/add:", key="own-sae", help="Add your own SAE, train one, or build an index",
            on_click=lambda: st.session_state.update({"own-open": not st.session_state.get("own-open", False)}),
        )  # fmt: skip
    with wide:
        sample = bench().sample
        prompted = here and isinstance(sample, Prompt)
        typed = sample.text if prompted and isinstance(sample, Prompt) else call.settings.get("words", "")
        st.session_state["words"] = typed
        st.text_input(
            "The prompt that they fire on" if prompted else "Search the features", key="words", on_change=_typed,
            icon=":material/search:", max_chars=10_000,
            placeholder="A word: France, and, were, …" if words else "A class: cat, car, …",
            help="Enter searches; an empty box leads back to the map.",
        )  # fmt: skip
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        now = HERE if here else call.settings["how"] if call.method == "feature_search" else None
        st.session_state["how"] = now
        st.segmented_control(
            "Kind of search", list(kinds), key="how", format_func=kinds.get, on_change=_kind,
            label_visibility="collapsed",
        )  # fmt: skip
        if call.method != "feature_page":
            st.button("Back to the map", icon=":material/scatter_plot:", type="tertiary", on_click=close)


def _use(name: str) -> None:
    """Look through another SAE, at its first feature that fires here."""
    change(lens=Call("feature_lookup", sae=name), view=dataclasses.replace(bench().view, feature=None, of=""))


def _sae() -> str:
    return bench().lens.settings.get("sae", "")


def _typed() -> None:
    words, call = st.session_state["words"], bench().lens
    view = dataclasses.replace(bench().view, feature=None, of="")
    try:
        if call.method == "feature_lookup" and isinstance(bench().sample, Prompt):
            change(sample=Prompt(words), lens=call.but(positions=()), position=None, view=view)
        elif not words.strip():
            close()
        else:
            how = call.settings["how"] if call.method == "feature_search" else "best"
            change(lens=Call("feature_search", sae=_sae(), words=words, how=how), view=view)
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)


def _kind() -> None:
    kind, call = st.session_state["how"], bench().lens
    view = dataclasses.replace(bench().view, feature=None, of="")
    words = call.settings.get("words") or st.session_state.get("last-words", "")
    if call.method == "feature_search":
        st.session_state["last-words"] = words
    if kind is None:
        close()
    elif kind == HERE:
        change(lens=Call("feature_lookup", sae=_sae()), view=view, position=None)
    elif words:
        change(lens=Call("feature_search", sae=_sae(), words=words, how=kind), view=view)
    else:
        change(lens=Call("feature_search", sae=_sae(), words=_first_word(), how=kind), view=view)


def _first_word() -> str:
    """A word of the prompt to search for where none was typed: its longest."""
    sample = bench().sample
    return max(sample.text.split(), key=len) if isinstance(sample, Prompt) else ""


# ------------------------------------------------------------------------------------------------ the prompt, the photo


def _patches(model: VisionModel, sample: Image, page: FeaturePage | None) -> None:
    """The photo as the layer's patches."""
    if page is None or page.here.ndim != 2:
        show.bare("features:photo", sample.picture, sample.sha256, str(sample), "")
        return
    name = f"#{page.feature} {feature.title(model, page)}"
    fires = int((page.here > 0).sum())
    components.patches(
        "features:patches",
        {
            "photo": show.photo_url(sample.picture, sample.sha256),
            "box": model.box(sample),
            "grid": [[float(f"{value:.4g}") for value in row] for row in page.here],
            "scale": max(float(page.here.max()), 0.4 * page.maximum) or 1.0,
            "selected": bench().position,
            "alt": f"{sample}. {name} fires on {fires} of {page.here.size} patches. {feature.where(page.here)}",
            "label": "Patches of the photo",
            "note": f"{name} fires on {fires} of {page.here.size} patches. Click a patch to ask what fires there.",
        },
        lambda value: look_at(model, int(value["at"])),
    )


def _strip(model: LanguageModel, sample: Prompt, page: FeaturePage | None) -> None:
    tokens = model.tokens(sample.text)
    here = page.here if page is not None and page.here.shape == (len(tokens),) else np.zeros(len(tokens))
    scale = max(float(here.max(initial=0)), 0.4 * page.maximum if page is not None else 0.0) or 1.0
    what = ""
    if page is not None:
        fires = f"{int((here > 0).sum())} of {len(tokens)} tokens" if here.any() else "none of them"
        what = f"#{page.feature} {feature.title(model, page)} fires on {fires}. "
    components.strip(
        "features:strip",
        {
            "tokens": [{"text": visible(each), "score": float(v)} for each, v in zip(tokens, here, strict=True)],
            "selected": bench().position,
            "scale": scale,
            "units": "",
            "verb": "fires",
            "label": "The prompt's tokens",
            "note": f"{what}Click a token to ask which features fire there.",
        },
        lambda value: look_at(model, int(value["at"])),
    )  # fmt: skip
    if embedded():
        return
    with st.popover("Another prompt", icon=":material/edit:", type="tertiary"):
        st.session_state["feature-prompt"] = sample.text
        st.text_area("Prompt", key="feature-prompt", height=80, on_change=_prompt, help="Ctrl+Enter to look.")
        for behaviour, cases in ready().items():
            if behaviour != "induction" or bench().model == "induction":
                st.button(
                    f"{TITLES[behaviour]} {show.plain(cases[0]['prompt'].splitlines()[0][:50])}", type="tertiary",
                    key=f"feature-ready:{behaviour}", on_click=_sampled, args=(cases[0]["prompt"],),
                )  # fmt: skip


def _prompt() -> None:
    _sampled(st.session_state["feature-prompt"])


def _sampled(text: str) -> None:
    lens = bench().lens
    try:
        change(
            sample=Prompt(text), position=None, lens=lens.but(positions=()) if "positions" in lens.settings else lens
        )
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)


def look_at(model: Model, place: int) -> None:
    """Ask which features fire at a token, or at a patch; the open feature stays open."""
    call, view = bench().lens, bench().view
    # dense features fire strongly everywhere: what is rare says more of a place
    by = "activation" if saes.indexless(model, _sae() or sae.first(model)) else "surprise"
    kept = call.settings if call.method == "feature_lookup" else {"sae": _sae(), "by": by}
    change(lens=Call("feature_lookup", **{**kept, "positions": (place,)}), position=place,
           view=dataclasses.replace(view, feature=None, of=""))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the list


def _list(model: Model, experiment: Experiment, found: FeatureList, name: str, page: FeaturePage | None) -> None:
    call = experiment.lens
    if call.method == "feature_lookup":
        _ranks(model, call)
    elif call.method == "feature_neighbours":
        st.caption(show.plain(f"Features like #{call.settings['feature']}, by their {call.settings['by']}."))
    largest = float(np.abs(found.values).max(initial=0)) or 1.0
    own = {each: labels.of(each) for each in set(found.saes)}
    fires = {each: feature.names(model, each) for each in set(found.saes)}
    items = []
    for at, number in enumerate(found.features.tolist()):
        of = found.saes[at] if found.saes else name
        example = found.examples[at] if found.examples else ()
        density = float(found.density[at]) if len(found.density) else float("nan")
        opened = page is not None and page.feature == number and page.sae == of
        items.append(
            {
                "feature": number,
                "sae": of,
                "label": own[of].get(number) or fires[of].get(number) or visible_label(found.labels[at]),
                "promotes": visible_label(found.labels[at]) if fires[of] or number in own[of] else "",
                "own": number in own[of],
                "where": sae_name(of) if len(set(found.saes)) > 1 else "",
                "value": f"{found.values[at]:.3g}",
                "share": float(found.values[at]) / largest,
                "tokens": marked(example, int(found.marks[at])) if example else None,
                "reason": found.reasons[at] if found.reasons else "",
                "density": feature.often(density, feature.places(model)),
                "selected": opened,
                **(_best(model, of, number) if isinstance(model, VisionModel) else {}),
            }
        )
    components.feature_list(
        "features:list", items, _acted, f"{len(items)} features, best first", "No feature answers to this; try "
        "another word, or another kind of search.",
    )  # fmt: skip
    st.caption(show.plain(" ".join(filter(None, (f"Numbers: {found.units}.", found.note)))))
    show.cost(experiment, found)
    with st.container(horizontal=True, gap="small"):
        with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
            share.explain(METHODS[call.method])
        with st.popover("Download", icon=":material/download:", type="tertiary", key="numbers:list"):
            share.numbers(experiment, found, "features:list")


def _best(model: Model, name: str, number: int) -> dict[str, Any]:
    """The photo on which a feature fires most, and where on it."""
    index = feature_index.find(model, sae.load(name))
    top = index.page(number, model).top if index is not None else ()
    if not top or top[0].image is None or top[0].grid is None:
        return {}
    best, (height, width) = top[0], top[0].grid
    row, column = divmod(best.at, width)
    return {
        "image": "data:image/jpeg;base64," + base64.b64encode(best.image).decode(),
        "spot": [column / width, row / height, 1 / width, 1 / height],
        "alt": best.label or "the photo on which it fires most",
    }


def _ranks(model: Model, call: Call) -> None:
    """Ranked by what, and in which layers."""
    place = call.settings["positions"]
    if place and isinstance(bench().sample, Prompt) and isinstance(model, LanguageModel):
        tokens = model.tokens(bench().sample.text)  # type: ignore[union-attr]
        where = ", ".join(f"{visible(tokens[each])} (token {each})" for each in place[:4] if each < len(tokens))
    else:
        where = f"patch {', '.join(map(str, place[:4]))}" if place else "any place of it"
    st.caption(show.plain(f"What fires at {where}:"))
    with st.container(horizontal=True, gap="small"):
        st.session_state["rank"], st.session_state["in-layers"] = call.settings["by"], call.settings["layers"]
        st.segmented_control(
            "Ranked by", list(RANKS), key="rank", format_func=RANKS.get, required=True, label_visibility="collapsed",
            help="Attribution: to the logit of the first guess, or of the target chosen in the bar.",
            on_change=lambda: change(lens=bench().lens.but(by=st.session_state["rank"])),
        )  # fmt: skip
        if len(sae.available(model)) > 1:
            st.segmented_control(
                "Layers", ["this", "all"], key="in-layers", required=True, label_visibility="collapsed",
                format_func=lambda each: "This layer" if each == "this" else "All layers",
                on_change=lambda: change(lens=bench().lens.but(layers=st.session_state["in-layers"])),
            )  # fmt: skip


def _acted(value: dict[str, Any]) -> None:
    if "like" in value:
        feature.like(int(value["like"]), str(value["sae"]))
    else:
        feature.open_feature(int(value["open"]), str(value.get("sae") or ""))


def marked(tokens: tuple[str, ...], at: int) -> list[list[Any]]:
    """The tokens around the one that fired, as pieces and whether they did."""
    first, last = max(at - AROUND[0], 0), at + AROUND[1] + 1
    pieces: list[list[Any]] = [[visible_text(each), place == at] for place, each in enumerate(tokens)][first:last]
    return [["…", False], *pieces] if first else pieces


def visible_text(token: str) -> str:
    """A token within running text: only what can't be seen at all is made visible."""
    return "".join(each if each == " " else visible(each) for each in token)


def visible_label(label: str) -> str:
    return visible_text(label).strip()


# -------------------------------------------------------------------------------------------------------------- the map


def _map(model: Model, opened: Experiment, page: FeaturePage) -> None:
    """All features by what they write; or as a table."""
    call = Call("feature_map", sae=page.sae, index=opened.lens.settings["index"])
    table = run(dataclasses.replace(opened, lens=call))
    if not isinstance(table, Table):
        return
    view = bench().view
    st.session_state["shown"] = view.shown
    st.segmented_control(
        "Show all features as", list(SHOWN), key="shown", format_func=SHOWN.get, required=True,
        label_visibility="collapsed", on_change=lambda: reshow(shown=st.session_state["shown"]),
    )  # fmt: skip
    x, y, density, maximum, here = table.values.T
    mine = labels.of(page.sae)
    fires = feature.names(model, page.sae)
    names = [fires.get(each) or visible_label(row) for each, row in enumerate(table.rows)]
    if view.shown == "table":
        _table(table, names, mine)
        return
    if view.shown == "activation":
        shares = np.clip(here / np.maximum(maximum, 1e-12), 0, 1) * (here > 0)
        low, high, note = "silent", "at its maximum", f"{int((here > 0).sum()):,} of {len(x):,} fire here."
    else:
        logs = np.log10(np.maximum(density, 1e-9))
        least = float(logs[density > 0].min(initial=0))
        shares = np.where(density > 0, 0.04 + 0.96 * (logs - least) / max(float(logs.max(initial=0)) - least, 1e-9), 0)
        low, high = feature.percent(10**least), feature.percent(float(density.max(initial=0)))
        note = f"{int((density == 0).sum()):,} of {len(x):,} never fired."
    components.feature_map(
        "features:map",
        {
            "count": len(x), "x": _packed(_unit(x), "<u2"), "y": _packed(_unit(y), "<u2"),
            "value": _packed(shares, "u1"), "labels": names, "own": mine, "selected": page.feature,
            "by": "density" if view.shown == "density" else "activation", "low": low, "high": high, "note": note,
            "notes": [feature.often(float(d), feature.places(model)) + (f", {h:.3g} here" if h > 0 else "")
                      for d, h in zip(density, here, strict=True)] if len(x) <= 4096 else None,
            "label": f"Map of {len(x):,} features; #{page.feature} {feature.title(model, page)} is open. "
            "Arrows go to the next one, Enter opens it, plus and minus zoom.",
        },
        _acted,
    )  # fmt: skip
    st.caption("Near each other: features that write alike. Distances between groups mean nothing.")


def _unit(values: np.ndarray) -> np.ndarray:
    """From 0 to 1; the few that lie far out stand at the edge."""
    low, high = np.quantile(values, (0.03, 0.97)) if len(values) else (0.0, 1.0)
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    return (values - low) / (high - low or 1.0)


def _packed(shares: np.ndarray, kind: str) -> str:
    most = 65535 if kind == "<u2" else 255
    return base64.b64encode((shares.clip(0, 1) * most).round().astype(kind).tobytes()).decode()


def _table(table: Table, names: list[str], mine: dict[int, str]) -> None:
    """The same as rows: sorted by a click on a column's head, opened by a click on a row."""
    rows = {
        "feature": list(range(len(names))), "fires on": names, "promotes": [visible_label(each) for each in table.rows],
        "fires on (%)": 100 * table.values[:, 2], "maximum": table.values[:, 3], "here": table.values[:, 4],
    }  # fmt: skip
    if mine:
        rows["yours"] = [mine.get(each, "") for each in rows["feature"]]
    order = np.argsort(-table.values[:, 4], kind="stable")
    rows = {key: [value[each] for each in order] for key, value in rows.items()}

    def chosen() -> None:
        if picked := st.session_state["features-table"]["selection"]["rows"]:
            feature.open_feature(int(rows["feature"][picked[0]]))

    st.dataframe(rows, hide_index=True, height=420, key="features-table", on_select=chosen, selection_mode="single-row")
