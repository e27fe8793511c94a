"""Taking it along: the link, downloads, the citation, and what the method is."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode, urlsplit

import streamlit as st

from interp import store
from interp.experiment import Experiment
from interp.figures import Look, draw, encoded, to_svg
from interp.method import Method
from interp.results import Heatmap, Result
from interp.samples import Image
from pages.ui import jobs
from pages.ui.bench import bench, query


def link() -> None:
    """The link to this view; an upload goes with it only if its owner says so."""
    sample, experiment = bench().sample, bench().experiment
    if isinstance(sample, Image) and sample.reference.startswith("sha256:"):
        kept = store.blob(sample.sha256) is not None

        def consent() -> None:
            if st.session_state["keep"]:
                store.keep_blob(sample.data)
            else:
                store.forget_blob(sample.sha256)

        st.session_state["keep"] = kept
        st.checkbox(
            "Keep this photo on this server, so that the link shows it to others", key="keep", on_change=consent
        )
        if not kept:
            st.caption("Without it, the link asks whoever opens it for the same file.")
    result = jobs.known(experiment)
    if result is not None:
        store.keep_numbers(experiment.digest, result.arrays())
    place = urlsplit(st.context.url or "")
    base = f"{place.scheme}://{place.netloc}{place.path}" if place.netloc else ""
    st.code(f"{base}?{urlencode(query(), doseq=True)}", language=None, wrap_lines=True)
    st.caption("Whoever opens it sees this view, computed anew and compared with the numbers stored now.")


def downloads(experiment: Experiment, result: Heatmap, photo: Any, look: Look, scale: float, key: str) -> None:
    """The picture and the numbers."""
    name = f"{experiment.lens.method}-{result.target}".replace(" ", "_").replace("/", "_")
    title = f"{result.method} · {result.target} · {result.site} · {experiment.model}"
    with st.container(horizontal=True, gap="small"):
        for kind, mime, make in (
            ("PNG", "image/png", lambda: encoded(draw(result, photo, look, scale, 1024))),
            ("SVG", "image/svg+xml", lambda: to_svg(result, photo, title, look, scale).encode()),
            ("NPZ", "application/octet-stream", result.to_npz),
            ("JSON", "application/json", lambda: result.to_json().encode()),
        ):
            st.download_button(
                kind,
                make,
                f"{name}.{kind.lower()}",
                mime,
                key=f"{key}:{kind}",
                on_click="ignore",
                icon=":material/download:",
                type="tertiary",
            )


def numbers(experiment: Experiment, result: Result, key: str) -> None:
    """The numbers of what is no heatmap."""
    name = experiment.lens.method
    with st.container(horizontal=True, gap="small"):
        for kind, mime, make in (
            ("NPZ", "application/octet-stream", result.to_npz),
            ("JSON", "application/json", lambda: result.to_json().encode()),
        ):
            st.download_button(
                kind, make, f"{name}.{kind.lower()}", mime, key=f"{key}:{kind}", on_click="ignore",
                icon=":material/download:", type="tertiary",
            )  # fmt: skip


def explain(method: Method) -> None:
    """What am I seeing: what it does, the formula, what it assumes, when it misleads, the paper, BibTeX."""
    doc = method.doc
    st.markdown(f"**{method.name}.** {doc.summary}")
    if doc.formula:
        st.code(doc.formula, language=None, wrap_lines=True)
    if doc.remarks:
        st.write(doc.remarks)
    for section, heading in (("Assumes", "What it assumes"), ("Misleads", "When it misleads")):
        if section in doc.sections:
            st.markdown(f"**{heading}.** " + " ".join(doc.sections[section].split()))
    st.markdown(f"[{method.paper}]({method.paper.url})")
    with st.expander("Cite (BibTeX)", icon=":material/format_quote:"):
        st.code(method.paper.bibtex(), language="bibtex")
