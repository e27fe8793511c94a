"""The server of the app around a page that fails in every way on demand: it starts without torch."""

import asyncio
import logging
import threading
import warnings

import streamlit as st

from pages import server
from pages.server import door, ready

if __name__ == "__main__":
    typed = st.text_input("Text")
    st.file_uploader("File")
    st.caption(f"seen {typed}")

    def thread() -> None:
        raise RuntimeError(typed)

    if "everything" in typed:
        threading.Thread(target=thread).start()
        warnings.warn(typed, stacklevel=1)
        logging.getLogger("elsewhere").error(typed)
        logging.getLogger("elsewhere").error("with %s", typed)
        logging.getLogger("streamlit.elsewhere").warning(f"{typed} again")
        logging.getLogger("actiscope").error("A value: %s", typed)
        try:
            int(typed)
        except ValueError as error:
            raise KeyError(typed) from error
else:
    ready.HEADERS = 0.3
    ready.NOTICE = 1.0
    ready._tend = lambda: None  # it needs torch
    door.RETRY = 1, 1
    server.prepare()

    async def fails(*_: object) -> None:
        async def task() -> None:
            raise RuntimeError("SECRET of a task")

        asyncio.get_running_loop().create_task(task())
        raise RuntimeError("SECRET of a route")

    app = st.App(
        __file__,
        routes=[*server.ROUTES, server.Route("/fails", fails)],
        middleware=server.MIDDLEWARE,
        lifespan=server.lifespan,
        on_script_error=server.failed,
    )
