"""AtP* against runs with layers detached, patterns of patched runs, hand-made failures of AtP, and exact patching."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, zoo
from interp.methods.circuits._pairs import Nodes, Pair, nodes_at, read_pair, sites_of
from interp.methods.circuits._slopes import slopes
from interp.methods.circuits.activation_patching import activation_patching
from interp.methods.circuits.atp_star import atp_star
from interp.methods.circuits.attribution_patching import attribution_patching
from interp.model import LanguageModel, gradient
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
KINDS: tuple[Nodes, ...] = ("heads and MLPs", "q, k, v", "residual stream", "attention and MLPs", "patterns", "neurons")
Edits = Mapping[Site, Callable[[Tensor], Tensor]]


def detached(model: LanguageModel, pair: Pair, sites: list[Site], edits: Edits) -> dict[Site, Tensor]:
    """Gradients of the metric in a run of its own, zero where none comes back."""
    with model.edit(edits), model.record(sites, grad=True) as found:  # type: ignore[arg-type]
        score = pair.score(model(pair.base)[:, -1]).sum()
    taken = gradient(score, [found[site] for site in sites], loose=True)
    return dict(zip(sites, taken, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_going_back_with_a_layer_dropped_is_a_run_in_which_its_parts_are_detached(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    sites = list(dict.fromkeys(site for kind in KINDS for site in sites_of(model, kind)))
    ran = slopes(model, pair, sites, drop=True, fix=True)
    plain = detached(model, pair, sites, {})
    for site in sites:
        close(ran.slopes[site][0], plain[site])
    for layer in range(model.layers):
        edits = {Site(kind, layer): Tensor.detach for kind in ("attn_out", "mlp_out")}
        # of the parts themselves, what is taken is the gradient before they are detached: none
        outside = [site for site in sites if Site(site.kind, site.layer) not in edits]
        alone, dropped = detached(model, pair, outside, edits), ran.without(layer)
        for site in sites:
            if site in alone:
                close(dropped[site][0], alone[site])
            if site.layer == layer and not site.kind.startswith("resid"):
                assert not dropped[site][0].any()


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max() + 1e-9


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_a_score_is_the_mean_of_magnitudes_over_the_other_layers(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    for kind in ("heads and MLPs", "residual stream"):
        sites = sites_of(model, kind)  # type: ignore[arg-type]
        total = dict.fromkeys(map(str, nodes_at(model, sites, pair.length, True)), 0.0)
        with torch.no_grad(), model.record(sites) as base:
            model(pair.base)
        with torch.no_grad(), model.record(sites) as donor:
            model(pair.donor)
        for layer in range(model.layers):
            edits = {Site(part, layer): Tensor.detach for part in ("attn_out", "mlp_out")}
            ready = [site for site in sites if site not in edits]
            for site, slope in detached(model, pair, ready, edits).items():
                effect = ((donor[site] - base[site]) * slope).detach().double().sum(-1)[0]
                for place, head in itertools.product(range(pair.length), range(effect[0].numel())):
                    part = Site(site.kind, site.layer, head) if effect.dim() == 2 else site
                    total[str(Node(part, place))] += abs(float(effect[place].reshape(-1)[head]))
        graph = atp_star(model, PAIR, nodes=kind)  # type: ignore[arg-type]
        count = model.layers if kind == "residual stream" else model.layers - 1
        expected = np.array([total[name] / count for name in graph.nodes])
        np.testing.assert_allclose(graph.values, expected, rtol=0, atol=1e-5 * expected.max())
        signed = attribution_patching(model, PAIR, nodes=kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(graph.beside, signed.values, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_two_forwards_and_a_backward_for_each_layer_and_one(kind: Nodes) -> None:
    graph = atp_star(tiny.language("gpt2"), PAIR, nodes=kind)
    assert (graph.forwards, graph.backwards) == (2, pytest.approx(4, abs=0.01))
    assert (graph.values >= 0).all() and graph.beside_name


def one_layer() -> LanguageModel:
    config = tiny.LANGUAGE["llama"]()
    config.num_hidden_layers = 1
    return LanguageModel(tiny._make(tiny.T.AutoModelForCausalLM, config, 0), tiny.tokenizer(), "one layer")


def test_one_layer_alone_falls_back_to_magnitudes() -> None:
    graph = atp_star(one_layer(), PAIR)
    plain = attribution_patching(one_layer(), PAIR)
    np.testing.assert_allclose(graph.values, np.abs(plain.values), rtol=0, atol=1e-7)
    assert graph.values.any() and (graph.forwards, graph.backwards) == (2, 1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox", "gemma3_text"])
def test_queries_and_keys_are_taken_through_the_softmax_of_runs_with_them_patched(family: str) -> None:
    model, rng = tiny.language(family), np.random.default_rng(0)
    pair = read_pair(model, PAIR)
    graph = atp_star(model, PAIR, nodes="q, k, v")
    ports = [Site(kind, layer) for layer in range(model.layers) for kind in ("q", "k", "pattern")]
    with model.record(ports, grad=True) as base:
        score = pair.score(model(pair.base)[:, -1]).sum()
    weights = dict(zip(ports, gradient(score, [base[site] for site in ports]), strict=True))
    with torch.no_grad(), model.record(ports) as donor:
        model(pair.donor)
    names = [name for name in graph.nodes if name[0] in "qk"]
    scale = max(abs(graph.beside[graph.nodes.index(name)]) for name in names)
    for name in rng.choice([each for each in names if int(each.partition("@")[2]) >= 4], 24, replace=False):
        node = Node.parse(name)
        site, pattern = Site(node.kind, node.layer), Site("pattern", node.layer)

        def put(value: Tensor, site: Site = site, node: Node = node) -> Tensor:
            new = value.clone()
            new[0, node.position, node.head] = donor[site][0, node.position, node.head]
            return new

        with torch.no_grad(), model.edit({site: put}), model.record([pattern]) as patched:
            model(pair.base)
        change = float(((patched[pattern] - base[pattern]).double() * weights[pattern].double()).sum().detach())
        assert graph.beside[graph.nodes.index(name)] == pytest.approx(change, abs=1e-4 * scale), name


def test_parts_that_are_alike_in_both_runs_get_nothing() -> None:
    for family in ("gpt2", "gemma2"):
        graph = atp_star(tiny.language(family), PAIR, nodes="q, k, v")
        early = np.array([int(name.partition("@")[2]) < 4 for name in graph.nodes])
        assert np.abs(graph.beside[early]).max() < 1e-5 * np.abs(graph.beside).max()
        assert graph.values[early].max() < 1e-5 * graph.values.max()


def test_a_part_whose_effects_cancel_to_first_order_is_found() -> None:
    model = tiny.language("gpt2")
    pair, enters, kept = read_pair(model, PAIR), Site("resid_pre", 1), list[Tensor]()
    silent = [Site("mlp_out", 0), Site("attn_out", 1), Site("attn_out", 2), Site("mlp_out", 2)]
    with torch.no_grad(), model.edit({silent[0]: torch.zeros_like}), model.record([enters]) as base:
        model(pair.base)

    def keep(value: Tensor) -> Tensor:
        kept[:] = [value]
        return value

    # layer 1 takes away what the part has written, but for the square of how far it is from the base run
    edits: dict[Site, Callable[[Tensor], Tensor]] = {
        **dict.fromkeys(silent, torch.zeros_like),
        enters: keep,
        Site("mlp_out", 1): lambda _: 200 * (kept[0] - base[enters]) ** 2 - kept[0],
        Site("resid_post", 2): lambda value: value + torch.linspace(-1, 1, value.shape[-1]).to(value),
    }
    settings = {"nodes": "attention and MLPs", "by_position": False}
    with model.edit(edits):  # type: ignore[arg-type]
        exact, estimate, star = (
            abs(method(model, PAIR, **settings).value("attn_out.0"))
            for method in (activation_patching, attribution_patching, atp_star)
        )
    assert exact > 1e-3
    assert estimate < 1e-3 * exact
    assert star > 1e-3


def test_queries_of_a_saturated_softmax_are_found() -> None:
    model = tiny.language("llama")
    sharp = {}
    for name in ("q", "k"):
        path = f"model.layers.1.self_attn.{name}_proj.weight"
        sharp[path] = 12 * model.weight(path)
    with model.swap(sharp):  # type: ignore[arg-type]
        plain = attribution_patching(model, PAIR, nodes="q, k, v")
        star = atp_star(model, PAIR, nodes="q, k, v")
        exact = activation_patching(model, PAIR, nodes="q, k, v")
    for kind in ("q.1.", "k.1."):
        chosen = [index for index, name in enumerate(exact.nodes) if name.startswith(kind)]
        true, fixed, slope = exact.values[chosen], star.beside[chosen], plain.values[chosen]
        error = [np.linalg.norm(each - true) / np.linalg.norm(true) for each in (fixed, slope)]
        assert error[0] < 0.5 * error[1], error


def test_a_query_that_looks_elsewhere_with_no_slope_is_found() -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    # one match each, and so e^-60 of attention elsewhere
    pair = PromptPair("ax by, a", "ax by, b", "x", "y")
    plain = attribution_patching(model, pair, nodes="q, k, v")
    star = atp_star(model, pair, nodes="q, k, v")
    exact = activation_patching(model, pair, nodes="q, k, v")
    name = max((each for each in exact.nodes if each[0] == "q"), key=lambda each: abs(exact.value(each)))
    at = exact.nodes.index(name)
    assert name.startswith("q.1.2@") and abs(exact.values[at]) > 1
    assert abs(plain.values[at]) < 1e-6 * abs(exact.values[at])
    assert abs(star.beside[at]) > 0.3 * abs(exact.values[at]) and star.values[at] > 0.3 * abs(exact.values[at])


def test_of_the_known_circuit_it_finds_the_head_that_speaks_and_no_other() -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    for clean, corrupted, answer, foil in (
        ("a hat, a hen: h", "a hat, a pen: h", "e", "a"),
        ("one dot, one dip: d", "one dot, one tip: d", "i", "o"),
        ("The cat, the cow: c", "The cat, the sow: c", "o", "a"),
    ):
        pair = PromptPair(clean, corrupted, answer, foil)
        graph = atp_star(model, pair, by_position=False)
        found = {name for name, value in zip(graph.nodes, graph.values, strict=True) if value > 1e-6}
        # the previous-token head is read by layer 1 alone: with two layers that term is the one that is dropped
        assert found == {"z.1.2"}
        signed = dict(zip(graph.nodes, graph.beside, strict=True))
        assert abs(signed["z.0.1"]) > 1e-3 * abs(signed["z.1.2"])


def test_kl_divergence_has_no_slope_where_it_is_zero() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="denoising") as problem:
        atp_star(model, PAIR, metric="KL divergence")
    assert str(problem.value).endswith(".")
    assert atp_star(model, PAIR, metric="KL divergence", direction="denoising").values.any()


NAMES = ("Mary", "John", "Neil", "Nancy", "Walter", "Victor", "Felix", "Julia")
WORDS = ("cat", "dog", "tree", "house", "ball", "bird", "fish", "sun", "hat", "car", "book", "box", "cake", "park")


@functools.lru_cache(1)
def stories() -> LanguageModel:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    return model


def objects() -> list[PromptPair]:
    pairs = list(itertools.permutations(NAMES, 2))
    np.random.default_rng(0).shuffle(pairs)
    clean = "When {0} and {1} went to the store, {1} gave a drink to"
    corrupted = "When {0} and {1} went to the store, {0} gave a drink to"
    return [PromptPair(clean.format(*two), corrupted.format(*two), f" {two[0]}", f" {two[1]}") for two in pairs[:20]]


def repeats() -> list[PromptPair]:
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        words = [f" {word}" for word in rng.choice(WORDS, 8, replace=False)]
        text = "".join(words)
        found.append(PromptPair(text + words[2], text + words[5], words[3], words[6]))
    return found


@pytest.mark.parametrize("pairs", [objects, repeats])
def test_on_a_trained_model_it_ranks_heads_as_exact_patching_does(pairs: Callable[[], list[PromptPair]]) -> None:
    model, exact, star = stories(), [], []
    for pair in pairs():
        truth, estimate = activation_patching(model, pair), atp_star(model, pair)
        heads = [index for index, name in enumerate(truth.nodes) if name[0] == "z"]
        exact.append(np.abs(truth.values[heads]))
        star.append(estimate.values[heads])
    true, found = np.mean(exact, 0), np.mean(star, 0)
    assert np.corrcoef(true, found)[0, 1] >= 0.97
    assert set(np.argsort(-true)[:5]) <= set(np.argsort(-found)[:8])


def test_doubled_precision_changes_nothing() -> None:
    model = tiny.language("gpt2")
    double = LanguageModel(copy.deepcopy(model.network).double(), model.tokenizer, "double")
    single, precise = (atp_star(each, PAIR, nodes="q, k, v") for each in (model, double))
    np.testing.assert_allclose(single.values, precise.values, rtol=0, atol=1e-5 * precise.values.max())
