"""What every page has around it: style, the bench from the URL, what went wrong, the end of work no one waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from interp import Unsuitable
from pages.ui import jobs
from pages.ui.bench import read_url, write_url

STYLE = Path(__file__).parents[2] / "assets" / "theme.css"


@contextmanager
def page(title: str) -> Iterator[None]:
    """What is inside is a page: it gets the bench from the URL, and the URL gets what the bench is in the end."""
    st.html(STYLE)
    jobs.begin()
    read_url()
    st.title(title)
    banner = st.empty()
    try:
        yield
    except Unsuitable as problem:
        st.session_state["problem"] = str(problem)
    if problem := st.session_state.get("problem"):
        banner.warning(problem.replace("$", "\\$"), icon=":material/info:")
    write_url()
    jobs.end()
