"""Erasing takes what it is told to take, and the methods rank as in the paper."""

import numpy as np
import torch

from interp.paper import digits


def test_the_network_reads_digits_it_was_not_trained_on() -> None:
    images, labels = digits.held_out()
    with torch.no_grad():
        assert (digits.trained()(images).argmax(1).numpy() == labels).mean() >= 0.97


def test_only_the_highest_positive_scores_are_erased() -> None:
    images = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    scores = torch.arange(64, dtype=torch.float64).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    scores[1] -= 60  # four positive scores are left: 0 does not count
    gone = digits.erased(images, scores) == 0
    assert gone[0].flatten().nonzero()[:, 0].tolist() == list(range(52, 64))
    assert gone[1].flatten().nonzero()[:, 0].tolist() == [61, 62, 63]


def test_log_odds_are_those_of_the_softmax() -> None:
    images, _ = digits.held_out()
    p = digits.trained()(images[:5]).softmax(1)
    torch.testing.assert_close(digits.log_odds(images[:5], 8, 3), (p[:, 8] / p[:, 3]).log(), rtol=1e-6, atol=1e-6)


def test_the_methods_rank_as_in_the_paper() -> None:
    found = digits.changes()
    mean = {name: np.mean([pair[name] for pair in found.values()]) for name in next(iter(found.values()))}
    best = max(mean[name] for name in mean if name.startswith("DeepLIFT"))
    assert best > mean["Integrated Gradients"] and best > mean["Gradient x input"]
    assert best > mean["Guided Backprop x input"] + 0.5
    assert all(value > 2 * mean["Random ink"] for name, value in mean.items() if name != "Random ink")
