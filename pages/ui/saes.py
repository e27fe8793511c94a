"""One's own SAE: from files, a folder or the hub; trained here; and the index that its pages come from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from interp import Unsuitable, feature_index, sae, sae_hub, settings
from interp.experiment import Call, Experiment
from interp.methods.features import train_sae as training
from interp.model import LanguageModel, Model
from interp.results import Table
from interp.samples import Image, ImageSet, TextSet, gallery, reference_texts
from interp.training import ARCHITECTURES, curve
from pages.ui import jobs, labels, show
from pages.ui.bench import View, again, bench, change
from pages.ui.controls import site_name

DONE = "fitted"
"""Where a fit that has just ended leaves its name for the page."""


def own(model: Model, name: str) -> None:
    """Add an SAE, train one, build an index, choose texts by features, labels as a file."""
    parts: dict[str, Callable[[], None]] = {"Add your own": lambda: _add(model), "Train one": lambda: _train(model)}
    if name:
        parts["Index"] = lambda: index(model, name)
        if isinstance(model, LanguageModel):
            parts["Choose texts"] = lambda: _choose(model, name)
    parts["Your labels"] = _labels
    with st.container(border=True, key="own"):
        for tab, show_part in zip(st.tabs(list(parts)), parts.values(), strict=True):
            with tab:
                show_part()


def indexless(model: Model, name: str) -> bool:
    """Whether an SAE that fits has no index yet."""
    try:
        return feature_index.find(model, sae.load(name)) is None
    except Unsuitable:
        return False


# ------------------------------------------------------------------------------------------------------ from elsewhere


def _add(model: Model) -> None:
    ways = ["Files", *([] if settings.SETTINGS.hosted else ["Folder"]), "Hugging Face"]
    way = st.segmented_control("From", ways, default="Files", key="own-way", required=True,
                               label_visibility="collapsed")  # fmt: skip
    same = st.checkbox(
        f"It was made for {show.plain(model.name)}", key="own-same",
        help="Tick it where its cfg.json names the model otherwise. Sites and widths are checked all the same.",
    )  # fmt: skip
    if way == "Files":
        files = st.file_uploader(
            f"{sae.CONFIG} and {sae.WEIGHTS}, as SAELens saves them", accept_multiple_files=True, key="own-files",
            max_upload_size=500,
            help="Checked before anything is kept. Larger ones than the upload takes: from a folder or Hugging Face.",
        )  # fmt: skip
        ready = bool(files)
    elif way == "Folder":
        folder = st.text_input(f"A folder with {sae.CONFIG} and {sae.WEIGHTS}", key="own-folder").strip()
        ready = bool(folder)
    else:
        ready, named = _hub(model)
    if not st.button("Add it", icon=":material/add:", type="primary", disabled=not ready, key="own-add"):
        return
    try:
        with st.spinner("Reading and checking it"):
            if way == "Files":
                with tempfile.TemporaryDirectory() as place:
                    for each in files:
                        (Path(place) / _role(each.name)).write_bytes(each.getvalue())
                    kept = _keep(Path(place), model, same)
            elif way == "Folder":
                kept = _keep(Path(folder).expanduser(), model, same)
            elif same:
                kept = _keep(sae_hub.fetch(named), model, True)
            else:
                kept = sae_hub.pinned(named)
                sae.load(kept).check(model)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    use(kept)


def _role(name: str) -> str:
    """A file's name as SAELens has it: browsers add numbers to names that they downloaded twice."""
    if name.endswith(".json"):
        return sae.CONFIG
    return sae.WEIGHTS if name.endswith(".safetensors") else Path(name).name


def _keep(folder: Path, model: Model, same: bool) -> str:
    """Check and keep a folder. One that names the model in other words fits it only by its owner's word."""
    if not folder.is_dir():
        raise Unsuitable(f"There is no folder {folder.name!r} here; give the path of one.")
    found = sae.read(folder, folder.name if not folder.is_relative_to(tempfile.gettempdir()) else "Your SAE")
    if not same:
        found.check(model)
    return sae.keep(folder, model)


def _hub(model: Model) -> tuple[bool, str]:
    """A release of SAELens that is for this model, or any repository in its format."""
    found = _releases(model.name, model)
    if found:
        choice = st.selectbox(
            f"{len(found):,} SAEs of SAELens's releases are for this model", found, index=None, key="own-release",
            format_func=lambda each: f"{each[0]} / {each[1]}" + (" · on Neuronpedia" if each[2] else ""),
            placeholder="choose one, or name a repository below",
        )  # fmt: skip
        if choice is not None:
            return True, f"release:{choice[0]}/{choice[1]}"
    text = st.text_input(
        "owner/repository/folder@revision" + ("" if found else " (no release of SAELens is for this model)"),
        key="own-hub", placeholder="jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre",
        help="Only cfg.json and sae_weights.safetensors are downloaded, after their size was looked at.",
    ).strip()  # fmt: skip
    return bool(text), text if text.startswith(("hub:", "release:")) else f"hub:{text}"


