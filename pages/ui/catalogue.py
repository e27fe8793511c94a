"""The Methods and Models pages: everything comes from METHODS and from the shelf."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from typing import Any

import streamlit as st

from interp import Unsuitable, hub, settings, zoo
from interp.catalogue import cost_text, families
from interp.method import Method
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.results import FeatureList, FeaturePage, Graph, Heatmap, TokenGrid
from interp.samples import Image, Prompt
from pages.ui import components, downloads, jobs, share, show
from pages.ui.bar import choose_lens, opening
from pages.ui.bench import (
    OWN,
    PAGES,
    Bench,
    bench,
    first,
    first_feature,
    first_pair,
    first_prompt,
    first_steering,
    first_transport,
    page_of,
    turn_to_kind,
    use_model,
)


def methods() -> None:
    """The catalogue, with a thumbnail that the embedded model makes, and each method in full on a click."""
    st.write(
        "Every method with its cost, what it assumes and when it misleads. The pictures come from the embedded model."
    )
    titles = families()
    family = st.pills(
        "What do you want to know?", list(titles), key="question", format_func=lambda each: titles[each][1]
    )
    shown = [method for method in METHODS.values() if family in (None, method.family)]
    chosen = st.session_state.get("method") or (shown[0].key if shown else None)
    left, right = st.columns([7, 5], gap="medium")
    with left:
        for each, (title, _) in titles.items():
            items = [_card(method.key, method.key == chosen) for method in shown if method.family == each]
            if items:
                st.markdown(f"##### {title}")
                components.cards(
                    f"family:{each}",
                    items,
                    lambda key: st.session_state.update(method=key),
                    title,
                    least=118,
                    shape=1.5,
                )
    with right:
        if chosen:
            method = METHODS[chosen]
            share.explain(method)
            st.caption(f"Cost: {cost_text(method)}. In the library: `interp.methods.{method.family}.{method.key}`.")
            page = page_of(method)
            if method.family == "features" and not _shown(method):
                page = None
            if method.kind == "lens" and page and st.button("Use it", icon=":material/visibility:"):
                kind = Prompt if method.model_type is LanguageModel else Image
                turn_to_kind(OWN.get(method.family, kind))
                choose_lens(method.key)
                st.switch_page(page)


def _shown(method: Method) -> bool:
    """Whether a method of features is one that the Features page shows: of one prompt or photo."""
    return Prompt in method.samples or Image in method.samples


def _card(key: str, selected: bool) -> dict[str, Any]:
    method = METHODS[key]
    item: dict[str, Any] = {
        "key": key,
        "title": method.name,
        "selected": selected,
        "help": method.doc.summary,
        "note": cost_text(method),
    }
    start: Bench = first_prompt() if method.model_type is LanguageModel else first()
    start = first_pair() if method.family == "circuits" else start
    if method.kind == "fit" or (method.family == "features" and not _shown(method)):
        return item | {"wait": "on texts or photos"}
    try:
        if method.family == "features" or any(control.kind == "features" for control in method.controls):
            start = first_feature()
        if method.family == "transport":
            start = first_transport()
        if method.family == "steering":
            start = first_steering()
        experiment = start.experiment
        if method.kind == "intervention":
            if method.refuses(zoo.load(start.model)):
                return item
            call = type(start.lens)(key, **opening(key, start))
            experiment = type(experiment)(experiment.model, experiment.sample, start.lens, (call,))
        elif method.family in PAGES:
            own = any(control.name == "feature" for control in method.controls) and start.view.feature is not None
            wanted = type(start.lens)(key, **({"feature": start.view.feature} if own else {}))
            experiment = type(experiment)(experiment.model, experiment.sample, wanted)
        else:
            return item | {"wait": "numbers"}
        result = jobs.run(experiment) if jobs.estimate(experiment) <= jobs.QUICK else jobs.known(experiment)
        if isinstance(result, Heatmap):
            look = dataclasses.replace(start.look, signed=method.family == "attribution", view="superpixels")
            shown = show.view(result, start.sample, look)
            picture = show.picture_of(experiment)
            item["image"] = show.card_picture(shown, picture, look, f"catalogue{jobs.key_of(experiment)}")
            item["alt"] = result.finding
        elif isinstance(result, TokenGrid):
            item["image"] = show.grid_picture(result, jobs.key_of(experiment))
            item["alt"] = f"{result.sheets[0]}, {len(result.rows)} by {len(result.columns)}"
        elif isinstance(result, FeatureList | FeaturePage):
            item["image"] = show.feature_picture(result, jobs.key_of(experiment))
            item["alt"] = show.feature_words(result)
        elif isinstance(result, Graph):
            item["image"] = show.graph_picture(result, jobs.key_of(experiment))
            item["alt"] = f"{len(result.nodes)} parts"
        else:
            item["wait"] = "numbers" if result else f"about {jobs.estimate(experiment):.0f} s"
    except Unsuitable as reason:
        item["wait"] = str(reason)[:80]
    return item


def models() -> None:
    """The shelf with its cards, bringing one's own, and what is in memory and on the disk."""
    shelf = zoo.shelf()
    st.write("The embedded models, each with an honest card; or bring your own.")
    _bring()
    for name, config in shelf.items():
        current = " · on the bench" if name == bench().model else ""
        with st.expander(
            f"**{name}** · {config['model_type']}, {_size(config)}{current}",
            expanded=name == bench().model,
        ):
            if name != bench().model and st.button("Use it", key=f"use:{name}", icon=":material/visibility:"):
                _load_own(name)
            st.markdown(_under_a_title(config["card"]))

    _here()


