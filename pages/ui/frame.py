"""What every page has around it: style, the bench from the URL, what went wrong, the end of work no one waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from interp import Unsuitable
from pages.ui import components, jobs, share, show
from pages.ui.bench import embedded, read_url, write_url

ASSETS = Path(__file__).parents[2] / "assets"


@contextmanager
def page(title: str) -> Iterator[None]:
    """What is inside is a page: it gets the bench from the URL, and the URL gets what the bench is in the end."""
    style()
    jobs.begin()
    components.begin(title)
    read_url()
    if embedded():
        with st.container(horizontal=True, key="embed-head", vertical_alignment="center", gap="small"):
            st.markdown(f"**{title}**")
            way_out = st.empty()
    else:
        st.title(title)
    banner = st.empty()
    try:
        yield
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)
    if problem := st.session_state.get("problem"):
        banner.warning(show.plain(problem), icon=":material/info:")
    if embedded():
        way_out.link_button("Open in Actiscope", share.plain_link(), icon=":material/open_in_new:", type="tertiary")
    write_url()
    jobs.end()


def style() -> None:
    """The style of the pages, and where one is shown inside a page of someone else's, of that."""
    st.html(ASSETS / "theme.css")
    if embedded():
        st.html(ASSETS / "embed.css")
