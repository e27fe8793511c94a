"""The feature index against brute force: every number it keeps, from dense activations and plain loops."""

from __future__ import annotations

import io
import json
import math
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from interp import Unsuitable, feature_index, progress, store
from interp._index_pass import BINS, EDGES, HASH_BITS, SAMPLED, SKETCH, TOP, Pass, mix
from interp.feature_index import Index, build, find, listed
from interp.model import LanguageModel, Model, VisionModel
from interp.sae import SAE
from interp.samples import ImageSet, TextSet
from tests import tiny

WORDS = "the a cat dog sat on mat and saw one two red blue sky ran far home they did not see it was good".split()  # noqa: SIM905


def sae_for(model: Model, site: str, d: int, features: int = 48, seed: int = 0, **config: Any) -> SAE:
    """A random SAE; the last feature never fires."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    kind = {"architecture": "standard", "normalize_activations": "none", "apply_b_dec_to_input": True} | config
    metadata = {"hook_name": site, "model_name": model.name, "model_digest": model.digest} | config.get("metadata", {})
    bias = 0.5 * draw(features) - 2
    bias[-1] = -1e6
    digest = store.key_of(site, d, features, seed, metadata, kind)[:16]
    config = kind | {"d_in": d, "d_sae": features, "metadata": metadata}
    weights = {"W_enc": draw(d, features), "W_dec": draw(features, d), "b_enc": bias, "b_dec": 0.1 * draw(d)}
    return SAE("tests/random", digest, config, weights)


def documents(count: int, seed: int, longest: int = 30) -> tuple[str, ...]:
    """Texts of common words, some of them twice and more."""
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]
    for _ in range(count // 4):
        made[rng.randrange(count)] = made[rng.randrange(count)]
    return tuple(made)


class Dense:
    """What the passes below were given, as one dense matrix [token, feature]."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, features: int) -> None:
        self.parts: list[np.ndarray] = []
        self.chunks: list[Any] = []
        add = Pass.add

        def both(seen: Pass, chunk: Any, rows: Any, columns: Any, values: Any) -> None:
            f = np.zeros((len(chunk), features), np.float32)
            f[rows, columns] = values
            self.parts.append(f)
            self.chunks.append(chunk)
            add(seen, chunk, rows, columns, values)

        monkeypatch.setattr(Pass, "add", both)

    @property
    def f(self) -> np.ndarray:
        return np.concatenate(self.parts)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in self.chunks])

    @property
    def windows(self) -> list[range]:
        """The tokens of each window."""
        out, start = [], 0
        for chunk in self.chunks:
            for number in range(int(chunk.window[-1]) + 1):
                size = int((chunk.window == number).sum())
                out.append(range(start, start + size))
                start += size
        return out


def brute(f: np.ndarray, windows: list[range], ids: list[int], seed: int) -> dict[str, Any]:
    """Every kept number by loops over features, windows and tokens."""
    window_of = {token: window for window in windows for token in window}
    alike = lambda t: tuple(  # noqa: E731
        ids[t + o] if t + o in window_of[t] else None for o in range(-12, 5)
    )
    token_hash = mix(np.arange(len(f), dtype=np.uint64) + mix(np.array([seed], np.uint64)))
    top, quarters, sketches = [], [], []
    for i in range(f.shape[1]):
        peaks = []
        for window in windows:
            t = window[0] + int(f[window[0] : window[-1] + 1, i].argmax())  # the first of the largest
            if f[t, i] > 0:
                peaks.append((-f[t, i], t))
        mine, seen = [], set()
        for _, t in sorted(peaks):
            if alike(t) not in seen:
                seen.add(alike(t))
                mine.append(t)
        top.append(mine[:20])
        fires = np.flatnonzero(f[:, i] > 0)
        own = mix(token_hash[fires] + np.uint64(i * 0x9E3779B97F4A7C15 % 2**64)) >> np.uint64(64 - HASH_BITS)
        sampled, seen = [], set()
        for t in fires[np.argsort(own, kind="stable")].tolist():
            if alike(t) not in seen:
                seen.add(alike(t))
                sampled.append(t)
            if len(sampled) == SAMPLED:
                break
        quarters.append(sampled)
        sketches.append(sorted((token_hash[fires] >> np.uint64(64 - HASH_BITS)).tolist())[:SKETCH])
    return {"top": top, "sampled": quarters, "sketches": sketches}