def _bring() -> None:
    """Any model of the hub by its id, or what this server offers; on one's own machine a folder too."""
    hosted, offered = settings.SETTINGS.hosted, hub.offered()
    if offered == []:
        return
    with st.container(border=True, key="bring"):
        st.markdown("##### Bring your own" if offered is None else "##### From Hugging Face")
        if offered is not None:
            name = st.selectbox("What this server offers", offered, index=None, key="own-offered",
                                placeholder="choose a model")  # fmt: skip
        else:
            limit = settings.SETTINGS.model_bytes
            st.text_input(
                "Hugging Face id" if hosted else "Hugging Face id, or a folder written by save_pretrained",
                key="own", placeholder="microsoft/resnet-18, or owner/name@revision",
                help=f"Safetensors only{f', at most {hub.said(limit)}' if limit else ''}. "
                f"Families: {', '.join((*zoo.VISION, *zoo.LANGUAGE))}.",
            )  # fmt: skip
            if st.button("Look it up", icon=":material/search:", disabled=not st.session_state.get("own")):
                st.session_state["own-wanted"] = st.session_state["own"].strip()
                st.session_state.pop("looked", None)
                with contextlib.suppress(Unsuitable):  # said below
                    zoo.pin(st.session_state["own-wanted"], anew=True)
            name = st.session_state.get("own-wanted")
        if not name:
            return
        try:
            if zoo.is_folder(name):
                _load_own(name)
            else:
                downloads.offer(name, lambda card: _load_own(card.name))
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")
            st.session_state.pop("looked", None)


def _here() -> None:
    """What is loaded, and what was downloaded, with sizes."""
    loaded, kept = zoo.in_memory(), hub.kept()
    if not loaded and not kept:
        return
    st.markdown("##### On this machine")
    left, right = st.columns(2, gap="medium")
    with left:
        st.caption(f"In memory: {hub.said(sum(loaded.values()))}. The models used last stay.")
        for name, size in reversed(loaded.items()):
            st.markdown(f"{show.plain(_named(name))} · {hub.said(size)}")
    with right:
        st.caption(f"Downloaded, on the disk: {hub.said(sum(each.bytes for each in kept))}."
                   + (" The longest unused make room for others." if kept else ""))  # fmt: skip
        for each in reversed(kept):
            days = (time.time() - each.used) / 86400
            used = "today" if days < 1 else f"{days:.0f} days ago"
            with st.container(horizontal=True, vertical_alignment="center", key=f"kept:{each.name}"):
                st.markdown(f"{show.plain(_named(each.name))} · {hub.said(each.bytes)} · used {used}")
                if not settings.SETTINGS.hosted:
                    busy = hub.in_use(each.name)
                    words = "In memory: open other models first" if busy else "Delete it from the disk"
                    if st.button(" ", key=f"delete:{each.name}", icon=":material/delete:", disabled=busy, help=words,
                                 type="tertiary"):  # fmt: skip
                        each.drop()
                        st.rerun()


def _named(name: str) -> str:
    """A model's name, short: a folder by its own, a commit by its beginning."""
    place, at, commit = name.partition("@")
    return f"{place}@{commit[:8]}" if at else name.rstrip("/").split("/")[-1] if name.startswith("/") else name


def _size(config: dict[str, Any]) -> str:
    if config["model_type"] in zoo.LANGUAGE:
        layers = config.get("num_hidden_layers") or config.get("n_layer")
        return f"{layers} layers, {config['vocab_size']:,} tokens"
    return f"{len(config.get('id2label', {}))} classes"


def _under_a_title(card: str) -> str:
    """A card without its own title, and its headings small: the page has a title already."""
    return re.sub(r"^## ", "##### ", re.sub(r"^# .*\n", "", card), flags=re.MULTILINE)


def _load_own(name: str) -> None:
    st.session_state.pop("own-wanted", None)
    try:
        with st.spinner(f"Loading {show.plain(_named(name))}"):
            use_model(name)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    st.switch_page("pages/prompts.py" if isinstance(bench().sample, Prompt) else "pages/heatmaps.py")
