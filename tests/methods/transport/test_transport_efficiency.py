"""The matrix of efficiency: what the fit kept, and what the operators do on a prompt, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Missing, Unsuitable, transport
from interp.batch import Origin
from interp.methods.change.scale_site import scale_site
from interp.methods.change.skip_layer import skip_layer
from interp.methods.transport._fitting import Reading
from interp.methods.transport._reading import read
from interp.methods.transport.transport_efficiency import SHEETS, transport_efficiency
from interp.methods.transport.transport_operator import transport_operator
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site
from interp.transport import Operators, Policy
from tests import tiny
from tests.methods.transport.lens import FAMILIES, PROMPT, STORE, fitted, linear

POLICIES: tuple[Policy, ...] = ("same", "previous", "attention")


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For what would be found by other tests."""
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_where_layers_are_linear_all_is_carried(family: str, seed: int) -> None:
    model, of, _ = linear(family, seed)
    found = transport_efficiency(model, PROMPT)
    assert found.rows == found.columns == of.names == ("embed", "0", "1", "2") and found.sheets == SHEETS
    above = np.triu_indices(4, 1)
    for name in ("efficiency", "transported", "ceiling", "this prompt"):
        np.testing.assert_allclose(found.sheet(name)[above], 1, atol=1e-4)
        assert np.isnan(found.sheet(name)[np.tril_indices(4)]).all()
    same = found.sheet("identity")
    assert same[0, 1] == pytest.approx(1) == same[2, 3] and same[0, 2] < 0.9 > same[1, 3]


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_this_prompt_is_the_whitened_r2_counted_token_by_token(family: str, seed: int, policy: Policy) -> None:
    model, of, _ = fitted(family, seed, policy)
    found = transport_efficiency(model, PROMPT, policy=policy).sheet("this prompt")
    for a, b in of.pairs:
        assert found[a, b] == pytest.approx(_slow(model, of, a, b), abs=1e-6)


def _slow(model: LanguageModel, of: Operators, a: int, b: int, kind: str = "ridge", rank: int = 0) -> float:
    """By `Operators.operator`, a source made for each token by itself, and W from the covariance anew."""
    site = of.streams[a]
    pattern = Site("pattern", 0 if a == 0 else a)
    with model.record([site, of.streams[b], pattern]) as record:
        model(PROMPT)
    x, y, attention = (record[each][0].double() for each in (site, of.streams[b], pattern))
    operator = of.operator(site, of.streams[b], kind, rank)  # type: ignore[arg-type]
    values, vectors = np.linalg.eigh(of.covariance(b, b).numpy())
    whole = left = 0.0
    for t in range(0 if of.policy == "same" else 1, len(y)):
        if of.policy == "same":
            source = x[t]
        elif of.policy == "previous":
            source = x[t - 1]
        else:
            heads = attention[:, t]
            source = sum(heads[:, s].mean() * x[s] for s in range(len(x)))  # type: ignore[assignment]
        for vector, value in zip(vectors.T, values, strict=True):
            if value > 1e-6 * values[-1]:
                left += float((y[t] - operator(source.float()).double()).numpy() @ vector) ** 2 / value
                whole += float((y[t] - of.mean(b)).numpy() @ vector) ** 2 / value
    return 1 - left / whole


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_is_read_as_the_texts_of_the_fit_were(policy: Policy) -> None:
    model, of, _ = fitted("llama", 0, policy)
    texts = TextSet((PROMPT.text,))
    reading = Reading(Origin.of(model), texts, "", tuple(map(str, of.streams)), policy, 64, 0, True)
    part = next(each for each in range(3) if list(reading.rows(model, (0, 1), each)))
    ((rows, _),) = reading.rows(model, (0, 1), part)
    seen = read(model, PROMPT, of)
    places = list(seen.places)
    assert places == list(range(0 if policy == "same" else 1, len(PROMPT.text)))
    torch.testing.assert_close(seen.y[:, places], rows[: len(of.streams)], atol=1e-5, rtol=1e-5)
    if policy != "same":
        mine = torch.stack([each for each in seen.x if each is not None])[:, places]
        torch.testing.assert_close(mine, rows[len(of.streams) :], atol=1e-5, rtol=1e-5)