@pytest.fixture
def model() -> LanguageModel:
    return tiny.language("llama")


@pytest.mark.parametrize(
    ("family", "site", "config"),
    [("llama", "resid_post.1", {}), ("gpt2", "mlp_out.0", {"architecture": "topk", "k": 6})],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_equal_to_brute_force(family, site, config, seed, monkeypatch):
    model = tiny.language(family)
    sae = sae_for(model, site, 16, seed=seed, **config)
    texts = documents(850, seed)
    monkeypatch.setattr(feature_index, "CHARACTERS", 5000)
    dense = Dense(monkeypatch, sae.d_sae)
    index = build(model, sae, TextSet(texts), context=100, seed=seed, name=f"brute {seed}")
    f, windows, ids = dense.f, dense.windows, dense.column("ids").tolist()
    assert len(dense.parts) > 5 and index.n_tokens == len(f) > 50_000
    assert [ids[w[0] : w[-1] + 1] for w in windows] == [
        model.tokenizer(text)["input_ids"][start : start + 100]
        for text in texts
        for start in range(0, len(model.tokenizer(text)["input_ids"]), 100)
    ]
    whole, fires = brute(f, windows, ids, seed), f > 0
    times = fires.sum(0)
    np.testing.assert_array_equal(index.count, fires.sum(0))
    np.testing.assert_array_equal(index.maximum, f.max(0))
    np.testing.assert_allclose(index.density, fires.mean(0))
    np.testing.assert_allclose(index.total, f.sum(0, dtype=np.float64), rtol=1e-12)
    assert index.count[-1] == 0 and (index.count > 100).sum() > 10
    for i in range(sae.d_sae):
        clipped = np.clip(f[fires[:, i], i], EDGES[0], np.nextafter(EDGES[-1], 0))
        np.testing.assert_array_equal(index.histogram[i], np.histogram(clipped, EDGES)[0])

    starts = [w[0] for w in windows]
    document = dense.column("document")
    for i in range(sae.d_sae):
        page = index.page(i, model)
        assert page.count == fires[:, i].sum() and page.maximum == f[:, i].max()
        if page.count:
            assert page.mean == pytest.approx(f[fires[:, i], i].mean(), rel=1e-5)
        contexts = [(c, t) for c, t in zip(page.top, whole["top"][i], strict=True)]
        quarters = np.digitize(f[whole["sampled"][i], i], [high for _, high, _ in page.quantiles[:0:-1]], right=True)
        for number, (low, high, found) in enumerate(page.quantiles):
            inside = [t for t, q in zip(whole["sampled"][i], quarters, strict=True) if q == 3 - number][:5]
            inside.sort(key=lambda t: (-f[t, i], t))
            assert len(found) == len(inside) and all(low < c.value <= high for c in found)
            contexts += zip(found, inside, strict=True)
        for context, t in contexts:
            window = windows[np.searchsorted(starts, t, "right") - 1]
            around = range(max(window[0], t - 24), min(window[-1], t + 8) + 1)
            assert context.ids.tolist() == [ids[u] for u in around] and around[context.at] == t
            assert context.value == f[t, i] == context.values[context.at] and context.document == document[t]
            np.testing.assert_allclose(context.values, f[list(around), i], rtol=1e-3, atol=1e-4)
        if page.count > 1000:
            quartiles = np.quantile(f[fires[:, i], i], [0.25, 0.5, 0.75])
            found = [low for low, _, _ in page.quantiles[:3]][::-1]
            assert (np.abs(np.log2(found) - np.log2(quartiles)) < 0.35).all()

    for i, mine in enumerate(whole["sketches"]):
        wanted = {}
        for j, other in enumerate(whole["sketches"]):
            if i == j or not mine or not other:
                continue
            limit = min(each[-1] if n > SKETCH else math.inf for each, n in ((mine, times[i]), (other, times[j])))
            a, b = ({h for h in each if h <= limit} for each in (mine, other))
            if a & b:
                wanted[j] = len(a & b) / len(a | b)
        found = [(int(j), v) for j, v in zip(index.together_ids[i], index.together_values[i], strict=True) if j >= 0]
        assert [v for _, v in found] == pytest.approx(sorted(wanted.values(), reverse=True)[:10], rel=1e-3)
        for j, value in found:
            assert wanted[j] == pytest.approx(value, rel=1e-3)
            true = (fires[:, i] & fires[:, j]).sum() / (fires[:, i] | fires[:, j]).sum()
            assert abs(true - value) < (1e-3 if times[i] <= SKETCH >= times[j] else 0.25)

    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    np.testing.assert_array_equal(index.neighbour_ids, cosines.topk(20).indices)
    np.testing.assert_allclose(index.neighbour_values, cosines.topk(20).values, atol=1e-3)
    assert index.map.shape == (48, 2) and np.isfinite(index.map).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral", "gemma3_text"])
@pytest.mark.parametrize("site", ["resid_pre.1", "attn_out.0", "z.2", "resid_post.2", "embed"])
def test_padding_and_skipped_blocks_change_no_activation(family, site, monkeypatch):
    model = tiny.language(family)
    with model.record([site]) as found:
        model("some text")
    d = found[site].flatten(2).shape[-1]
    sae = sae_for(model, site, d)
    dense = Dense(monkeypatch, sae.d_sae)
    texts = documents(40, 3)
    build(model, sae, TextSet(texts), batch=7, name=family)
    alone = []
    with torch.no_grad():
        for text in texts:
            with model.record([site]) as found:
                model(text)
            alone.append(sae.encode(sae.rows(found[site], model))[0])
    np.testing.assert_allclose(dense.f, torch.cat(alone), atol=2e-4)


def test_blocks_behind_the_site_are_not_run(model, monkeypatch):
    ran = []
    kinds = [type(block) for block in model.parts.blocks]
    forward = kinds[0].__mro__[1].forward
    monkeypatch.setattr(
        kinds[0].__mro__[1], "forward", lambda self, *a, **k: ran.append(self._address[1]) or forward(self, *a, **k)
    )
    for site, last in (("resid_pre.1", 0), ("resid_post.0", 0), ("mlp_post.1", 1), ("module:model.layers.1.mlp:in", 1)):
        ran.clear()
        build(model, sae_for(model, site, 32 if "post.1" in site else 16, seed=8), TextSet(("a b c",)), name=site)
        # checking the SAE's width runs the whole model, before
        assert ran[-(last + 1) :] == [f"model.layers.{each}" for each in range(last + 1)]
        assert len(ran) % 3 == last + 1


def test_special_tokens_count_nowhere(model, monkeypatch):
    sae = sae_for(model, "resid_post.1", 16, metadata={"prepend_bos": True})
    dense = Dense(monkeypatch, sae.d_sae)
    index = build(model, sae, TextSet(("ab<eos>cd", "efgh")), name="special")
    texts = "abcdefgh"
    assert index.n_tokens == 8 and "".join(map(model.token_text, dense.column("ids"))) == texts
    with model.record(["resid_post.1"]) as found:
        model(torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer("ab<eos>cd")["input_ids"]]]))
    f = sae.encode(found["resid_post.1"][0])[[1, 2, 4, 5]].detach()
    np.testing.assert_allclose(dense.f[:4], f, atol=1e-5)
    for i in range(sae.d_sae):
        assert not {"<bos>", "<eos>"} & {t for c in index.page(i, model).top for t in c.tokens}


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_file_gives_what_its_texts_give(suffix, model, tmp_path):
    texts = documents(50, 4)
    sae = sae_for(model, "resid_post.0", 16)
    path = tmp_path / f"texts.{suffix}"
    lines = texts if suffix == "txt" else [json.dumps({"text": each}) for each in texts]
    path.write_text("\n\n".join(lines) + "\n")
    one, two = build(model, sae, path), build(model, sae, TextSet(texts))
    assert one.name == path.name and one.key != two.key
    for name in one._file.keys():  # noqa: SIM118
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_context_arrays_are_those_of_the_pages(model):
    sae = sae_for(model, "resid_post.0", 16)
    index = build(model, sae, TextSet(documents(60, 5)))
    assert index.context_ids.shape == index.context_values.shape == (48, TOP, 33)
    assert index.context_at.shape == index.context_documents.shape == (48, TOP)
    for i in range(48):
        page = index.page(i, model)
        assert (index.context_at[i] >= 0).sum() == len(page.top)
        for k, context in enumerate(page.top):
            there = index.context_ids[i, k] >= 0
            np.testing.assert_array_equal(index.context_ids[i, k][there], context.ids)
            np.testing.assert_array_equal(index.context_values[i, k][there], context.values)
            assert index.context_ids[i, k, index.context_at[i, k]] == context.ids[context.at]
    dead = index.page(47, model)
    assert dead.dead == f"never fired on {index.n_tokens:,} tokens" and not dead.top and not dead.quantiles
    assert len(dead.neighbours) == 20 and dead.density == dead.mean == dead.maximum == 0


