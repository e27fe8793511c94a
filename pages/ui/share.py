"""Taking it along: the link, downloads, the citation, and what the method is."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import streamlit as st

from interp import Unsuitable, settings, snapshot
from interp.experiment import Experiment
from interp.figures import Look, draw, encoded, to_svg
from interp.method import Method
from interp.methods import METHODS
from interp.results import Heatmap, Result
from interp.samples import Image
from pages.server import cards
from pages.ui import components, export, show
from pages.ui.bench import bench, check, headlined, kept_view, page_of, query


def link() -> None:
    """The link to this view; a short one that keeps it; and it as code for other places."""
    url = live()
    st.markdown("**Live link**")
    st.code(url, language=None, wrap_lines=True)
    photo = _uploaded(bench().sample)
    st.caption(
        "All of it is in the link, and nothing is kept here. "
        + (
            "Your photo is not in it: whoever opens it is asked for the same file."
            if photo
            else "Whoever opens it sees this view, computed anew."
        )
    )
    st.markdown("**Short link**")
    address = _short(photo)
    embedded = f"{base()}snapshot?id={address.rpartition('/')[2]}&embed=true" if address else f"{url}&embed=true"
    st.markdown("**For other places**")
    kinds = ("Embed", "Python", "Experiment", "Markdown")
    kind = st.segmented_control("As", kinds, key="share-as", label_visibility="collapsed")
    experiment = bench().experiment
    if kind == "Embed":
        frame = f'<iframe src="{html.escape(embedded)}" width="100%" height="480" style="border:0" title="Actiscope">'
        st.code(f"{frame}</iframe>", language="html", wrap_lines=True)
        st.caption("The figure alone, in a page of yours.")
    elif kind == "Python":
        st.code(experiment.to_python(), language="python", wrap_lines=True)
    elif kind == "Experiment":
        st.code(experiment.to_json(), language="json", wrap_lines=True)
        st.download_button("experiment.json", experiment.to_json(), "experiment.json", "application/json",
                           on_click="ignore", icon=":material/download:", type="tertiary")  # fmt: skip
        st.caption("For the command line: `python -m interp run experiment.json`.")
    elif kind == "Markdown":
        name = show.plain(_title())
        st.code(f"[![{name}]({address}.png)]({address})" if address else f"[{name}]({url})", language="markdown",
                wrap_lines=True)  # fmt: skip
        if not address:
            st.caption("With a short link there is a picture in it.")


def live() -> str:
    """The link to what is on the bench, with a few digits that tell whether its numbers are those seen here."""
    headline = headlined()
    return plain_link() + (f"&check={check(*headline)}" if headline else "")


def plain_link() -> str:
    """The link without these digits, which take a look at every number."""
    place = urlsplit(st.context.url or "")
    folder, _, own = place.path.rpartition("/")
    page = page_of(METHODS[bench().lens.method])
    name = own or (Path(page).stem if page else "")
    origin = f"{place.scheme}://{place.netloc}" if place.netloc else ""
    return f"{origin}{folder}/{name}?{urlencode(query(), doseq=True)}"


def base() -> str:
    """Where Actiscope is, as the visitor's browser knows it, ending in a slash."""
    place = urlsplit(st.context.url or "")
    return f"{place.scheme}://{place.netloc}{place.path.rpartition('/')[0]}/" if place.netloc else "/"


def _uploaded(sample: Any) -> bool:
    """Whether it is a photo of a visitor's own."""
    return isinstance(sample, Image) and sample.reference.startswith("sha256:")


def _short(photo: bool) -> str:
    """What makes a short link, or the one that was made of this view."""
    made: tuple[Any, str] | None = st.session_state.get("short")
    if made is not None and made[0] == query():
        address = f"{base()}s/{made[1]}"
        st.code(address, language=None, wrap_lines=True)
        st.caption(f"Kept on this server: {_kept(photo)}, {_time()}.")
        return address
    st.text_input("Title", key="share-title", max_chars=120, placeholder=_title(), help="Shown where it is posted.")
    if photo:
        st.checkbox("Keep this photo on this server, so that the short link shows it to others", key="keep-photo")
    st.button("Make a short link", icon=":material/link:", key="make-short", on_click=_make, args=(photo,))
    if problem := st.session_state.pop("short-problem", ""):
        st.warning(show.plain(problem), icon=":material/info:")
    st.caption(f"Keeps on this server: {_kept(photo)}, {_time()}. Whoever has the link can see it.")
    return ""


def _kept(photo: bool) -> str:
    what = ["your photo"] if photo else []
    return ", ".join([*what, "this experiment and view", "its numbers", "a small picture of it"])


def _time() -> str:
    days = settings.SETTINGS.shared_days
    return f"until nobody has opened it for {days:g} days" if days else "for as long as there is room"


def _title() -> str:
    """What a link is called where its maker names none: the question of its page."""
    return components.shown().title or "A view in Actiscope"


def _make(photo: bool) -> None:
    """Keep what is shown; a problem is said in the popover, and nothing else changes."""
    if photo and not st.session_state.get("keep-photo"):
        st.session_state["short-problem"] = (
            "A short link has to keep your photo: tick the box above, or send the live link and the file."
        )
        return
    headline = headlined()
    if headline is None:
        st.session_state["short-problem"] = "There is no result to keep yet: wait until the page shows one."
        return
    experiment, result = headline
    title = st.session_state.get("share-title", "").strip() or _title()
    try:
        id = snapshot.keep(experiment, result, kept_view(experiment), title, picture(experiment, result, title))
        st.session_state["short"] = (query(), id)
    except Unsuitable as problem:
        st.session_state["short-problem"] = str(problem)


def picture(experiment: Experiment, result: Result, title: str) -> bytes:
    """The picture that stands beside the link."""
    method, target = METHODS[experiment.lens.method], getattr(result, "target", "")
    lines = [f"{method.name}{f': {target}' if target else ''} · model {experiment.model}"]
    lines += [export.sample_text(experiment.sample), *map(export.said, experiment.interventions)]
    if not isinstance(result, Heatmap):
        shown = components.shown().parts.values()
        texts = [(data["heading"], data["text"]) for name, data in shown if name == "html" and "text" in data]
        return cards.draw(title, lines, result, texts=texts if experiment.lens.method == "side_effects" else ())
    look = bench().look
    return cards.draw(title, lines, show.view(result), show.picture_of(experiment), look)


def _page_file(experiment: Experiment, result: Result) -> Any:
    """What makes the HTML file of this run of the page, once it is asked for."""
    shown, link = components.shown(), plain_link()

    def made() -> bytes:
        about = shown.about or (experiment, result)
        return export.page(*about, shown.parts, shown.title, f"{link}&check={check(*about)}")

    return made


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
            ("HTML", "text/html", _page_file(experiment, result)),
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
            ("HTML", "text/html", _page_file(experiment, result)),
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
