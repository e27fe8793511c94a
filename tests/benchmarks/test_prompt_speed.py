"""What reading a language model costs beside what it must cost, on one thread: `make bench`.

The network has the size of GPT-2 small (12 layers, 768 wide, 50,257 tokens) with random weights; 128 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T

from interp.model import LanguageModel
from interp.sites import Site
from kernels.unembed import unembed, unembed_dense
from tests import tiny
from tests.benchmarks.clock import ratios

pytestmark = pytest.mark.bench
ROUNDS = 9
IDS = torch.randint(0, 50_257, (1, 128), generator=torch.Generator().manual_seed(0))


def network(attention: str | None = None) -> Any:
    torch.manual_seed(0)
    config = T.GPT2Config(bos_token_id=0, eos_token_id=0)
    kind = {} if attention is None else {"attn_implementation": attention}
    return T.AutoModelForCausalLM.from_config(config, **kind).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    return LanguageModel(network(), tiny.tokenizer(), "GPT-2 small's size, random")


def test_recording_everything_takes_little_more_than_a_forward(model: LanguageModel) -> None:
    sdpa, eager = network(), network("eager")
    sites = [site for site in model.sites() if site.kind != "pattern"]
    patterns = [*sites, *(Site("pattern", layer) for layer in range(12))]

    def record(which: list[Site]) -> Callable[[], object]:
        def run() -> object:
            with model.record(which):
                return model(IDS)

        return run

    with torch.no_grad():
        plain = ratios({"SDPA": lambda: sdpa(IDS, use_cache=False), "all but the pattern": record(sites)}, ROUNDS)
        slow = ratios({"eager": lambda: eager(IDS, use_cache=False), "with the pattern": record(patterns)}, ROUNDS)
    print("\n", plain, slow)
    assert plain["all but the pattern"] <= 1.3 and slow["with the pattern"] <= 1.3


def test_a_rerun_from_the_middle_takes_little_more_than_half(model: LanguageModel) -> None:
    """Against a forward that gives the last position's logits, as the rerun does."""
    with model.record([Site("resid_pre", 6)]) as found:
        model(IDS, keep=1)
    resid = found[Site("resid_pre", 6)]

    def rerun() -> object:
        with model.resume(6, resid):
            return model(IDS, keep=1)

    with torch.no_grad():
        taken = ratios({"whole": lambda: model(IDS, keep=1), "from layer 6 of 12": rerun}, ROUNDS)
    print("\n", taken)
    assert taken["from layer 6 of 12"] <= 0.6


def test_the_streaming_logit_lens_takes_less_memory_and_no_more_time() -> None:
    """12 layers x 64 tokens x 50,257 tokens of vocabulary, against logits, softmax, entropy and KL made at once."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12 * 64, 768, generator=generator)
    weight = 0.05 * torch.randn(50_257, 768, generator=generator)
    final = hidden[-64:]
    streamed: Callable[[], object] = lambda: unembed(hidden, weight, final=final, chosen=(7,))  # noqa: E731
    dense: Callable[[], object] = lambda: unembed_dense(hidden, weight, final=final, chosen=(7,))  # noqa: E731
    taken = ratios({"dense": dense, "streamed": streamed}, 3)
    memory = {name: peak(each) for name, each in (("dense", dense), ("streamed", streamed))}
    print("\n", taken, {name: f"{each / 2**20:.0f} MB" for name, each in memory.items()})
    assert taken["streamed"] <= 1.0 and memory["streamed"] < memory["dense"] / 5


def peak(run: Callable[[], object]) -> float:
    """The most bytes that tensors made inside held at once, as torch's profiler saw them come and go."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return float(most)
