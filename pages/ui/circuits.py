"""The bench of Circuits: a pair of prompts, one graph under several weightings, and a panel for the chosen node."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable, circuit
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.methods.circuits._pairs import answers, read_pair
from interp.model import LanguageModel
from interp.results import Graph, Table, TokenGrid
from interp.samples import Prompt, PromptPair
from interp.sites import Node
from pages.ui import components, jobs, share, show
from pages.ui.bar import add, choose_lens
from pages.ui.bench import bench, change, embedded, remember, reshow
from pages.ui.prompts import TITLES, ready, visible

WEIGHTINGS = {
    "information_flow_routes": "Flow",
    "attribution_patching": "AtP",
    "atp_star": "AtP*",
    "edge_attribution_patching": "EAP",
    "edge_attribution_patching_ig": "EAP-IG",
    "activation_patching": "Exact patching",
    "verified_patching": "Verified",
    "acdc": "ACDC",
    "head_detectors": "Head detectors",
    "neuron_detectors": "Neuron detectors",
}
NAMES = {
    "z": "head {head} of layer {layer}", "mlp_out": "MLP of layer {layer}", "attn_out": "attention of layer {layer}",
    "resid_pre": "into layer {layer}", "resid_mid": "middle of layer {layer}", "resid_post": "out of layer {layer}",
    "q": "query of head {head} of layer {layer}", "k": "key of head {head} of layer {layer}",
    "v": "value of head {head} of layer {layer}", "pattern": "pattern of head {head} of layer {layer}",
    "mlp_post": "neuron {channel} of layer {layer}", "logits": "the logits",
}  # fmt: skip
WRITERS = ("z", "mlp_out", "attn_out", "resid_pre", "resid_mid", "resid_post")
"""Kinds of node that write to the residual stream, and can be scaled and patched."""
MOST = 120, 300
"""How many nodes and edges are drawn at most."""


def working(model: LanguageModel) -> None:
    """The whole bench under the experiment bar."""
    experiment = bench().experiment
    if embedded():
        wide, panel = st.container(), None
    else:
        _inputs(model)
        _weighting(model)
        wide, panel = st.columns([8, 4], gap="medium")
    with wide:
        result = _result(experiment)
        if result is not None:
            remember(experiment)
            if isinstance(result, Graph):
                _drawn(model, experiment, result)
            elif isinstance(result, Table):
                components.table(
                    "circuits:table", {"": result.rows} | dict(zip(result.columns, result.values.T, strict=True))
                )
            if result.note:
                st.caption(show.plain(result.note))
            show.cost(experiment, result)
            with st.container(horizontal=True, gap="small"):
                with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
                    share.explain(METHODS[experiment.lens.method])
                with st.popover("Download", icon=":material/download:", type="tertiary"):
                    share.numbers(experiment, result, "circuit")
    if panel is None:
        return
    with panel:
        _outcome(model, experiment)
        if isinstance(result, Graph):
            _node(model, experiment, result)


# --------------------------------------------------------------------------------------------------------- the prompts


def _inputs(model: LanguageModel) -> None:
    """The two prompts with answer and foil; ready-made pairs."""
    sample = bench().sample
    pair = sample if isinstance(sample, PromptPair) else PromptPair(sample.text, sample.text)  # type: ignore[union-attr]
    fields = ("clean", "corrupted", "answer", "foil")

    def typed() -> None:
        try:
            new = PromptPair(*(st.session_state[f"pair:{name}"] for name in fields))
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)
            return
        change(sample=new)
        reshow(node="", pins=(), groups=())

    for name in fields:
        st.session_state[f"pair:{name}"] = getattr(pair, name)
    left, right = st.columns(2, gap="medium")
    with left:
        st.text_area("Clean prompt", key="pair:clean", height=70, on_change=typed)
    with right:
        st.text_area("Corrupted prompt", key="pair:corrupted", height=70, on_change=typed,
                     help="As many tokens, changed where the answer depends on it.")  # fmt: skip
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        st.text_input("Answer", key="pair:answer", on_change=typed, width=160, placeholder="first guess",
                      help="What the clean prompt is followed by, one token.")  # fmt: skip
        st.text_input("Foil", key="pair:foil", on_change=typed, width=160, placeholder="first guess",
                      help="What the corrupted prompt is followed by, one token.")  # fmt: skip
        with st.popover("Ready-made", icon=":material/library_books:", help="Pairs whose right answers are known"):
            for behaviour, cases in ready().items():
                st.markdown(f"**{TITLES[behaviour]}**")
                for number, case in enumerate(cases[:3]):
                    st.button(show.plain(case["prompt"].replace("\n", " ↵ ")[:70]), key=f"pair:{behaviour}:{number}",
                              on_click=begin, args=(case, behaviour), type="tertiary")  # fmt: skip


def begin(case: dict[str, str], behaviour: str) -> None:
    """Lay a ready-made pair on the bench, with its model."""
    model = "induction" if behaviour == "induction" else "stories" if bench().model == "induction" else bench().model
    pair = PromptPair(case["prompt"], case["corrupted"], case["answer"], case["foil"])
    change(model=model, sample=pair, chips=())
    reshow(node="", pins=(), groups=())


# ------------------------------------------------------------------------------------------------------- the weighting


def _weighting(model: LanguageModel) -> None:
    """Which weighting, how much of it is kept, and what it is compared with."""
    keys = [key for key in WEIGHTINGS if METHODS[key].refuses(model) is None]

    def chosen() -> None:
        if key := st.session_state["weighting"]:
            choose_lens(key)

    st.session_state["weighting"] = bench().lens.method if bench().lens.method in keys else None
    st.segmented_control("Weight by", keys, key="weighting", format_func=WEIGHTINGS.get, on_change=chosen,
                         label_visibility="collapsed")  # fmt: skip
    view = bench().view
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        st.session_state["keep"] = round(100 * view.keep)
        st.slider("Keep (% of all that is counted)", 5, 100, key="keep", width=280,
                  on_change=lambda: reshow(keep=st.session_state["keep"] / 100))  # fmt: skip
        others = [key for key in keys if key != bench().lens.method and METHODS[key].returns is Graph]
        st.session_state["beside"] = view.beside if view.beside in others else None
        st.selectbox("Agree with", others, key="beside", format_func=WEIGHTINGS.get, width=190,
                     placeholder="nothing",
                     on_change=lambda: reshow(beside=st.session_state["beside"] or ""))  # fmt: skip
        sides = {"": "As it is"}
        if bench().experiment.interventions:
            sides = {"": "After the changes", "before": "Before", "difference": "Difference"}
        if _two(bench().experiment):
            sides["prompts"] = "Clean minus corrupted"
        if len(sides) > 1:
            st.session_state["side"] = view.side if view.side in sides else ""
            st.segmented_control(
                "Graph", list(sides), key="side", format_func=sides.get, required=True,
                on_change=lambda: reshow(side=st.session_state["side"]),
            )  # fmt: skip


def _two(experiment: Experiment) -> bool:
    """Whether the lens looks at one prompt, so that it can look at each of a pair."""
    return isinstance(experiment.sample, PromptPair) and Prompt in METHODS[experiment.lens.method].samples


def _result(experiment: Experiment) -> Any:
    """The result as the page shows it: of the changed model, the unchanged one, or the difference of the two."""
    side = bench().view.side
    if side == "prompts" and _two(experiment) and isinstance(experiment.sample, PromptPair):
        pair = experiment.sample
        wanted = [dataclasses.replace(experiment, sample=Prompt(text)) for text in (pair.corrupted, pair.clean)]
    elif experiment.interventions and side == "difference":
        wanted = [experiment.before(), experiment]
    else:
        wanted = [experiment.before()] if side == "before" else [experiment]
    found = [_run(each) for each in wanted]
    if any(each is None for each in found):
        return None
    return circuit.difference(*found) if len(found) == 2 and isinstance(found[0], Graph) else found[-1]


def _run(experiment: Experiment) -> Any:
    """A result; long ones are said what they cost and run when asked."""
    try:
        if jobs.known(experiment) is not None or jobs.estimate(experiment) <= jobs.QUICK:
            return jobs.run(experiment)
        asked = f"asked:{experiment.digest}"
        if not st.session_state.get(asked):
            st.write(_cost(experiment))
            st.button("Run it", key=f"run:{experiment.digest[:8]}", icon=":material/play_arrow:",
                      on_click=lambda: st.session_state.update({asked: True}))  # fmt: skip
            return None
        state = jobs.later(experiment)
        if isinstance(state, jobs.Job):
            show.waiting([experiment], lambda: st.session_state.pop(asked, None))
            return None
        return state
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return None


def _cost(experiment: Experiment) -> str:
    method = METHODS[experiment.lens.method]
    forwards, backwards = jobs.passes(experiment)
    back = f" and {backwards:,.0f} backwards" if backwards else ""
    return (
        f"{method.name} takes {forwards:,.0f} forwards{back}: about {jobs.estimate(experiment):.0f} s here, "
        f"and {circuit.memory(experiment) / 2**20:.0f} MB."
    )


# ----------------------------------------------------------------------------------------------------------- the graph


def _drawn(model: LanguageModel, experiment: Experiment, result: Graph) -> None:
    """The graph with what is kept of it, and what it says in numbers."""
    view = bench().view
    edged = result if len(result.edges) else _edges_beside(experiment)
    kept = circuit.kept(result, edged, view.keep, (*view.pins, view.node), *MOST)
    tokens = [visible(each) for each in result.tokens]
    scale = max((abs(result.values[each]) for each in kept.nodes), default=0.0) or 1.0
    widest = max((abs(weight) for _, _, weight, _ in kept.edges), default=0.0) or 1.0
    groups = {node: name for name, nodes in view.groups for node in nodes}
    nodes = []
    for index in kept.nodes:
        name = result.nodes[index]
        node, value = Node.parse(name), float(result.values[index])
        beside = f"{result.beside_name}: {result.beside[index]:.3g}" if len(result.beside) else ""
        nodes.append(
            {
                "id": name, "kind": node.kind, "layer": model.layers if node.layer is None else node.layer,
                "head": node.head, "position": node.position, "value": value, "share": abs(value) / scale,
                "label": short(node), "name": f"{in_words(node)}{_where(node, tokens)}",
                "pinned": name in view.pins, "group": groups.get(name), "note": beside,
            }
        )  # fmt: skip
    edges = [
        {"from": source, "to": target, "weight": weight, "share": abs(weight) / widest, "port": port}
        for source, target, weight, port in kept.edges
    ]
    method = METHODS[experiment.lens.method]
    title = f"{method.name}: {plainly(result.target)}" if result.target else method.name
    borrowed = "" if edged is result or edged is None else " Edges are EAP's, among these parts."
    note = (
        f"{len(nodes)} of {len(result.nodes):,} parts and {len(edges)} edges: "
        f"{kept.share:.0%} of the {'importance' if result.units == 'share' else 'effects'}.{borrowed}"
    )
    components.graph(
        "circuit",
        {
            "tokens": tokens, "others": [visible(each) for each in result.others], "layers": model.layers,
            "nodes": nodes, "edges": edges, "selected": view.node or None,
            "signed": bool(np.min(result.values, initial=0) < 0 or np.min(result.weights, initial=0) < 0),
            "units": result.units, "title": title, "note": note, "label": title, "file": f"circuit-{method.key}",
            "meta": f"{title} · {experiment.model} · {note}",
        },
        _acted,
    )  # fmt: skip
    lines = []
    if result.direction:
        what = "clean" if result.direction == "noising" else "corrupted"
        sign = "down: parts that speak for the answer are negative" if result.donor < result.base else "up"
        lines.append(f"{result.direction}: the {what} prompt's {result.base:.3g} {result.units} would become "
                     f"{result.donor:.3g} with everything patched; patching goes {sign}")  # fmt: skip
    if result.bound == result.bound:
        lines.append(f"no other part moves it by more than {result.bound:.2g} {result.units} "
                     f"({100 * result.confidence:g} % confidence)")  # fmt: skip
    if lines:
        st.caption(show.plain("; ".join(lines)) + ".")
    if view.beside:
        _agreement(experiment, result)
    shown = dataclasses.replace(
        result, nodes=tuple(result.nodes[each] for each in kept.nodes), values=result.values[kept.nodes],
        beside=result.beside[kept.nodes] if len(result.beside) else result.beside,
        edges=circuit.numbered(kept, result), weights=np.array([each[2] for each in kept.edges]),
        ports=tuple(each[3] for each in kept.edges),
    )  # fmt: skip
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "JSON of what is shown", shown.to_json, f"circuit-{method.key}.json", "application/json",
            on_click="ignore", icon=":material/download:", type="tertiary",
        )  # fmt: skip
        if isinstance(experiment.sample, PromptPair) and method.key != "verified_patching":
            st.button(
                "Verify the top 20 exactly", icon=":material/verified:", type="tertiary",
                on_click=choose_lens, args=("verified_patching",),
                help="Patches the strongest parts one by one, and bounds what the others can do.",
            )  # fmt: skip
        if alike := circuit.grouped(result, kept.nodes):
            st.button(
                "Group heads that act alike", icon=":material/workspaces:", type="tertiary",
                on_click=lambda: reshow(groups=alike), help="Heads of one layer, at one token, of one sign.",
            )  # fmt: skip


def _edges_beside(experiment: Experiment) -> Graph | None:
    """EAP's edges, to be drawn among the parts of a weighting that has none."""
    if not isinstance(experiment.sample, PromptPair):
        return None
    side = bench().view.side
    other = dataclasses.replace(experiment.before() if side == "before" else experiment,
                                lens=Call("edge_attribution_patching"))  # fmt: skip
    try:
        found = jobs.run(other) if jobs.estimate(other) <= jobs.QUICK else jobs.known(other)
    except Unsuitable:
        return None
    return found if isinstance(found, Graph) else None


