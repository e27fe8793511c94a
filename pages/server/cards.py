"""The picture that stands beside a link where it is posted: 1200 x 630, drawn from the result itself."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import streamlit

from interp.figures import Look, colours_of, encoded, fitted
from interp.figures import draw as overlaid
from interp.methods.reading._prompts import RESIDUALS
from interp.results import Curve, FeatureList, FeaturePage, Graph, Heatmap, Result, Table, TokenGrid, TokenScores
from interp.sites import Node

SIZE = 1200, 630
MARGIN = 52
PAPER, INK, QUIET, LINE, ACCENT = "#fbfbfa", "#1f1e1b", "#6b6963", "#dedcd6", "#4269d0"
FOR, AGAINST = "#d55e00", "#0072b2"
FONTS = Path(streamlit.__file__).parent / "static" / "static" / "media"
WEIGHTS = {"plain": 400, "bold": 600}
Box = tuple[int, int, int, int]


def draw(
    title: str,
    lines: Sequence[str],
    result: Result | None = None,
    photo: PIL.Image.Image | None = None,
    look: Look | None = None,
    texts: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The picture as PNG.

    Args:
        title: up to two lines, large.
        lines: what is shown of what, smaller: at most three.
        result: what the figure is drawn from; without one the title stands alone.
        photo: what a heatmap lies over.
        look: how a heatmap is drawn.
        texts: what a model wrote, by name, shown instead of numbers.
    """
    picture = PIL.Image.new("RGB", SIZE, PAPER)
    pen = PIL.ImageDraw.Draw(picture)
    width, height = SIZE
    pen.rectangle((0, 0, width, 9), fill=ACCENT)
    _signed(pen)
    if isinstance(result, Heatmap) and photo is not None:
        image = fitted(overlaid(result, photo, look or Look(), side=900), 900)
        scale = min(640 / image.width, 496 / image.height)
        image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.LANCZOS)
        left = width - MARGIN - image.width
        picture.paste(image, (left, 48 + (496 - image.height) // 2))
        _titled(pen, title, lines, left - MARGIN - 36, 4)
        return encoded(picture)
    bottom = _titled(pen, title, lines, width - 2 * MARGIN, 2)
    place = (MARGIN, bottom + 24, width - MARGIN, height - 92)
    if texts:
        _written(pen, texts, place)
    elif result is not None:
        figure(result, pen, place)
    return encoded(picture)


def _signed(pen: PIL.ImageDraw.ImageDraw) -> None:
    """The product's name at the foot."""
    y = SIZE[1] - 66
    pen.ellipse((MARGIN, y + 4, MARGIN + 30, y + 34), outline=ACCENT, width=5)
    pen.ellipse((MARGIN + 10, y + 14, MARGIN + 20, y + 24), fill=ACCENT)
    pen.text((MARGIN + 44, y), "Actiscope", fill=INK, font=font(30, "bold"))
    pen.text((MARGIN + 190, y), "look inside a neural network", fill=QUIET, font=font(30))


def _titled(pen: PIL.ImageDraw.ImageDraw, title: str, lines: Sequence[str], width: int, most: int) -> int:
    """Title and lines; where they end."""
    y = 42
    size = 54 if len(_wrapped(title, font(54, "bold"), width)) <= most - 1 else 44
    for line in _wrapped(title, font(size, "bold"), width, most):
        pen.text((MARGIN, y), line, fill=INK, font=font(size, "bold"))
        y += round(size * 1.16)
    y += 10
    for text in lines[:3]:
        for line in _wrapped(text, font(30), width, most - 1):
            pen.text((MARGIN, y), line, fill=QUIET, font=font(30))
            y += 38
    return y


@cache
def font(size: int, weight: str = "plain") -> PIL.ImageFont.FreeTypeFont:
    """The font of the pages, which Streamlit brings; without it Pillow's own."""
    for path in FONTS.glob("SourceSansVF-Upright*.woff2"):
        try:
            found = PIL.ImageFont.truetype(path, size)
            found.set_variation_by_axes([WEIGHTS[weight]])
            return found
        except OSError:  # FreeType without Brotli
            break
    return PIL.ImageFont.load_default(size)  # type: ignore[return-value]


def _shown(text: str) -> str:
    """One line of it, without what can't be seen."""
    return "".join(each if each.isprintable() else " " for each in text.replace("\n", " | "))


def _token(text: str) -> str:
    return _shown(text).strip() or "␣"


def _cut(text: str, shape: Any, width: float) -> str:
    """As much of a text as fits."""
    text = text[:300]
    if shape.getlength(text) <= width:
        return text
    fits = bisect_left(range(len(text)), True, key=lambda count: shape.getlength(text[: count + 1] + "…") > width)
    return text[:fits] + "…"


def _wrapped(text: str, shape: Any, width: int, most: int = 99) -> list[str]:
    """Lines of a text, the last one cut off where there are more."""
    lines, line = [], ""
    for word in _shown(text[:600]).split():
        longer = f"{line} {word}".strip()
        if line and shape.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_cut(each, shape, width) for each in lines]


# ------------------------------------------------------------------------------------------------------------- figures


@singledispatch
def figure(result: Result, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    """Draw a result into a place of the picture; one that has no picture leaves it empty."""


@figure.register
def _(result: TokenGrid, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    values, choices = np.where(np.isfinite(result.values[0]), result.values[0], np.nan), result.choices
    if not values.size:
        return
    upward = result.rows[0] == RESIDUALS
    order = list(range(len(result.rows)))[::-1] if upward else list(range(len(result.rows)))
    order = [order[at] for at in _some(len(order), 8)]
    columns = list(range(len(result.columns)))[-14:]
    names = font(22)
    left = place[0] + min(max(int(names.getlength(_shown(result.rows[at]))) for at in order) + 14, 190)
    wide = min((place[2] - left) / len(columns), 200)
    high = min((place[3] - 34 - place[1]) / len(order), 54)
    largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    look = Look(signed=result.signed, colours="blue-vermilion" if result.signed else "cividis")
    for r, row in enumerate(order):
        y = place[1] + r * high
        label = _cut(_shown(result.rows[row]), names, left - place[0] - 8)
        pen.text((left - 10, y + high / 2), label, fill=QUIET, font=names, anchor="rm")
        for c, column in enumerate(columns):
            value = float(values[row, column])
            if value != value:
                continue
            colour = tuple(int(each) for each in colours_of(np.array([[value / largest]]), look)[0, 0])
            x = left + c * wide
            pen.rectangle((x, y, x + wide - 2, y + high - 2), fill=colour)
            if wide > 44 if choices else wide > 70:
                size = font(min(24, int(0.62 * high)))
                bright = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 130
                text = _cut(_token(choices[row][column][0]) if choices else f"{value:.2g}", size, wide - 8)
                pen.text((x + wide / 2, y + high / 2), text, fill=INK if bright else "#ffffff", font=size, anchor="mm")
    for c, column in enumerate(columns):
        text = _cut(_token(result.columns[column]), names, wide - 4)
        x, y = left + (c + 0.5) * wide, place[1] + len(order) * high + 18
        pen.text((x, y), text, fill=INK, font=names, anchor="mm")


def _some(count: int, most: int) -> list[int]:
    """Numbers of at most so many, evenly spread, with both ends."""
    return list(dict.fromkeys(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


@figure.register
def _(result: TokenScores, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    largest = float(np.nanmax(np.abs(result.values), initial=0)) or 1.0
    shape, (x, y) = font(36), place[:2]
    for token, value in zip(result.tokens, np.nan_to_num(result.values).tolist(), strict=True):
        text = _cut(_token(token), shape, 320)
        wide = shape.getlength(text) + 18
        if x + wide > place[2]:
            x, y = place[0], y + 66
            if y + 52 > place[3]:
                break
        share = min(abs(value) / largest, 1.0)
        colour = _mixed(FOR if value >= 0 else AGAINST, 0.62 * share)
        pen.rounded_rectangle((x, y, x + wide, y + 52), 5, fill=colour)
        pen.text((x + 9, y + 26), text, fill=INK, font=shape, anchor="lm")
        x = round(x + wide + 6)


def _mixed(colour: str, share: float) -> tuple[int, ...]:
    """So much of a colour on the paper."""
    one, other = ([int(each[i : i + 2], 16) for i in (1, 3, 5)] for each in (colour, PAPER))
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))


@figure.register
def _(result: Graph, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    nodes = [Node.parse(each) for each in result.nodes]
    values, weights = np.nan_to_num(result.values), np.nan_to_num(result.weights)
    strongest = np.argsort(-np.abs(weights), kind="stable")[:60].tolist()
    kept = {int(each) for edge in strongest for each in result.edges[edge]}
    kept |= set(np.argsort(-np.abs(values), kind="stable")[:24].tolist())
    tokens = [_token(each) for each in result.tokens]
    layers = 1 + max((node.layer for node in nodes if node.layer is not None), default=0)
    left, bottom = place[0] + 70, place[3] - 40
    wide = (place[2] - left) / max(len(tokens), 1)
    high = (bottom - place[1]) / (layers + 1)

    def spot(at: int) -> tuple[float, float]:
        node = nodes[at]
        layer = layers if node.layer is None else node.layer
        part = 0.28 if node.head is not None else 0.72 if node.kind == "mlp_out" else 0.5
        column = len(tokens) - 1 if node.position is None else min(node.position, len(tokens) - 1)
        sideways = 0.0 if node.head is None else (node.head % 5 - 2) * min(wide / 6, 22)
        return left + (column + 0.5) * wide + sideways, bottom - (layer + part) * high

    names = font(22)
    for layer in range(layers):
        y = bottom - (layer + 0.5) * high
        pen.line((left, y + high / 2, place[2], y + high / 2), fill=LINE)
        pen.text((place[0], y), f"layer {layer}", fill=QUIET, font=names, anchor="lm")
    for column, token in enumerate(tokens):
        if wide > 26:
            x = left + (column + 0.5) * wide
            pen.text((x, bottom + 20), _cut(token, names, wide - 4), fill=INK, font=names, anchor="mm")
    widest = float(np.abs(weights[strongest]).max(initial=0)) or 1.0
    for edge in strongest[::-1]:
        source, target = (spot(int(each)) for each in result.edges[edge])
        weight = float(weights[edge])
        share = abs(weight) / widest
        colour = _mixed(FOR if weight >= 0 else AGAINST, 0.25 + 0.7 * share)
        pen.line((*source, *target), fill=colour, width=1 + round(6 * share))
    largest = float(np.abs(values).max(initial=0)) or 1.0
    for at in kept:
        (x, y), value = spot(at), float(values[at])
        size = 6 + 11 * abs(value) / largest
        pen.ellipse(
            (x - size, y - size, x + size, y + size), fill=FOR if value >= 0 else AGAINST, outline=PAPER, width=2
        )


@figure.register
def _(result: FeatureList, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    rows = [
        (f"#{number}  {_shown(label).strip()}", value, f"{value:.3g}")
        for number, label, value in zip(
            result.features.tolist(), result.labels or [""] * len(result.features), result.values.tolist(), strict=True
        )
    ]
    _bars(pen, rows, place)


def _bars(pen: PIL.ImageDraw.ImageDraw, rows: Sequence[tuple[str, float, str]], place: Box) -> None:
    """Names, bars and numbers: as many as there is room for."""
    high = 48
    rows = rows[: (place[3] - place[1]) // high]
    largest = max((abs(value) for _, value, _ in rows if np.isfinite(value)), default=0.0) or 1.0
    middle, end = place[0] + 420, place[2] - 130
    for at, (name, value, text) in enumerate(rows):
        y = place[1] + at * high + high / 2
        pen.text((place[0], y), _cut(name, font(28), 400), fill=INK, font=font(28), anchor="lm")
        share = abs(value) / largest if np.isfinite(value) else 0.0
        colour = ACCENT if value >= 0 else FOR
        pen.rectangle((middle, y - 13, middle + max(share * (end - middle), 3), y + 13), fill=colour)
        pen.text((place[2], y), _shown(text), fill=INK, font=font(28), anchor="rm")


@figure.register
def _(result: FeaturePage, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    middle = (place[0] + place[2]) // 2 + 20
    gains = [(_token(word), gain) for word, gain in zip(result.promoted[:6], result.gains.tolist(), strict=False)]
    pen.text(place[:2], "promotes", fill=QUIET, font=font(26))
    largest = max((abs(gain) for _, gain in gains), default=0.0) or 1.0
    y = place[1] + 40
    for word, gain in gains:
        if y + 40 > place[3]:
            break
        pen.rectangle((place[0], y, place[0] + 500 * abs(gain) / largest, y + 36), fill=_mixed(ACCENT, 0.28))
        pen.text((place[0] + 8, y + 18), _cut(word, font(28), 300), fill=INK, font=font(28), anchor="lm")
        y += 44
    pen.text((middle, place[1]), "fires on", fill=QUIET, font=font(26))
    y = place[1] + 40
    for tokens, mark in zip(result.contexts, result.marks.tolist(), strict=False):
        if y + 40 > place[3] or not tokens:
            break
        before, word, after = ("".join(tokens[:mark])[-34:], tokens[mark], "".join(tokens[mark + 1 :])[:40])
        x: float = middle
        for text, here in ((before, False), (word, True), (after, False)):
            text = _cut(_shown(text), font(26), max(place[2] - x - 4, 0)) if text else ""
            wide = font(26).getlength(text)
            if here:
                pen.rectangle((x, y, x + wide, y + 36), fill=_mixed(FOR, 0.45))
            pen.text((x, y + 18), text, fill=INK if here else QUIET, font=font(26), anchor="lm")
            x += wide
        y += 44


@figure.register
def _(result: Curve, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    colours = ("#0072b2", "#9a9a96", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    shown = [at for at, name in enumerate(result.series) if ", " not in name][: len(colours)]
    left, top, right, bottom = place[0] + 90, place[1] + 44, place[2], place[3] - 44
    y = np.where(np.isfinite(result.y[shown]), result.y[shown], np.nan)
    if not len(result.x) or np.isnan(y).all():
        return
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    span, width = (high - low) or 1.0, float(result.x[-1] - result.x[0]) or 1.0
    for value in (low, high):
        at = bottom - (value - low) / span * (bottom - top)
        pen.line((left, at, right, at), fill=LINE)
        pen.text((left - 10, at), f"{value:.2g}", fill=QUIET, font=font(24), anchor="rm")
    for value, anchor in ((result.x[0], "la"), (result.x[-1], "ra")):
        x = left if anchor == "la" else right
        pen.text((x, bottom + 8), f"{float(value):.3g}", fill=QUIET, font=font(24), anchor=anchor)
    pen.text(((left + right) / 2, bottom + 8), _shown(result.x_label), fill=QUIET, font=font(24), anchor="ma")
    x = left
    for series, colour in zip(shown, colours, strict=False):
        points = [
            (left + float(a - result.x[0]) / width * (right - left), bottom - (float(b) - low) / span * (bottom - top))
            for a, b in zip(result.x, result.y[series], strict=True)
            if np.isfinite(b)
        ]
        pen.line(points, fill=colour, width=6, joint="curve")
        name = _cut(_shown(result.series[series]), font(26), 260)
        pen.text((x, place[1]), name, fill=colour, font=font(26, "bold"))
        x += font(26, "bold").getlength(name) + 30


@figure.register
def _(result: Table, pen: PIL.ImageDraw.ImageDraw, place: Box) -> None:
    named = [at for at, name in enumerate(result.columns) if name in ("p", "probability")]
    if named or len(result.columns) == 1:
        column = named[0] if named else 0
        order = np.argsort(-result.values[:, column], kind="stable")[:8].tolist()
        _bars(
            pen, [(_token(result.rows[at]), float(v := result.values[at, column]), f"{v:.2g}") for at in order], place
        )
        return
    columns, names = result.columns[:4], font(28)
    wide = (place[2] - place[0] - 420) / len(columns)
    for c, name in enumerate(columns):
        x = place[0] + 420 + (c + 1) * wide
        pen.text((x, place[1]), _cut(_shown(name), font(26), wide - 16), fill=QUIET, font=font(26), anchor="ra")
    y = place[1] + 42
    for row, values in zip(result.rows, result.values, strict=True):
        if y + 42 > place[3]:
            break
        pen.line((place[0], y, place[2], y), fill=LINE)
        pen.text((place[0], y + 4), _cut(_shown(row), names, 400), fill=INK, font=names)
        for c, value in enumerate(values[:4].tolist()):
            text = "–" if value != value else f"{value:.3g}"
            pen.text((place[0] + 420 + (c + 1) * wide, y + 4), text, fill=INK, font=names, anchor="ra")
        y += 44


def _written(pen: PIL.ImageDraw.ImageDraw, texts: Sequence[tuple[str, str]], place: Box) -> None:
    """What a model wrote, side by side."""
    wide = (place[2] - place[0] - 40 * (len(texts) - 1)) // len(texts)
    for size in (42, 36, 30, 26):  # the largest in which both fit
        laid = [
            [line for part in text.split("\n") for line in _wrapped(part, font(size), wide)] for _, text in texts[:2]
        ]
        if max(map(len, laid)) * round(1.27 * size) <= place[3] - place[1] - 40:
            break
    for at, ((name, _), lines) in enumerate(zip(texts, laid, strict=False)):
        x, y = place[0] + at * (wide + 40), place[1]
        pen.text((x, y), _shown(name), fill=ACCENT if at else QUIET, font=font(26, "bold"))
        y += 40
        for line in lines[: (place[3] - y) // round(1.27 * size)]:
            pen.text((x, y), line, fill=INK, font=font(size))
            y += round(1.27 * size)
