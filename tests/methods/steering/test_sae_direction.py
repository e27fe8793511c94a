"""Directions of SAE features against features read one text at a time; a planted feature is found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, directions, sae
from interp.methods.change.clamp_feature import clamp_feature
from interp.methods.change.steer import steer
from interp.methods.features._saes import open_index
from interp.methods.steering.sae_direction import effect, sae_direction
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.features.kept import keep
from tests.methods.steering.test_condition_vector import WORDS
from tests.test_hooks import near

STORE = tempfile.mkdtemp(prefix="actiscope-test-")


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that keep SAEs of their own, which others would find."""
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def read(model: LanguageModel, found: sae.SAE, texts: Any, token: str) -> tuple[np.ndarray, np.ndarray]:
    """What the SAE reads of each text, and its activations, one text at a time."""
    x, f = [], []
    site = model.resolve(found.site)
    for text in texts:
        with model.record([site]) as seen:
            model(text)
        rows = {"last": slice(-1, None), "second to last": slice(-2, -1), "mean": slice(None)}[token]
        x.append(seen[site][0, rows].mean(0).numpy())
        f.append(found.encode(seen[site][0, rows]).mean(0).numpy())
    return np.array(x, float), np.array(f, float)


@pytest.mark.parametrize(("family", "seed"), [("gpt2", 0), ("llama", 0), ("gemma2", 1)])
@pytest.mark.parametrize("token", ["last", "second to last", "mean"])
def test_the_feature_that_tells_the_sides_apart_is_taken_as_long_as_it_differs(
    family: str, seed: int, token: Any
) -> None:
    model = tiny.featured(tiny.language(family, seed))
    for name in sae.available(model):
        found = sae.load(name)
        f = [read(model, found, each, token)[1] for each in (WORDS.positive, WORDS.negative)]
        delta = f[0].mean(0) - f[1].mean(0)
        spread = np.sqrt((f[0].var(0) + f[1].var(0)) / 2).clip(min=1e-3 * np.abs(delta).max())
        best = int((np.abs(delta) / spread).argmax())
        direction = directions.load(sae_direction(model, WORDS, sae=name, token=token), model)
        assert direction.about["feature"] == best and direction.layers == (1,) and direction.best == 1
        want = delta[best] * found.W_dec[best].numpy()
        assert np.abs(direction.vectors[0].numpy() - want).max() < 1e-4 * np.abs(want).max()
        given = directions.load(sae_direction(model, WORDS, sae=name, token=token, feature=best), model)
        assert torch.equal(given.vectors, direction.vectors) and given.key != direction.key


def test_a_planted_feature_is_found_and_tells_examples_that_it_has_not_seen(empty_store: None) -> None:
    """Feature 7 of a random SAE is made to fire along the difference of means, and to write what it reads."""
    model, site = tiny.language("llama"), Site("resid_post", 1)
    sides = tiny.two_sides(20)
    seen = [torch.stack([stream(model, text, site)[-1] for text in each]) for each in (sides.positive, sides.negative)]
    shift = seen[0].mean(0) - seen[1].mean(0)
    with tempfile.TemporaryDirectory() as folder:
        about = {"actiscope": {"site": str(site), "target": str(site)}, "hook_name": "-"}
        weights = tiny.random_sae(
            Path(folder), "standard", len(shift), 32, 5, metadata=about, apply_b_dec_to_input=False
        )
        weights["W_enc"][:, 7] = weights["W_dec"][7] = shift / shift.norm()
        weights["b_enc"][7] = -torch.cat(seen).mean(0) @ shift / shift.norm()
        tiny.write_sae(Path(folder), json.loads((Path(folder) / sae.CONFIG).read_text()), weights)
        name = sae.keep(folder, model)
    direction = directions.load(sae_direction(model, sides, sae=name), model)
    assert direction.about["feature"] == 7 and direction.fact("cosine") == pytest.approx(1)
    assert direction.fact("accuracy") > 0.9 and direction.fact("low") < direction.fact("high")
    near(direction.vectors[0] / direction.vectors[0].norm(), shift / shift.norm(), 1e-5)


def stream(model: LanguageModel, text: str, site: Site) -> Tensor:
    with model.record([site]) as found:
        model(text)
    return found[site][0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_transcoder_writes_is_the_same_direction_behind_its_layer(family: str) -> None:
    model = tiny.featured(tiny.language(family))
    name = next(each for each in sae.available(model) if sae.load(each).is_transcoder)
    found = sae.load(name)
    key = sae_direction(model, WORDS, sae=name, token="mean")
    direction = directions.load(key, model)
    prompt = Prompt("a cat, and 12 hats")
    mlp, post = Site("mlp_out", 1), Site("resid_post", 1)
    with model.edit({mlp: lambda y: y + 2.5 * direction.vectors[0]}), model.record([post]) as inside:
        logits = model(prompt)
    with steer(model, prompt, direction=key, strength=2.5), model.record([post]) as behind:
        near(model(prompt), logits, 1e-4)
    near(behind[post], inside[post], 1e-5)
    with clamp_feature(model, prompt, sae=name, features=(direction.about["feature"],), value=4.0):
        clamped = model(prompt)
    assert found.target == mlp and clamped.shape == logits.shape


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "abstopk", "matching_pursuit"])
def test_one_unit_of_the_row_is_one_unit_of_activation_for_every_architecture(
    architecture: str, empty_store: None
) -> None:
    model = tiny.language("gpt2")
    name = keep(model, architecture, Site("resid_post", 1))
    found = sae.load(name)
    direction = directions.load(sae_direction(model, WORDS, sae=name, token="mean"), model)
    at = direction.about["feature"]
    x, f = (
        np.concatenate(each)
        for each in zip(*(read(model, found, s, "mean") for s in (WORDS.positive, WORDS.negative)), strict=True)
    )
    mean = torch.tensor(x.mean(0), dtype=torch.float32)
    zero = torch.zeros(found.d_sae)
    one = torch.nn.functional.one_hot(torch.tensor(at), found.d_sae).float()
    step = found.decode(one, mean) - found.decode(zero, mean)
    delta = f[:8, at].mean() - f[8:, at].mean()
    near(direction.vectors[0], float(delta) * step, 1e-4)