def _acted(value: dict[str, Any]) -> None:
    view = bench().view
    kind = value.get("kind")
    if kind == "select":
        reshow(node=str(value.get("id") or ""))
    elif kind == "pin":
        name = str(value["id"])
        reshow(pins=tuple(p for p in view.pins if p != name) if name in view.pins else (*view.pins, name))
    elif kind == "group":
        names = tuple(map(str, value["ids"]))
        rest = tuple((g, tuple(n for n in nodes if n not in names)) for g, nodes in view.groups)
        number = next(i for i in range(1, 100) if f"group {i}" not in dict(view.groups))
        reshow(groups=(*((g, nodes) for g, nodes in rest if nodes), (f"group {number}", names)))
    elif kind == "ungroup":
        reshow(groups=tuple(each for each in view.groups if each[0] != value["group"]))


def _agreement(experiment: Experiment, result: Graph) -> None:
    """How far two weightings agree on the parts that both have: a number, and a scatter."""
    other = _run(dataclasses.replace(experiment, lens=Call(bench().view.beside)))
    if not isinstance(other, Graph):
        return
    names, pairs, r, rho = circuit.agreement(result, other)
    if len(names) < 3:
        st.caption("These two weightings have too few parts in common to be compared.")
        return
    mine, theirs = WEIGHTINGS[experiment.lens.method], WEIGHTINGS[bench().view.beside]
    st.caption(f"Magnitudes of {len(names)} parts: r = {r:.3f}, rank correlation {rho:.3f}.")
    st.scatter_chart({mine: pairs[:, 0], theirs: pairs[:, 1]}, x=theirs, y=mine, height=260)


