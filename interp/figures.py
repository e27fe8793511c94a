"""Result -> picture: overlays as images for the app and downloads, plotly figures for notebooks."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from typing import Any, Literal

import numpy as np
import PIL.Image

from interp.results import Curve, FeatureList, FeaturePage, Heatmap, Result, Table, TokenGrid, TokenScores, resize

Colours = Literal["viridis", "cividis", "blue-vermilion", "grey"]
View = Literal["pixels", "patches", "superpixels"]
FINE = 64 * 64
"""Maps with more cells are of pixels: drawn up to a quantile, and summed to patches or superpixels where asked for."""
PATCHES = 16
_ANCHORS = {
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "cividis": "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
    "blue-vermilion": "0b5fa5 3f8fce 8fc1e6 d6e6f2 f7f7f5 fbdcc9 f3a37c e2703a c04510",
    "grey": "000000 ffffff",
}


@dataclass(frozen=True)
class Look:
    """How a map is drawn: signed or its positive part, how opaque, from which share of the scale, in which colours, and
    what a map of pixels is summed to."""

    signed: bool = False
    opacity: float = 0.65
    threshold: float = 0.0
    colours: Colours = "viridis"
    view: View = "pixels"


@lru_cache
def _table(colours: str) -> np.ndarray:
    """256 colours [256, 3], uint8."""
    anchors = np.array([[int(each[i : i + 2], 16) for i in (0, 2, 4)] for each in _ANCHORS[colours].split()], float)
    at = np.linspace(0, len(anchors) - 1, 256)
    return (
        np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, each]) for each in range(3)], 1)
        .round()
        .astype(np.uint8)
    )


def ramp(colours: Colours, steps: int = 17) -> list[str]:
    """Colours from low to high as CSS."""
    at = np.linspace(0, 255, steps).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _table(colours)[at]]


def colours_of(shares: np.ndarray, look: Look) -> np.ndarray:
    """Opaque colours [height, width, 3] of shares of the scale, from 0 to 1, or from -1 where signed."""
    index = (shares + 1) / 2 if look.signed else shares
    return _table(look.colours)[(index.clip(0, 1) * 255).round().astype(int)]


def scale_of(*maps: Heatmap) -> float:
    """One scale for several maps: the largest magnitude in them; 1 where all are zero.

    A map of pixels has a few that outshine all others: there the scale ends at the 99.5 % quantile.
    """
    largest = 0.0
    for each in maps:
        sizes = np.abs(each.values[np.isfinite(each.values)])
        if sizes.size:
            top = float(np.quantile(sizes, 0.995)) if sizes.size > FINE else 0.0
            largest = max(largest, top or float(sizes.max()))
    return largest if largest > 0 else 1.0


def viewed(heatmap: Heatmap, view: View, segments: Callable[[], np.ndarray]) -> Heatmap:
    """A map of pixels as it is, summed over 16 x 16 patches, or averaged over superpixels; other maps as they are.

    Args:
        segments: gives the number of the superpixel of each pixel of the model's input, [height, width].
    """
    values = heatmap.values
    if view == "pixels" or values.size <= FINE:
        return heatmap
    if view == "patches":
        rows, columns = (np.linspace(0, side, PATCHES, endpoint=False).astype(int) for side in values.shape)
        sums = np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1)
        return dataclasses.replace(heatmap, values=sums, units=heatmap.units.replace("per pixel", "per patch"))
    labels = segments().ravel()
    means = np.bincount(labels, values.ravel()) / np.maximum(np.bincount(labels), 1)
    return dataclasses.replace(heatmap, values=means[labels].reshape(values.shape))


def overlay(values: np.ndarray, scale: float, look: Look) -> np.ndarray:
    """Colours and opacity [height, width, 4], uint8, of a map: transparent where it says nothing, or is not defined."""
    shown = np.nan_to_num(values / scale).clip(-1, 1)
    if look.signed:
        colours: str = look.colours if look.colours in ("blue-vermilion", "grey") else "blue-vermilion"
        strength, index = np.abs(shown), (shown + 1) / 2
    else:
        colours, strength = look.colours, shown.clip(0, 1)
        index = strength
    rgba = np.empty((*shown.shape, 4), np.uint8)
    rgba[..., :3] = _table(colours)[(index * 255).round().astype(int)]
    # the photo stays visible where there is little evidence, and the middle of the scale is already well seen
    alpha = look.opacity * strength**0.6
    rgba[..., 3] = (np.where((strength >= look.threshold) & np.isfinite(values), alpha, 0) * 255).round()
    return rgba


def draw(
    heatmap: Heatmap, photo: PIL.Image.Image, look: Look = Look(), scale: float | None = None, side: int = 640
) -> PIL.Image.Image:
    """The photo with the map over it, longest side `side` pixels."""
    picture = fitted(backdrop(photo, heatmap), side).convert("RGBA")
    values = heatmap.at_original(picture.height, picture.width)
    picture.alpha_composite(PIL.Image.fromarray(overlay(values, scale or scale_of(heatmap), look)))
    return picture.convert("RGB")


def backdrop(photo: PIL.Image.Image, heatmap: Heatmap) -> PIL.Image.Image:
    """The photo; pale and grey under a map of pixels, whose fine colours would drown in its own."""
    if heatmap.site != "input":
        return photo
    grey = photo.convert("L").convert("RGB")
    return PIL.Image.blend(grey, PIL.Image.new("RGB", photo.size, (247, 247, 245)), 0.6)


def fitted(photo: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """The photo with its longest side `side` pixels."""
    factor = side / max(photo.size)
    return photo.resize(
        (max(1, round(photo.width * factor)), max(1, round(photo.height * factor))), PIL.Image.Resampling.LANCZOS
    )


def encoded(picture: PIL.Image.Image, kind: Literal["PNG", "WEBP", "JPEG"] = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 86} if kind != "PNG" else {}))
    return buffer.getvalue()


def data_url(picture: PIL.Image.Image, kind: Literal["PNG", "WEBP", "JPEG"] = "WEBP") -> str:
    """The image as text that a page can show."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(picture, kind)).decode()}"


