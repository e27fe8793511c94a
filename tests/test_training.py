"""Training: what is saved against SAELens and slow references; stopped, killed and gone on with, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from interp import Unsuitable, progress, sae, store, training, zoo
from interp.methods.features.train_sae import job, train_sae
from interp.model import LanguageModel
from interp.samples import ImageSet, TextSet
from interp.sites import Site
from interp.training import Spec, flat, main, measure, source, train
from tests import tiny

TEXTS = tuple(f"{a} {b} the {c}." for a in ("Mary", "John", "A dog") for b in ("saw", "took", "lost") for c in
              ("ball", "red lamp", "key of the house", "picture of a boat in the harbour"))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model, saved."""
    place = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    model = tiny.language("gpt2")
    model._network.save_pretrained(place)  # type: ignore[operator]
    model.tokenizer.save_pretrained(place)
    return str(place)


def spec(folder: str, **changes: Any) -> Spec:
    common: dict[str, Any] = {
        "model": folder, "site": "resid_post.1", "data": TEXTS, "d_sae": 32, "k": 3, "batch": 64, "samples": 64 * 60,
        "context": 32, "checkpoint": 7,
    }  # fmt: skip
    return Spec(**common | changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(sae.read(path).weights)


# ------------------------------------------------------------------------------------------------------------- data


def test_rows_hold_every_token_once_and_begin_as_texts_begin() -> None:
    model = tiny.language("llama")
    read = source(model, Spec("", "resid_post.1", TEXTS, context=16, recorded="whole"), held_out=False)
    batches = list(read.inputs(range(len(TEXTS))))
    assert all(batch.shape[1] <= 16 for batch in batches)
    found = [token for batch in batches for token in batch[read.chosen(batch)].tolist()]
    expected = [token for text in TEXTS for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert found == expected
    special = model.tokenizer.eos_token_id
    assert all(row[row >= 0][0] == special for batch in batches for row in batch)


def test_some_of_the_data_is_held_out() -> None:
    model = tiny.language("gpt2")
    given = Spec("", "resid_post.1", tuple(map(str, range(100, 145))))
    trained, held = (source(model, given, which).texts for which in (False, True))  # type: ignore[union-attr]
    assert held == ["100", "120", "140"] and sorted([*trained, *held]) == sorted(given.data)


def test_activations_are_those_of_the_model_and_come_again_from_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHUNK", 200)
    monkeypatch.setattr(training, "ROWS", 2)
    model = tiny.language("gpt2")
    given = Spec("", "resid_post.1", TEXTS, context=32)
    sites = [Site("resid_post", 1), Site("mlp_out", 2)]
    stream = training.chunks(model, given, sites)
    first = [next(stream) for _ in range(8)]  # more than one pass over the data
    for skip in (1, 6):
        again = training.chunks(model, given, sites, skip)
        assert torch.equal(next(again), first[skip])
    slow = []
    for inputs in itertools.islice(training._endless(source(model, given, held_out=False), given.seed), 20):
        for row in inputs:
            with torch.no_grad(), model.record(sites) as found:
                model(row[None])
            both = torch.cat([found[site][0] for site in sites], -1)
            slow += [both[i] for i, token in enumerate(row.tolist()) if token not in (-1, 256, 257)]
    known = torch.stack(slow)
    for rows in first[:2]:
        assert torch.cdist(rows, known, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-4


def test_what_is_gone_through_often_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites = tiny.vision("resnet"), [Site("stage", 1)]
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(tiny.image(seed).data)
    given = Spec("", "stage.1", (str(tmp_path),), samples=4096)
    path = training.store(model, given, sites, tmp_path / "all.npy")
    assert path is not None
    with torch.no_grad(), model.record(sites) as found:
        model([tiny.image(seed) for seed in (1, 2)])  # the first is held out
    expected = found["stage.1"].permute(0, 2, 3, 1).reshape(-1, 16)
    np.testing.assert_allclose(np.load(path), expected.numpy(), atol=1e-5)
    rows = next(training.chunks(model, given, sites, stored=path))
    torch.testing.assert_close(rows.sort(0).values, expected.sort(0).values)
    once = dataclasses.replace(given, samples=1, batch=1)
    assert training.store(model, once, sites, tmp_path / "once.npy") is None
    monkeypatch.setattr(training, "STORED", 8)
    assert training.store(model, given, sites, tmp_path / "large.npy") is None


def test_positions_of_maps_and_heads() -> None:
    stage = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(flat(stage, Site("stage", 0))[0, 5], stage[0, :, 1, 1])
    heads = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(flat(heads, Site("z", 0))[0, 1], heads[0, 1].flatten())
    with pytest.raises(Unsuitable, match="no vector"):
        flat(torch.zeros(1, 2, 3, 3), Site("pattern", 0))


def test_what_can_not_be_trained_is_said() -> None:
    for changes, text in (
        ({"architecture": "temporal"}, "no architecture"),
        ({"architecture": "topk", "target": "mlp_out.1"}, "transcoder"),
        ({"k": 32}, "below the 32"),
        ({"samples": 5}, "no batch"),
    ):
        with pytest.raises(Unsuitable, match=text):
            spec("", **changes)
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="no text"):
        source(model, Spec("", "resid_post.1", (" ",)), held_out=False)
    with pytest.raises(Unsuitable, match=r"nothing\.txt can't be read"):
        source(model, Spec("", "resid_post.1", "nothing.txt"), held_out=False)


# --------------------------------------------------------------------------------------------------------- training


def test_norms_by_token_are_those_that_sae_lens_reads(tmp_path: Path, folder: str) -> None:
    from sae_lens import SAE

    run = training._Run(spec(folder, normalize="token", samples=64 * 20), tmp_path)
    x = run.rows[:50] * torch.logspace(-1, 1, 50)[:, None]
    scaled = run.scaled(x)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((50,), 4.0))
    torch.testing.assert_close(run.trainer.sae.b_dec, run.scaled(run.rows).mean(0))
    run.train()
    trained = run.trainer.sae
    run.finish()
    with torch.no_grad():
        inside = (scaled - trained.b_dec) @ trained.W_enc + trained.b_enc
        inside = torch.where(inside * trained.W_dec.norm(dim=1) > trained.topk_threshold, inside, 0).relu()
        expected = (inside @ trained.W_dec + trained.b_dec) * x.norm(dim=1, keepdim=True) / 4
        theirs = SAE.load_from_disk(tmp_path / "sae")(x)
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-5)
    ours = sae.read(tmp_path / "sae")
    torch.testing.assert_close(ours.decode(ours.encode(x), x), expected, atol=1e-5, rtol=1e-5)