# ----------------------------------------------------------------------------------------------------------- the panel


def _outcome(model: LanguageModel, experiment: Experiment) -> None:
    """The metric on both prompts, and what the model says next, before and after the changes."""
    sample = experiment.sample
    if not isinstance(sample, PromptPair):
        return
    try:
        read_pair(model, sample)
        answer, foil, name = answers(model, sample)
        rows = []
        versions = (
            [("before", experiment.before()), ("after", experiment)] if experiment.interventions else [("", experiment)]
        )
        for title, version in versions:
            found = [_logits(version, text, answer, foil) for text in (sample.clean, sample.corrupted)]
            rows.append((title, *found))
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    st.markdown(f"##### {show.plain(plainly(name))}")
    for title, clean, corrupted in rows:
        st.markdown(
            f"{title} **{clean:.3g}** logit on the clean prompt, **{corrupted:.3g}** on the corrupted one".strip()
        )
    last = jobs.run(dataclasses.replace(experiment, lens=Call("next_tokens", top=4)))
    assert isinstance(last, Table)
    words = ", ".join(
        f"{show.plain(visible(row))} {value[0]:.2g}" for row, value in zip(last.rows, last.values, strict=True)
    )
    st.caption(f"Next: {words}")


def _logits(experiment: Experiment, text: str, answer: int, foil: int) -> float:
    """The logit difference after a prompt, under the experiment's changes."""
    return circuit.logit_difference(experiment, text, answer, foil)


