"""The times that the CAMs promise, as ratios within one run on one thread: `make bench`."""

import pytest

from interp.methods import METHODS
from tests.benchmarks.clock import ratios
from tests.benchmarks.speed import ONE_PASS, Subject, score_cam_overhead

pytestmark = pytest.mark.bench
ROUNDS = 15


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def test_each_gradient_cam_takes_little_more_than_forward_and_gradient(subject):
    floor = {"floor": subject.floors()["forward + gradient at the last stage"]}
    taken = ratios(floor | {key: subject.fresh(key) for key in (*ONE_PASS, "cam", "finer_cam", "cf_cam")}, ROUNDS)
    print("\n", {key: round(value, 3) for key, value in taken.items()})
    # CF-CAM clusters its channels besides, which is no forward and no gradient
    assert all(value <= 1.15 for key, value in taken.items() if key != "cf_cam")


def test_six_one_after_another_share_one_pass(subject):
    floor = {"floor": subject.floors()["forward + gradient at the last stage"]}
    taken = ratios(floor | {"six": subject.fresh(*ONE_PASS)}, ROUNDS)
    print("\n", taken)
    assert taken["six"] <= 1.3


def test_ablation_cam_stays_within_five_forwards(subject):
    forward = {"forward": subject.floors()["forward"]}
    taken = ratios(forward | {"ablation": subject.fresh("ablation_cam")}, ROUNDS)
    print("\n", taken)
    assert taken["ablation"] <= 5


def test_switching_the_method_on_an_analysed_image_runs_no_forward(subject):
    subject.fresh("grad_cam")()
    for key in (*ONE_PASS, "cam", "cf_cam"):
        found = METHODS[key](subject.model, subject.sample, target=1)
        assert (found.forwards, found.backwards) == (0, 0), key


def test_score_cam_is_as_fast_as_its_forwards():
    overhead, live = score_cam_overhead(5)
    print(f"\n{overhead:.3f} x ({live} live channels + 1) of the fastest forward found")
    assert overhead <= 1.05
