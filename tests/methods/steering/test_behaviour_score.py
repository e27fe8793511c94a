"""On `stories`, where the behaviour is one token: the score is the chance that the model shows it."""

from __future__ import annotations

import pytest

from interp import directions, zoo
from interp.methods import METHODS
from interp.methods.steering._meters import judge, random_like, written
from interp.methods.steering.compare_steering import compare_steering
from interp.model import LanguageModel
from interp.samples import Prompt, Target
from tests.steered import tasks

ANSWERS = {"stories/sentiment": " positive", "stories/refusal": " Sorry"}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_score_is_the_chance_of_the_behaviour_at_every_strength_and_no_push_at_random_has_it(name: str) -> None:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    task = next(each for each in tasks() if each.direction == name)
    answer, by = model.token_index(Target(ANSWERS[name])), judge(model, name, None)
    assert by is not None and by.layer == 3 != task.layer  # nothing is read where it was pushed
    chances = []
    for strength in (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        for prompt in task.judging[:4]:
            sample = Prompt(prompt)
            with METHODS["steer"](model, sample, direction=name, layer=task.layer, strength=strength):
                own = written(model, [sample], 1, 1.0, [0])
            chances.append(float(own.begun.softmax(1)[0, answer]))
            assert float(by.scores(model, sample, own)[0]) == pytest.approx(chances[-1], abs=0.01)
    assert min(chances) < 0.01 and max(chances) > 0.9
    for r in random_like(directions.load(name, model).at(task.layer), 3, 0):
        # three times as long as what turns the answer: broken, which is not the same as turned
        with model.edit({f"resid_post.{task.layer}": lambda h, r=r: h + 3 * r}):
            own = written(model, list(task.judging[:1]), 1, 1.0, [0])
        assert abs(float(by.scores(model, Prompt(task.judging[0]), own)[0])) < 0.3


def test_a_push_turns_a_review_at_little_cost_and_one_at_random_does_not() -> None:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    prompt = Prompt(tasks()[0].judging[0])
    ways = (
        'steer{"direction":"stories/sentiment","layer":1,"strength":1.2}',
        'project_out{"direction":"stories/topic"}',
    )
    table = compare_steering(model, prompt, ways=ways, direction="stories/sentiment", n=4, seeds=2)
    behaviour, cost = (table.values[:, table.columns.index(each)] for each in ("behaviour", "perplexity ratio"))
    assert behaviour[0] < 0.1 and behaviour[1] > 0.9 and behaviour[2] < 0.1
    assert cost[0] == 1 and cost[1] < 1.5
