"""What is served beside the pages: health, metrics, previews, and what every request goes through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("ok\n")


ROUTES: list[BaseRoute] = [Route("/healthz", _healthy)]
MIDDLEWARE: list[Middleware] = []


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    yield {}
