"""What `stories` carries and makes anew, as its language explains it, and that replacing a layer shows it."""

from __future__ import annotations

import numpy as np
import pytest

from interp import transport, zoo
from interp.transport import Operators
from tests.transported import costs, counts, examples


@pytest.fixture(scope="module")
def operators() -> Operators:
    return transport.need(zoo.load("stories"))


def test_all_pairs_of_layers_are_judged(operators: Operators) -> None:
    found = list(counts(operators))
    assert {(each.source, each.target) for each in found} == {
        (operators.names[a], operators.names[b]) for a, b in operators.pairs
    }
    assert operators.names == ("embed", "0", "1", "2", "3") and operators.tokens > 100 * operators.width
    for each in found:
        assert each.judged > 500 and each.carried + each.made > 0.85 * each.judged
    by_pair = {(each.source, each.target): each.carried / each.judged for each in found}
    # what is nearer is carried in a larger share
    assert by_pair["embed", "0"] > by_pair["embed", "1"] > by_pair["embed", "2"] > by_pair["embed", "3"]
    assert by_pair["1", "2"] > by_pair["0", "2"] and by_pair["2", "3"] > by_pair["1", "3"] > by_pair["0", "3"]


def test_a_name_is_carried_and_an_indirect_object_made_as_the_language_explains(operators: Operators) -> None:
    found = {each.name: each for each in examples(zoo.load("stories"), operators, 1500)}  # type: ignore[arg-type]
    for name in ("Mary", "John"):
        assert found[f"the name {name}"].verdict == "carried from the embedding"
    for country in ("Germany", "Ireland"):
        assert found[f"the country {country}"].verdict == "carried from the embedding"
        assert found[f"the country {country}"].f1 > 0.7
    # that a name is still to come takes the verb before, which attention brings
    assert found["the indirect object comes next"].verdict == "made in layer 1, carried since"
    assert (
        found["the indirect object comes next"].reads["0"][2] < 0.5 and found["the indirect object comes next"].f1 > 0.9
    )
    assert found["the second name of two"].verdict == "made in layer 1"
    assert found["a plural subject"].verdict == "made in layer 1, carried since"
    assert found["a refusal comes next"].verdict == "made in layer 2, carried since"


@pytest.mark.timeout(600)
def test_the_transport_costs_less_than_identity_mean_and_a_random_map_at_every_pair(operators: Operators) -> None:
    found = costs(zoo.load("stories"), operators, 25)  # type: ignore[arg-type]
    assert len(found) == len(operators.pairs) == 10
    for pair, table in found.items():
        unchanged, carried, identity, mean, drawn = table.values[:, 0]
        assert unchanged < carried < min(identity, mean, drawn), pair
        assert np.argmin(table.values[1:, 3]) == 0, pair
