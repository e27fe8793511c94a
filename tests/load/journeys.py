"""What simulated visitors do: a finite set of journeys, each a link and some actions, with one right answer for each.

Many of them look at the same models through different changes at the same time; seeds, sizes and texts vary, so that
not everything has been computed before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from tests.load.client import Visitor

HEAVY = "heavy"
PAIRS = [
    ("When Mary and John went to the store, John gave a drink to", "Mary", " Mary", " John"),
    ("While Bruno and Ivan were at the river, Ivan passed a mirror to", "Bruno", " Bruno", " Ivan"),
    ("When Walter and Susan went to the hotel, Susan gave a kite to", "Walter", " Walter", " Susan"),
]


@dataclass(frozen=True)
class Step:
    """One action of a visitor: what is done to which part of the page."""

    kind: str
    """What the answer's time counts for: the page, or "heavy"."""
    do: str
    """open, set, click or fire."""
    at: tuple[str, ...]
    value: Any = None

    async def act(self, visitor: Visitor, address: str) -> None:
        if self.do == "open":
            await visitor.open(address, self.at[0])
        elif self.do == "set":
            visitor.set(*self.at, self.value)
        elif self.do == "click":
            visitor.click(*self.at)
        else:
            visitor.fire(*self.at, self.value)

    def __str__(self) -> str:
        return f"{self.kind}: {self.do} {' '.join(self.at)[:110]} {'' if self.value is None else self.value}"


def call(method: str, **settings: Any) -> str:
    return method + (json.dumps(settings, separators=(",", ":")) if settings else "")


def link(page: str, model: str, sample: dict[str, str], lens: str, *changes: str, **more: str) -> str:
    query = {"v": "1", "model": model, **sample, "lens": lens, "do": list(changes), **more}
    return f"{page}?{urlencode(query, doseq=True, quote_via=quote)}"


def _vision(page: str, lens: str, model: str, image: str, target: str, change: str, *steps: Step) -> tuple[Step, ...]:
    place = link(page, model, {"image": image}, call(lens, target={"target": target}), *([change] if change else []))
    kind = HEAVY if lens in ("score_cam", "rise", "occlusion", "expected_gradients") else page
    return Step(kind, "open", (place,)), *steps


def _heatmaps() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("heatmaps", what[0], what[1:], value)

    noisy = [call("add_noise", sigma=0.2, seed=seed) for seed in range(4)]
    return [
        _vision("heatmaps", "grad_cam", "photos", "chelsea", "cat", "",
                do("set", "slider", "look:opacity", value=[0.4]),
                do("fire", "ladder", "pick", value="stage.4"),
                do("set", "selectbox", "lens", value="HiResCAM")),
        _vision("heatmaps", "hires_cam", "photos", "panda", "bear", noisy[0],
                do("set", "slider", "chip0:add_noise:sigma", value=[0.4]),
                do("click", "remove:0")),
        _vision("heatmaps", "layer_cam", "photos", "chelsea", "dog", noisy[1],
                do("set", "slider", "chip0:add_noise:sigma", value=[0.3]),
                do("set", "checkbox", "look:signed", value=True)),
        _vision("heatmaps", "grad_cam_plus_plus", "photos", "rocket", "tower",
                call("randomize_weights", site={"site": "stage.7"}),
                do("set", "slider", "look:threshold", value=[0.3]),
                do("click", "remove:0")),
        _vision("heatmaps", "xgrad_cam", "photos", "motorcycle", "motorbike",
                call("ablate_channels", channels=[1, 2, 3]),
                do("set", "selectbox", "second-class", value="cat"),
                do("set", "button_group", "look:colours", value=["cividis"])),
        _vision("heatmaps", "grad_cam", "scenes", "scene_ring", "ring", call("hide_region", box=[0, 0, 0.5, 1]),
                do("fire", "ladder", "pick", value="stage.1"),
                do("set", "slider", "chip0:hide_region:box:x", value=[20.0, 70.0])),
        _vision("heatmaps", "eigen_cam", "photos-vit", "dahlia", "flower", "",
                do("set", "selectbox", "lens", value="Grad-CAM"),
                do("set", "slider", "look:opacity", value=[0.8])),
        _vision("heatmaps", "grad_cam", "scenes-shortcut", "shortcut_kept", "cross", "",
                do("fire", "guesses", "pick", value={"label": "ring", "beside": True}),
                do("click", "add:hide_region")),
        _vision("heatmaps", "score_cam", "scenes", "scene_star", "star", ""),
        _vision("heatmaps", "score_cam", "scenes", "scene_heart", "heart", noisy[2]),
    ]  # fmt: skip


def _pixels() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("pixels", what[0], what[1:], value)

    return [
        _vision("pixels", "saliency", "photos", "dog_duck", "dog", "",
                do("set", "button_group", "look:view", value=["patches"]),
                do("set", "selectbox", "lens:saliency:target", value="bird"),
                do("set", "slider", "look:opacity", value=[0.5])),
        _vision("pixels", "guided_backprop", "photos", "koala", "ape or monkey", call("add_noise", sigma=0.1, seed=5),
                do("set", "slider", "chip0:add_noise:sigma", value=[0.25]),
                do("set", "slider", "min:1", value=[1.5])),
        _vision("pixels", "input_x_gradient", "scenes", "scene_cross", "cross", "",
                do("set", "selectbox", "lens", value="DeepLIFT"),
                do("click", "add:add_noise")),
        _vision("pixels", "lrp", "photos", "duck", "bird", call("randomize_weights", site={"site": "stage.2"}),
                do("set", "slider", "look:opacity", value=[0.6])),
        _vision("pixels", "occlusion", "scenes", "scene_pair_a", "ring", call("add_noise", sigma=0.1, seed=2)),
        _vision("pixels", "rise", "scenes", "scene_pair_b", "cross", call("add_noise", sigma=0.1, seed=1)),
        _vision("pixels", "expected_gradients", "scenes", "scene_ring", "ring", ""),
    ]  # fmt: skip


