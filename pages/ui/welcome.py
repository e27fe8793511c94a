"""Home: one sentence, one example to play with, three doors, and the gallery."""

from __future__ import annotations

import dataclasses

import streamlit as st

from interp import Unsuitable
from interp.evidence import mask_of, probability
from interp.experiment import Call
from interp.figures import scale_of
from interp.methods import METHODS
from interp.results import Heatmap, Table
from interp.samples import Image, Prompt
from pages.ui import jobs, show
from pages.ui.bench import bench, change, embedded, first, open_experiment, turn_to_kind
from pages.ui.inputs import gallery_cards, pick, uploader


def home() -> None:
    """The whole page; inside one of someone else's, the example alone."""
    if embedded():
        _example()
        return
    st.write(
        "See what it reacts to, change it, look again side by side, share the link. All of it runs on this machine."
    )
    _example()
    st.markdown("##### Where do you start?")
    image, prompt, model = st.columns(3, gap="medium")
    with image:
        st.markdown("**I have an image**")
        sample = bench().sample
        uploader("home-upload", "Drop in a photo")
        if bench().sample != sample or (isinstance(sample, Image) and sample.reference.startswith("sha256:")):
            st.page_link("pages/heatmaps.py", label="See what the model looks at", icon=":material/gradient:")
    with model:
        st.markdown("**I have a model**")
        st.write(
            "ResNet, ConvNeXt, EfficientNet, ViT, DINOv2, Swin and more; GPT-2, Llama, Mistral, Qwen, Gemma, OPT, "
            "Pythia, Phi-3, OLMo 2, Mixtral: by Hugging Face id or from a folder."
        )
        st.page_link("pages/models.py", label="Load it", icon=":material/deployed_code:")
    with prompt:
        st.markdown("**I have a prompt**")
        st.text_area("Type a prompt", key="home-prompt", height=98, placeholder="The capital of France is")
        if st.button("Follow it through the model", icon=":material/notes:"):
            open_prompt(st.session_state["home-prompt"])
        st.page_link("pages/features.py", label="Or see the features that fire", icon=":material/scatter_plot:")
        st.page_link("pages/transport.py", label="Or which layer they come from", icon=":material/stairs:")
        st.page_link("pages/steering.py", label="Or what happens if it is pushed", icon=":material/tune:")
    st.markdown("##### Or begin with one of these")

    def begin(name: str) -> None:
        pick(name)
        st.session_state["go"] = True

    gallery_cards("home-gallery", on=begin, least=120)
    if st.session_state.pop("go", False):
        st.switch_page("pages/heatmaps.py")


def open_prompt(text: str) -> None:
    """Lay a prompt on the bench of prompts; without one, the example that is there."""
    try:
        sample = Prompt(text) if text.strip() else None
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    turn_to_kind(Prompt)
    if sample is not None:
        keep = {name: None for name in ("target", "foil") if name in bench().lens.settings}
        change(sample=sample, lens=bench().lens.but(**keep), second="", position=None)
    st.switch_page("pages/prompts.py")


def _example() -> None:
    """A photo with two things in it: choose the class, and hide a part of the photo, and see map and guess follow."""
    start = first()
    try:
        left, right = st.columns([7, 5], gap="large")
        with right:
            table = jobs.run(dataclasses.replace(start.experiment, lens=Call("class_probabilities")))
            assert isinstance(table, Table)
            names = [table.rows[i] for i in (-table.values[:, 0]).argsort()[:2]]
            asked = st.segmented_control(
                "Why",
                names,
                default=names[0],
                key="home-class",
                label_visibility="collapsed",
                required=True,
                format_func=lambda name: f"Why {name}?",
            )
            cut = st.slider("Blur the photo from the left up to (%)", 0, 100, 0, step=5, key="home-cut")
            changes = (Call("hide_region", box=(0.0, 0.0, cut / 100, 1.0)),) if cut else ()
            experiment = dataclasses.replace(start.experiment, lens=start.lens.but(target=asked), interventions=changes)
            after = jobs.run(dataclasses.replace(experiment, lens=Call("class_probabilities")))
            assert isinstance(after, Table)
            for name in names:
                before, now = probability(table, name), probability(after, name)
                st.metric(
                    name,
                    f"{100 * now:.2g} %",
                    f"{100 * (now - before):+.2g} points" if cut else None,
                    delta_color="off",
                )
            if st.button("Open this on the bench", icon=":material/arrow_forward:"):
                open_experiment(experiment)
                st.switch_page("pages/heatmaps.py")
        with left:
            result = jobs.run(experiment)
            whole = jobs.run(experiment.before())
            assert isinstance(result, Heatmap) and isinstance(whole, Heatmap)
            picture, key = show.picture_of(experiment), experiment.digest if changes else start.sample.sha256  # type: ignore[union-attr]
            title = f"{METHODS[experiment.lens.method].name} · {asked}"
            show.hero("home-hero", result, picture, key, start.look, scale_of(result, whole), title, _half(result))
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")


def _half(result: Heatmap) -> str:
    sides = {
        side: result.share(mask_of(box, (64, 64)))
        for side, box in (("left", (0.0, 0.0, 0.5, 1.0)), ("right", (0.5, 0.0, 1.0, 1.0)))
    }
    side = max(sides, key=lambda each: sides[each] if sides[each] == sides[each] else -1)
    return f"{sides[side]:.0%} of the evidence is in the {side} half" if sides[side] == sides[side] else ""
