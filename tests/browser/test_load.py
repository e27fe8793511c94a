"""Many visitors at once: each sees their own experiment, and the numbers they would see alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.harness import idle

LINKS = [
    f'v=1&model={model}&image={image}&lens={lens}{{"target":{{"target":{target}}}}}{change}'
    for (model, image, target), (lens, change) in zip(
        [
            ("photos", "chelsea", '"cat"'),
            ("photos", "panda", '"bear"'),
            ("photos", "motorcycle", '"motorbike"'),
            ("photos", "dahlia", '"flower"'),
            ("scenes", "scene_ring", '"ring"'),
            ("scenes", "scene_cross", '"cross"'),
            ("photos", "chelsea", '"dog"'),
            ("photos", "rocket", '"tower"'),
        ],
        [
            ("grad_cam", ""),
            ("hires_cam", '&do=add_noise{"sigma":0.5}'),
            ("xgrad_cam", '&do=ablate_channels{"channels":[1,2,3]}'),
            ("layer_cam", '&do=hide_region{"box":[0,0,0.5,1]}'),
            ("grad_cam_plus_plus", '&do=randomize_weights{"site":{"site":"stage.2"}}'),
            ("eigen_cam", ""),
            ("grad_cam", '&do=randomize_weights{"site":{"site":"stage.7"}}'),
            ("ablation_cam", ""),
        ],
        strict=True,
    )
]


def reading(page: Any) -> list[str]:
    """Everything a visitor reads: the guesses, and the finding of every map."""
    expect(page.locator(".guess").first).to_be_visible(timeout=180_000)
    expect(page.locator(".map").first).to_have_attribute("aria-label", re.compile("Peak|nowhere|zero"), timeout=180_000)
    idle(page, timeout=180)
    maps = [each.get_attribute("aria-label") for each in page.locator(".map").all()]
    return [page.locator(".guess").first.inner_text(), *maps]


@pytest.mark.load
@pytest.mark.timeout(900)
def test_eight_visitors_at_once_see_what_each_would_see_alone(visit: Any) -> None:
    crowd = [visit(f"/heatmaps?{link}", wait=False) for link in LINKS]
    together = [reading(page) for page in crowd]
    for page in crowd:
        page.context.close()
    alone = [reading(visit(f"/heatmaps?{link}")) for link in LINKS]
    assert together == alone
    assert len({tuple(each) for each in together}) == len(LINKS)
