"""Statistics of turns, by hand."""

import pytest

from benchmarks.machine import Moment, share_of_peak
from benchmarks.turns import Spread, busy, measure, ratio, share


def turn(samples, seconds, **more):
    return {
        "samples": samples, "tokens": 10 * samples, "seconds": seconds, "cpu_seconds": 2 * seconds, "gib": 1.5,
        "precision": "bf16", "other_cores": 0.0, **more,
    }  # fmt: skip


def test_a_row_is_the_median_of_its_turns_with_the_least_and_the_largest():
    turns = [turn(60, 2), turn(60, 1), turn(60, 3)]
    assert measure(turns, "samples_per_second") == Spread(30.0, 20.0, 60.0, 3)
    assert measure(turns, "tokens_per_second") == Spread(300.0, 200.0, 600.0, 3)
    assert measure(turns, "cpu_seconds") == Spread(pytest.approx(1000 * 4 / 60), 1000 * 2 / 60, 1000 * 6 / 60, 3)
    assert measure([], "gib") is None


def test_a_ratio_compares_the_same_turns_and_leaves_out_those_that_one_lacks():
    ours, theirs = {0: turn(10, 1), 2: turn(40, 1)}, {0: turn(20, 1), 1: turn(1, 1), 2: turn(10, 1)}
    assert ratio(ours, theirs) == Spread(2.25, 0.5, 4.0, 2)


def test_the_share_of_the_peak_counts_real_tokens_in_the_precision_of_the_turn():
    # 600 tokens a second of 50 operations each, of 60,000 operations a second in bfloat16
    assert share([turn(60, 1)], 50.0, {"fp32": 1.0, "bf16": 60_000.0}) == Spread(0.5, 0.5, 0.5, 1)
    assert share_of_peak(2.0, 3.0, 24.0) == 0.25


def test_a_turn_is_busy_if_other_processes_keep_more_than_a_quarter_of_a_core():
    begun, ended = Moment(wall=10, own=3, all=100), Moment(wall=20, own=11, all=111)
    assert begun.other_cores(ended) == pytest.approx(0.3)  # 11 - 8 seconds of others in 10
    assert busy({0: turn(1, 1, other_cores=0.25), 2: turn(1, 1, other_cores=0.26)}) == [3]