# -------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize(
    ("family", "site"), [("llama", "resid_post.1"), ("gpt2", "resid_pre.2"), ("gpt2", "mlp_out.0"), ("opt", "embed")]
)
def test_promoted_logits_are_the_unembedding_of_the_normed_direction(family, site):
    model = tiny.language(family)
    sae = sae_for(model, site, 16, seed=2)
    index = build(model, sae, TextSet(("abc def",)), name="logits")
    if family == "llama":
        directions = sae.W_dec * model.weight("model.norm.weight")
    else:
        norm = "transformer.ln_f" if family == "gpt2" else "model.decoder.final_layer_norm"
        directions = (sae.W_dec - sae.W_dec.mean(1, keepdim=True)) * model.weight(f"{norm}.weight")
    logits = directions @ model.unembedding[0].T
    logits -= logits.mean(1, keepdim=True)
    for name, largest in (("promoted", True), ("suppressed", False)):
        wanted = logits.topk(12, largest=largest)
        np.testing.assert_allclose(getattr(index, f"{name}_values"), wanted.values, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(getattr(index, f"{name}_ids"), wanted.indices)
    page = index.page(3, model)
    assert page.promoted[0] == (model.token_text(int(index.promoted_ids[3, 0])), float(index.promoted_values[3, 0]))


def test_logits_of_heads_and_neurons_go_through_their_projection(model):
    for site, d, path in (("z.1", 16, "self_attn.o_proj"), ("mlp_post.1", 32, "mlp.down_proj")):
        sae = sae_for(model, site, d)
        index = build(model, sae, TextSet(("abc def",)), name="inner")
        directions = sae.W_dec @ model.weight(f"model.layers.1.{path}.weight").T * model.weight("model.norm.weight")
        logits = directions @ model.unembedding[0].T
        logits -= logits.mean(1, keepdim=True)
        np.testing.assert_allclose(index.promoted_values, logits.topk(12).values, rtol=1e-3, atol=1e-4)


def test_where_a_norm_or_attention_comes_between_no_logits_are_given(model):
    sandwich = tiny.language("gemma2")
    for each, site, d in ((model, "q.1", 16), (sandwich, "z.1", 16), (model, "module:model.layers.0.mlp:in", 16)):
        index = build(each, sae_for(each, site, d), TextSet(("abc def",)), name="none")
        assert index.page(0, each).promoted == () == index.page(0, each).suppressed


# -------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("family", "site"), [("resnet", "stage.1"), ("resnet", "stage.0"), ("vit", "resid_pre.1")])
def test_images_too(family, site, monkeypatch):
    model = tiny.vision(family)
    images = [tiny.image(seed) for seed in range(30)]
    images[9] = images[4]
    with model.record([site]) as found:
        model(images[0])
    maps = model.grid(site)(found[site])
    d, height, width = maps.shape[1:]
    sae = sae_for(model, site, d)
    dense = Dense(monkeypatch, sae.d_sae)
    index = build(model, sae, ImageSet(tuple(images)), batch=4, name=f"{family} {site}")
    f = []
    with torch.no_grad():
        for each in images:
            with model.record([site]) as found:
                model(each)
            f.append(sae.encode(model.grid(site)(found[site])[0].flatten(1).T))
    f = torch.stack(f).numpy()
    np.testing.assert_allclose(dense.f.reshape(f.shape), f, atol=2e-4)
    f = dense.f.reshape(f.shape)
    assert index.n_tokens == 30 * height * width and index.grid == (height, width)
    for i in range(sae.d_sae):
        page = index.page(i, model)
        assert page.count == (f[:, :, i] > 0).sum()
        order = [n for n in np.argsort(-f[:, :, i].max(1), kind="stable") if f[n, :, i].max() > 0 and n != 9][:20]
        assert [c.document for c in page.top] == order
        for context in page.top:
            np.testing.assert_allclose(context.values, f[context.document, :, i], rtol=1e-3, atol=1e-4)
            assert context.at == f[context.document, :, i].argmax() and context.grid == (height, width)
            assert PIL.Image.open(io.BytesIO(context.image)).size == (60, 40) and context.tokens == ()
    if site == "stage.1":
        logits = sae.W_dec @ model.weight("classifier.1.weight").T
        logits -= logits.mean(1, keepdim=True)
        np.testing.assert_allclose(index.promoted_values, logits.topk(3).values, rtol=1e-3, atol=1e-4)
        assert index.page(0, model).promoted[0][0] == tiny.CLASSES[int(logits[0].argmax())]
    else:
        assert index.page(0, model).promoted == ()


def test_a_stream_of_pictures_with_captions_and_large_maps_by_their_largest_cells(monkeypatch):
    model = tiny.vision("resnet")
    sae = sae_for(model, "stage.0", 8)
    monkeypatch.setattr(feature_index, "GRID", 3)
    pictures = [tiny.image(seed).picture for seed in range(5)]
    dense = Dense(monkeypatch, sae.d_sae)
    index = build(model, sae, ((each, f"number {n}") for n, each in enumerate(pictures)), name="a stream")
    assert index.grid == (3, 3) and index.about["documents"] == 5  # of 8 x 8 cells, three by three, the rest smaller
    f = dense.f.reshape(5, 8, 8, -1)
    for i in range(sae.d_sae):
        for context in index.page(i, model).top:
            image = f[context.document, :, :, i]
            wanted = [[image[3 * r : 3 * r + 3, 3 * c : 3 * c + 3].max() for c in range(3)] for r in range(3)]
            np.testing.assert_allclose(context.values.reshape(3, 3), wanted, rtol=1e-3, atol=1e-4)
            assert context.value == image.max() and context.label == f"number {context.document}"


# ---------------------------------------------------------------------------------------------------- cut off, go on

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from interp import feature_index
from interp.samples import TextSet
from tests import tiny
from tests.test_feature_index import documents, sae_for

feature_index.CHARACTERS, feature_index.SAVE_SECONDS = 2000, 0.0
model, texts, folder = tiny.language("llama"), TextSet(documents(500, 7)), Path(sys.argv[1])
sae = sae_for(model, "resid_post.1", 16)


def begin(store):
    child = os.fork()
    if child == 0:
        os.environ["ACTISCOPE_STORE"] = str(store)
        feature_index.build(model, sae, texts)
        os._exit(0)
    return child


start = time.monotonic()
assert os.waitpid(begin(folder / "one"), 0)[1] == 0
whole = time.monotonic() - start
killed = 0
for _ in range(8):
    child = begin(folder / "two")
    time.sleep(random.random() * whole / 4)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    print("state" if list((folder / "two").glob("indexes/*.part.safetensors")) else "no state")
assert os.waitpid(begin(folder / "two"), 0)[1] == 0
print(killed, "killed")
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_file(tmp_path):
    """A process forks those that are killed, so that only one has to load all libraries."""
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=os.environ | {"PYTHONPATH": "."},
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    *states, killed = said.stdout.splitlines()
    print(states, killed)
    assert int(killed.split()[0]) >= 2 and "state" in states
    (one,), (two,) = (list((tmp_path / each / "indexes").glob("*.safetensors")) for each in ("one", "two"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("vision", [False, True])
def test_stopped_it_goes_on_where_it_was(vision, monkeypatch, tmp_path):
    if vision:
        model: Model = tiny.vision("resnet")
        sae, data = sae_for(model, "stage.1", 16), ImageSet(tuple(tiny.image(seed) for seed in range(12)))
        monkeypatch.setattr(feature_index._Reader, "images", lambda self: 2)
    else:
        model = tiny.language("llama")
        sae, data = sae_for(model, "resid_post.1", 16), TextSet(documents(100, 6))
        monkeypatch.setattr(feature_index, "CHARACTERS", 1000)
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "whole"))
    whole = build(model, sae, data).path.read_bytes()
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "cut"))
    stop, seen = threading.Event(), []

    def report(each: progress.Progress) -> None:
        seen.append(each)
        if each.done == 3:
            stop.set()

    with pytest.raises(progress.Cancelled), progress.watch(report, stop):
        build(model, sae, data)
    assert seen[-1].total > 5
    chunks = []
    add = Pass.add
    monkeypatch.setattr(Pass, "add", lambda *args: chunks.append(1) or add(*args))
    assert build(model, sae, data).path.read_bytes() == whole
    assert len(chunks) == seen[-1].total - 3


