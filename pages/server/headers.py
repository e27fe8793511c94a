"""What every answer says to the browser: what the page may load, run and be framed by."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path

import streamlit
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interp import settings

YEAR = 365 * 24 * 3600
UNUSED = ("camera", "display-capture", "geolocation", "microphone", "midi", "payment", "serial", "usb")


class Headers:
    """The middleware. A header that an answer already has stays."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        ours = headers(settings.SETTINGS.frames, scope.get("scheme") == "https")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                has = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in ours if each[0] not in has)]
            await send(message)

        await self.app(scope, receive, with_headers)


@lru_cache(8)
def headers(frames: str, https: bool) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer, given who may frame this site and whether the visitor came by HTTPS."""
    found = {
        "content-security-policy": policy(frames),
        "x-content-type-options": "nosniff",
        "referrer-policy": "strict-origin",  # a link holds a visitor's prompt: no other site is told more than our name
        "permissions-policy": ", ".join(f"{each}=()" for each in UNUSED),
    }
    if frames == "none":
        found["x-frame-options"] = "DENY"
    if https:
        found["strict-transport-security"] = f"max-age={YEAR}"
    return tuple((name.encode(), value.encode()) for name, value in found.items())


def policy(frames: str) -> str:
    """The content security policy.

    Streamlit's front end writes its styles into the page, so these can't be forbidden. A page component is a module
    that it loads from a blob of its own; only scripts of this origin can make one.
    """
    scripts = " ".join(f"'sha256-{each}'" for each in _inline())
    allowed = {
        "default-src": "'self'",
        "script-src": f"'self' blob: 'wasm-unsafe-eval' {scripts}",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "media-src": "'self' data: blob:",
        "worker-src": "'self' blob:",
        "frame-src": "'self'",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": _frames(frames),
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _frames(frames: str) -> str:
    if frames in ("none", ""):
        return "'none'"
    return " ".join(each for each in frames.split() if re.fullmatch(r"[A-Za-z0-9.:/*\[\]-]+|'self'", each)) or "'none'"


@cache
def _inline() -> tuple[str, ...]:
    """Digests of the scripts that stand in Streamlit's page itself."""
    text = (Path(streamlit.__file__).parent / "static" / "index.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    return tuple(base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
