"""Cut edges against a model whose parts are written out one by one, and the search against one try after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from interp import zoo
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.skip_layer import skip_layer
from interp.methods.circuits._edge_patching import EdgePatcher, Reader, Sources, edge_patched
from interp.methods.circuits._pairs import read_pair
from interp.methods.circuits._patching import Patcher
from interp.methods.circuits.acdc import acdc
from interp.model import LanguageModel
from interp.samples import Prompt, PromptPair
from interp.sites import Site
from tests import slow, tiny

PAIR = PromptPair("The cat sat", "The dog sit", "a", "b")
Cut = dict[Reader, Sources]
Part = Callable[[Tensor], Tensor]


class Layer:
    """A layer as functions of what each of its readers reads [position, d_model]."""

    def __init__(
        self, norms: tuple[Part, Part], qkv: Mapping[str, list[Part]], out: list[Tensor], bias: Any, mlp: Part
    ):
        self.norms, self.qkv, self.out, self.bias, self.mlp = norms, qkv, out, bias, mlp

    def head(self, head: int, seen: Mapping[str, Tensor]) -> Tensor:
        q, k, v = (self.qkv[port][head](self.norms[0](seen[port])) for port in "qkv")
        scores = q @ k.T / q.shape[1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        return scores.softmax(-1) @ v @ self.out[head]


def gpt2(network: Any) -> tuple[Part, list[Layer], Part]:
    weights, config = network.state_dict(), network.config
    wide = config.n_embd // config.n_head

    def norm(name: str) -> Part:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return lambda x: slow._layer_norm(x, weight, bias, config.layer_norm_epsilon)

    layers = []
    for layer in range(config.n_layer):
        get = lambda name, layer=layer: weights[f"transformer.h.{layer}.{name}"]  # noqa: E731

        def inner(x: Tensor, get: Any = get) -> Tensor:
            hidden = F.gelu(x @ get("mlp.c_fc.weight") + get("mlp.c_fc.bias"), approximate="tanh")
            return hidden @ get("mlp.c_proj.weight") + get("mlp.c_proj.bias")

        def qkv(start: int, get: Any = get) -> Part:
            at = slice(start, start + wide)
            return lambda x: x @ get("attn.c_attn.weight")[:, at] + get("attn.c_attn.bias")[at]

        heads = range(config.n_head)
        ports = {port: [qkv(n * config.n_embd + head * wide) for head in heads] for n, port in enumerate("qkv")}
        out = [get("attn.c_proj.weight")[head * wide : (head + 1) * wide] for head in heads]
        norms = tuple(norm(f"transformer.h.{layer}.{name}") for name in ("ln_1", "ln_2"))
        layers.append(Layer(norms, ports, out, get("attn.c_proj.bias"), inner))  # type: ignore[arg-type]
    final = norm("transformer.ln_f")

    def embed(ids: Tensor) -> Tensor:
        return weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: len(ids)]

    return embed, layers, lambda x: final(x) @ weights["lm_head.weight"].T


def llama(network: Any) -> tuple[Part, list[Layer], Part]:
    weights, config = network.state_dict(), network.config
    wide = config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // config.num_key_value_heads
    norm = lambda name: lambda x: slow._rms_norm(x, weights[f"{name}.weight"], config.rms_norm_eps)  # noqa: E731
    rotated = lambda x: slow._rotate(x[None, :, None])[0, :, 0]  # noqa: E731
    layers = []
    for layer in range(config.num_hidden_layers):
        get = lambda name, layer=layer: weights[f"model.layers.{layer}.{name}.weight"]  # noqa: E731

        def inner(x: Tensor, get: Any = get) -> Tensor:
            return (F.silu(x @ get("mlp.gate_proj").T) * (x @ get("mlp.up_proj").T)) @ get("mlp.down_proj").T

        def qkv(port: str, head: int, get: Any = get) -> Part:
            head = head if port == "q" else head // shared
            matrix = get(f"self_attn.{port}_proj")[head * wide : (head + 1) * wide].T
            return (lambda x: x @ matrix) if port == "v" else (lambda x: rotated(x @ matrix))

        heads = range(config.num_attention_heads)
        out = [get("self_attn.o_proj").T[head * wide : (head + 1) * wide] for head in heads]
        norms = tuple(norm(f"model.layers.{layer}.{name}") for name in ("input_layernorm", "post_attention_layernorm"))
        ports = {port: [qkv(port, head) for head in heads] for port in "qkv"}
        layers.append(Layer(norms, ports, out, 0.0, inner))  # type: ignore[arg-type]
    final = norm("model.norm")
    return (
        lambda ids: weights["model.embed_tokens.weight"][ids],
        layers,
        lambda x: final(x) @ weights["lm_head.weight"].T,
    )


def written_out(model: Any, ids: Tensor, donor: list[Tensor] | None, cut: Cut) -> tuple[Tensor, list[Tensor]]:
    """The last logits, and what each part writes; every reader sums up by itself what it sees."""
    embed, layers, unembed = model
    parts, bias = [embed(ids)], torch.zeros(())

    def seen(*reader: Any) -> Tensor:
        gone = cut.get(Reader(*reader), frozenset())
        return sum(donor[n] if donor and n in gone else part for n, part in enumerate(parts)) + bias

    for number, layer in enumerate(layers):
        heads = range(len(layer.out))
        parts += [layer.head(head, {port: seen(number, head, port) for port in "qkv"}) for head in heads]
        bias = bias + layer.bias
        parts.append(layer.mlp(layer.norms[1](seen(number, None, ""))))
    return unembed(seen(len(layers), None, ""))[-1], parts


def some(patcher: EdgePatcher, share: float, seed: int) -> Cut:
    rng = np.random.default_rng(seed)
    return {
        reader: frozenset(source for source in patcher.sources(reader) if rng.random() < share)
        for reader in patcher.readers()
    }


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_are_cut_as_where_every_part_is_written_out(family: str, share: float) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    patcher = EdgePatcher(model, pair)
    reference = {"gpt2": gpt2, "llama": llama}[family](copy.deepcopy(tiny.untouched(family)).double())
    _, donor = written_out(reference, pair.donor[0], None, {})
    for seed in range(3):
        cut = some(patcher, share, seed)
        expected, _ = written_out(reference, pair.base[0], donor, cut)
        found = edge_patched(model, pair, cut)
        torch.testing.assert_close(found.double(), expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
        # from a layer on, where nothing below is cut; with another view of one reader in each world
        reader = Reader(1, 1, "k")
        above = {key: gone for key, gone in cut.items() if key.layer >= 1 and key != reader}
        worlds = [frozenset[int](), frozenset({0}), frozenset({0, 2})]
        for world, logits in zip(worlds, patcher.run(above, reader, worlds), strict=True):
            expected, _ = written_out(reference, pair.base[0], donor, above | {reader: world})
            torch.testing.assert_close(logits.double(), expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_nothing_cut_is_the_one_run_and_everything_cut_the_other(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    patcher = EdgePatcher(model, pair)
    for cut, ids in (({}, pair.base), (some(patcher, 2, 0), pair.donor)):
        expected = model(ids)[0, -1]
        torch.testing.assert_close(
            edge_patched(model, pair, cut), expected, atol=2e-6 * float(expected.abs().max()), rtol=0
        )


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_a_part_cut_from_all_its_readers_is_patched_itself(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    edges, whole = (
        EdgePatcher(model, pair),
        Patcher(model, pair, [Site(kind, layer) for layer in range(3) for kind in ("z", "mlp_out")]),
    )
    nodes = edges.nodes()
    for parts in ({1}, {edges.head(1, 0), edges.head(1, 1)}, {edges.mlp(0), edges.head(2, 1)}):
        cut = {reader: frozenset(parts & set(edges.sources(reader))) for reader in edges.readers()}
        effect = float(pair.score(edge_patched(model, pair, cut)[None])) - whole.base
        expected = float(whole.effects([[nodes[part] for part in parts]]))
        assert effect == pytest.approx(expected, abs=1e-5 * max(1, abs(expected))) and expected, parts


@pytest.mark.parametrize(("family", "threshold"), [("llama", 0.02), ("llama", 0.003), ("gemma2", 0.03), ("gpt2", 1e-4)])
def test_the_search_is_that_of_one_try_after_the_other(family: str, threshold: float) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR, "KL divergence")
    patcher = EdgePatcher(model, pair)
    cut, now, expected = Cut(), 0.0, {}
    for reader in patcher.readers():
        for source in patcher.sources(reader):
            gone = cut.get(reader, frozenset()) | {source}
            value = float(pair.score(patcher.run(cut | {reader: gone})))
            if value - now < threshold:
                cut[reader], now = gone, value
            else:
                nodes = patcher.nodes()
                expected[str(nodes[source]), str(nodes[patcher.number(reader)]), reader.port] = value - now
    graph = acdc(model, PAIR, threshold=threshold)
    ends = [(graph.nodes[source], graph.nodes[target]) for source, target in graph.edges]
    found = {(*pair, port): weight for pair, port, weight in zip(ends, graph.ports, graph.weights, strict=True)}
    assert found.keys() == expected.keys() and 0 < len(found) < 200
    for edge, weight in found.items():
        assert weight == pytest.approx(expected[edge], abs=1e-5)
    for node in graph.nodes:
        leaving = sum(weight for edge, weight in found.items() if edge[0] == node)
        assert graph.value(node) == pytest.approx(leaving, abs=1e-6)


@pytest.mark.parametrize("measure", ["KL divergence", "logit difference"])
def test_a_lower_threshold_keeps_the_model_better(measure: str) -> None:
    model = tiny.language("llama")
    graphs = [acdc(model, PAIR, threshold=threshold, measure=measure) for threshold in (1.0, 0.03, 0.0001)]
    sizes, gaps = [len(graph.weights) for graph in graphs], [graph.residual.value for graph in graphs if graph.residual]
    assert sizes[0] < sizes[1] < sizes[2] and gaps[2] < 0.05 and gaps[2] < gaps[0]


@pytest.mark.parametrize("measure", ["KL divergence", "logit difference"])
@pytest.mark.parametrize(
    ("clean", "corrupted", "answer", "foil"),
    [
        ("a hat, a hen: h", "a hat, a pen: h", "e", "a"),
        ("one dot, one dip: d", "one dot, one tip: d", "i", "o"),
        ("The cat, the cow: c", "The cat, the sow: c", "o", "a"),
    ],
)
def test_the_known_circuit_is_found_and_nothing_else(
    clean: str, corrupted: str, answer: str, foil: str, measure: str
) -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    graph = acdc(model, PromptPair(clean, corrupted, answer, foil), measure=measure)
    found = {
        (graph.nodes[source], graph.nodes[target], port)
        for (source, target), port in zip(graph.edges, graph.ports, strict=True)
    }
    assert found == {("z.1.2", "logits", ""), ("z.0.1", "z.1.2", "k"), ("resid_pre.0", "z.0.1", "v")}
    assert graph.residual is not None and graph.residual.value < 1e-3 and "100%" in graph.note


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_neox"])
def test_of_a_changed_model_it_is_the_changed_models_circuit(family: str) -> None:
    model, prompt = tiny.language(family), Prompt(PAIR.clean)
    plain = acdc(model, PAIR, threshold=1e-4)
    for change in (skip_layer(model, prompt, layer=1, count=1), repeat_layer(model, prompt, layer=1, times=2)):
        with change:
            after, logits = acdc(model, PAIR, threshold=1e-4), model(prompt)[0, -1]
            pair = read_pair(model, PAIR)
            torch.testing.assert_close(edge_patched(model, pair, {}), logits, atol=1e-5, rtol=1e-5)
        assert after != plain and np.isfinite(after.weights).all()
