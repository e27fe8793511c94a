"""min(x1, x2): what the paper says of it, and that every complete method adds up."""

import pytest

from interp.paper.minimum import moves, shares


def test_reveal_cancel_sees_both_and_rescale_one() -> None:
    found = shares(3.0, 2.0)
    assert found["DeepLIFT, reveal cancel"] == pytest.approx((1, 1))
    assert found["DeepLIFT, rescale"] == pytest.approx((0, 2))


@pytest.mark.parametrize(("one", "two"), [(3.0, 2.0), (1.5, 4.0), (0.5, 0.5), (0.0, 2.0)])
def test_shares_add_up_to_the_minimum(one: float, two: float) -> None:
    for name, pair in shares(one, two).items():
        if not name.startswith("Guided"):
            assert sum(pair) == pytest.approx(min(one, two), abs=1e-9), name


@pytest.mark.parametrize(("one", "two"), [(3.0, 2.0), (2.0, 3.0), (0.0, 4.0)])
def test_what_the_page_says_of_the_relu_is_what_reveal_cancel_does(one: float, two: float) -> None:
    rise, fall = moves(one, two)
    assert shares(one, two)["DeepLIFT, reveal cancel"] == pytest.approx((one - rise, fall))
