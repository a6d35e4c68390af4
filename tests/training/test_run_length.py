"""Lengths of runs in steps and in tokens, and places in them by hand."""

import pytest

from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place
from kdalign.training.checkpoint import TrainState
from kdalign.training.optimizer import learning_rate
from kdalign.training.run_length import RunLength


def test_a_place_is_a_step_unless_a_budget_of_tokens_decides():
    state = TrainState(step=4, tokens=100)
    assert RunLength(10).place(state) == Place(4, 10, 1)
    assert RunLength(10, 400, 90).place(state) == Place(100, 400, 25)
    assert RunLength(10, 400, 90).place(TrainState()) == Place(0, 400, 40), "by the rows' tokens, before any step"


def test_what_is_left_of_a_budget_of_tokens():
    length = RunLength(10, 400, 15)
    state = TrainState(step=4, tokens=100)
    assert (length.tokens_left(state), length.expected_steps(state)) == (300, 16)
    assert (RunLength(10).tokens_left(state), RunLength(10).expected_steps(state)) == (None, 10)
    assert [length.is_reached(TrainState(step=9, tokens=tokens)) for tokens in (399, 400, 450)] == [False, True, True]
    assert length.tokens_left(TrainState(step=9, tokens=450)) == 0
    assert [length.is_given_up(TrainState(step=step, tokens=399)) for step in (14, 15)] == [False, True]
    assert not length.is_given_up(TrainState(step=15, tokens=400))
    assert not RunLength(10).is_given_up(TrainState(step=10))


def test_progress_and_learning_rate_follow_the_tokens():
    # Steps of 50 tokens: 8 of them are 400, the last begins at 350. 100 tokens of warm-up, then 300 of decay.
    settings = TrainSettings(lr=1.0, scheduler="linear", warmup=0.25)
    places = [Place(done, 400, 50) for done in (0, 50, 100, 250, 350)]
    assert [learning_rate(settings, place) for place in places] == pytest.approx([0.5, 1, 1, 0.5, 1 / 6])
    assert [place.progress for place in places] == pytest.approx([0, 1 / 7, 2 / 7, 5 / 7, 1])
    assert Place(390, 400, 50).progress == 1