def _prompts() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("prompts", what[0], what[1:], value)

    def opened(model: str, text: str, lens: str, *changes: str, **more: str) -> Step:
        return Step("prompts", "open", (link("prompts", model, {"prompt": text}, lens, *changes, **more),))

    return [
        (opened("stories", PAIRS[0][0], call("logit_lens", target={"target": " Mary"})),
         do("fire", "strip:0", "pick", value={"at": 6}),
         do("click", "add:ablate_heads"),
         do("set", "text_area", "prompt-text", value="The capital of France is")),
        (opened("stories", "The capital of Spain is", "logit_lens", call("skip_layer", layer=1)),
         do("set", "slider", "chip0:skip_layer:layer", value=[2.0]),
         do("set", "button_group", "prompt-lens", value=["Attention"])),
        (opened("stories-gpt2", "The keys to the cabinet", "logit_lens"),
         do("set", "text_area", "prompt-text", value="The keys to the old cabinet"),
         do("set", "button_group", "prompt-lens", value=["Direct logit attribution"])),
        (opened("induction", "c d k e c d k", "attention_pattern"),
         do("fire", "strip:0", "pick", value={"at": 3})),
        (opened("stories-moe", PAIRS[1][0], "logit_lens", call("ablate_layer", layer=1, part="MLP")),
         do("set", "slider", "chip0:ablate_layer:layer", value=[0.0]),
         do("click", "Continue the text")),
        (opened("stories", PAIRS[2][0], "logit_lens", call("steer", direction="stories/sentiment", strength=1)),
         do("set", "slider", "chip0:steer:strength", value=[-1.0]),
         do("click", "remove:0")),
    ]  # fmt: skip


def _circuits() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("circuits", what[0], what[1:], value)

    def opened(kind: str, number: int, lens: str, *changes: str, **more: str) -> Step:
        clean, name, answer, foil = PAIRS[number]
        parts = clean.rsplit(foil.strip(), 1)
        pair = json.dumps([clean, name.join(parts), answer, foil])
        return Step(kind, "open", (link("circuits", "stories", {"pair": pair}, lens, *changes, **more),))

    return [
        (opened("circuits", 0, "edge_attribution_patching"),
         do("set", "slider", "keep", value=[60.0]),
         do("fire", "circuit", "act", value={"kind": "select", "id": "z.1.1@14"}),
         do("set", "button_group", "weighting", value=["AP"])),
        (opened("circuits", 1, "attribution_patching"),
         do("set", "slider", "keep", value=[40.0]),
         do("click", "add:ablate_layer")),
        (opened("circuits", 2, "information_flow_routes", call("ablate_heads", heads=[[1, 1]])),
         do("set", "slider", "keep", value=[70.0])),
        (opened(HEAVY, 1, "activation_patching"),),
        (opened(HEAVY, 2, "verified_patching"),),
    ]  # fmt: skip


def _features() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("features", what[0], what[1:], value)

    def opened(model: str, sample: dict[str, str], lens: str, *changes: str) -> Step:
        return Step("features", "open", (link("features", model, sample, lens, *changes),))

    page = call("feature_page", sae="stories/resid_post.2", feature=705)
    return [
        (opened("stories", {"prompt": "The capital of France is"}, page),
         do("set", "slider", "dial", value=[2.0]),
         do("set", "text_area", "feature-prompt", value="The capital of Italy is"),
         do("set", "button_group", "shown", value=["density"])),
        (opened("stories", {"prompt": PAIRS[0][0]}, call("feature_lookup", sae="stories/resid_post.2")),
         do("set", "text_input", "words", value="river"),
         do("set", "text_input", "words", value="the king")),
        (opened("photos", {"image": "jaguar"}, "feature_lookup"),),
    ]  # fmt: skip


def _transport() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("transport", what[0], what[1:], value)

    def opened(text: str, *changes: str) -> Step:
        lens = call("transported_features", sae="stories/resid_post.2", source={"site": "resid_post.0"})
        return Step("transport", "open", (link("transport", "stories", {"prompt": text}, lens, *changes),))

    return [
        (opened("The capital of France is"),
         do("fire", "transport:staircase", "pick", value={"row": 2, "column": 1}),
         do("set", "text_area", "transport-prompt", value="The capital of Spain is")),
        (opened(PAIRS[1][0], call("ablate_layer", layer=1, part="MLP")),
         do("click", "replace")),
    ]  # fmt: skip


def _steering() -> list[tuple[Step, ...]]:
    def do(*what: Any, value: Any = None) -> Step:
        return Step("steering", what[0], what[1:], value)

    def opened(text: str, name: str, strength: float) -> Step:
        push = call("steer", direction=f"stories/{name}", layer=2, strength=strength)
        return Step("steering", "open", (link("steering", "stories", {"prompt": text}, "side_effects", push),))

    return [
        (opened("Review: The film was", "sentiment", -0.5),
         do("click", "draw"),
         do("click", "remove:0")),
        (opened("Review: The food was", "formality", 0.75),
         do("click", "draw")),
    ]  # fmt: skip


JOURNEYS = [*_heatmaps(), *_pixels(), *_prompts(), *_circuits(), *_features(), *_transport(), *_steering()]
