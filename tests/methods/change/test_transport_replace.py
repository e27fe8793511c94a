"""A stream replaced by the transport, against the same done by hand to what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Unsuitable, hooks, sae
from interp.methods.change.scale_site import scale_site
from interp.methods.change.skip_layer import skip_layer
from interp.methods.change.transport_replace import transport_replace
from interp.model import LanguageModel, gradient
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.transport.lens import FAMILIES, PROMPT, STORE, fitted, linear
from tests.test_hooks import near

FIRST, MIDDLE = Site("resid_pre", 0), Site("resid_post", 1)
SOME = (0, 3, 8)


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def recorded(model: LanguageModel, *sites: Site, sample: Any = PROMPT) -> list[Tensor]:
    with model.record(sites) as found:
        model(sample)
    return [found[site] for site in sites]


SETTINGS: list[dict[str, Any]] = [
    {}, {"share": 0.3}, {"rank": 4}, {"by": "identity"}, {"by": "mean", "share": 0.5}, {"by": "random", "seed": 3},
    {"by": "random", "rank": 2}, {"positions": (1, 4)},
]  # fmt: skip


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_put_in_is_what_the_map_makes_of_the_source(family: str, seed: int, settings: dict[str, Any]) -> None:
    model, of, _ = fitted(family, seed)
    x, h = recorded(model, FIRST, MIDDLE)
    kind = settings.get("by", "reduced rank" if settings.get("rank") else "ridge")
    made = of.operator(FIRST, MIDDLE, kind, settings.get("rank", 0), settings.get("seed", 0))
    want = h.clone()
    for t in settings.get("positions", range(h.shape[1])):
        want[0, t] += settings.get("share", 1.0) * (made(x[0, t]) - h[0, t])
    with model.edit({MIDDLE: lambda _: want}):
        logits = model(PROMPT)
    with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, **settings), model.record([MIDDLE]) as found:
        out = model(PROMPT)
    near(found[MIDDLE], want, 1e-5)
    near(out, logits, 1e-4)
    assert not torch.allclose(want, h, atol=1e-2)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_features_alone_are_replaced_and_all_else_stays(family: str, seed: int) -> None:
    model, of, mine = fitted(family, seed)
    x, h = recorded(model, FIRST, MIDDLE)
    f, read = mine.encode(h), mine.encode(of.operator(FIRST, MIDDLE)(x))
    want = h.clone()
    for number in SOME:
        for t in range(h.shape[1]):
            want[0, t] += 0.7 * (read[0, t, number] - f[0, t, number]) * mine.W_dec[number]
    assert not torch.allclose(want, h, atol=1e-2)
    with (
        transport_replace(model, PROMPT, source=FIRST, features=SOME, share=0.7),
        model.record([MIDDLE]) as found,
    ):
        model(PROMPT)
    near(found[MIDDLE], want, 1e-5)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("features", [(), SOME])
def test_where_layers_are_linear_nothing_changes_beyond_rounding(
    family: str, seed: int, features: tuple[int, ...]
) -> None:
    model, _, _ = linear(family, seed)
    plain = model(PROMPT)
    with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, features=features):
        near(model(PROMPT), plain, 5e-3)
    with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, features=features, by="mean"):
        assert float((model(PROMPT) - plain).abs().max()) > 0.1


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_the_identity_from_the_layer_before_is_a_skipped_layer(family: str, seed: int) -> None:
    model, of, _ = fitted(family, seed)
    for layer in range(3):
        with skip_layer(model, PROMPT, layer=layer, count=1):
            want = model(PROMPT)
        with transport_replace(model, PROMPT, source=of.streams[layer], target=of.streams[layer + 1], by="identity"):
            near(model(PROMPT), want, 1e-5)


def test_by_the_mean_all_tokens_say_the_same() -> None:
    model, of, _ = fitted("llama")  # whose logits know of positions by attention alone
    with transport_replace(model, PROMPT, target=Site("resid_post", 2), by="mean"):
        logits = model(PROMPT)[0]
    near(logits, logits[:1].expand_as(logits), 1e-5)
    assert float(of.mean(3).abs().max()) > 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(
    "settings", [{}, {"features": SOME, "share": 0.9}, {"share": 0.5, "positions": (2, 24)}], ids=str
)
def test_with_a_cache_of_keys_and_values_it_generates_as_without(family: str, settings: dict[str, Any]) -> None:
    model, _, _ = fitted(family)
    with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, **settings):
        texts = [list(model.generate(PROMPT, 12, 1.0, 4, cache)) for cache in (True, False)]
    assert texts[0] == texts[1]
    # and what is put in at a token that was generated is what is put in when all is read at once
    ids = model.inputs(PROMPT)
    with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, **settings):
        with model.record([MIDDLE], every=True) as stepwise:
            list(model.generate(PROMPT, 6, cache=True))
        with model.record([MIDDLE], every=True) as whole:
            list(model.generate(PROMPT, 6, cache=False))
    cached = torch.cat(stepwise[MIDDLE], 1)
    near(cached, whole[MIDDLE][-1][:, : cached.shape[1]], 1e-4)
    assert cached.shape[1] > ids.shape[1]


def test_the_source_is_as_earlier_changes_left_it_and_later_ones_come_on_top() -> None:
    model, of, _ = fitted("gpt2")
    made = of.operator(FIRST, MIDDLE)
    (x,) = recorded(model, FIRST)
    with (
        scale_site(model, PROMPT, site=FIRST, by=0.5),
        transport_replace(model, PROMPT, source=FIRST, target=MIDDLE),
    ):
        near(recorded(model, MIDDLE)[0], made(0.5 * x), 1e-5)
    with (
        transport_replace(model, PROMPT, source=FIRST, target=MIDDLE),
        scale_site(model, PROMPT, site=FIRST, by=0.5),
        scale_site(model, PROMPT, site=MIDDLE, by=3.0),
    ):
        near(recorded(model, MIDDLE)[0], 3 * made(x), 1e-5)
    with (
        transport_replace(model, PROMPT, source=FIRST, target=Site("resid_post", 0)),
        transport_replace(model, PROMPT, source=Site("resid_post", 0), target=MIDDLE),
    ):
        first = of.operator(FIRST, Site("resid_post", 0))(x)
        near(recorded(model, MIDDLE)[0], of.operator(Site("resid_post", 0), MIDDLE)(first), 1e-5)


def test_special_tokens_are_left_alone_unless_they_are_named() -> None:
    model, of, _ = fitted("llama")
    prompt = Prompt("<bos>the cat")
    x, h = recorded(model, FIRST, MIDDLE, sample=prompt)
    made = of.operator(FIRST, MIDDLE)(x)
    with transport_replace(model, prompt, source=FIRST, target=MIDDLE):
        (new,) = recorded(model, MIDDLE, sample=prompt)
    near(new[:, :1], h[:, :1], 1e-6)
    near(new[:, 1:], made[:, 1:], 1e-5)
    with transport_replace(model, prompt, source=FIRST, target=MIDDLE, positions=(0,)):
        (new,) = recorded(model, MIDDLE, sample=prompt)
    near(new[:, :1], made[:, :1], 1e-5)


def test_padded_prompts_are_replaced_as_each_alone() -> None:
    model, _, _ = fitted("gemma2")
    for settings in ({}, {"positions": (1,)}, {"features": SOME}):
        with transport_replace(model, PROMPT, source=FIRST, target=MIDDLE, **settings):
            together = model(["the cat", "a mat and so"])
            near(together[0, -7:], model("the cat")[0], 1e-4)
            near(together[1], model("a mat and so")[0], 1e-4)


@pytest.mark.parametrize("source", [FIRST, Site("resid_post", 0)])
def test_a_gradient_goes_through_the_map_to_the_source(source: Site) -> None:
    model, of, _ = fitted("llama")
    target = Site("resid_post", 2)
    with transport_replace(model, PROMPT, source=source, target=target):
        with model.record([source, target], grad=True) as found:
            score = model(PROMPT)[0, -1, 5]
        assert not model(PROMPT).requires_grad
    at, behind = gradient(score, [found[source], found[target]])
    near(at, behind @ of.operator(source, target).T, 1e-4)
    assert float(at.abs().max()) > 0


def test_by_default_the_target_is_the_middle_or_where_the_features_are() -> None:
    model, of, mine = fitted("gpt2")
    with transport_replace(model, PROMPT), transport_replace(model, PROMPT, by="random", share=0.5):
        h = recorded(model, MIDDLE)[0]
        given = [dict(call[3]) for call in hooks.in_force()]  # type: ignore[index]
    assert [each["share"] for each in given] == [1.0, 0.5]
    x = recorded(model, of.streams[1])[0]
    ridge, random = (of.operator(of.streams[1], MIDDLE, kind)(x) for kind in ("ridge", "random"))  # type: ignore[arg-type]
    near(h, (ridge + random) / 2, 1e-5)
    with (
        transport_replace(model, PROMPT, features=(0,)),
        transport_replace(model, PROMPT, features=(0,), target=MIDDLE),
    ):
        changed = recorded(model, MIDDLE)[0]
    # the second finds the first's work: what is read is there already, but for what other rows of W_dec add
    assert float((mine.encode(changed) - mine.encode(ridge))[..., 0].abs().max()) < 1


def test_at_a_share_of_nothing_there_is_nothing_to_enter_even_without_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    model = tiny.language("gpt2")
    with transport_replace(model, PROMPT, share=0):
        assert hooks.in_force() == ()
    with pytest.raises(Unsuitable, match="fit them on the Transport page"):
        transport_replace(model, PROMPT)


def test_what_can_not_be_put_in_place_gets_a_sentence() -> None:
    model, _, mine = fitted("gpt2")
    for settings, hint in (
        ({"source": MIDDLE, "target": FIRST}, "before its target"),
        ({"target": FIRST}, "before its target"),
        ({"source": Site("resid_post", 2)}, "before its target"),
        ({"source": "z.1"}, "none of these"),
        ({"target": "resid_post.7"}, "no site"),
        ({"features": (0, 32)}, "features 0 to 31, not 32"),
        ({"features": (0,), "target": Site("resid_post", 2)}, "choose features of that layer"),
        ({"features": (0,), "source": MIDDLE}, "before its target"),
        ({"operators": fitted("gpt2", 0, "attention")[1].key}, "same token"),
        ({"operators": "nothing"}, "not kept here"),
        ({"sae": next(e for e in sae.available(model) if e != mine.name), "features": (0,)}, "not the residual stream"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            transport_replace(model, PROMPT, **settings)