def test_a_damaged_state_is_begun_anew(model, monkeypatch, tmp_path):
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    sae, data = sae_for(model, "resid_post.1", 16), TextSet(("abc def",))
    index = build(model, sae, data)
    whole = index.path.read_bytes()
    index.path.unlink()
    index.path.with_suffix(".part.safetensors").write_bytes(b"no safetensors")
    assert build(model, sae, data).path.read_bytes() == whole


# -------------------------------------------------------------------------------------------------------------- memory


def grown(small: int, large: int, folder: Path, characters: int) -> tuple[float, float]:
    """Peak memory in MB after an index over so many tokens, and over more."""
    import transformers as T

    config = T.LlamaConfig(
        **(tiny.LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2})
    )
    model = LanguageModel(tiny._make(T.AutoModelForCausalLM, config, 0), tiny.tokenizer(), "one layer")
    sae = sae_for(model, "resid_post.0", 16, 64)
    peaks = []
    for tokens in (small, large):
        path = folder / f"{tokens}.txt"
        rng = random.Random(tokens)
        with open(path, "w") as file:
            written = 0
            while written < tokens:
                line = " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))
                file.write(line + "\n")
                written += len(line)
        feature_index.CHARACTERS, before = characters, feature_index.CHARACTERS
        start = time.monotonic()
        try:
            assert build(model, sae, path).n_tokens >= tokens
        finally:
            feature_index.CHARACTERS = before
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"{tokens:,} tokens: {peaks[-1]:.0f} MB, {time.monotonic() - start:.0f} s")
    return peaks[0], peaks[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    first, second = grown(100_000, 400_000, tmp_path, 2**14)
    assert second - first < 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_to_ten_million_tokens(tmp_path):
    first, second = grown(1_000_000, 10_000_000, tmp_path, feature_index.CHARACTERS)
    assert second - first < 50


# ------------------------------------------------------------------------------------------------------------- finding


def test_indexes_are_found_by_key_newest_first_and_only_for_their_model_and_sae(model, monkeypatch, tmp_path):
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    sae = sae_for(model, "resid_post.1", 16)
    assert find(model, sae) is None and listed(model, sae) == []
    first, second = (build(model, sae, TextSet((text,)), name=text) for text in ("one", "two two"))
    os.utime(first.path, ns=(0, 0))
    assert [each[1:] for each in listed(model, sae)] == [("two two", 7), ("one", 3)]
    assert find(model, sae).key == second.key and find(model, sae, first.key).name == "one"
    assert find(model, sae, "0" * 64) is None
    assert find(model, sae_for(model, "resid_post.1", 16, seed=1)) is None
    assert find(tiny.language("llama", 1), sae) is None
    monkeypatch.setattr(feature_index, "SHELF", tmp_path / "shelf")
    own = tmp_path / "shelf" / sae.name / "index.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(first.path.read_bytes())
    assert find(model, sae).path == own and len(listed(model, sae)) == 3
    (tmp_path / "indexes" / f"{'f' * 64}.safetensors").write_bytes(b"damaged")
    assert len(listed(model, sae)) == 3
    with pytest.raises(Unsuitable, match="damaged"):
        Index(tmp_path / "indexes" / f"{'f' * 64}.safetensors")


def test_it_is_made_once(model, monkeypatch, tmp_path):
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    sae, data = sae_for(model, "resid_post.1", 16), TextSet(("abc",))
    first = build(model, sae, data)
    monkeypatch.setattr(Pass, "add", None)
    assert build(model, sae, data, name="another name").key == first.key
    assert build(model, sae, data).path == store.folder() / "indexes" / f"{first.key}.safetensors"


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (ImageSet(()), {}, "reads texts"),
        (TextSet(()), {}, "nothing to read"),
        (TextSet(("abc",)), {"context": 1}, "longer context"),
        (Path("/nowhere/none.txt"), {}, "can't be read"),
    ],
)
def test_what_can_not_be_served_is_said(model, data, settings, words):
    with pytest.raises(Unsuitable, match=words):
        build(model, sae_for(model, "resid_post.1", 16), data, **settings)


