import streamlit as st

from interp import Unsuitable, snapshot
from pages.ui import frame, show
from pages.ui.bench import open_snapshot

page = ""
try:
    page = open_snapshot(snapshot.read(st.query_params.get("id", "")))
except Unsuitable as problem:
    frame.style()
    st.title("This link can't be opened")
    st.warning(show.plain(str(problem)), icon=":material/info:")
    st.page_link("pages/home.py", label="To the first page", icon=":material/arrow_forward:")
if page:
    st.switch_page(page)
