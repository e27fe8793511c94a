"""The fit on models, against activations recorded one text at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Missing, Unsuitable, hooks, progress, sae, store, transport
from interp.batch import Origin
from interp.methods.reading._prompts import residual_sites
from interp.methods.transport._fitting import FIRES, Fitting, Reading, part_of
from interp.methods.transport.transport_operator import transport_operator
from interp.samples import TextSet
from interp.sites import Site
from interp.transport import Operators, Policy
from kernels.moments import moments_reference
from tests import tiny
from tests.state import state

FAMILIES = ["gpt2", "llama", "gemma2"]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))


def fitted(model: Any, texts: TextSet, **settings: Any) -> Operators:
    return transport.need(model, transport_operator(model, texts, **settings))


def read(model: Any, text: str, policy: Policy, context: int) -> tuple[Tensor, Tensor]:
    """Sources and targets [stream, token, d] of a text, one window after another, token by token."""
    special = set(model.tokenizer.all_special_ids)
    ids = [each for each in model.tokenizer(text)["input_ids"]]
    lead = [ids.pop(0)] if ids and ids[0] in special else []
    step = context - len(lead)
    sources, targets = [], []
    sites = residual_sites(model)
    for start in range(0, len(ids), step):
        window = lead + ids[start : start + step]
        with torch.no_grad(), model.record([*sites, *(Site("pattern", each) for each in range(model.layers))]) as found:
            model(torch.tensor([window]), keep=1)
        x = torch.stack([found[each][0] for each in sites]).double()
        for at in range(len(lead), len(window)):
            if policy != "same" and at <= len(lead):
                continue
            targets.append(x[:, at])
            if policy == "same":
                sources.append(x[:, at])
            elif policy == "previous":
                sources.append(x[:, at - 1])
            else:
                heads = [found[Site("pattern", each)][0, :, at].double().mean(0) for each in range(model.layers)]
                weighted = [(heads[each][:, None] * x[each]).sum(0) for each in range(model.layers)]
                sources.append(torch.stack([*weighted, torch.zeros(x.shape[2], dtype=torch.float64)]))
    return torch.stack(sources, 1), torch.stack(targets, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["same", "previous", "attention"])
def test_moments_are_those_of_reading_one_text_at_a_time(family: str, policy: Policy) -> None:
    model, texts, context, tolerance = tiny.language(family), tiny.small_texts(30, 1), 16, 1e-5
    before = state(model)
    found = fitted(model, texts, policy=policy, context=context, seed=3)
    assert state(model) == before
    parts = [part_of(number, 3) for number in range(30)]
    assert [parts.count(each) for each in range(3)] == [18, 6, 6]
    for of, chosen in (("fit", (0, 1)), ("test", (2,))):
        rows = [read(model, text, policy, context) for text, part in zip(texts.texts, parts, strict=True)
                if part in chosen]  # fmt: skip
        sources, targets = (torch.cat(each, 1) for each in zip(*rows, strict=True))
        assert (found.tokens if of == "fit" else found.held_out) == targets.shape[1]
        for a, b in found.pairs:
            x, y = sources[a] - sources[a].mean(0), targets[b] - targets[b].mean(0)
            expected = x.T @ y / len(x)
            scale = float(torch.outer(x.std(0), y.std(0)).max())
            got = found.covariance(found._variable(a), b, of)  # type: ignore[arg-type]
            assert float((got - expected).abs().max()) < tolerance * scale, (of, a, b)
            assert torch.allclose(found.mean(b, of), targets[b].mean(0), atol=tolerance)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["same", "previous", "attention"])
@pytest.mark.parametrize(("precise", "tolerance"), [(False, 1e-5), (True, 1e-8)])
def test_moments_equal_those_of_all_rows_at_once(policy: Policy, precise: bool, tolerance: float) -> None:
    model, texts = tiny.language("llama"), tiny.small_texts(100, 4)
    streams = tuple(map(str, residual_sites(model)))
    reading = Reading(Origin.of(model), texts, "", streams, policy, 16, 0, precise)
    for part, of in ((0, 0), (1, 1)):
        rows = torch.cat([x for x, _ in reading.rows(model, (0, 10**6), part)], 1)
        assert rows.dtype == (torch.float64 if precise else torch.float32)
        job = Fitting(reading, 16)
        moments = job.joined(iter([job.shard(number) for number in range(job.shards())]))[of]
        for i, j in moments.pairs:
            mean, covariance = moments_reference(rows.numpy(), i, j)
            scale = float(torch.outer(rows[i].std(0), rows[j].std(0)).max())
            assert np.abs(moments.covariance(i, j).numpy() - covariance).max() < tolerance * scale
            assert np.abs(moments.mean(i).numpy() - mean).max() < tolerance * scale**0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_judged_as_by_a_loop_over_tokens(family: str) -> None:
    model = tiny.language(family)
    name = tiny._keep_random(model, "standard", Site("resid_post", 1), Site("resid_post", 1))
    texts = tiny.small_texts(200, 2)
    found = fitted(model, texts, context=16)
    assert found.saes == (name,)
    one, target = sae.load(name), found.number(Site("resid_post", 1))
    held = [text for number, text in enumerate(texts.texts) if part_of(number, 0) == 2]
    for source in (0, 1, 3):
        rows = [read(model, text, "same", 16)[0] for text in held]
        x, y = (torch.cat([each[number] for each in rows]).float() for number in (source, target))
        operator = found.operator(found.streams[source], found.streams[target])
        with torch.no_grad():
            f, moved = one.encode(y), one.encode(operator(x))
        facts = found.features(name, source, target)
        assert facts is not None
        unit = one.W_dec / one.W_dec.norm(dim=1, keepdim=True)
        checked = 0
        for feature in range(one.d_sae):
            fires = f[:, feature] > FIRES
            assert facts["count"][feature] == int(fires.sum())
            if fires.sum() < 20:
                assert np.isnan(facts["read"][feature])
                continue
            checked += 1
            a = (y[fires] - found.mean(target).float()) @ unit[feature]
            b = (operator(x[fires]) - found.mean(target).float()) @ unit[feature]
            left, spread = ((a - b) ** 2).sum(), ((a - a.mean()) ** 2).sum()
            assert facts["r2"][feature] == pytest.approx(float(1 - left / spread), abs=1e-3)
            assert facts["carried"][feature] == pytest.approx(float(b.sum() / a.sum()), rel=1e-3, abs=1e-3)
            error = ((f - moved)[:, feature] ** 2).sum() / ((f[:, feature] - f[:, feature].mean()) ** 2).sum()
            assert facts["read"][feature] == pytest.approx(float(1 - error), abs=1e-3)
            assert facts["read low"][feature] <= facts["read"][feature] <= facts["read high"][feature]
            correlation = np.corrcoef(a.numpy(), b.numpy())[0, 1]
            assert facts["correlation"][feature] == pytest.approx(correlation, abs=1e-3)
        assert checked > 3


def test_too_few_tokens_claim_nothing_and_too_few_texts_are_refused() -> None:
    model = tiny.language("gpt2")
    few, enough = fitted(model, tiny.small_texts(20)), fitted(model, tiny.small_texts(200, 1))
    assert few.needed == enough.needed == 20 * 16
    assert (few.tokens >= few.needed) == few.enough and enough.enough and enough.tokens > few.tokens
    with pytest.raises(Unsuitable, match="too few texts"):
        transport_operator(model, TextSet(("One.",)))
    with pytest.raises(Unsuitable, match="residual streams"):
        transport_operator(model, tiny.small_texts(), sites=("z.1", "resid_post.1"))
    with pytest.raises(Unsuitable, match="two sites"):
        transport_operator(model, tiny.small_texts(), sites=("resid_post.1",))


def test_chosen_streams_have_the_same_maps_as_among_all() -> None:
    model, texts = tiny.language("llama"), tiny.small_texts(60)
    every = fitted(model, texts, precise=True)
    some = fitted(model, texts, sites=("resid_post.2", "resid_post.0"), precise=True)
    assert list(map(str, some.streams)) == ["resid_post.0", "resid_post.2"] and some.names == ("0", "2")
    assert torch.allclose(some.map(0, 1), every.map(1, 3), atol=1e-8)
    assert some.efficiency(0, 1)["transported"][0] == pytest.approx(every.efficiency(1, 3)["transported"][0], abs=1e-6)


def test_what_was_stopped_goes_on_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("interp.methods.transport._fitting.CHARACTERS", 200)
    model, texts = tiny.language("gpt2"), tiny.small_texts(60)
    whole = fitted(model, texts).path.read_bytes()
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "other"))
    stops = 0
    for _ in range(100):
        left = [3]

        def stop(now: progress.Progress, left: list[int] = left) -> None:
            left[0] -= now.done > 0
            if left[0] <= 0:
                raise progress.Cancelled("Stopped.")

        try:
            with progress.watch(stop):
                key = transport_operator(model, texts)
            break
        except progress.Cancelled:
            stops += 1
    assert stops >= 4
    assert (transport.folder() / f"{key}.safetensors").read_bytes() == whole
    assert not list((store.folder() / "batch").glob("*/*.safetensors"))


def test_a_fit_is_found_again_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = tiny.language("gpt2"), tiny.small_texts(40)
    key = transport_operator(model, texts, name="mine")
    with progress.meter() as spent:
        assert transport_operator(model, texts, name="mine") == key
    assert spent.forwards == 0
    assert transport.listed(model) == [(key, "mine", transport.need(model, key).tokens)]
    assert transport.find(model, policy="previous") is None and transport.find(tiny.language("llama")) is None
    with pytest.raises(Unsuitable, match="fit them"):
        transport.need(model, policy="attention")
    with pytest.raises(Missing):
        transport.need(model, "0" * 64)


def test_a_damaged_file_is_passed_over_with_a_sentence() -> None:
    model, texts = tiny.language("gpt2"), tiny.small_texts(40)
    path = fitted(model, texts).path
    other = path.with_name(f"{'1' * 64}.safetensors")
    other.write_bytes(path.read_bytes()[:1000])
    assert len(transport.listed(model)) == 1
    with pytest.raises(Unsuitable, match="damaged"):
        Operators(other)


def test_interventions_in_force_take_no_part_and_a_cancel_leaves_the_model_as_it_was() -> None:
    model, texts = tiny.language("gpt2"), tiny.small_texts(40)
    with model.edit({"resid_post.0": lambda x: x * 3}):
        key = transport_operator(model, texts)
        assert hooks.in_force()
    changed = transport.need(model, key).mean(1)
    plain = torch.cat([read(model, text, "same", 128)[1][1] for number, text in enumerate(texts.texts)
                       if part_of(number, 0) < 2])  # fmt: skip
    assert torch.allclose(changed, plain.mean(0), atol=1e-5)
    cancel, before = threading.Event(), state(model)
    cancel.set()
    with progress.watch(cancel=cancel), pytest.raises(progress.Cancelled):
        transport_operator(model, tiny.small_texts(40, 9))
    assert state(model) == before