def test_odd_files_odd_features_and_other_models(model, tmp_path):
    sae = sae_for(model, "resid_post.1", 16)
    for name, content in (("a.jsonl", b"{broken"), ("b.jsonl", b"[1]"), ("c.txt", b"\xff\xfe\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unsuitable):
            build(model, sae, tmp_path / name)
    with pytest.raises(Unsuitable, match="0 to 47"):
        build(model, sae, TextSet(("abc",))).page(48, model)
    with pytest.raises(Unsuitable, match="made for"):
        build(tiny.language("gpt2"), sae, TextSet(("abc",)))
    vision: VisionModel = tiny.vision("resnet")
    with pytest.raises(Unsuitable, match="give images"):
        build(vision, sae_for(vision, "stage.1", 16), TextSet(("abc",)))
    with pytest.raises(Unsuitable, match="name"):
        build(vision, sae_for(vision, "stage.1", 16), iter([]))


def test_the_bins_are_a_quarter_of_an_octave_each_and_the_outer_ones_hold_the_rest():
    assert len(EDGES) == BINS + 1 and EDGES[0] == 2.0**-16 and EDGES[-1] == 2.0**16
    np.testing.assert_array_equal(EDGES[4:] / EDGES[:-4], 2)
    from interp._index_pass import Chunk

    values = np.array([1e-9, 2.0**-16, 0.99, 1.0, 1.2499999, 1.25, 3.99, 4.0, 1e6], np.float32)
    n = len(values)
    seen = Pass(1, 33, True, 0)
    zeros = np.zeros(n, np.int32)
    seen.add(Chunk.of_text(0, zeros, zeros, np.arange(n, dtype=np.int32)), np.arange(n), np.zeros(n, np.int64), values)
    inner = np.clip(values, EDGES[0], np.nextafter(EDGES[-1], 0))
    np.testing.assert_array_equal(seen.histogram[0], np.histogram(inner, EDGES)[0])


def test_the_fit_builds_the_same_index_and_gives_its_key(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    from interp import sae as saes
    from interp.methods import METHODS

    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    for model, site, data in (
        (tiny.language("llama"), "resid_post.1", TextSet(documents(20, 0))),
        (tiny.vision("resnet"), "stage.1", ImageSet((tiny.image(0), tiny.image(1)))),
    ):
        made = sae_for(model, site, 16)
        folder = tmp_path / site
        folder.mkdir()
        (folder / "cfg.json").write_text(json.dumps(dict(made.config)))
        save_file(dict(made.weights), folder / "sae_weights.safetensors")
        kept = saes.load(saes.keep(folder))
        method = METHODS["build_index"]
        key = method(model, data, sae=kept.name, name="mine")
        assert find(model, kept, key).name == "mine" and key == build(model, kept, data, name="mine").key
        with model.edit({site: lambda x: 0 * x}):  # of the unchanged model, whatever is in force
            index = find(model, kept, method(model, data, sae=kept.name, seed=1))
        np.testing.assert_array_equal(index.count, find(model, kept, key).count)
        forwards, _ = method.estimate(model, {"sae": kept.name}, data)
        with progress.meter() as spent:
            build(model, kept, data, seed=2)
        # beside the images one that tells the size of their maps, and one whose slopes the logits are
        assert abs(spent.forwards - forwards - 2 * isinstance(model, VisionModel)) <= 0.5 * forwards
        other = ImageSet((tiny.image(0),)) if isinstance(model, LanguageModel) else TextSet(("a",))
        with pytest.raises(Unsuitable, match="is made over"):
            method(model, other, sae=kept.name)
