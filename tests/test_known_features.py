"""What is known of the language of `stories` is found among its features, by search, and ablating one shows in it."""

from __future__ import annotations

import pytest

from interp import zoo
from tests.known import PROPERTIES, documents, look


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_known_properties_have_features_that_search_finds_and_that_do_what_they_say() -> None:
    model = zoo.load("stories")
    found = look(model, PROPERTIES, documents(model, 2000), others=2, cases=10)
    for each in found:
        print(each)
    told = [each for each in found if each.f1 >= 0.9 and each.place <= 10]
    assert len(told) >= 14
    # an effect of less than .1 in a logit difference is not counted, however many times that of others it is
    assert sum(abs(each.moves) >= 0.1 and each.ratio >= 10 for each in told) >= 10
