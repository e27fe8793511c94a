"""What is served beside the pages: health, metrics, previews, and what every request goes through."""

from __future__ import annotations

import asyncio
import importlib

from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send
from streamlit import config

from interp import settings
from pages.server import metrics, ready
from pages.server.door import Door
from pages.server.headers import Headers
from pages.server.logs import Requests, failed
from pages.server.ready import lifespan


class _ShortLinks:
    """What is below `SHORT`. It needs models and with them torch: imported when somebody comes, in a thread."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        previews = await asyncio.to_thread(importlib.import_module, "pages.server.previews")
        await Router(previews.ROUTES)(scope, receive, send)


# Streamlit puts its own routes below the base path, and leaves others where they are
SHORT = "/".join(["", *filter(None, (config.get_option("server.baseUrlPath") or "").split("/")), "s"])
"""Where short links are."""

ROUTES: list[BaseRoute] = [
    Route("/healthz", ready.alive),
    Route("/readyz", ready.answer),
    Route("/metrics", metrics.answer),
    Route(f"{SHORT}/{{rest:path}}", _ShortLinks()),
]
MIDDLEWARE = [Middleware(Requests), Middleware(Headers), Middleware(Door, closing=ready.closing)]

__all__ = ["MIDDLEWARE", "ROUTES", "failed", "lifespan", "prepare"]


def prepare() -> None:
    """Tell Streamlit the limits that it enforces itself."""
    config.set_option("server.maxUploadSize", max(1, settings.SETTINGS.upload_bytes // settings.MB))
