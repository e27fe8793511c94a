"""README says what the code has."""

import re

from interp import catalogue
from interp.methods import METHODS


def test_the_readme_holds_the_catalogue_as_the_methods_give_it() -> None:
    text = catalogue.README.read_text()
    assert catalogue.written(text) == text, "run `make catalogue`"


def test_every_method_stands_in_it_once() -> None:
    keys = re.findall(r"\| `(\w+)` \|", catalogue.table())
    assert sorted(keys) == sorted(METHODS)


def test_every_family_says_what_it_answers() -> None:
    for title, question in catalogue.families().values():
        assert title and question.endswith("?")
