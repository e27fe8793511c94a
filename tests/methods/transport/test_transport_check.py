"""Replaced streams and what they cost, against loops over texts, tokens and the vocabulary."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from interp import Unsuitable, transport, zoo
from interp.methods.change.scale_site import scale_site
from interp.methods.transport.transport_check import transport_check
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site
from interp.transport import Affine
from tests.methods.transport.lens import FAMILIES, PROMPT, STORE, fitted, linear

TEXTS = TextSet(("the cat sat on the mat", "a dog so did", "<bos>that hat and my cat"))
MAPS = (("transport", "ridge"), ("identity", "identity"), ("mean", "mean"), ("random", "random"))


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def slow(
    model: LanguageModel, text: str, source: Site, target: Site, affine: Affine | None
) -> tuple[list[float], list[float]]:
    """Nats of every guessed token and KL at every token that is replaced, one by one in float64."""
    ids = model.inputs(text)[0].tolist()
    special = set(model.tokenizer.all_special_ids)
    with model.record([source, target]) as record:
        plain = model(text)[0].double()
    changed = plain
    if affine is not None:
        new = record[target].clone()
        for t, token in enumerate(ids):
            if token not in special:
                new[0, t] = affine(record[source][0, t])
        with model.edit({target: lambda _: new}):
            changed = model(text)[0].double()
    p, q = plain.log_softmax(1).numpy(), changed.log_softmax(1).numpy()
    nats, kl = [], []
    for t, token in enumerate(ids):
        if token in special:
            continue
        kl.append(float((np.exp(p[t]) * (p[t] - q[t])).sum()))
        if t + 1 < len(ids) and ids[t + 1] not in special:
            nats.append(-float(q[t, ids[t + 1]]))
    return nats, kl


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("rank", [0, 3])
def test_the_table_is_that_of_loops_over_texts_and_tokens(family: str, seed: int, rank: int) -> None:
    model, of, _ = fitted(family, seed)
    source, target = Site("resid_pre", 0), Site("resid_post", 1)
    found = transport_check(model, PROMPT, source=source, target=target, rank=rank, texts=TEXTS, seed=5)
    assert found.rows == ("unchanged", "transport", "identity", "mean", "random")
    assert found.columns == ("perplexity", "nats more", "standard error", "KL")
    base = [slow(model, text, source, target, None)[0] for text in TEXTS.texts]
    for row, (name, kind) in enumerate((("unchanged", ""), *MAPS)):
        kind = "reduced rank" if rank and kind == "ridge" else kind
        affine = of.operator(source, target, kind, rank, 5) if kind else None  # type: ignore[arg-type]
        each = [slow(model, text, source, target, affine) for text in TEXTS.texts]
        nats, kl = (np.concatenate([one[part] for one in each]) for part in (0, 1))
        more = nats - np.concatenate(base)
        want = [math.exp(nats.mean()), more.mean(), kl.mean()]
        np.testing.assert_allclose(found.values[row, [0, 1, 3]], want, rtol=1e-3, atol=1e-5, err_msg=name)
    assert found.values[0, 1:].tolist() == [0, 0, 0]


def test_of_texts_of_equal_length_the_error_is_that_of_a_mean() -> None:
    model, _, _ = fitted("gpt2")
    texts = ("the cat sat on", "a mat and so d", "id my dog but ", "not that hat a")
    found = transport_check(model, PROMPT, texts=TextSet(texts))
    alone = [transport_check(model, Prompt(each)).values for each in texts]
    for row in range(1, 5):
        more = np.array([each[row, 1] for each in alone])
        assert found.values[row, 2] == pytest.approx(more.std(ddof=1) / 2, rel=1e-3)
        assert found.values[row, 1] == pytest.approx(more.mean(), rel=1e-3)
    assert np.isnan(alone[0][:, 2]).all()


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_where_layers_are_linear_the_transport_costs_nothing_and_everything_else_does(family: str, seed: int) -> None:
    model, _, _ = linear(family, seed)
    found = transport_check(model, PROMPT, source=Site("resid_post", 0), target=Site("resid_post", 1))
    kl = dict(zip(found.rows, found.values[:, 3], strict=True))
    assert abs(kl["transport"]) < 1e-3 and abs(found.values[1, 1]) < 1e-2
    assert min(kl["identity"], kl["mean"], kl["random"]) > 0.01
    # over a layer that does nothing the identity costs nothing at all
    still = transport_check(model, PROMPT, source=Site("resid_pre", 0), target=Site("resid_post", 0))
    assert still.values[2, 3] == 0 and still.values[2, 0] == still.values[0, 0]


def test_under_changes_the_unchanged_row_has_them_too() -> None:
    model, of, _ = fitted("llama")
    source, target = of.streams[1], of.streams[2]
    with scale_site(model, PROMPT, site=source, by=1.5):
        found = transport_check(model, PROMPT)
        for row, (_, kind) in enumerate((("", ""), *MAPS)):
            affine = of.operator(source, target, kind) if kind else None  # type: ignore[arg-type]
            nats, kl = slow(model, PROMPT.text, source, target, affine)
            np.testing.assert_allclose(
                found.values[row, [0, 3]], [math.exp(np.mean(nats)), np.mean(kl)], rtol=1e-3, atol=1e-5
            )
    assert found.values[0, 0] != transport_check(model, PROMPT).values[0, 0]


def test_the_seed_fixes_the_random_map_and_nothing_else() -> None:
    model, _, _ = fitted("gemma2")
    first, again, other = (transport_check(model, PROMPT, seed=each) for each in (1, 1, 2))
    assert first == again
    np.testing.assert_array_equal(first.values[:4], other.values[:4])
    assert first.values[4, 0] != other.values[4, 0]


def test_long_texts_are_cut_to_what_the_model_reads_and_summed_in_parts() -> None:
    model, _, _ = fitted("gpt2")
    text = "the cat sat on my hat " * 20
    found, cut = (transport_check(model, PROMPT, texts=TextSet((each,))) for each in (text, text[: model.limit]))
    np.testing.assert_array_equal(found.values, cut.values)
    assert 64 < model.limit < len(text)
    nats, _ = slow(model, text[: model.limit], Site("resid_post", 0), Site("resid_post", 1), None)
    assert found.values[0, 0] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)


def test_what_has_no_next_token_or_no_such_streams_gets_a_sentence() -> None:
    model, _, _ = fitted("gpt2")
    with pytest.raises(Unsuitable, match="no next token"):
        transport_check(model, Prompt("a"))
    with pytest.raises(Unsuitable, match="before its target"):
        transport_check(model, PROMPT, source=Site("resid_post", 1), target=Site("resid_post", 1))
    with pytest.raises(Unsuitable, match="no site"):
        transport_check(model, PROMPT, target=Site("resid_post", 9))
    _, other, _ = fitted("gpt2", 0, "previous")
    with pytest.raises(Unsuitable, match="same token"):
        transport_check(model, PROMPT, operators=other.key)


def test_it_costs_five_forwards_for_each_text() -> None:
    model, _, _ = fitted("llama")
    assert transport_check(model, PROMPT, texts=TEXTS).forwards == 15
    assert transport_check.estimate(model, {"texts": TEXTS}) == (15, 0)
    assert transport_check.estimate(model, {}) == (5, 0)


@pytest.mark.slow
def test_of_the_embedded_model_the_transport_costs_least_at_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(transport.SHELF.parent / "recipes"))
    import grammar

    model, rng = zoo.load("stories"), random.Random(977)
    texts = TextSet(tuple(grammar.document(rng) for _ in range(20)))
    of = transport.need(model)
    for a, b in of.pairs:
        found = transport_check(model, PROMPT, source=of.streams[a], target=of.streams[b], texts=texts)
        _, replaced, *others = found.values[:, 0]
        assert replaced < 0.95 * min(others), (of.names[a], of.names[b], found.values)
