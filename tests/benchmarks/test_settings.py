"""What is compared, and for how long."""

import pytest

from benchmarks.settings import MODES, ROWS, choose_rows
from kdalign.errors import UsageError


def test_only_some_peers_are_measured_in_the_tables_order():
    found = choose_rows(["trl", "kdalign"], language=True)
    assert {row.peer for row in found} == {"kdalign", "trl"}
    assert found == [row for row in ROWS if row in found]
    chosen = choose_rows(["trainer:tuned", "kdalign:joint"], language=True)
    assert [(row.peer, row.variant) for row in chosen] == [("kdalign", "joint"), ("trainer", "tuned")]
    assert "language" not in {row.group for row in choose_rows(None, language=False)}


def test_an_unknown_peer_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown peer 'textbrwer'; did you mean 'textbrewer'\? \(accepted: kdalign,"):
        choose_rows(["kdalign", "textbrwer"], language=True)


def test_only_the_last_turn_of_a_classifier_is_scored():
    by_group = {row.group: row for row in ROWS}
    full = MODES["full"].with_turns(3)
    assert [bool(full.limits(by_group["joint"], turn).get("accuracy_steps")) for turn in range(3)] == [
        False,
        False,
        True,
    ]
    assert "accuracy_steps" not in full.limits(by_group["embedding"], 2)
    assert MODES["quick"].limits(by_group["language"], 1) is None
