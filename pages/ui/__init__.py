"""The Streamlit code that is not a page."""

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

if PagesManager.uses_pages_directory:
    # A folder named pages makes Streamlit run the first page that anyone asks for by itself, without app.py. Here such
    # a run first reaches a line of ours: begin again, properly, before anything heavy is imported.
    PagesManager.uses_pages_directory = False
    st.rerun()
