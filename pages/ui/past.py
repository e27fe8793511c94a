"""This visit's experiments: back to one, or two of them side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from interp import Unsuitable
from interp.evidence import agreement
from interp.experiment import Experiment
from interp.figures import Look, scale_of
from interp.methods import METHODS
from interp.results import FeatureList, FeaturePage, Graph, Heatmap, TokenGrid
from interp.samples import Prompt, PromptPair
from pages.ui import components, jobs, show
from pages.ui.bench import bench, open_experiment, page_of


def history() -> None:
    """Cards of the visit, newest first; choosing two compares them."""
    past: list[Experiment] = st.session_state.get("history", [])
    if not past:
        st.write("Nothing yet: every map you look at is kept here for this visit.")
        st.page_link("pages/heatmaps.py", label="To the heatmaps", icon=":material/arrow_forward:")
        return
    chosen: list[str] = st.session_state.setdefault("compared", [])
    st.write("Choose one to open it again, or two to see them side by side.")

    def picked(digest: str) -> None:
        st.session_state["compared"] = (
            [each for each in chosen if each != digest] if digest in chosen else [*chosen, digest][-2:]
        )

    items = [_card(each, each.digest in chosen) for each in reversed(past)]
    components.cards("past", items, picked, "This visit's experiments", least=150)
    found = [each for digest in chosen for each in past if each.digest == digest]
    if not found:
        return
    results = [jobs.known(each) for each in found]
    pairs = zip(found, results, strict=True)
    shown = [show.view(r, e.sample, _look(e)) if isinstance(r, Heatmap) else r for e, r in pairs]
    maps = [each for each in shown if isinstance(each, Heatmap)]
    scale = scale_of(*maps) if len({each.units for each in maps}) == 1 else None
    for column, experiment, result in zip(st.columns(2), found, shown, strict=False):
        with column:
            if isinstance(result, Heatmap):
                picture = show.picture_of(experiment)
                show.hero(
                    f"past:{experiment.digest[:12]}",
                    result,
                    picture,
                    experiment.digest,
                    _look(experiment),
                    scale or scale_of(result),
                    f"{METHODS[experiment.lens.method].name} · {result.target}",
                    f"{result.site} · logit {result.score:.3g}",
                )
            elif isinstance(result, TokenGrid):
                st.image(show.grid_picture(result, jobs.key_of(experiment)), width="stretch")
            elif isinstance(result, Graph):
                st.image(show.graph_picture(result, jobs.key_of(experiment)), width="stretch")
            elif isinstance(result, FeatureList | FeaturePage):
                st.image(show.feature_picture(result, jobs.key_of(experiment)), width="stretch")
                st.caption(show.plain(show.feature_words(result)))
            elif result is None:
                st.write("This result is no longer kept; open it to run it again.")
            for line in _lines(experiment):
                st.caption(line)
            if st.button("Open", key=f"open:{experiment.digest[:12]}", icon=":material/arrow_forward:"):
                open_experiment(experiment)
                st.switch_page(page_of(METHODS[experiment.lens.method]) or "pages/home.py")
    if len(maps) == 2:
        rho = agreement(*maps)
        note = "on one scale" if scale else "each on its own scale, since their units differ"
        st.caption(f"Drawn {note}." + (f" Rank correlation of the two maps: {rho:.2f}." if rho == rho else ""))
    if len(found) == 2:
        differ = [
            f"{one} | {other}" for one, other in zip(_lines(found[0]), _lines(found[1]), strict=False) if one != other
        ]
        st.caption("What differs: " + ("; ".join(differ) if differ else "nothing"))


def _card(experiment: Experiment, selected: bool) -> dict[str, Any]:
    item: dict[str, Any] = {
        "key": experiment.digest,
        "title": METHODS[experiment.lens.method].name,
        "selected": selected,
    }
    result = jobs.known(experiment)
    try:
        if isinstance(result, TokenGrid):
            item["image"] = show.grid_picture(result, jobs.key_of(experiment))
            item["alt"] = f"{result.sheets[0]}, {len(result.rows)} by {len(result.columns)}"
        if isinstance(result, Graph):
            item["image"] = show.graph_picture(result, jobs.key_of(experiment))
            item["alt"] = f"{len(result.nodes)} parts"
        if isinstance(result, FeatureList | FeaturePage):
            item["image"] = show.feature_picture(result, jobs.key_of(experiment))
            item["alt"] = show.feature_words(result)
        if isinstance(experiment.sample, PromptPair):
            item["note"] = experiment.sample.clean[-60:]
        if isinstance(experiment.sample, Prompt):
            item["note"] = experiment.sample.text[-60:]
        if isinstance(result, FeatureList | FeaturePage):
            item["note"] = f"{show.feature_words(result)} · {item.get('note', experiment.sample)}"
        if isinstance(result, Heatmap):
            picture, look = show.picture_of(experiment), _look(experiment)
            item["image"] = show.card_picture(
                show.view(result, experiment.sample, look), picture, look, f"{jobs.key_of(experiment)}{look}"
            )
            item["alt"] = result.finding
            item["note"] = f"{result.target} · {experiment.sample}"
    except Unsuitable:
        item["wait"] = "its model is no longer loaded"
    changes = len(experiment.interventions)
    if changes:
        item["note"] = f"{item.get('note', '')} · {changes} change{'s' if changes > 1 else ''}"
    return item


def _look(experiment: Experiment) -> Look:
    """Maps of pixels are signed, whatever is on the bench now."""
    return dataclasses.replace(bench().look, signed=bench().look.signed or _pixels(experiment), view="superpixels")


def _pixels(experiment: Experiment) -> bool:
    return METHODS[experiment.lens.method].family == "attribution"


def _lines(experiment: Experiment) -> list[str]:
    changes = ", ".join(map(str, experiment.interventions)) or "none"
    sample = experiment.sample
    name = show.plain(sample.text[:200]) if isinstance(sample, Prompt) else show.plain(str(sample)[:400])
    model, changes, lens = map(show.plain, (experiment.model, changes, str(experiment.lens)))
    return [f"model: {model}", f"input: {name}", f"changes: {changes}", f"lens: {lens}"]