def test_a_transcoder_begins_with_features_that_fire(tmp_path: Path, folder: str) -> None:
    run = training._Run(spec(folder, site="module:transformer.h.1.mlp:in", target="mlp_out.1"), tmp_path)
    batch = next(run.batches())
    assert batch.shape == (64, 32)
    x, y = batch[:, :16], batch[:, 16:]
    assert x.pow(2).sum(1).mean() == pytest.approx(16, rel=0.1) == y.pow(2).sum(1).mean()
    before = x @ run.trainer.sae.W_enc + run.trainer.sae.b_enc
    assert before.mean(0).abs().max() < 0.1 and (before > 0.1).any(0).float().mean() > 0.9


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    lock = training._alone(tmp_path)
    with pytest.raises(Unsuitable, match="another process"):
        training._alone(tmp_path)
    lock.close()
    training._alone(tmp_path).close()


def test_planted_features_are_found(tmp_path: Path, folder: str) -> None:
    """x = f D with 3 of 24 unit rows of D at a time, in 16 dimensions."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(24, 16, generator=generator), dim=1)
    active = torch.rand(40_000, 24, generator=generator) < 1 / 16
    x = 7 * (active * (0.5 + torch.rand(active.shape, generator=generator))) @ rows
    np.save(tmp_path / "x.npy", x.numpy())
    run = training._Run(
        spec(folder, recorded=str(tmp_path / "x.npy"), d_sae=32, k=1.5, samples=256 * 900, batch=256, lr=3e-3), tmp_path
    )
    run.train()
    run.settle()
    training.fold(run.trainer.sae, *run.scales)
    run.trainer.sae.save_inference_model(tmp_path / "sae")
    made = sae.read(tmp_path / "sae")
    f = made.encode(x)
    error = (made.decode(f, x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert error < 0.1 and (f > 0).sum(1).float().mean() == pytest.approx(1.5, abs=0.3)
    near = (F.normalize(made.W_dec, dim=1) @ rows.T).max(0).values
    assert near.median() > 0.99 and near.min() > 0.7


ALL = [(kind, False) for kind in training.ARCHITECTURES] + [(kind, True) for kind in training.TRANSCODERS]


@pytest.mark.parametrize(("architecture", "transcoder"), ALL)
def test_the_scale_is_undone_exactly_and_sae_lens_reads_what_is_saved(
    architecture: str, transcoder: bool, tmp_path: Path
) -> None:
    from sae_lens import SAE

    d_in, d_out = (6, 10) if transcoder else (8, 8)
    given = Spec("", "resid_post.1", TEXTS, "mlp_out.1" if transcoder else None, architecture, d_sae=20, k=4)
    torch.manual_seed(3)
    trained: Any = training._trainable(given, d_in, d_out)
    for weight in trained.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    if hasattr(trained, "topk_threshold"):
        trained.topk_threshold.fill_(0.4)
    x, scale_in, scale_out = torch.randn(50, d_in), 0.25, 3.0 if transcoder else 0.25

    def through(made: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            f = made.encode(x)
            return f, made.decode(f)

    trained.save_inference_model(tmp_path / "scaled")
    f, y = through(SAE.load_from_disk(tmp_path / "scaled"), scale_in * x)
    training.fold(trained, scale_in, scale_out)
    trained.save_inference_model(tmp_path / "folded")
    theirs = SAE.load_from_disk(tmp_path / "folded")
    f_folded, y_folded = through(theirs, x)
    assert (f > 0).any() and not (f > 0).all()
    torch.testing.assert_close(f_folded > 0, f > 0)
    torch.testing.assert_close(scale_out * y_folded, y, atol=2e-6, rtol=1e-5)
    ours = sae.read(tmp_path / "folded")
    torch.testing.assert_close(ours.encode(x), f_folded, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.decode(ours.encode(x), x), y_folded, atol=1e-6, rtol=1e-5)
    assert theirs.cfg.architecture() == (
        training.TRANSCODERS[architecture] if transcoder else theirs.cfg.architecture()
    )


@pytest.mark.parametrize("architecture", training.TRANSCODERS)
def test_a_transcoder_in_training_is_the_slow_reference(architecture: str) -> None:
    from sae_lens.saes.sae import TrainStepInput

    given = Spec("", "resid_post.1", TEXTS, "mlp_out.1", architecture, d_sae=32, k=4, coefficient=0.5)
    torch.manual_seed(0)
    made: Any = training._trainable(given, 6, 10)
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    x, y = torch.randn(20, 6), torch.randn(20, 10)
    dead = torch.arange(32) < 8
    coefficients = {"l1": 0.5} if architecture == "standard" else {}
    output = made.training_forward_pass(TrainStepInput(torch.cat([x, y], 1), coefficients, dead, 0, False))

    norms = made.W_dec.norm(dim=1)
    before = x @ made.W_enc + made.b_enc
    if architecture == "standard":
        f = before.relu()
        y_hat = f @ made.W_dec + made.b_dec
        loss = (y_hat - y).pow(2).sum(1).mean() + 0.5 * (f * norms).sum(1).mean()
    else:
        before = before * norms
        least = before.relu().flatten().sort(descending=True).values[4 * 20 - 1]
        f = torch.where(before >= least, before, 0) / norms
        y_hat = f @ made.W_dec + made.b_dec
        loss = (y_hat - y).pow(2).sum(1).mean()
        strongest = before[:, :8].topk(5)  # half of y's ten dimensions
        revived = torch.zeros(20, 8).scatter(1, strongest.indices, strongest.values) / norms[:8]
        loss = loss + (revived @ made.W_dec[:8] - (y - y_hat).detach()).pow(2).sum(1).mean()
        if architecture.startswith("matryoshka"):
            for width in (2, 8):
                loss = loss + (f[:, :width] @ made.W_dec[:width] + made.b_dec - y).pow(2).sum(1).mean()
    torch.testing.assert_close(output.sae_out, y_hat)
    torch.testing.assert_close(output.loss, loss)


def test_what_is_measured_is_the_slow_reference(tmp_path: Path, folder: str) -> None:
    given = spec(folder, site="module:transformer.h.1.mlp:in", target="mlp_out.1", recorded="whole", context=24)
    torch.manual_seed(0)
    made: Any = training._trainable(given, 16, 16)
    made.topk_threshold.fill_(0.02)
    made.save_inference_model(tmp_path / "sae")
    model = zoo.load(folder)
    assert isinstance(model, LanguageModel)
    found = measure(model, given, tmp_path / "sae")
    read, transcoder = source(model, given, True), sae.read(tmp_path / "sae")
    ys, guesses, active, plain, changed = [], [], [], [], []
    for inputs in read.inputs(range(len(read))):
        for row in inputs:
            row, sites = row[row >= 0], [given.site, "mlp_out.1"]
            with torch.no_grad(), model.record(sites) as seen:
                logits = model(row[None])
            x, y, good = seen[sites[0]][0], seen[sites[1]][0], read.chosen(row)
            y_hat = torch.where(good[:, None], transcoder.decode(transcoder.encode(x), x), y)
            with torch.no_grad(), model.edit({"mlp_out.1": lambda _, new=y_hat: new[None]}):
                edited = model(row[None])
            ys.append(y[good])
            guesses.append(y_hat[good])
            active.append(transcoder.encode(x)[good] > 0)
            for losses, each in ((plain, logits), (changed, edited)):
                losses += (-each[0].log_softmax(-1)[:-1].gather(1, row[1:, None])[:, 0])[good[1:]].tolist()
    y, y_hat, f = torch.cat(ys), torch.cat(guesses), torch.cat(active)
    assert found["measured_on"] == len(y)
    expected = {
        "l0": f.sum() / len(f),
        "dead": 1 - f.any(0).float().mean(),
        "explained_variance": 1 - (y - y_hat).pow(2).sum() / (y - y.mean(0)).pow(2).sum(),
        "ce": np.mean(plain),
        "ce_with_sae": np.mean(changed),
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(float(value), rel=1e-4), key
    assert abs(found["ce"] - found["ce_with_sae"]) > 1e-4


# ------------------------------------------------------------------------------------------- in a process of its own


def test_cancelled_or_killed_it_goes_on_to_the_same_weights(tmp_path: Path, folder: str) -> None:
    given = spec(folder, data=tuple(f"{index} {text}" for index in range(6) for text in TEXTS))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    (straight / "spec.json").write_text(given.json)
    main(straight / "spec.json", straight)
    final = weights(straight / "sae")
    lines = training.curve(straight)
    assert lines[-1]["step"] == given.steps == 60 and lines[-1]["l0"] == 3 and lines[-1]["samples"] == 64 * 60
    written = json.loads((straight / "sae" / "cfg.json").read_text())
    assert written["architecture"] == "jumprelu" and written["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert written["metadata"]["actiscope"]["samples"] == 64 * 60
    sae.read(straight / "sae").check(zoo.load(folder))
    assert not list(straight.glob("checkpoint-*"))

    cancel, stopped = threading.Event(), []

    def report(now: progress.Progress) -> None:
        if now.done >= 1 and not cancel.is_set():
            cancel.set()
            stopped.append(time.monotonic())

    long = spec(folder, samples=64 * 20_000)
    with progress.watch(report, cancel), pytest.raises(progress.Cancelled):
        train(long, tmp_path / "long")
    assert time.monotonic() - stopped[0] < 1
    step = training.curve(tmp_path / "long")[-1]["step"]
    time.sleep(1.2)
    assert training.curve(tmp_path / "long")[-1]["step"] == step  # nothing runs any more
    with pytest.raises(Unsuitable, match="other settings"):
        train(given, tmp_path / "long")

    broken.mkdir()
    run = training._Run(given, broken)
    kept = run.save

    def save() -> None:
        kept()
        if run.trainer.n_training_steps == 21:
            raise KeyboardInterrupt

    run.save = save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    (broken / "checkpoint-28.part").mkdir()  # it was about to save again
    assert [each.name for each in training._checkpoints(broken)] == ["checkpoint-21"]
    made = train(given, broken)
    for key, value in weights(made).items():
        assert torch.equal(value, final[key]), key
    steps = [each["step"] for each in training.curve(broken)]
    assert steps == sorted(set(steps)) and steps[-1] == 60


def test_what_is_wrong_is_said_by_the_other_process(tmp_path: Path, folder: str) -> None:
    with pytest.raises(Unsuitable, match=r"no site resid_post\.7"):
        train(spec(folder, site="resid_post.7"), tmp_path / "wrong")


def test_the_fit_trains_on_photos_once_and_is_kept() -> None:
    model = tiny.vision("resnet")
    images = ImageSet(tuple(tiny.image(seed) for seed in range(6)))
    settings: dict[str, Any] = {"d_sae": 24, "k": 2, "samples": 4096, "lr": 1e-2, "seed": 1}
    name = train_sae(model, images, **settings)
    found = sae.load(name)
    found.check(model)
    assert found.site == Site("stage", 1) and found.metadata["model_name"] == model.name
    assert {"agreement", "ce_with_sae", "explained_variance"} <= found.metadata["actiscope"].keys()
    spec, place = job(model, images, None, None, "batchtopk", 24, 2.0, 4096, 1e-2, 1)
    assert store.folder() in place.parents and training.curve(place)[-1]["step"] == spec.steps
    began = time.monotonic()
    assert train_sae(model, images, **settings) == name and time.monotonic() - began < 1
    with pytest.raises(Unsuitable, match="is trained on images"):
        train_sae(model, TextSet(TEXTS))
