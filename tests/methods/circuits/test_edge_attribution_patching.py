"""What leaves a part is its attribution patching; an edge is the slope of a run in which it alone moves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from interp import Unsuitable, zoo
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.scale_site import scale_site
from interp.methods.change.skip_layer import skip_layer
from interp.methods.circuits import _edges
from interp.methods.circuits.activation_patching import activation_patching
from interp.methods.circuits.edge_attribution_patching import edge_attribution_patching
from interp.model import LanguageModel, gradient
from interp.results import Graph
from interp.samples import Prompt, PromptPair, Target
from interp.sites import Node, Site
from tests import tiny
from tests.slow import _layer_norm, _rms_norm, _rotate

PAIR = PromptPair("the cat sat", "the dog lay", "a", "b")
EVERYTHING = 100_000
INDUCTION = (
    PromptPair("a hat, a hen: h", "a hat, a pen: h", "e", "a"),
    PromptPair("one dot, one dip: d", "one dot, one tip: d", "i", "o"),
    PromptPair("The cat, the cow: c", "The cat, the sow: c", "o", "a"),
)
"""In the clean prompts both words match the last character, so no softmax is saturated; p stands for h, t for d and s
for c in the channel that the decoys write to, so that these write the same in both prompts."""

Reader = tuple[int, int | None, str]
Carried = Mapping[Reader, Mapping[str, Tensor]]


def slow(
    model: LanguageModel, ids: Tensor, carried: Carried, donor: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The last logits, and what each part adds to the stream: GPT-2 or Llama by hand, in float64.

    A reader reads at t, instead of the stream x, x_s + a_ts (u_s(donor) - u_s) with a = carried[reader][u].
    """
    network: Any = model.network
    weights = {name: value.double() for name, value in network.state_dict().items()}
    old, heads, length = model.family == "gpt2", model.parts.heads, ids.shape[1]
    group = heads // model.parts.kv_heads
    if old:
        x = weights["transformer.wte.weight"][ids[0]] + weights["transformer.wpe.weight"][:length]
    else:
        x = weights["model.embed_tokens.weight"][ids[0]]
    said = {"resid_pre.0": x}

    def read(reader: Reader, t: int) -> Tensor:
        value = x
        for source, amount in carried.get(reader, {}).items():
            value = value + amount[t].double()[:, None] * (donor[source] - said[source])
        return value

    for layer in range(model.layers):
        if old:
            at = lambda name, layer=layer: weights[f"transformer.h.{layer}.{name}"]  # noqa: E731
            matrix, bias = at("attn.c_attn.weight"), at("attn.c_attn.bias")
            parts = dict(zip("qkv", zip(matrix.chunk(3, 1), bias.chunk(3), strict=True), strict=True))
            first = lambda y, at=at: _layer_norm(y, at("ln_1.weight"), at("ln_1.bias"), 1e-5)  # noqa: E731
            out, extra = at("attn.c_proj.weight"), at("attn.c_proj.bias")
        else:
            at = lambda name, layer=layer: weights[f"model.layers.{layer}.{name}.weight"]  # noqa: E731
            parts = {port: (at(f"self_attn.{port}_proj").T, torch.zeros(())) for port in "qkv"}
            first = lambda y, at=at: _rms_norm(y, at("input_layernorm"), network.config.rms_norm_eps)  # noqa: E731
            out, extra = at("self_attn.o_proj").T, torch.zeros(())
        size = out.shape[0] // heads

        def project(
            value: Tensor, port: str, head: int, parts: Any = parts, first: Any = first, size: int = size
        ) -> Tensor:
            matrix, bias = parts[port]
            own = slice(head * size, (head + 1) * size)
            made = first(value) @ matrix[:, own] + (bias[own] if bias.dim() else 0)
            return made if old or port == "v" else _rotate(made[None, :, None])[0, :, 0]

        for head in range(heads):
            z, made = [], dict[str, Tensor]()
            for t in range(length):
                for port, number in (("q", head), ("k", head // group), ("v", head // group)):
                    if port not in made or (layer, head, port) in carried:
                        made[port] = project(read((layer, head, port), t), port, number)
                k, v = made["k"][: t + 1], made["v"][: t + 1]
                z.append((k @ made["q"][t] / math.sqrt(size)).softmax(0) @ v)
            said[f"z.{layer}.{head}"] = torch.stack(z) @ out[head * size : (head + 1) * size]
        x = x + sum(said[f"z.{layer}.{head}"] for head in range(heads)) + extra
        value = torch.stack([read((layer, None, ""), t)[t] for t in range(length)])
        if old:
            value = _layer_norm(value, at("ln_2.weight"), at("ln_2.bias"), 1e-5)
            inner = F.gelu(value @ at("mlp.c_fc.weight") + at("mlp.c_fc.bias"), approximate="tanh")
            said[f"mlp_out.{layer}"] = inner @ at("mlp.c_proj.weight") + at("mlp.c_proj.bias")
        else:
            value = _rms_norm(value, at("post_attention_layernorm"), network.config.rms_norm_eps)
            inner = F.silu(value @ at("mlp.gate_proj").T) * (value @ at("mlp.up_proj").T)
            said[f"mlp_out.{layer}"] = inner @ at("mlp.down_proj").T
        x = x + said[f"mlp_out.{layer}"]
    last = read((model.layers, None, ""), length - 1)[-1]
    if old:
        last = _layer_norm(last, weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"], 1e-5)
    else:
        last = _rms_norm(last, weights["model.norm.weight"], network.config.rms_norm_eps)
    return last @ weights["lm_head.weight"].T, said


def named(graph: Graph) -> dict[tuple[str, str, str], float]:
    """Weights by source, target and port."""
    ends = ((graph.nodes[source], graph.nodes[target]) for source, target in graph.edges)
    return {(*end, port): float(weight) for end, port, weight in zip(ends, graph.ports, graph.weights, strict=True)}


def attribution(model: LanguageModel, pair: PromptPair) -> dict[str, float]:
    """Delta . gradient of every part at every token, from one recorded run."""
    sites = [Site("resid_pre", 0), *(Site(kind, layer) for layer in range(model.layers) for kind in ("z", "mlp_out"))]
    ids = [model.inputs(Prompt(text)) for text in (pair.clean, pair.corrupted)]
    with model.record(sites) as donor:
        model(ids[1])
    with model.record(sites, grad=True) as base:
        logits = model(ids[0])[0, -1]
    answer, foil = (model.token_index(Target(text)) for text in (pair.answer, pair.foil))
    slopes = gradient(logits[answer] - logits[foil], [base[site] for site in sites])
    found = {}
    for site, slope in zip(sites, slopes, strict=True):
        each = (slope * (donor[site] - base[site]).detach()).sum(-1)[0]
        for place in range(len(each)):
            if site.kind == "z":
                found |= {f"{site}.{head}@{place}": float(each[place, head]) for head in range(each.shape[1])}
            else:
                found[f"{site}@{place}"] = float(each[place])
    return found


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_what_leaves_a_part_is_its_attribution_patching(family: str) -> None:
    for seed in range(2):
        model = tiny.language(family, seed)
        graph, expected = edge_attribution_patching(model, PAIR, keep=EVERYTHING), attribution(model, PAIR)
        assert set(graph.nodes) == {*expected, f"logits@{len(graph.tokens) - 1}"}
        scale = max(map(abs, expected.values()))
        values = list(expected.values())
        np.testing.assert_allclose([graph.value(node) for node in expected], values, atol=2e-5 * scale)
        leaving: dict[str, float] = defaultdict(float)
        for (source, _, _), weight in named(graph).items():
            leaving[source] += weight
        np.testing.assert_allclose([leaving[node] for node in expected], values, atol=2e-5 * scale)
        assert graph.total == pytest.approx(np.abs(graph.weights).sum(), rel=1e-6)
        assert graph.residual is not None and graph.residual.value < 2e-6


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_edge_is_the_slope_of_a_run_where_it_alone_moves(family: str) -> None:
    model = tiny.language(family)
    graph = edge_attribution_patching(model, PAIR, keep=EVERYTHING)
    ids = [model.inputs(Prompt(text)) for text in (PAIR.clean, PAIR.corrupted)]
    answer, foil = (model.token_index(Target(text)) for text in (PAIR.answer, PAIR.foil))
    whole, _ = slow(model, ids[0], {}, {})
    torch.testing.assert_close(whole.float(), model(ids[0])[0, -1], atol=1e-4, rtol=1e-4)
    _, donor = slow(model, ids[1], {}, {})
    edges, rng, scale = named(graph), np.random.default_rng(0), float(np.abs(graph.weights).max())
    length = ids[0].shape[1]
    for port in ("q", "k", "v", ""):
        some = [edge for edge in edges if edge[2] == port]
        # the strongest, any, and those that join one token to another
        apart = [edge for edge in some if Node.parse(edge[0]).position != Node.parse(edge[1]).position]
        chosen = [*some[:3], *apart[:3], *(some[each] for each in rng.integers(len(some), size=4))]
        for edge in chosen:
            source, target = Node.parse(edge[0]), Node.parse(edge[1])
            amount = torch.zeros(length, length)
            amount[target.position, source.position] = step = 1e-3
            reader = (model.layers if target.layer is None else target.layer, target.head, port)
            name = str(Node(source.site))
            ends = [slow(model, ids[0], {reader: {name: sign * amount}}, donor)[0] for sign in (1, -1)]
            slope = (ends[0] - ends[1])[answer] - (ends[0] - ends[1])[foil]
            assert edges[edge] == pytest.approx(float(slope) / (2 * step), rel=1e-3, abs=1e-5 * scale), edge


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "mixtral"])
def test_edges_into_keys_values_and_queries_add_up_to_the_gradient_there(family: str) -> None:
    """Over all tokens that read them, for each key head; with soft caps, norms of keys, windows, parallel blocks."""
    model, layer = tiny.language(family, 1), 2
    graph = edge_attribution_patching(model, PAIR, keep=EVERYTHING)
    ids = [model.inputs(Prompt(text)) for text in (PAIR.clean, PAIR.corrupted)]
    start, stream = Site("resid_pre", 0), Site("resid_pre", layer)
    sites = [Site(kind, layer) for kind in "qkv"]
    with model.record([start]) as donor:
        model(ids[1])
    # a pattern is asked for, so that the run is the eager one
    with model.record([start, stream, *sites, Site("pattern", layer)], grad=True) as base:
        logits = model(ids[0])[0, -1]
    answer, foil = (model.token_index(Target(text)) for text in (PAIR.answer, PAIR.foil))
    slopes = gradient(logits[answer] - logits[foil], [base[site] for site in sites], keep=True)
    delta = (donor[start] - base[start]).detach()[0]
    scale = float(np.abs(graph.weights).max())
    for site, slope in zip(sites, slopes, strict=True):
        found: dict[tuple[int, int], float] = defaultdict(float)
        group = model.parts.heads // slope.shape[2]
        for (source, target, port), weight in named(graph).items():
            at, to = Node.parse(source), Node.parse(target)
            if at.kind == "resid_pre" and port == site.kind and to.layer == layer:
                assert at.position is not None and to.head is not None
                found[to.head // group, at.position] += weight
        for head in range(slope.shape[2]):
            own = torch.zeros_like(slope)
            own[:, :, head] = slope[:, :, head]
            pulled = gradient(base[site], [base[stream]], own, keep=True)[0][0]
            expected = (pulled * delta).sum(-1)
            for place in range(len(delta)):
                assert found[head, place] == pytest.approx(float(expected[place]), rel=1e-3, abs=3e-6 * scale)


def test_summed_over_tokens_and_cut_short() -> None:
    model = tiny.language("llama")
    whole = edge_attribution_patching(model, PAIR, keep=EVERYTHING)
    short = edge_attribution_patching(model, PAIR, keep=10)
    assert whole.total == short.total and whole.nodes == short.nodes and len(short.weights) == 10
    np.testing.assert_array_equal(short.weights, whole.weights[:10])
    assert list(named(short)) == list(named(whole))[:10]
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for (source, target, port), weight in named(whole).items():
        sums[source.split("@")[0], target.split("@")[0], port] += weight
    merged = named(edge_attribution_patching(model, PAIR, keep=EVERYTHING, by_position=False))
    assert merged.keys() == sums.keys()
    np.testing.assert_allclose([merged[edge] for edge in sums], list(sums.values()), atol=1e-6 * max(sums.values()))


def test_memory_changes_nothing_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("gemma2")
    first = edge_attribution_patching(model, PAIR, keep=EVERYTHING)
    monkeypatch.setattr(_edges, "BYTES", 1)
    other = edge_attribution_patching(model, PAIR, keep=EVERYTHING)
    mine, theirs = named(first), named(other)
    assert mine.keys() == theirs.keys()
    scale = np.abs(first.weights).max()
    np.testing.assert_allclose([theirs[edge] for edge in mine], list(mine.values()), atol=1e-6 * scale)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_sums_hold_under_interventions(family: str) -> None:
    model, prompt = tiny.language(family), Prompt(PAIR.clean)
    for change in (
        skip_layer(model, prompt, layer=1, count=1),
        repeat_layer(model, prompt, layer=1, times=3),
        ablate_heads(model, prompt, heads=((0, 1), (1, 0)), by="zero"),
        *(
            scale_site(model, prompt, site=site, by=-1.5)
            for site in ("z.1.1", "pattern.1.0", "q.2", "v.1", "mlp_out.1", "resid_pre.1", "resid_post.2")
        ),
    ):
        with change:
            graph = edge_attribution_patching(model, PAIR)
        assert graph.residual is not None and graph.residual.value < 5e-6 and graph.total > 0


def test_the_direction_and_a_metric_without_a_slope() -> None:
    model = tiny.language("gpt2")
    back = edge_attribution_patching(model, PAIR, direction="denoising")
    forth = edge_attribution_patching(model, PromptPair(PAIR.corrupted, PAIR.clean, "a", "b"))
    assert back.base == forth.base and back.direction == "denoising"
    np.testing.assert_array_equal(back.values, forth.values)
    with pytest.raises(Unsuitable, match="slope"):
        edge_attribution_patching(model, PAIR, metric="KL divergence")
    assert edge_attribution_patching(model, PAIR, metric="KL divergence", direction="denoising").total > 0


@pytest.mark.parametrize("pair", INDUCTION)
def test_the_known_circuit_carries_it_and_nothing_else(pair: PromptPair) -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    graph = edge_attribution_patching(model, pair, by_position=False)
    exact = activation_patching(model, pair, by_position=False)
    for found in (graph, exact):
        known = {node: found.value(node) for node in ("z.0.1", "z.1.2")}
        assert max(known.values()) < -10, "without either head the answer is lost"
        others = [found.value(node) for node in found.nodes if node[0] in "zm" and node not in known]
        assert np.abs(others).max() < 1e-6 * -min(known.values())
    edges = named(graph)
    circuit = [("z.0.1", "z.1.2", "k"), ("resid_pre.0", "z.0.1", "v"), ("z.1.2", "logits", "")]
    assert list(edges)[:3] == circuit
    # a norm of equal length in both prompts still has a slope, so a little seems to come in by the decoys
    rest = [weight for edge, weight in edges.items() if edge not in circuit and edge[:2] != circuit[0][:2]]
    assert np.abs(rest).max() < 0.01 * abs(edges[circuit[0]])
    behind = [
        weight
        for edge, weight in edges.items()
        if edge[0][0] == "z" and not {*edge[:2]} <= {"z.0.1", "z.1.2", "logits"}
    ]
    assert np.abs([0.0, *behind]).max() < 1e-6 * abs(edges[circuit[0]])


@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_a_pair_of_any_length(length: int) -> None:
    pair = PromptPair(("abcd" * 5)[:length], ("bbcd" * 5)[:length], "a", "b")
    graph = edge_attribution_patching(tiny.language("gemma3_text"), pair)
    assert graph.residual is not None and graph.residual.value < 5e-6 and len(graph.tokens) == length
