"""/s/ID: where a short link leads: a page with title and picture for those who see it posted, which goes on by itself.

/s/ID.png is the picture: the one that was drawn when the link was made, or one of its title alone.
"""

from __future__ import annotations

import html
from functools import lru_cache

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from interp import Missing, Unsuitable, settings, snapshot, storage
from pages.server import SHORT

_HOUR, _YEAR = 3600, 31536000


def _page(request: Request) -> Response:
    """The page of a short link; it has no script, and nothing from elsewhere."""
    id = request.path_params["id"]
    try:
        title = snapshot.title(id) or "A view in Actiscope"
    except Unsuitable as problem:
        return _refused(problem)
    # relative, so that it is right below whatever path a proxy serves this
    onward, here = f"../snapshot?id={id}", _origin(request) + request.url.path
    tags = {
        "og:title": title, "og:description": DESCRIPTION, "og:type": "website", "og:site_name": "Actiscope",
        "og:url": here, "og:image": f"{here}.png", "og:image:width": "1200", "og:image:height": "630",
        "og:image:alt": title, "twitter:card": "summary_large_image", "twitter:title": title,
        "twitter:description": DESCRIPTION, "twitter:image": f"{here}.png",
    }  # fmt: skip
    kinds = {name: "name" if name.startswith("twitter") else "property" for name in tags}
    metas = "\n".join(f'<meta {kinds[name]}="{name}" content="{html.escape(text)}">' for name, text in tags.items())
    body = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta http-equiv="refresh" content="0; url={onward}">
<title>{html.escape(title)}</title>
{metas}
<style>body {{ font: 17px/1.5 system-ui, sans-serif; margin: 12vh auto; max-width: 36em; padding: 0 1em }}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p><a href="{onward}">Open this view in Actiscope</a></p>
</body>
</html>
"""
    return HTMLResponse(body, headers={"Cache-Control": f"public, max-age={_HOUR}"})


DESCRIPTION = "See what a neural network reacts to, change it, and look again."


def _picture(request: Request) -> Response:
    try:
        png = _drawn(request.path_params["id"])
    except Unsuitable as problem:
        return _refused(problem)
    # an id names its content: whoever has the picture need not ask again
    return Response(png, media_type="image/png", headers={"Cache-Control": f"public, max-age={_YEAR}, immutable"})


@lru_cache(64)
def _drawn(id: str) -> bytes:
    """The picture that was kept, or a drawn title: once, as anyone may ask for it any number of times."""
    from pages.server import cards  # with numpy and Pillow, which a server needs only here

    title, kept = snapshot.title(id), snapshot.preview(id)
    return kept if kept is not None else cards.draw(title or "A view in Actiscope", [DESCRIPTION])


def _refused(problem: Unsuitable) -> Response:
    """404 for what is not here or can't be an id; 503 where the store does not answer."""
    status = 503 if isinstance(problem, storage.Away) else 404
    sentence = str(problem) if isinstance(problem, Missing | storage.Away) else "There is no such link here."
    return PlainTextResponse(f"{sentence}\n", status, headers={"Cache-Control": "no-store"})


def _origin(request: Request) -> str:
    """Where this server is for its visitors: what the proxies in front say, where they are believed."""
    scheme, host = request.url.scheme, request.headers.get("host", "")
    if settings.SETTINGS.proxies > 0:
        scheme = _last(request, "x-forwarded-proto") or scheme
        host = _last(request, "x-forwarded-host") or host
    return f"{'https' if scheme == 'https' else 'http'}://{host}"


def _last(request: Request, name: str) -> str:
    """What the proxy next to this server says: the others' words come through it unseen."""
    return request.headers.get(name, "").rpartition(",")[2].strip()


ROUTES: list[BaseRoute] = [Route(f"{SHORT}/{{id:str}}.png", _picture), Route(f"{SHORT}/{{id:str}}", _page)]
