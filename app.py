"""Actiscope: see what a neural network reacts to, trace how it computes, change it, and look again.

`streamlit run app.py` imports this file once, as the server, and runs it again as the script of every visit.
"""

import interp  # noqa: F401  (first: it sets what has to be set before torch is imported)

# isort: split
import streamlit as st

if __name__ == "__main__":
    st.set_page_config(
        page_title="Actiscope",
        page_icon=":material/center_focus_strong:",
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
        ],
        position="top",
    )
    page.run()
else:
    from pages import server

    app = st.App(__file__, routes=server.ROUTES, middleware=server.MIDDLEWARE, lifespan=server.lifespan)
