"""The Streamlit code that is not a page."""

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

if PagesManager.uses_pages_directory:
    # A folder named pages makes Streamlit run the first page that anyone asks for by itself, without app.py. This is the
    # first line of ours that such a run reaches: begin again, properly, before anything heavy is imported.
    PagesManager.uses_pages_directory = False
    st.rerun()
