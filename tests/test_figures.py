"""Pictures show the numbers they are made of."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import PIL.Image
import pytest

from interp import figures
from interp.figures import Look
from interp.results import Curve, Heatmap, Table

PHOTO = PIL.Image.new("RGB", (120, 80), (100, 100, 100))
MAP = Heatmap(
    np.array([[1.0, -2.0], [0.0, 0.5]]), (64, 64), target="cat", units="logit", site="stage.3", method="grad_cam"
)


def test_nothing_is_drawn_where_the_map_says_nothing() -> None:
    rgba = figures.overlay(np.array([[0.0, 1.0, -1.0, np.nan]]), 1.0, Look(opacity=1.0))
    assert rgba[0, :, 3].tolist() == [0, 255, 0, 0]
    signed = figures.overlay(np.array([[0.0, 1.0, -1.0]]), 1.0, Look(signed=True, opacity=1.0))
    assert signed[0, :, 3].tolist() == [0, 255, 255]
    assert signed[0, 1, 0] > signed[0, 1, 2] and signed[0, 2, 2] > signed[0, 2, 0]  # for is vermilion, against is blue


@pytest.mark.parametrize("colours", ["viridis", "cividis", "grey"])
def test_brighter_is_more(colours: str) -> None:
    shown = figures.overlay(np.linspace(0, 1, 9)[None], 1.0, Look(colours=colours))[0, :, :3] @ [0.299, 0.587, 0.114]  # type: ignore[arg-type]
    assert (np.diff(shown) > 0).all()


def test_a_threshold_hides_what_lies_below_it() -> None:
    alpha = figures.overlay(np.array([[0.2, 0.5, 0.9]]), 1.0, Look(threshold=0.4))[0, :, 3]
    assert alpha[0] == 0 and alpha[1] > 0


def test_one_scale_for_all() -> None:
    assert figures.scale_of(MAP, Heatmap(np.array([[7.0]]), (8, 8))) == 7.0
    assert figures.scale_of(Heatmap(np.zeros((2, 2)), (8, 8))) == 1.0


def test_opacity_nought_is_the_photo() -> None:
    drawn = figures.draw(MAP, PHOTO, Look(opacity=0), side=120)
    assert np.array_equal(np.asarray(drawn), np.asarray(PHOTO))


def test_the_svg_is_well_formed_whatever_the_labels_hold() -> None:
    text = figures.to_svg(MAP, PHOTO, 'Grad-CAM · <script>alert("x")</script> & more')
    root = ET.fromstring(text)
    assert root.tag.endswith("svg") and "<script>" not in text
    assert [each for each in root.iter() if each.tag.endswith("image")]


def test_plotly_figures_hold_the_values() -> None:
    chart = figures.figure(MAP, photo=PHOTO)
    assert np.allclose(np.asarray(chart.data[0].z), MAP.at_input())
    curve = figures.figure(Curve(np.arange(3), np.arange(6).reshape(2, 3), ("a", "b")))
    assert [each.name for each in curve.data] == ["a", "b"]
    assert figures.figure(Table(("r",), ("c",), np.ones((1, 1)))).data[0].header["values"][1] == "c"