@st.cache_data(show_spinner=False)
def _releases(name: str, _model: Model) -> list[tuple[str, str, str | None]]:
    return sae_hub.releases(_model)


def use(name: str) -> None:
    """Lay an SAE on the bench, with what fires on the sample."""
    change(lens=Call("feature_lookup", sae=name), position=None, view=View())
    st.session_state["own-open"] = False
    again()


# ------------------------------------------------------------------------------------------------------------ the data


def _data(model: Model, key: str) -> TextSet | ImageSet | None:
    """Texts or images that someone chooses, or None and a sentence."""
    if not isinstance(model, LanguageModel):
        return _photos(key)
    own = "Pasted", "From a file"
    way = st.segmented_control("Texts", ["Embedded", *own], default="Embedded", key=f"{key}-way", required=True)
    if way == "Embedded":
        texts = reference_texts()
        st.caption(f"{len(texts.texts):,} short documents of the kind that the embedded models were trained on.")
        return texts
    if way == own[0]:
        text = st.text_area("Texts, one on each line", key=f"{key}-pasted", height=120)
    else:
        file = st.file_uploader("A .txt file, a text on each line", type=["txt"], key=f"{key}-file")
        try:
            text = file.getvalue().decode() if file else ""
        except UnicodeDecodeError:
            st.warning("This file is no text in UTF-8; save it as that.", icon=":material/info:")
            return None
    lines = tuple(filter(None, (each.strip() for each in text.splitlines())))
    try:
        return TextSet(lines) if lines else None
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None


def _named(key: str) -> str:
    """What an index over the chosen data is called."""
    way = st.session_state.get(f"{key}-way")
    return {"Embedded": "embedded texts", "Pasted": "pasted texts", "From a file": "texts of a file"}.get(way, "photos")


def _photos(key: str) -> ImageSet | None:
    files = st.file_uploader(
        "Photos (the gallery's, if none are given)",
        accept_multiple_files=True,
        key=f"{key}-photos",
        type=["png", "jpg", "jpeg", "webp"],
    )
    try:
        images = [Image.open(each.getvalue(), each.name) for each in files]
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None
    return ImageSet(tuple(images or map(Image.gallery, gallery())))


# ----------------------------------------------------------------------------------------------------------- the index


def index(model: Model, name: str) -> None:
    """Build an index of an SAE: contexts, densities, the map come from it."""
    have = feature_index.listed(model, sae.load(name))
    if have:
        st.caption(
            "There is: " + "; ".join(show.plain(f"{each or 'index'}, {n:,} tokens") for _, each, n in have) + "."
        )
    else:
        st.info("This SAE has no index yet: contexts, densities, the map and the search come from one.")
    data = _data(model, "index")
    if data is not None:
        fit = jobs.Fit(bench().model, data, Call("build_index", sae=name, name=_named("index")))
        _fit(fit, "Build the index", "build", lambda key: change(lens=Call("feature_lookup", sae=name, index=key)))


def _fit(fit: jobs.Fit, label: str, key: str, done: Any, watched: Any = None, more: str = "") -> None:
    """A button that says what it costs; then a bar with Stop; asked for again, it goes on where it was."""
    asked = f"asked:{fit.digest}"
    if not st.session_state.get(asked):
        forwards, _ = jobs.passes(fit)
        st.caption(
            f"About {forwards:,.0f} forwards, {_seconds(jobs.estimate(fit))} here{more}. "
            "Stopped, it goes on from there."
        )
        st.button(label, icon=":material/play_arrow:", type="primary", key=f"fit:{key}",
                  on_click=lambda: st.session_state.update({asked: True}))  # fmt: skip
        return
    try:
        state = jobs.later(fit)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    if isinstance(state, jobs.Job):
        if watched is not None:
            watched()
        show.waiting([fit], lambda: st.session_state.pop(asked, None))
        if state.error:
            st.button("Again", key=f"again:{key}", on_click=lambda: st.session_state.pop(asked, None))
        return
    st.session_state.pop(asked)
    done(state.text)
    again()


def _seconds(time: float) -> str:
    return f"{time:.0f} s" if time < 100 else f"{time / 60:.0f} min"


# ------------------------------------------------------------------------------------------- texts chosen by features