def _node(model: LanguageModel, experiment: Experiment, result: Graph) -> None:
    """What the chosen node does, and what one can do to it."""
    name = bench().view.node
    if not name:
        st.caption("Click a part of the graph to see what it promotes and where it looks, and to change it.")
        return
    try:
        node = Node.parse(name)
        if node.site is not None:
            model.resolve(node.site)
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    tokens = [visible(each) for each in result.tokens]
    if node.position is not None and node.position >= len(tokens):
        st.warning(f"The part that was chosen stands at token {node.position}; this prompt has 0 to {len(tokens) - 1}. "
                   "Click another.", icon=":material/info:")  # fmt: skip
        return
    st.markdown(f"##### {short(node)} · {show.plain(in_words(node) + _where(node, tokens))}")
    if name in result.nodes:
        st.markdown(f"**{result.value(name):.3g}** {result.units}")
    if node.kind in WRITERS:
        _promotes(experiment, name)
    if node.kind == "z" and node.position is not None:
        _looks(experiment, node, tokens)
    if node.kind == "mlp_out" and isinstance(experiment.sample, PromptPair):
        _neurons(experiment, node)
    if node.site is not None and node.kind in (*WRITERS, "q", "k", "v"):
        _change(node)
    st.text_input("Label of its group", key="label", value=dict(_labels()).get(name, ""), on_change=_label,
                  placeholder="name it, or add it to a group of that name")  # fmt: skip


