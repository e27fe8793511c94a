"""Planted motifs are where they are said to be, the network finds them, and the methods rank as in the paper."""

import numpy as np
import pytest
import torch

from interp.paper import motifs
from interp.paper.attributions import METHODS


def test_motifs_are_planted_where_they_are_said_to_be() -> None:
    found = motifs.simulate(300, 3, (2, 1))
    for name, weights in motifs.MOTIFS.items():
        length = len(weights)
        assert (found.inside[name].sum(1) == length * (2 if name == "GATA" else 1)).all()
        core = "".join(motifs.LETTERS[i] for i in weights.argmax(1))[1:-1]
        rows, starts = np.nonzero(np.diff(np.pad(found.inside[name], ((0, 0), (1, 0))).astype(int), axis=1) == 1)
        spans = zip(rows, starts, strict=True)
        texts = ["".join(motifs.LETTERS[i] for i in found.letters[r, s + 1 : s + length - 1]) for r, s in spans]
        assert np.mean([text == core for text in texts]) > 0.6  # 0.95 for each of six letters
    assert not (found.inside["GATA"] & found.inside["TAL"]).any()


def test_the_same_seed_gives_the_same_sequences() -> None:
    one, two = motifs.simulate(20, 5), motifs.simulate(20, 5)
    assert (one.letters == two.letters).all() and (one.labels == two.labels).all()
    assert (one.letters != motifs.simulate(20, 6).letters).any()


def test_the_area_under_the_roc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in values[truth] for b in values[~truth]]
    assert motifs.auc(values, truth) == pytest.approx(np.mean(pairs))


def test_the_network_knows_sequences_it_has_never_seen() -> None:
    fresh = motifs.simulate(1000, 77)
    with torch.no_grad():
        found = motifs.trained()(fresh.x).numpy()
    for at, name in enumerate(motifs.OUTPUTS):
        assert motifs.auc(found[:, at], fresh.labels[:, at]) > 0.94, name


def test_complete_methods_add_up_on_every_sequence() -> None:
    sequences = motifs.simulate(8, 9)
    x = sequences.x
    x0 = motifs.reference(x)
    difference = (motifs.trained()(x) - motifs.trained()(x0))[:, 2]
    for name in ("DeepLIFT, rescale", "DeepLIFT, reveal cancel", "DeepLIFT, genomics default"):
        total = METHODS[name](motifs.trained(), x, x0, 2).sum((1, 2))
        torch.testing.assert_close(total, difference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_methods_rank_as_in_the_paper(seed: int) -> None:
    found = motifs.roc(60, seed)
    against = found["GATA, a near miss, speaks against TAL"]
    missing = found["TAL speaks for both, though GATA is missing"]
    out = found["GATA rules out TAL without GATA"]
    for name in ("DeepLIFT, reveal cancel", "DeepLIFT, genomics default", "DeepLIFT, rescale"):
        assert against[name] > against["Gradient x input"] + 0.05
        assert against[name] > against["Guided Backprop x input"] + 0.2
        assert missing[name] > missing["Gradient x input"] + 0.1
        assert out[name] > 0.8 > 0.5 > out["Guided Backprop x input"]
    assert against["DeepLIFT, genomics default"] > against["DeepLIFT, rescale"] + 0.1
    assert against["DeepLIFT, reveal cancel"] > against["DeepLIFT, rescale"] + 0.03


def test_spans_say_where_the_motifs_of_a_sequence_lie() -> None:
    one = motifs.simulate(3, 4, (2, 1)).one(2)
    assert sorted(name for _, _, name in one.spans) == ["GATA", "GATA", "TAL"] and len(one.text) == motifs.LENGTH
    for start, end, name in one.spans:
        assert one.inside[name][0, start:end].all() and end - start == len(motifs.MOTIFS[name])