def _choose(model: Model, name: str) -> None:
    """MoNA: of a set of texts, those that use the features that a task's texts use."""
    st.caption("Of many texts, those nearest to a task: that use the features which the task's texts use (MoNA).")
    left, right = st.columns(2, gap="medium")
    with left:
        pool = _data(model, "pool")
    with right:
        text = st.text_area("Texts of the task, one on each line", key="task-texts", height=120)
        keep = st.slider("Share to keep", 0.01, 1.0, 0.05, key="task-keep")
    lines = tuple(filter(None, (each.strip() for each in text.splitlines())))
    if pool is None or not lines:
        return
    try:
        wanted = Call("mona", sae=name, task=TextSet(lines), keep=keep)
        experiment = Experiment(bench().model, pool, wanted)
        if st.session_state.get("choosing") != experiment.digest:
            st.button(f"Choose among {len(pool.texts):,}", icon=":material/play_arrow:", type="primary", key="choose",  # type: ignore[union-attr]
                      on_click=lambda: st.session_state.update({"choosing": experiment.digest}))  # fmt: skip
            return
        state = jobs.run(experiment) if jobs.estimate(experiment) <= jobs.QUICK else jobs.later(experiment)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    if isinstance(state, jobs.Job):
        show.waiting([experiment], lambda: st.session_state.pop("choosing", None))
    elif isinstance(state, Table):
        count = int(state.values[:, 2].sum())
        kept = state.rows[:count]
        st.dataframe(
            {"similarity": state.values[:count, 0], "text": list(kept)}, hide_index=True, height=240,
            column_config={"similarity": st.column_config.NumberColumn(format="%.3f", width="small")},
        )  # fmt: skip
        st.caption(state.note)
        st.download_button("Download them", "\n".join(kept), "chosen.txt", "text/plain", key="chosen",
                           icon=":material/download:", on_click="ignore")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ training


def _train(model: Model) -> None:
    """An SAE for any site, by SAELens's trainer, with its curve."""
    default = training.default_site(model)
    sites = [each for each in model.sites() if each.kind in ("resid_pre", "attn_out", "mlp_out", "resid_post", "stage")]
    row = st.columns(5)
    with row[0]:
        site = st.selectbox("Site", sites, index=sites.index(default) if default in sites else 0, key="train-site",
                            format_func=lambda each: site_name(model, each))  # fmt: skip
    with row[1]:
        kind = st.selectbox("Kind", ARCHITECTURES, key="train-kind")
    with row[2]:
        d_sae = st.number_input("Features", 2, 131_072, 512, 64, key="train-d")
    with row[3]:
        k = st.number_input("Active at once", 1, 512, 12, key="train-k", disabled="topk" not in kind)
    with row[4]:
        samples = st.number_input("Activations", 1024, 10**8, 200_000, 50_000, key="train-n")
    data = _data(model, "train")
    if data is None:
        return
    settings: dict[str, Any] = {"site": site, "architecture": kind, "d_sae": int(d_sae), "k": float(k)}
    try:
        fit = jobs.Fit(bench().model, data, Call("train_sae", **settings, samples=int(samples)))
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    _fit(fit, "Train it", "train", use, lambda: _curve(model, fit),
         ", and as long again to learn, after 10 s to start")  # fmt: skip


def _curve(model: Model, fit: jobs.Fit) -> None:
    """The loss as it falls."""
    call = fit.lens.settings
    _, place = training.job(model, fit.sample, **call)

    @st.fragment(run_every=1.0)
    def growing() -> None:
        lines = [each for each in curve(place) if "mse" in each]
        if len(lines) > 1:
            last = lines[-1]
            columns = {"activations": "samples", "squared error": "mse"}
            st.line_chart(
                {name: [each[key] for each in lines] for name, key in columns.items()},
                x="activations",
                y="squared error",
                height=180,
            )
            st.caption(f"{last['l0']:.3g} active, {100 * last['explained_variance']:.3g} % of the variance explained, "
                       f"{last['dead']:,.0f} features dead so far.")  # fmt: skip

    growing()


# -------------------------------------------------------------------------------------------------------------- labels


def _labels() -> None:
    """One's labels as a file, and back."""
    count = sum(map(len, labels.own().values()))
    if count and not labels.packed():
        st.caption(f"Your {count} labels are too many for a link; download them, and send the file with it.")
    else:
        st.caption(f"{count} labels of yours; they are in the link." if count else "You have labelled nothing yet.")
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        st.download_button("Download as JSON", labels.to_json, "labels.json", "application/json", disabled=not count,
                           icon=":material/download:", on_click="ignore")  # fmt: skip

        def arrived() -> None:
            if (file := st.session_state["labels-file"]) is not None:
                try:
                    labels.take(labels.from_json(file.getvalue()))
                except Unsuitable as problem:
                    st.session_state["problem"] = str(problem)

        st.file_uploader("Labels from a file", type=["json"], key="labels-file", on_change=arrived)