def _labels() -> list[tuple[str, str]]:
    return [(node, name) for name, nodes in bench().view.groups for node in nodes]


def _label() -> None:
    name, text = bench().view.node, st.session_state["label"].replace(":", " ").replace(",", " ").strip()[:40]
    groups = {group: tuple(n for n in nodes if n != name) for group, nodes in bench().view.groups}
    if text:
        groups[text] = (*groups.get(text, ()), name)
    reshow(groups=tuple((group, nodes) for group, nodes in groups.items() if nodes))


def _promotes(experiment: Experiment, name: str) -> None:
    try:
        table = jobs.run(dataclasses.replace(experiment, lens=Call("node_output", node=name, top=5)))
    except Unsuitable as problem:
        st.caption(show.plain(str(problem)))
        return
    assert isinstance(table, Table)
    half = len(table.rows) // 2
    for title, part in (("Promotes", slice(0, half)), ("Suppresses", slice(half, None))):
        words = [
            f"{show.plain(visible(row))} {value[0]:+.2g}"
            for row, value in zip(table.rows[part], table.values[part], strict=True)
        ]
        st.markdown(f"{title}: {' · '.join(words)}")


def _looks(experiment: Experiment, node: Node, tokens: list[str]) -> None:
    try:
        lens = Call("attention_pattern", layer=node.layer)
        grid = jobs.run(dataclasses.replace(experiment, lens=lens))
    except Unsuitable as problem:
        st.caption(show.plain(str(problem)))
        return
    assert isinstance(grid, TokenGrid) and node.head is not None
    row = grid.values[node.head, node.position]
    best = [each for each in np.argsort(-row, kind="stable")[:5] if row[each] > 0.01]
    st.markdown("Looks at: " + " · ".join(f"{show.plain(tokens[each])} {row[each]:.2f}" for each in best))


