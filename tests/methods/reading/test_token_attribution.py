"""Completeness, a closed form where the model is linear in its input, and leaving out one by one."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from interp import Unsuitable
from interp.methods.reading.token_attribution import mean_embedding, token_attribution
from interp.samples import Prompt
from tests import tiny

PROMPT = Prompt("The cat sat")


@pytest.mark.parametrize("baseline", ["mean embedding", "zeros"])
@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_deeplift_adds_up_to_the_difference_from_the_baseline(family: str, baseline: str) -> None:
    model = tiny.language(family)
    if family == "mixtral":  # which experts are asked is a choice, not a function with a slope
        with pytest.raises(Unsuitable, match="topk"):
            token_attribution(model, PROMPT, by="DeepLIFT")
        return
    if baseline == "zeros" and any("RMS" in type(module).__name__ for module in model.network.modules()):
        try:  # an RMS norm of zeros has no scale: either it comes out right all the same, or it is refused
            result = token_attribution(model, PROMPT, target="a", foil="b", by="DeepLIFT", baseline=baseline)
        except Unsuitable as problem:
            assert "precision" in str(problem)
            return
    else:
        result = token_attribution(model, PROMPT, target="a", foil="b", by="DeepLIFT", baseline=baseline)
    a, b = (model.tokenizer.convert_tokens_to_ids(each) for each in "ab")
    with model.record(["input"]) as found:
        logits = model(PROMPT)[0, -1]
    start = torch.zeros_like(found["input"])
    if baseline == "mean embedding":
        start = start + mean_embedding(model).to(start)
    with model.edit({"input": lambda _: start}):
        none = model(PROMPT)[0, -1]
    difference = float((logits[a] - logits[b] - none[a] + none[b]).double())
    assert abs(result.values.sum() - difference) < 1e-4 * max(1, abs(difference))
    assert result.residual is not None and result.residual.value < 1e-3
    assert result.score == pytest.approx(float(logits[a] - logits[b]), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt"])
def test_the_mean_embedding_is_that_of_the_site(family: str) -> None:
    model = tiny.language(family)
    with model.record(["input"], every=True) as found:
        for start in range(0, 256, 64):
            model(torch.arange(start, start + 64)[None])
        model(torch.arange(256, model.config.vocab_size)[None])
    everything = torch.cat([each[0] for each in found["input"]]).double()
    assert len(everything) == model.config.vocab_size
    torch.testing.assert_close(mean_embedding(model), everything.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_integrated_gradients_equal_captums(family: str) -> None:
    model = tiny.language(family)
    result = token_attribution(model, PROMPT, target="a", by="integrated gradients", steps=40, baseline="zeros")
    index, ids = model.tokenizer.convert_tokens_to_ids("a"), model.inputs(PROMPT)
    with model.record(["input"]) as found:
        model(ids)

    def forward(e: torch.Tensor) -> torch.Tensor:
        with model.edit({"input": lambda _: e}):
            return model(ids.expand(len(e), -1))[:, -1, index]

    peer = IntegratedGradients(forward).attribute(
        found["input"].detach(), torch.zeros_like(found["input"]), n_steps=40, method="riemann_middle"
    )
    np.testing.assert_allclose(result.values, peer.sum(-1)[0].detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_leaving_out_is_done_one_by_one(family: str) -> None:
    model = tiny.language(family)
    result = token_attribution(model, PROMPT, target="a", by="leave one out")
    index, whole = model.tokenizer.convert_tokens_to_ids("a"), model(PROMPT)[0, -1].double()
    mean = mean_embedding(model)
    for place in range(len(result.tokens)):

        def without(e: torch.Tensor, place: int = place) -> torch.Tensor:
            e = e.clone()
            e[:, place] = mean.to(e)
            return e

        with model.edit({"input": without}):
            left = model(PROMPT)[0, -1].double()
        assert result.values[place] == pytest.approx(float(whole[index] - left[index]), abs=1e-5)


def test_gradient_x_input_is_the_limit_of_a_small_step() -> None:
    model = tiny.language("llama")
    result = token_attribution(model, PROMPT, target="a", by="gradient x input", baseline="zeros")
    index = model.tokenizer.convert_tokens_to_ids("a")
    for place in range(3):
        ends = []
        for step in (1e-2, -1e-2):

            def nudged(e: torch.Tensor, place: int = place, step: float = step) -> torch.Tensor:
                e = e.clone()
                e[:, place] *= 1 + step
                return e

            with model.edit({"input": nudged}):
                ends.append(float(model(PROMPT)[0, -1, index].double()))
        assert result.values[place] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=2e-3)
