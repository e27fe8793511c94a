"""Exact on every architecture; equal to loops by hand; mass is conserved; and the known circuit, and it alone."""

from __future__ import annotations

import itertools
import random
import string
import sys

import numpy as np
import pytest
import torch

from interp import Unsuitable, zoo
from interp.methods.change.ablate_heads import ablate_heads
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.scale_site import scale_site
from interp.methods.change.skip_layer import skip_layer
from interp.methods.circuits.information_flow_routes import _Routes, information_flow_routes
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import Prompt
from interp.sites import Node, Site
from tests import tiny

PROMPT = Prompt("The cat sat on the mat")
SETTINGS = list(itertools.product(("proximity", "projection"), ("what is read", "the whole stream"), (0.0, 0.05)))


def flows(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """What leaves each node downwards, and what is counted towards it from above."""
    down, up = np.zeros(len(graph.nodes)), np.zeros(len(graph.nodes))
    np.add.at(down, graph.edges[:, 1], graph.weights)
    np.add.at(up, graph.edges[:, 0], graph.weights)
    return down, up


def ended(graph: Graph) -> float:
    """What ends on the way, from the edges: all that reaches a node other than a token and does not leave it."""
    down, _ = flows(graph)
    inner = [not name.startswith("resid_pre.0@") for name in graph.nodes]
    return float((graph.values - down)[inner].sum())


@pytest.mark.parametrize("family", tiny.LANGUAGE)
@pytest.mark.parametrize(("by", "space", "threshold"), SETTINGS)
def test_what_comes_in_goes_out(family: str, by: str, space: str, threshold: float) -> None:
    model = tiny.language(family)
    graph = information_flow_routes(model, PROMPT, by=by, space=space, threshold=threshold)
    assert graph.residual is not None and graph.residual.value < 1e-5
    assert np.isfinite(graph.values).all() and np.isfinite(graph.weights).all()
    last = len(graph.tokens) - 1
    top = f"resid_post.{model.layers - 1}@{last}"
    assert graph.value(top) == 1
    down, up = flows(graph)
    others = [name != top for name in graph.nodes]
    np.testing.assert_allclose(up[others], graph.values[others], atol=1e-9)
    tokens = sum(
        value for name, value in zip(graph.nodes, graph.values, strict=True) if name.startswith("resid_pre.0@")
    )
    assert tokens + ended(graph) == pytest.approx(1, abs=1e-9)
    for name, value, below in zip(graph.nodes, graph.values, down, strict=True):
        if name.startswith(("z.", "mlp_out.")):
            assert below == pytest.approx(value, abs=1e-9), name
        if by == "proximity":
            assert value >= 0 and below <= value + 1e-9
    if family not in ("gpt2", "opt", "gpt_neox") and not threshold:
        assert ended(graph) == pytest.approx(0, abs=1e-5), "no biases"
    nodes = [Node.parse(name) for name in graph.nodes]
    for (source, target), port in zip(graph.edges, graph.ports, strict=True):
        one, other = nodes[source], nodes[target]
        assert one.position is not None and other.position is not None and one.position <= other.position
        assert (port == "v") == (other.kind == "z") and (one.position == other.position or port == "v")
    assert (family == "gpt_neox") == (not any(node.kind == "resid_mid" for node in nodes))


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_a_higher_threshold_gives_a_part_of_the_graph(family: str) -> None:
    model = tiny.language(family)
    for by in ("proximity", "projection"):
        last: set[tuple[str, str]] | None = None
        for threshold in (1.0, 0.3, 0.1, 0.04, 0.01, 0.0):
            graph = information_flow_routes(model, PROMPT, by=by, threshold=threshold)
            edges = {(graph.nodes[a], graph.nodes[b]) for a, b in graph.edges}
            assert last is None or last <= edges, (by, threshold)
            last = edges
            assert threshold < 1 or by == "projection" or len({b for _, b in edges}) == len(edges), "only the largest"


def test_proximity_by_hand() -> None:
    routes = _Routes(1, 1, 1, "proximity", 0.0)

    def shares(*parts: list[float], threshold: float = 0.0) -> list[float]:
        routes.threshold = threshold
        each = torch.tensor(parts, dtype=torch.float64)
        y = each.sum(0)
        near = routes.alike(each, y).numpy()[None]
        return routes.kept(near, y.abs().sum()[None].numpy())[0].round(6).tolist()

    assert shares([1, 0], [0, 3]) == [0.25, 0.75]
    assert shares([4, 0], [-1, 0]) == [1, 0]  # |3| - |4| < 0: what speaks against is not near
    assert shares([0, 0], [5, 5], [0, 0]) == [0, 1, 0]
    assert shares([0.0, 0], [0, 0]) == [1, 0]  # nothing there: the stream
    assert shares([100, 0], [-99.0, 0], [0, 0]) == [1, 0, 0]  # 1 - 99 and 1 - 100: none is near, the nearest is kept
    assert shares([1, 0, 0], [0, 3, 0], [0, 0, 4], threshold=0.3) == pytest.approx([0, 3 / 7, 4 / 7], abs=1e-6)
    assert shares([1, 0], [0, 3], threshold=0.8) == [0, 1]
    routes.by, routes.threshold = "projection", 0.0
    near = np.array([[12.0, -2.0, 0.0]])
    np.testing.assert_allclose(routes.kept(near, np.array([10.0])), [[1.2, -0.2, 0]])
    routes.threshold = 0.5
    np.testing.assert_allclose(routes.kept(near, np.array([10.0])), [[1.2, 0, -0.2]])


def attention(model: LanguageModel, layer: int) -> tuple[torch.Tensor, ...]:
    """W_V, b_V [head, ...], W_O [head, d_head, d] and b_O of a pre-norm model, from its modules by name."""
    block, heads, kv = model.parts.blocks[layer], model.parts.heads, model.parts.kv_heads
    if model.family == "gpt2":
        d = block.attn.c_proj.weight.shape[1]
        wv, bv = block.attn.c_attn.weight[:, 2 * d :].T, block.attn.c_attn.bias[2 * d :]
        wo, bo = block.attn.c_proj.weight, block.attn.c_proj.bias
    else:
        own = block.self_attn
        out = own.out_proj if model.family == "opt" else own.o_proj
        wv, wo = own.v_proj.weight, out.weight.T
        bv = torch.zeros(len(wv)) if own.v_proj.bias is None else own.v_proj.bias
        bo = torch.zeros(wo.shape[1]) if out.bias is None else out.bias
    wv, bv = wv.unflatten(0, (kv, -1)), bv.unflatten(0, (kv, -1))
    group = heads // kv
    wv, bv = torch.stack([wv[h // group] for h in range(heads)]), torch.stack([bv[h // group] for h in range(heads)])
    return wv.double(), bv.double(), wo.unflatten(0, (heads, -1)).double(), bo.double()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "opt"])
def test_shares_are_what_loops_by_hand_give(family: str, seed: int) -> None:
    """The last layer from one token, values from W_V and a large b_V, and b_O once."""
    network = tiny.untouched(family, seed=seed)
    for name, parameter in network.named_parameters():
        if name.endswith(("v_proj.bias", "c_attn.bias")):
            parameter[-len(parameter) // (3 if family == "gpt2" else 1) :] *= 10
    model = LanguageModel(network, tiny.tokenizer(), family)
    layer = model.layers - 1
    kinds = ("resid_pre", "pattern", "resid_mid", "mlp_out", "resid_post")
    with model.record([Site(kind, layer) for kind in kinds]) as found:
        model(PROMPT)
    pre, pattern, mid, mlp, post = (found[Site(kind, layer)][0].double() for kind in kinds)
    wv, bv, wo, bo = attention(model, layer)
    block = model.parts.blocks[layer]
    norm = next(
        getattr(block, name) for name in ("ln_1", "input_layernorm", "self_attn_layer_norm") if hasattr(block, name)
    )
    normed = norm(pre.float()).double()
    t = 9
    parts = {("stream",): pre[t], ("bias",): bo}
    for head in range(model.parts.heads):
        for j in range(t + 1):
            parts[head, j] = pattern[head, t, j] * ((wv[head] @ normed[j] + bv[head]) @ wo[head])
    torch.testing.assert_close(sum(parts.values()), mid[t], atol=1e-5, rtol=1e-5)

    def near(z: torch.Tensor, y: torch.Tensor) -> float:
        return max(float(y.abs().sum() - (y - z).abs().sum()), 0.0)

    of_mlp = {"mlp": near(mlp[t], post[t]), "stream": near(mid[t], post[t])}
    stream = of_mlp["stream"] / sum(of_mlp.values())
    graph = information_flow_routes(model, PROMPT, position=t, space="the whole stream")
    values = dict(zip(graph.nodes, graph.values, strict=True))
    assert values.get(f"mlp_out.{layer}@{t}", 0.0) == pytest.approx(1 - stream, abs=1e-5)
    assert graph.value(f"resid_mid.{layer}@{t}") == pytest.approx(1, abs=1e-5), "straight, and through the MLP"
    nears = {key: near(z, mid[t]) for key, z in parts.items()}
    total = sum(nears.values())
    by_name = {
        (graph.nodes[a], graph.nodes[b]): weight for (a, b), weight in zip(graph.edges, graph.weights, strict=True)
    }
    for key, value in nears.items():
        if key == ("stream",):
            name = (f"resid_post.{layer - 1}@{t}", f"resid_mid.{layer}@{t}")
        elif key == ("bias",):
            continue
        else:
            name = (f"resid_post.{layer - 1}@{key[1]}", f"z.{layer}.{key[0]}@{t}")
        assert by_name.get(name, 0.0) == pytest.approx(value / total, abs=1e-5), name
    kept = sum(weight for (_, b), weight in by_name.items() if b == f"resid_mid.{layer}@{t}")
    assert 1 - kept == pytest.approx(nears[("bias",)] / total, abs=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("gemma2")
    whole = information_flow_routes(model, PROMPT)
    monkeypatch.setattr(sys.modules[_Routes.__module__], "BYTES", 1)
    assert information_flow_routes(model, PROMPT).reproduces(whole.arrays(), 1e-5)


def test_where_everything_is_read_shares_are_the_papers() -> None:
    for family in ("llama", "gpt2", "gemma3_text"):
        model = tiny.language(family)
        papers = information_flow_routes(model, PROMPT, space="the whole stream")
        assert information_flow_routes(model, PROMPT).reproduces(papers.arrays(), 1e-9)


def test_the_target_asks_the_last_layer_for_its_logit_alone() -> None:
    model = tiny.language("llama")
    graph = information_flow_routes(model, PROMPT, target="a", foil="b", by="projection")
    ids = [model.tokenizer.convert_tokens_to_ids(each) for each in "ab"]
    with model.record([Site("mlp_out", 2), Site("resid_post", 2)]) as found:
        model(PROMPT)
    gain = model.weight("model.norm.weight").double()
    read = (model.unembedding[0][ids[0]] - model.unembedding[0][ids[1]]).double() * gain
    mlp, post = (float(found[site][0, -1].double() @ read) for site in ("mlp_out.2", "resid_post.2"))
    last = len(graph.tokens) - 1
    assert graph.value(f"mlp_out.2@{last}") == pytest.approx(mlp / post, rel=1e-4)
    assert graph.target == "a over b"


def prompts(number: int) -> list[tuple[Prompt, int, int]]:
    """Random characters that begin again: the prompt, where what comes next stood, and how many tokens there are."""
    rng = random.Random(1)
    found = []
    for _ in range(number):
        once = rng.sample(string.ascii_letters + string.digits, rng.randint(6, 30))
        stop = rng.randrange(1, len(once))
        found.append((Prompt("".join(once + once[:stop])), 1 + stop, 1 + len(once) + stop))
    return found


def test_of_the_known_circuit_its_two_heads_are_left_and_no_other() -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    for (prompt, answer, count), by, target in itertools.product(
        prompts(3), ("proximity", "projection"), (None, "known")
    ):
        token = model.tokens(prompt.text)[answer] if target else None
        graph = information_flow_routes(model, prompt, by=by, target=token)
        heads = {name for name in graph.nodes if name.startswith("z.")}
        assert heads == {f"z.1.2@{count - 1}", f"z.0.1@{answer}"}, prompt
        assert graph.value(f"z.1.2@{count - 1}") == pytest.approx(1, abs=1e-6)
        assert graph.value(f"z.0.1@{answer}") == pytest.approx(0.5, abs=1e-6)
        tokens = {name: graph.value(name) for name in graph.nodes if name.startswith("resid_pre")}
        assert tokens == pytest.approx({f"resid_pre.0@{answer}": 0.5, f"resid_pre.0@{answer - 1}": 0.5}, abs=1e-6)
        papers = information_flow_routes(model, prompt, by=by, space="the whole stream")
        decoys = {f"z.1.3@{count - 1}", f"z.0.0@{answer}"}
        assert heads | decoys <= set(papers.nodes), "whole streams can't tell what no one reads"


def test_interventions_are_followed() -> None:
    for family in ("gpt2", "gemma2", "gpt_neox"):
        model = tiny.language(family)
        plain = information_flow_routes(model, PROMPT)
        with skip_layer(model, PROMPT, layer=1, count=1):
            graph = information_flow_routes(model, PROMPT)
        assert not [name for name in graph.nodes if name.startswith(("z.1.", "mlp_out.1", "resid_mid.1"))]
        with repeat_layer(model, PROMPT, layer=1, times=2):
            graph = information_flow_routes(model, PROMPT)
        assert not [name for name in graph.nodes if name.startswith("resid_mid.1")] and graph != plain
        assert graph.residual is not None and graph.residual.value < 1e-5, "all passes add up"
        with ablate_heads(model, PROMPT, heads=((1, 0),), by="zero"):
            graph = information_flow_routes(model, PROMPT)
        assert not [name for name in graph.nodes if name.startswith("z.1.0@")]
        assert [name for name in graph.nodes if name.startswith("z.1.1@")]
        with scale_site(model, PROMPT, site="attn_out.1", by=2.0):
            graph = information_flow_routes(model, PROMPT)
        assert graph.residual is not None and graph.residual.value < 1e-5, "scaled parts add up"
        with scale_site(model, PROMPT, site="resid_post.1", by=2.0):
            graph = information_flow_routes(model, PROMPT)
        tokens = sum(graph.value(name) for name in graph.nodes if name.startswith("resid_pre.0@"))
        assert tokens + ended(graph) == pytest.approx(1, abs=1e-9) and ended(graph) > 0.01


def test_where_all_parts_cancel_the_nearest_is_followed_and_it_is_said() -> None:
    """A large stream that its MLP takes back, and no bias: the route must not end in a part that is nothing."""
    model = tiny.language("llama")
    layer = model.layers - 1
    with model.record([Site("resid_mid", layer)]) as found:
        model(PROMPT)
    middle = found[Site("resid_mid", layer)]
    with model.edit({Site("mlp_out", layer): lambda out: 1e-3 * out - 0.99 * middle}):
        graph = information_flow_routes(model, PROMPT)
    last = len(graph.tokens) - 1
    assert graph.value(f"resid_mid.{layer}@{last}") == pytest.approx(1)
    assert "only the nearest" in graph.note
    tokens = sum(graph.value(name) for name in graph.nodes if name.startswith("resid_pre.0@"))
    assert tokens == pytest.approx(1, abs=1e-5)


def test_settings_that_can_not_be_get_a_sentence() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="positions"):
        information_flow_routes(model, PROMPT, position=99)
    with pytest.raises(Unsuitable, match="same token"):
        information_flow_routes(model, PROMPT, target="a", foil="a")