def _neurons(experiment: Experiment, node: Node) -> None:
    lens = Call("attribution_patching", nodes="neurons", top=2000)
    try:
        graph = jobs.run(dataclasses.replace(experiment, lens=lens))
    except Unsuitable as problem:
        st.caption(show.plain(str(problem)))
        return
    assert isinstance(graph, Graph)
    own = []
    for name, value in zip(graph.nodes, graph.values, strict=True):
        each = Node.parse(name)
        if each.layer == node.layer and node.position in (None, each.position):
            own.append(f"{each.channel} {value:+.2g}")
    if own:
        st.markdown(f"Neurons (AtP, {graph.units}): " + " · ".join(own[:6]))


def _change(node: Node) -> None:
    """Ablate, scale, patch: each becomes a chip on the bar, and everything is looked at anew."""
    here = node.position is not None and st.toggle("At this token only", key="here", value=True)
    positions = (node.position,) if here else ()
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        if node.kind == "z":
            st.button("Ablate", icon=":material/backspace:", on_click=add, args=("ablate_heads",),
                      kwargs={"heads": ((node.layer, node.head),), "by": "mean", "positions": positions},
                      help="By its mean over texts; other ways in the chip.")  # fmt: skip
        elif node.kind in ("mlp_out", "attn_out"):
            part = "MLP" if node.kind == "mlp_out" else "attention"
            st.button("Ablate", icon=":material/backspace:", on_click=add, args=("ablate_layer",),
                      kwargs={"layer": node.layer, "part": part, "by": "mean", "positions": positions})  # fmt: skip
        if isinstance(bench().sample, PromptPair):
            st.button("Patch from the other prompt", icon=":material/swap_horiz:", on_click=add, args=("patch_from",),
                      kwargs={"sites": (node.site,), "positions": positions})  # fmt: skip
        factor = st.slider("Scale by", -2.0, 4.0, 0.0, 0.25, key="factor")
        st.button("Scale", icon=":material/tune:", on_click=add, args=("scale_site",),
                  kwargs={"site": node.site, "by": factor, "positions": positions}, disabled=factor == 1)  # fmt: skip


def plainly(name: str) -> str:
    """A pair of tokens in words, without the spaces before them."""
    return " ".join(visible(each) for each in name.split(" ") if each)


def short(node: Node) -> str:
    """L1H2, MLP 3, in 0: what stands beside a node."""
    marks = {"z": "L{layer}H{head}", "mlp_out": "MLP {layer}", "q": "L{layer}H{head} q", "k": "L{layer}H{head} k",
             "v": "L{layer}H{head} v", "mlp_post": "L{layer}N{channel}", "resid_pre": "in {layer}",
             "resid_mid": "mid {layer}", "resid_post": "out {layer}", "attn_out": "attn {layer}",
             "pattern": "L{layer}H{head} p", "logits": "logits"}  # fmt: skip
    return marks.get(node.kind, str(node)).format(layer=node.layer, head=node.head, channel=node.channel)


def in_words(node: Node) -> str:
    return NAMES.get(node.kind, str(node.site)).format(layer=node.layer, head=node.head, channel=node.channel)


def _where(node: Node, tokens: list[str]) -> str:
    return "" if node.position is None or node.position >= len(tokens) else f" at {tokens[node.position]}"
