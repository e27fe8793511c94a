"""Actiscope: see what a neural network reacts to, trace how it computes, change it, and look again.

`streamlit run app.py` imports this file once, as the server, and runs it again as the script of every visit.
"""

import interp  # noqa: F401  (first: it sets what has to be set before torch is imported)

# isort: split
from pathlib import Path

import streamlit as st

st.secrets.load_if_toml_exists()  # secrets become variables of the environment, which the settings are read from

from pages import server  # noqa: E402

if __name__ == "__main__":
    st.set_page_config(
        page_title="Actiscope",
        page_icon=str(Path(__file__).parent / "assets" / "icon.svg"),  # Streamlit's own icons come from elsewhere
        layout="wide",
        initial_sidebar_state="collapsed",
    )
    page = st.navigation(
        [
            st.Page("pages/home.py", title="Home", default=True),
            st.Page("pages/heatmaps.py", title="Heatmaps", icon=":material/gradient:"),
            st.Page("pages/pixels.py", title="Pixels", icon=":material/grain:"),
            st.Page("pages/prompts.py", title="Prompts", icon=":material/notes:"),
            st.Page("pages/circuits.py", title="Circuits", icon=":material/account_tree:"),
            st.Page("pages/features.py", title="Features", icon=":material/scatter_plot:"),
            st.Page("pages/transport.py", title="Transport", icon=":material/stairs:"),
            st.Page("pages/steering.py", title="Steering", icon=":material/tune:"),
            st.Page("pages/methods.py", title="Methods", icon=":material/menu_book:"),
            st.Page("pages/models.py", title="Models", icon=":material/deployed_code:"),
            st.Page("pages/history.py", title="History", icon=":material/history:"),
            st.Page("pages/snapshot.py", title="A shared view", visibility="hidden"),
        ],
        position="top",
    )
    with server.metrics.timed("page", page=page.url_path or "home"):
        page.run()
else:
    server.prepare()
    app = st.App(
        __file__,
        routes=server.ROUTES,
        middleware=server.MIDDLEWARE,
        lifespan=server.lifespan,
        on_script_error=server.failed,
    )