def test_special_tokens_are_left_out() -> None:
    for policy, first in (("same", 1), ("previous", 2)):
        model, of, _ = fitted("llama", 0, policy)  # type: ignore[arg-type]
        assert read(model, Prompt("<bos>the cat"), of).places == tuple(range(first, 8))
        assert read(model, Prompt("<bos>"), of).plain == (0,)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_sheets_are_what_the_fit_kept(policy: Policy) -> None:
    model, of, _ = fitted("gpt2", 1, policy)
    found = transport_efficiency(model, PROMPT, operators=of.key)
    for a, b in of.pairs:
        kept = of.efficiency(a, b)
        for name in ("efficiency", "transported", "ceiling", "size"):
            mine = [found.sheet(f"{name}{end}")[a, b] for end in ("", " low", " high")]
            assert mine == kept[name].tolist() and mine[1] <= mine[0] <= mine[2]
        assert found.sheet("null")[a, b] == of.fact("null", a, b)
        assert found.sheet("identity")[a, b] == pytest.approx(of.transported(a, b, "identity"), rel=1e-5)
    assert found.note == ""


def test_of_a_lower_rank_it_is_the_reduced_rank_map_without_an_interval() -> None:
    model, of, _ = fitted("gemma2")
    whole = transport_efficiency(model, PROMPT)
    for rank in (1, 5, 16, 4096):
        found = transport_efficiency(model, PROMPT, rank=rank)
        for a, b in of.pairs:
            at = min(rank, int(np.isfinite(of.fact("curve", a, b)[:, 0]).sum())) - 1
            mine = [found.sheet(name)[a, b] for name in ("efficiency", "transported", "ceiling")]
            assert mine == of.fact("curve", a, b)[at].tolist()
            slow = _slow(model, of, a, b, "reduced rank", min(rank, of.width))
            assert found.sheet("this prompt")[a, b] == pytest.approx(slow, abs=1e-6)
        for name in ("efficiency low", "transported high", "ceiling low"):
            assert np.isnan(found.sheet(name)).all()
        np.testing.assert_array_equal(found.sheet("size high"), whole.sheet("size high"))
    first = transport_efficiency(model, PROMPT, rank=1).sheet("transported")
    assert (first < whole.sheet("transported"))[np.triu_indices(4, 1)].all()


def test_too_few_tokens_claim_no_efficiency_and_say_how_many_it_takes(own_store: Path) -> None:
    model = tiny.language("gpt2")
    key = transport_operator(model, tiny.small_texts(15), context=32)
    of = transport.need(model, key)
    assert of.tokens < 320
    found = transport_efficiency(model, PROMPT)
    for end in ("", " low", " high"):
        assert np.isnan(found.sheet(f"efficiency{end}")).all()
        assert np.isfinite(found.sheet(f"transported{end}")[0, 1])
    assert found.note == (
        f"Fitted on {of.tokens} tokens; an efficiency takes 320 (20 for each of 16 directions): add text."
    )


def test_the_released_code_has_a_higher_ceiling_and_says_so() -> None:
    model, of, _ = fitted("llama")
    found = transport_efficiency(model, PROMPT, estimate="released code")
    for a, b in of.pairs:
        want = of.released(a, b)
        assert {name: found.sheet(name)[a, b] for name in want} == want
        assert want["ceiling"] > of.efficiency(a, b)["ceiling"][0]
    for name in ("efficiency low", "ceiling high", "null"):
        assert np.isnan(found.sheet(name)).all()
    assert "biased upwards" in found.note and "fitting tokens" in found.note


def test_changes_in_force_change_what_is_said_of_the_prompt_and_nothing_else() -> None:
    model, _, _ = fitted("gpt2")
    plain = transport_efficiency(model, PROMPT)
    with scale_site(model, PROMPT, site=Site("resid_post", 1), by=2.0):
        after = transport_efficiency(model, PROMPT)
    last = SHEETS.index("this prompt")
    np.testing.assert_array_equal(plain.values[:last], after.values[:last])
    moved = plain.values[last] != after.values[last]
    # layers before the change are as they were
    assert not moved[0, 1] and moved[0, 2] and moved[1, 2] and moved[2, 3]


def test_of_a_layer_that_is_skipped_no_source_is_weighted_by_its_attention() -> None:
    model, _, _ = fitted("llama", 0, "attention")
    with skip_layer(model, PROMPT, layer=1, count=1):
        found = transport_efficiency(model, PROMPT, policy="attention").sheet("this prompt")
    assert np.isnan(found[1]).all() and np.isfinite(found[0, 1:]).all() and np.isfinite(found[2, 3])


def test_without_operators_there_is_a_sentence(own_store: Path) -> None:
    model = tiny.language("llama")
    with pytest.raises(Unsuitable, match="fit them on the Transport page"):
        transport_efficiency(model, PROMPT)
    with pytest.raises(Missing, match="not kept here"):
        transport_efficiency(model, PROMPT, operators="0" * 64)
