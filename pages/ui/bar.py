"""The experiment bar: model, input, interventions and lens, each a chip that opens its controls; undo, link, code."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from interp import Unsuitable, directions, zoo
from interp.evidence import strongest_channels, strongest_heads
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.methods.steering import _tasks
from interp.model import LanguageModel, Model, VisionModel
from interp.results import FeaturePage
from interp.samples import Image, Prompt, PromptPair, Target
from interp.sites import Site
from pages.ui import share, show
from pages.ui.bench import Bench, Chip, bench, change, embedded, kind_of, undo, use_model
from pages.ui.controls import controls, sae_name, site_name
from pages.ui.inputs import gallery_cards, uploader


def bar(model: Model) -> None:
    """Show the bar for what is on the bench; none inside a page of someone else's."""
    if embedded():
        return
    with st.container(horizontal=True, key="bar", vertical_alignment="center", gap="small"):
        with st.popover(_short(bench().model), icon=":material/deployed_code:", help="The model"):
            _model_chip()
        sample = bench().sample
        if isinstance(sample, Image):
            with _lazily(_short(str(sample)), "input", ":material/image:", "The input", "secondary") as shown:
                if shown.open:
                    uploader("bar-upload")
                    gallery_cards("bar-gallery", least=84)
        for index, chip in enumerate(bench().chips):
            _intervention_chip(index, chip, model)
        with st.popover(
            "Change", icon=":material/add:", help="Change the input, the activations or the weights, and see both"
        ):
            for method in METHODS.values():
                if method.kind == "intervention" and isinstance(model, method.model_type):
                    refusal = method.refuses(model)
                    st.button(
                        method.name,
                        key=f"add:{method.key}",
                        help=refusal or method.doc.summary,
                        disabled=bool(refusal),
                        on_click=add,
                        args=(method.key,),
                        width="stretch",
                    )
        lens = METHODS[bench().lens.method]
        with st.popover(_lens_text(bench().lens), icon=":material/visibility:", help="The lens"):
            names = [
                m.key
                for m in METHODS.values()
                if m.kind == "lens"
                and m.family == lens.family
                and (m.model_type is lens.model_type or lens.family == "features")
                and m.refuses(model) is None
                and isinstance(sample, (*m.samples, *([PromptPair] if Prompt in m.samples else [])))
            ]
            st.session_state["lens"] = lens.key
            st.selectbox(
                "Method",
                names,
                key="lens",
                format_func=lambda key: METHODS[key].name,
                on_change=lambda: choose_lens(st.session_state["lens"]),
            )
            controls(bench().lens, model, bench().sample, "lens", lambda call: change(lens=call))
        st.button(
            "Undo",
            icon=":material/undo:",
            on_click=undo,
            disabled=not st.session_state.get("undo"),
            type="tertiary",
            help="Back one step (Ctrl+Z)",
            shortcut="Ctrl+Z",
        )
        with _lazily("Link", "link", ":material/link:", "A link that opens this view") as shown:
            if shown.open:  # the numbers are stored with the link when it is asked for, and not before
                share.link()
        with _lazily("Code", "code", ":material/code:", "The same in a notebook") as shown:
            if shown.open:
                st.code(bench().experiment.to_python(), language="python")
                st.caption("Runs as shown, from a folder with Actiscope's `interp`.")


def _lazily(label: str, key: str, icon: str, help: str, kind: Any = "tertiary") -> Any:
    """A popover that knows whether it is open, so that what is in it is made only then."""
    return st.popover(label, icon=icon, help=help, type=kind, key=f"popover:{key}", on_change="rerun")


KEPT = ("target", "foil", "site", "layer", "nodes", "metric", "direction", "by_position", "sae", "index", "feature",
        "operators", "policy", "source", "condition")  # fmt: skip
"""Settings that lenses share."""
AMOUNTS = ("strength", "share", "value")
"""What says how much, in interventions along a direction."""


def choose_lens(key: str) -> None:
    """Look through another method with the settings it shares."""
    have = bench().lens.settings
    keep = {
        control.name: have[control.name]
        for control in METHODS[key].controls
        if control.name in KEPT and control.name in have
    }
    change(lens=Call(key, **keep))


def add(key: str, **settings: Any) -> None:
    """Add an intervention to the bar, with settings that show what it does where none are given."""
    change(chips=(*bench().chips, Chip(Call(key, **(settings or opening(key, bench()))))))