def legend(scale: float, look: Look, units: str) -> tuple[list[str], str, str]:
    """Colours from low to high as CSS, and the texts at both ends."""
    colours = (
        ("blue-vermilion" if look.colours not in ("blue-vermilion", "grey") else look.colours)
        if look.signed
        else look.colours
    )
    stops = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _table(colours)[:: 255 // 5]]
    low = f"{-scale:.2g}" if look.signed else "0"
    return stops, low, f"{scale:.2g} {units}".strip()


def to_svg(
    heatmap: Heatmap, photo: PIL.Image.Image, title: str, look: Look = Look(), scale: float | None = None
) -> str:
    """A figure for a paper: the overlay with title, legend and units as text."""
    picture = draw(heatmap, photo, look, scale)
    stops, low, high = legend(scale or scale_of(heatmap), look, heatmap.units)
    width, height = picture.size
    gradient = "".join(
        f'<stop offset="{index / (len(stops) - 1):.3f}" stop-color="{each}"/>' for index, each in enumerate(stops)
    )
    text = 'font-family="Source Sans 3, Source Sans Pro, sans-serif" font-size="14" fill="#222"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 64}" '
        f'viewBox="0 0 {width} {height + 64}">'
        f'<defs><linearGradient id="scale">{gradient}</linearGradient></defs>'
        '<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="0" y="16" {text}>{html.escape(title)}</text>'
        f'<image x="0" y="24" width="{width}" height="{height}" href="{data_url(picture, "PNG")}"/>'
        f'<rect x="0" y="{height + 32}" width="{width}" height="8" fill="url(#scale)"/>'
        f'<text x="0" y="{height + 58}" {text}>{low}</text>'
        f'<text x="{width}" y="{height + 58}" text-anchor="end" {text}>{html.escape(high)}</text></svg>'
    )


_LETTERS = {"A": "#009e73", "C": "#0072b2", "G": "#e69f00", "T": "#d55e00"}


def logo(
    letters: str, values: np.ndarray, scale: float, spans: Sequence[tuple[int, int, str]] = (), height: int = 90
) -> str:
    """A sequence as an SVG: each letter as tall as its value, below the line where it is negative.

    Args:
        scale: the value that fills the height.
        spans: (start, end, name) of what is marked under the letters.
    """
    step, middle = 6.0, height / 2
    parts = [f'<line x1="0" x2="{step * len(letters)}" y1="{middle}" y2="{middle}" stroke="#999" stroke-width="0.5"/>']
    for start, end, name in spans:
        x, width = start * step, (end - start) * step
        parts.append(f'<rect x="{x}" y="0" width="{width}" height="{height}" fill="#8888881c"/>')
        parts.append(
            f'<text x="{x + width / 2}" y="{height + 12}" text-anchor="middle" font-size="11" fill="#777" '
            f'font-family="sans-serif">{html.escape(name)}</text>'
        )
    for at, (letter, value) in enumerate(zip(letters, values, strict=True)):
        size = float(np.clip(value / scale, -1, 1)) * middle
        if abs(size) > 0.4:  # capitals of this font are 0.716 em tall and about 0.68 em wide
            parts.append(
                f'<text transform="translate({at * step + step / 2:.1f} {middle}) scale({step / 6.8:.3f} '
                f'{size / 7.16:.3f})" text-anchor="middle" font-size="10" font-weight="700" '
                f'font-family="Arial, Helvetica, sans-serif" fill="{_LETTERS.get(letter, "#666")}">{letter}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {step * len(letters)} {height + 16}" '
        f'width="{step * len(letters)}" height="{height + 16}">{"".join(parts)}</svg>'
    )


