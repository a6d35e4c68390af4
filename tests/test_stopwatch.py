"""Where a run's time goes."""

import pytest

from kdalign import stopwatch
from kdalign.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows what it is set to."""
    hands = [10.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: hands[0])
    return hands


def test_a_phase_lasts_until_the_next_begins_and_may_go_on_later(clock):
    watch = Stopwatch("loading")
    clock[0] = 12.0
    watch.begin("training")
    clock[0] = 17.0
    watch.begin("loading")
    clock[0] = 17.5
    assert watch.phases == {"loading": 2.5, "training": 5.0}
    assert watch.total == 7.5


def test_the_longest_phases_are_named_first_and_those_that_took_no_time_not_at_all(clock):
    watch = Stopwatch("loading")
    clock[0] = 12.25
    watch.begin("exporting")
    clock[0] = 12.26
    watch.begin("training")
    clock[0] = 20.0
    assert str(watch) == "10.0 s: training 7.7, loading 2.2"


def test_a_phase_may_have_begun_before_its_watch(clock):
    watch = Stopwatch("preparing", since=4.0)
    watch.begin("loading")
    clock[0] = 12.0
    assert watch.phases == {"preparing": 6.0, "loading": 2.0}
    watch.restart("preparing")
    clock[0] = 13.0
    assert watch.phases == {"preparing": 1.0}
