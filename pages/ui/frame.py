"""What every page has around it: style, the bench read from the URL, what went wrong, and the end of work no one waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from pages.ui import jobs
from pages.ui.bench import read_url, write_url

STYLE = """<style>
.block-container { padding-top: 4.2rem; max-width: 1480px; }
h1 { font-size: 1.9rem !important; letter-spacing: -.01em; padding-bottom: .1rem !important; }
h5 { padding: .6rem 0 .1rem !important; }
.st-key-bar { border-top: 1px solid color-mix(in srgb, currentColor 14%, transparent); border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); padding: 6px 0; }
@media (max-width: 640px) {
  .block-container { padding: 4rem .9rem 3rem; }
  .st-key-bar { flex-wrap: nowrap !important; overflow-x: auto; scrollbar-width: thin; }
  .st-key-bar > div { flex: 0 0 auto !important; width: auto !important; }
}
</style>"""


@contextmanager
def page(title: str) -> Iterator[None]:
    """What is inside is a page of the app: it gets the bench from the URL, and the URL gets what the bench is in the end."""
    if PagesManager.uses_pages_directory:
        # A folder named pages makes Streamlit run the first page that anyone asks for by itself, without app.py.
        PagesManager.uses_pages_directory = False
        st.rerun()
    st.html(STYLE)
    jobs.begin()
    read_url()
    st.title(title)
    problem_banner()
    yield
    problem_banner()
    write_url()
    jobs.end()


def problem_banner() -> None:
    """Say once what could not be done."""
    if problem := st.session_state.pop("problem", None):
        st.warning(problem.replace("$", "\\$"), icon=":material/info:")