@singledispatch
def figure(result: Result, **_: Any) -> Any:
    """A plotly figure of a result, for notebooks."""
    raise TypeError(f"There is no figure for {type(result).__name__}.")


@figure.register
def _(result: Heatmap, photo: PIL.Image.Image | None = None, **_: Any) -> Any:
    import plotly.graph_objects as go

    scale = scale_of(result)
    values = resize(result.values, result.size)
    heat = go.Heatmap(
        z=values,
        zmin=-scale,
        zmax=scale,
        colorscale="RdBu_r",
        colorbar={"title": result.units},
        opacity=1 if photo is None else 0.6,
    )
    left, top, right, bottom = result.box
    height, width = result.size
    chart = go.Figure(heat)
    if photo is not None:
        frame = {
            "x": -left / (right - left) * width,
            "y": -top / (bottom - top) * height,
            "sizex": width / (right - left),
            "sizey": height / (bottom - top),
        }
        chart.add_layout_image(source=fitted(photo, 640), xref="x", yref="y", sizing="stretch", layer="below", **frame)
    chart.update_yaxes(autorange="reversed", scaleanchor="x", visible=False)
    chart.update_xaxes(visible=False)
    return chart.update_layout(title=f"{result.method} · {result.target} · {result.site}")


@figure.register
def _(result: TokenScores, **_: Any) -> Any:
    import plotly.graph_objects as go

    places = list(range(len(result.tokens)))
    chart = go.Figure(
        go.Bar(
            x=places, y=result.values, customdata=result.tokens, hovertemplate="%{customdata}: %{y:.3g}<extra></extra>"
        )
    )
    chart.update_xaxes(tickvals=places, ticktext=list(result.tokens))
    return chart.update_yaxes(title=result.units)


@figure.register
def _(result: TokenGrid, sheet: str | None = None, **_: Any) -> Any:
    import plotly.graph_objects as go

    words = [[cell[0] for cell in row] for row in result.choices]
    values = result.values[result.sheets.index(sheet) if sheet else 0]
    scale = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    grid = go.Heatmap(
        z=values,
        text=words or None,
        texttemplate="%{text}" if words else None,
        colorbar={"title": sheet or result.sheets[0]},
        **({"colorscale": "RdBu_r", "zmin": -scale, "zmax": scale} if result.signed else {"colorscale": "Cividis"}),
    )
    chart = go.Figure(grid)
    chart.update_yaxes(tickvals=list(range(len(result.rows))), ticktext=list(result.rows), autorange="reversed")
    # by number, as a token may stand in several columns
    return chart.update_xaxes(tickvals=list(range(len(result.columns))), ticktext=list(result.columns))


@figure.register
def _(result: FeatureList, **_: Any) -> Any:
    import plotly.graph_objects as go

    places = list(range(len(result.features)))
    names = [f"#{n} {label}" for n, label in zip(result.features.tolist(), result.labels, strict=True)]
    chart = go.Figure(go.Bar(y=places, x=result.values, orientation="h", customdata=result.reasons or names,
                             hovertemplate="%{customdata}: %{x:.3g}<extra></extra>"))  # fmt: skip
    chart.update_yaxes(tickvals=places, ticktext=names, autorange="reversed")
    return chart.update_xaxes(title=result.units)


@figure.register
def _(result: FeaturePage, **_: Any) -> Any:
    import plotly.graph_objects as go

    words = [*result.promoted, *result.suppressed[::-1]]
    values = np.concatenate([result.gains, result.losses[::-1]])
    places = list(range(len(words)))
    chart = go.Figure(go.Bar(y=places, x=values, orientation="h"))
    chart.update_yaxes(tickvals=places, ticktext=words, autorange="reversed")
    return chart.update_layout(title=f"#{result.feature} of {result.sae}", xaxis_title="logit per unit of activation")


@figure.register
def _(result: Curve, **_: Any) -> Any:
    import plotly.graph_objects as go

    chart = go.Figure([go.Scatter(x=result.x, y=y, name=name) for name, y in zip(result.series, result.y, strict=True)])
    return chart.update_layout(xaxis_title=result.x_label, yaxis_title=result.y_label)


@figure.register
def _(result: Table, **_: Any) -> Any:
    import plotly.graph_objects as go

    cells = [list(result.rows), *(np.array([f"{each:.4g}" for each in column]) for column in result.values.T)]
    return go.Figure(go.Table(header={"values": ["", *result.columns]}, cells={"values": cells}))