def test_the_accuracy_that_is_kept_is_of_examples_that_had_no_part_in_the_choice() -> None:
    model, site = tiny.featured(tiny.language("llama")), Site("resid_post", 1)
    texts = tiny.small_texts(60, 3).texts
    sides = texts[:30], texts[30:]
    kept = directions.load(sae_direction(model, Contrast(*sides)), model)
    found = sae.load(kept.about["sae"])
    f = [read(model, found, each, "last")[1] for each in sides]
    h = [np.array([stream(model, text, site)[-1].double().numpy() for text in each]) for each in sides]
    generator = np.random.default_rng(0)
    parts = [generator.permutation(30) % 5] * 2  # pairs stay pairs
    right, chosen = 0.0, set()
    for fold in range(5):
        p, n = (each[part != fold] for each, part in zip(f, parts, strict=True))
        best = int(effect(torch.from_numpy(p), torch.from_numpy(n)).argmax())
        v = (p[:, best].mean() - n[:, best].mean()) * found.W_dec[best].double().numpy()
        scores = [each @ v for each in h]
        middle = sum(each[part != fold].mean() for each, part in zip(scores, parts, strict=True)) / 2
        told = [(each[part == fold] > middle).mean() for each, part in zip(scores, parts, strict=True)]
        right += (told[0] + 1 - told[1]) / 2 / 5
        chosen.add(best)
    assert kept.fact("accuracy") == pytest.approx(right) and len(chosen) > 1


def test_a_feature_that_fires_on_neither_side_is_as_long_as_its_maximum_in_the_index(empty_store: None) -> None:
    model = tiny.featured(tiny.language("gpt2"))
    name = next(each for each in sae.available(model) if not sae.load(each).is_transcoder)
    found, texts = sae.load(name), Contrast(("a",), ("b",))
    index = open_index(model, found)
    assert index is not None
    silent = [
        at
        for at in range(found.d_sae)
        if not any(read(model, found, s, "last")[1][:, at].any() for s in (("a",), ("b",)))
    ]
    alive = [at for at in silent if index.maximum[at] > 0]
    assert alive
    direction = directions.load(sae_direction(model, texts, sae=name, feature=alive[0]), model)
    near(direction.vectors[0], float(index.maximum[alive[0]]) * found.W_dec[alive[0]], 1e-5)
    dead = [at for at in silent if index.maximum[at] == 0]
    other = keep(model, site=Site("resid_post", 0), seed=2)  # which has no index
    quiet = [
        at
        for at in range(32)
        if not any(read(model, sae.load(other), s, "last")[1][:, at].any() for s in (("a",), ("b",)))
    ]
    for sae_name, features in ((name, dead), (other, quiet)):
        for at in features[:1]:
            with pytest.raises(Unsuitable, match="fires on neither side"):
                sae_direction(model, texts, sae=sae_name, feature=at)
    assert quiet


def test_effect_by_hand() -> None:
    p, n = torch.tensor([[1.0, 5, 0, 2], [3, 5, 0, 2]]), torch.tensor([[0.0, 1, 0, 2], [0, 1, 0, 2]])
    # means differ by 2 with a pooled deviation of sqrt((1 + 0) / 2), by 4 with none, and not at all
    assert effect(p, n).tolist() == pytest.approx([2 / 0.5**0.5, 4 / 4e-3, 0, 0])
    assert effect(p, p).tolist() == [0, 0, 0, 0]


def test_what_has_no_such_direction_gets_a_sentence(empty_store: None) -> None:
    model = tiny.featured(tiny.language("gpt2"))
    heads = keep(model, site=Site("z", 1))
    first = keep(model, site=Site("resid_pre", 0))
    for data, settings, hint in (
        (Contrast((), ("a",)), {}, "no texts"),
        (WORDS, {"sae": heads}, "no direction of the stream"),
        (WORDS, {"sae": first}, "no direction of the stream"),
        (WORDS, {"feature": 32}, "features 0 to 31"),
        (WORDS, {"sae": "local:0123456789abcdef"}, "not kept here"),
        (Contrast(("a",), ("b",)), {"token": "second to last"}, "only one token"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            sae_direction(model, data, **settings)
    before = keep(model, site=Site("resid_pre", 2))
    assert directions.load(sae_direction(model, WORDS, sae=before), model).layers == (1,)
    assert isinstance(directions.load(sae_direction(model, WORDS), model).vectors, Tensor)