def opening(key: str, on: Bench) -> dict[str, Any]:
    """Settings of an intervention that show what it does to what is on a bench."""
    model, kinds = zoo.load(on.model), {control.kind: control.name for control in METHODS[key].controls}
    if key == "transport_replace":  # the whole stream, in the middle of the model
        return {}
    if key == "steer_upstream":
        found = _opening_feature(key, on)
        return {"sae": found["sae"], "feature": found["features"][0], "by": 4.0}
    if "direction" in kinds:
        have = {control.name for control in METHODS[key].controls}
        return next(({name: 1.0} for name in AMOUNTS if name in have), {})
    if "features" in kinds:
        return _opening_feature(key, on)
    if isinstance(model, LanguageModel):
        return _opening_prompt(key, model, on)
    assert isinstance(model, VisionModel) and isinstance(on.sample, Image)
    if "region" in kinds:
        return {kinds["region"]: (0.3, 0.3, 0.7, 0.7)}
    if "channels" in kinds:
        target = on.lens.settings.get("target", Target())
        return {kinds["channels"]: strongest_channels(model, on.sample, target, None, 20)}
    if "sigma" in kinds.values():
        return {"sigma": 0.3}
    return {kinds["site"]: model.last_spatial} if "site" in kinds else {}


def _opening_feature(key: str, on: Bench) -> dict[str, Any]:
    """The same of features: the open one, or that which fires strongest on the sample."""
    settings = on.lens.settings
    found = settings["feature"] if on.lens.method == "feature_page" else on.view.feature
    if found is None:
        strongest = Experiment(on.model, on.sample, Call("feature_lookup", sae=settings.get("sae", ""), top=1)).run()
        found = int(strongest.features[0]) if len(strongest.features) else 0  # type: ignore[attr-defined]
    more = {"scale_feature": {"factor": 3.0}, "clamp_feature": {"value": 1.0, "unit": "maximum"}}.get(key, {})
    return {"sae": on.view.of or settings.get("sae", ""), "features": (found,), **more}


def _opening_prompt(key: str, model: LanguageModel, on: Bench) -> dict[str, Any]:
    """The same of language models: the head that speaks most for the target, or the layer chosen on the page."""
    sample = Prompt(on.sample.clean) if isinstance(on.sample, PromptPair) else on.sample
    assert isinstance(sample, Prompt)
    layer = min(on.layer - 1 if on.layer else model.layers - 1, model.layers - 1)
    if key == "ablate_heads":
        try:
            return {"heads": strongest_heads(model, sample, on.lens.settings.get("target", Target()), 1)}
        except Unsuitable:  # what heads add can't be told apart in this model
            return {"heads": ((layer, 0),)}
    other = on.sample if isinstance(on.sample, PromptPair) else None
    return {
        "patch_from": {"sites": (Site("resid_post", layer),)} if other else {},
        "ablate_neurons": {"layer": layer, "neurons": tuple(range(32))},
        "ablate_layer": {"layer": layer, "part": "MLP"},
        "scale_site": {"site": None if model.refuses(Site("mlp_out", layer)) else Site("mlp_out", layer), "by": 0.0},
        "skip_layer": {"layer": layer, "count": 1},
        "repeat_layer": {"layer": layer, "times": 2},
    }.get(key, {})


def _set_chip(index: int, chip: Chip | None) -> None:
    chips = list(bench().chips)
    chips[index : index + 1] = [] if chip is None else [chip]
    change(chips=tuple(chips))


def _intervention_chip(index: int, chip: Chip, model: Model) -> None:
    method = METHODS[chip.call.method]
    text = show.plain(in_words(chip.call, model))  # a label is Markdown too
    with st.popover(text if chip.on else f"~~{text}~~", icon=":material/tune:", help=method.doc.summary):
        st.session_state[f"on:{index}"] = chip.on
        st.toggle(
            "On",
            key=f"on:{index}",
            on_change=lambda: _set_chip(index, dataclasses.replace(chip, on=st.session_state[f"on:{index}"])),
        )
        controls(
            chip.call,
            model,
            bench().sample,
            f"chip{index}",
            lambda call: _set_chip(index, dataclasses.replace(chip, call=call)),
        )
        st.button("Remove", icon=":material/close:", key=f"remove:{index}", on_click=_set_chip, args=(index, None))


