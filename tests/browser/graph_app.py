"""A page with a large graph alone: 300 nodes and 1,000 edges, for the browser tests."""

import random
import sys
from pathlib import Path

import streamlit as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pages.ui import components

rng = random.Random(0)
places = [(layer, head, token) for layer in range(12) for head in range(8) for token in range(20)]
nodes = [
    {
        "id": f"z.{layer}.{head}@{token}", "kind": "z", "layer": layer, "head": head, "position": token,
        "value": (value := rng.uniform(-1, 1)), "share": abs(value), "label": f"L{layer}H{head}",
        "name": f"head {head} of layer {layer}", "pinned": False, "group": None, "note": "",
    }
    for layer, head, token in sorted(rng.sample(places, 300))
]  # fmt: skip
edges = []
while len(edges) < 1000:
    one, other = rng.sample(nodes, 2)
    if one["layer"] < other["layer"] and one["position"] <= other["position"]:
        edges.append({"from": one["id"], "to": other["id"], "weight": (w := rng.uniform(-1, 1)), "share": abs(w),
                      "port": "v"})  # fmt: skip


def acted(value: dict) -> None:
    st.session_state["last"] = value


selected = st.session_state.get("last", {}).get("id")
components.graph(
    "large",
    {
        "tokens": [f"t{i}" for i in range(20)], "others": [], "layers": 12, "nodes": nodes, "edges": edges,
        "selected": selected, "signed": True, "units": "logit", "title": "Large", "note": "", "label": "Large",
        "file": "large", "meta": "",
    },
    acted,
)  # fmt: skip
st.text(f"answered: {selected}")
