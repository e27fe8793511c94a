"""What circuit methods cost beside what they must cost, on one thread: `make bench`.

The network has the size of GPT-2 small (12 layers, 768 wide, 50,257 tokens) with random weights; 64 tokens, of which
seven differ. Plain runs give the last token's logits only, as ours do, and their weights are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T

from interp.methods.circuits._pairs import read_pair, sites_of
from interp.methods.circuits._patching import Patcher
from interp.methods.circuits.atp_star import atp_star
from interp.methods.circuits.attribution_patching import attribution_patching
from interp.model import LanguageModel
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny
from tests.benchmarks.clock import ratios
from tests.benchmarks.test_prompt_speed import network

pytestmark = pytest.mark.bench
ROUNDS = 5
CLEAN = "When Mary and John went to the store, John gave a bottle of milk"
PAIR = PromptPair(CLEAN, CLEAN.replace("Mary", "Anne").replace("milk", "wine"), "a", "b")
LAYERS, HEADS = 12, 12


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(network(), tiny.tokenizer(), "GPT-2 small's size, random")


def plainly(model: LanguageModel, backwards: int, attention: str = "sdpa") -> Callable[[], object]:
    """A forward of the donor, one of the base with its graph, and backwards to the embeddings."""
    own, pair = network(attention), read_pair(model, PAIR)
    assert pair.length == 64 and int((pair.base != pair.donor).sum()) == 7

    def run() -> object:
        with torch.no_grad():
            own(pair.donor, use_cache=False, logits_to_keep=1)
        with torch.enable_grad():
            embedded = own.get_input_embeddings()(pair.base).requires_grad_()
            logits = own(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits[0, -1]
            score = logits[pair.answer] - logits[pair.foil]
            return [torch.autograd.grad(score, embedded, retain_graph=left > 0) for left in reversed(range(backwards))]

    return run


def test_attribution_patching_takes_two_forwards_and_a_backward(model: LanguageModel) -> None:
    """Of neurons it takes longer, as there are 2.4 million nodes to name and sort: measured, not bounded."""
    taken = ratios(
        {
            "2 forwards, 1 backward": plainly(model, 1),
            "heads and MLPs": lambda: attribution_patching(model, PAIR),
            "q, k, v": lambda: attribution_patching(model, PAIR, nodes="q, k, v"),
        },
        ROUNDS,
    )
    many = ratios(
        {
            "2 forwards, 1 backward": plainly(model, 1),
            "neurons, summed": lambda: attribution_patching(model, PAIR, nodes="neurons", by_position=False),
            "neurons": lambda: attribution_patching(model, PAIR, nodes="neurons"),
        },
        3,
    )
    print("\nAtP", taken, many)
    assert taken["heads and MLPs"] <= 1.2 and taken["q, k, v"] <= 1.2


def test_atp_star_takes_less_than_a_backward_for_each_layer(model: LanguageModel) -> None:
    """Of queries and keys against eager attention, as their softmax is taken again from the patterns."""
    forms = {
        "SDPA, 2 forwards, 13 backwards": plainly(model, 1 + LAYERS),
        "heads and MLPs": lambda: atp_star(model, PAIR),
    }
    taken = ratios(forms, 3)
    forms = {
        "eager, 2 forwards, 13 backwards": plainly(model, 1 + LAYERS, "eager"),
        "q, k, v": lambda: atp_star(model, PAIR, nodes="q, k, v"),
    }
    slow = ratios(forms, 3)
    print("\nAtP*", taken, slow)
    assert taken["heads and MLPs"] <= 1.3 and slow["q, k, v"] <= 1.3


def test_an_exact_patch_takes_little_more_than_half_a_forward(model: LanguageModel) -> None:
    """Four heads and the MLP of every layer, each at one token, against forwards of as many rows; both runs kept."""
    pair, own = read_pair(model, PAIR), network()
    patcher = Patcher(model, pair, sites_of(model, "heads and MLPs"))
    rows: list[tuple[Node, ...]] = []
    for layer in range(LAYERS):
        parts = [*(Site("z", layer, (layer + step) % HEADS) for step in (0, 3, 6, 9)), Site("mlp_out", layer)]
        rows += [(Node(part, (8 * layer + 13 * at + 5) % pair.length),) for at, part in enumerate(parts)]
    five = pair.base.expand(5, -1)
    with torch.no_grad():
        taken = ratios(
            {
                "forward of 5 rows": lambda: own(five, use_cache=False, logits_to_keep=1),
                "patches": lambda: patcher.effects(rows),
                "forward of 1 row": lambda: own(pair.base, use_cache=False, logits_to_keep=1),
            },
            3,
        )
    patch = taken["patches"] / len(rows)
    found = {"of a row of 5": 5 * patch, "of a single forward": patch / taken["forward of 1 row"]}
    print("\nexact patching, by patch", found)
    assert found["of a row of 5"] <= 0.65


def test_attribution_patching_beside_that_of_transformer_lens(model: LanguageModel, tmp_path: Path) -> None:
    """The same estimate of every head and MLP at every token, denoising; theirs makes the logits of all tokens."""
    lens = pytest.importorskip("transformer_lens.model_bridge")
    theirs = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
    own, pair = network("eager").requires_grad_(True), read_pair(model, PAIR)
    own.config.architectures = ["GPT2LMHeadModel"]
    own.config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    try:
        read = T.AutoTokenizer.from_pretrained(tmp_path)
        bridge: Any = lens.TransformerBridge.boot_transformers(
            str(tmp_path), hf_model=own, tokenizer=read, device="cpu"
        )
    except Exception as error:
        pytest.skip(f"TransformerLens could not be given the network: {error}")

    def score(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, pair.answer] - logits[0, -1, pair.foil]

    def run() -> Any:
        return theirs.attribution_patch(bridge, pair.base, pair.donor, score).node_scores

    ours = attribution_patching(model, PAIR, direction="denoising")
    scores, kinds = run(), theirs.Node
    every = [
        scores[kinds("mlp_out" if head is None else "attn_head_out", place, layer, head)]
        for layer in range(LAYERS)
        for head in (*range(HEADS), None)
        for place in range(pair.length)
    ]
    assert np.abs(ours.values - np.array(every)).max() < 1e-4 * np.abs(ours.values).max()
    taken = ratios(
        {
            "ours": lambda: attribution_patching(model, PAIR, direction="denoising"),
            "TransformerLens": run,
        },
        ROUNDS,
    )
    print("\n", taken)
    assert 1.2 * taken["TransformerLens"] >= 1