def in_words(call: Call, model: Any) -> str:
    """A call as a chip shows it: "Ablate channels: 12 of stage 7"."""
    name, settings = METHODS[call.method].name, call.settings
    site = settings.get("site")
    where = site_name(model, site) if isinstance(site, Site) else "the last stage"
    where_at = f" at {', '.join(map(str, settings['positions'][:3]))}" if settings.get("positions") else ""
    if "sites" in settings:
        sites = [site_name(model, each) for each in settings["sites"]]
        return (
            f"{name}: {', '.join(sites[:2])}{' …' if len(sites) > 2 else ''}{where_at}"
            if sites
            else f"{name}: none yet"
        )
    if "heads" in settings:
        heads = [f"L{layer}H{head}" for layer, head in settings["heads"]]
        return (
            f"{name}: {', '.join(heads[:3])}{' …' if len(heads) > 3 else ''}" + where_at
            if heads
            else f"{name}: none yet"
        )
    if "features" in settings and (settings["features"] or call.method != "transport_replace"):
        numbers = [f"#{each}" for each in settings["features"]]
        how = [f"{settings['factor']:g} times" if "factor" in settings else ""]
        if "value" in settings:
            how = [f"at {settings['value']:g}" + (" times the maximum" if settings["unit"] == "maximum" else "")]
        of = [f"of {sae_name(settings['sae'])}" if settings["sae"] else ""]
        shown = [", ".join(numbers[:3]) + (" …" if len(numbers) > 3 else ""), *of, *how]
        return f"{name}: {' '.join(filter(None, shown))}{where_at}" if numbers else f"{name}: none yet"
    if "direction" in settings:
        return f"{name}: {_pushed(settings, model)}{where_at}"
    if "task" in settings:
        tasks = _tasks.available(model)
        task = next((str(each.about.get("name", "")) for each in tasks if settings["task"] in ("", each.key)), "none")
        return f"{name}: {_short(task)}, {settings['share']:g}"
    if "neurons" in settings:
        return f"{name}: {len(settings['neurons'])} of layer {settings['layer']}"
    if "channels" in settings and METHODS[call.method].kind == "intervention":
        count = len(settings["channels"])
        return f"{name}: {count} of {where}" if count else f"{name}: none yet"
    parts = [
        f"{key} {value}"
        for key, value in call.changed.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    parts += [site_name(model, value) for value in call.changed.values() if isinstance(value, Site)]
    return name + (": " + ", ".join(parts[:2]) if parts else "") + where_at


def _pushed(settings: dict[str, Any], model: Any) -> str:
    """Which direction, after which layer, how much: "sentiment, layer 2, −1"."""
    found = {each.key: each for each in directions.available(model)}
    named = settings["direction"] or next(iter(found), "")
    known = found.get(named)
    layer = settings["layer"] if settings.get("layer") is not None else known.best if known else None
    amount = next((settings[each] for each in AMOUNTS if each in settings), None)
    parts = [_short(known.name if known else named[:12] or "none"), "" if layer is None else f"layer {layer}"]
    parts += ["" if amount is None else f"{amount:.3g}".replace("-", "−")]
    return ", ".join(filter(None, parts))


def _lens_text(call: Call) -> str:
    target = call.settings.get("target")
    asked = target.name if target is not None and target.name is not None else None
    return METHODS[call.method].name + (f" · {_short(str(asked))}" if asked is not None else "")


def _model_chip() -> None:
    kind = zoo.VISION if isinstance(bench().sample, Image) else zoo.LANGUAGE
    if kind_of(bench()) is FeaturePage:  # both kinds have features, and are a click apart
        kind = (*zoo.LANGUAGE, *zoo.VISION)
    fitting = [name for name, config in zoo.shelf().items() if config["model_type"] in kind]
    now = bench().model
    names = fitting if now in fitting else [*fitting, now]
    st.session_state["model-choice"] = now

    def chosen() -> None:
        try:
            use_model(st.session_state["model-choice"])
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)

    st.radio("Model", names, key="model-choice", on_change=chosen)
    st.page_link("pages/models.py", label="Cards, and loading your own", icon=":material/arrow_forward:")


def _short(text: str, most: int = 24) -> str:
    text = "".join(each if each.isalnum() or each in " .-_/@:" else " " for each in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def uploaded(sample: Any) -> bool:
    """Whether the sample is a visitor's own."""
    return isinstance(sample, Image) and sample.reference.startswith("sha256:")
