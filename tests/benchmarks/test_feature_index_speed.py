"""What the feature index costs beside what it must cost, on one thread: `make bench`.

The network is `stories`, the SAE a random one of 2,048 features of which 16 fire on each token; 32,768 tokens.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import feature_index, zoo
from interp._index_close import closed
from interp.model import LanguageModel
from interp.sae import SAE
from interp.samples import TextSet
from tests.benchmarks.clock import ratios
from tests.test_feature_index import sae_for

pytestmark = pytest.mark.bench
WINDOWS, LENGTH, FEATURES = 256, 128, 2048


@pytest.fixture(scope="module")
def subject() -> tuple[LanguageModel, SAE, TextSet, torch.Tensor]:
    """The model, an SAE of its third residual stream, documents of a window each, and their tokens."""
    model: Any = zoo.load("stories")
    sae = sae_for(model, "resid_post.2", 128, FEATURES, architecture="topk", k=16)
    generator = torch.Generator().manual_seed(0)
    whole = [model.token_text(index) for index in range(len(model.tokenizer))]
    words = [index for index, text in enumerate(whole) if text.startswith(" ") and text[1:].isalpha()]
    rows = torch.tensor(words)[torch.randint(len(words), (WINDOWS, LENGTH - 1), generator=generator)]
    texts = TextSet(tuple("".join(whole[index] for index in row) for row in rows.tolist()))
    ids = torch.stack([torch.tensor(model.tokenizer(text)["input_ids"]) for text in texts.texts])
    assert ids.shape == (WINDOWS, LENGTH)
    return model, sae, texts, ids


def test_a_pass_takes_little_more_than_its_forwards_and_a_dense_encode(
    subject: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    model, sae, texts, ids = subject
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    blocks = {3: lambda run, hidden: hidden}

    def floor() -> object:
        with torch.no_grad():
            for start in range(0, WINDOWS, 32):
                with model.around(blocks), model.record(["resid_post.2"]) as found:
                    model(ids[start : start + 32], keep=1)
                sae.encode(found["resid_post.2"])

    closing: list[float] = []

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        made = closed(*args)
        closing.append(time.perf_counter() - start)
        return made

    monkeypatch.setattr(feature_index, "closed", timed)
    whole: list[float] = []

    def build() -> object:
        start = time.perf_counter()
        index = feature_index.build(model, sae, texts)
        whole.append(time.perf_counter() - start)
        assert index.n_tokens == WINDOWS * (LENGTH - 1)
        return index.path.unlink()

    taken = ratios({"forwards and encode": floor, "index": build}, 5)
    share = statistics.median(last / all_ for last, all_ in zip(closing, whole, strict=True))
    print(
        f"\nindex of {WINDOWS * LENGTH} tokens x {FEATURES} features: {taken['index']:.2f} of its forwards and a dense "
        f"encode, {taken['index'] * (1 - share):.2f} for the pass alone; {statistics.median(whole):.2f} s"
    )
    assert taken["index"] <= 5 * 1.5


def test_a_page_takes_milliseconds(subject: Any, monkeypatch: Any, tmp_path: Path) -> None:
    model, sae, texts, _ = subject
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    path = feature_index.build(model, sae, texts).path
    cold, warm = [], []
    index = feature_index.Index(path)
    for feature in range(0, FEATURES, 40):
        start = time.perf_counter()
        feature_index.Index(path).page(feature, model)
        middle = time.perf_counter()
        index.page(feature, model)
        cold.append(middle - start)
        warm.append(time.perf_counter() - middle)
    opened, open_ = 1e3 * statistics.median(cold), 1e3 * statistics.median(warm)
    print(f"\npage: {opened:.1f} ms (file just opened), {open_:.1f} ms (open), {1e3 * max(cold):.1f} ms at most")
    assert max(cold) < 0.3
