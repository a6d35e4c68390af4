"""Steps that have a row in the history."""

from kdalign.runs.history_rows import steps_a_row


def test_a_history_has_a_row_for_every_step_at_first_and_for_fewer_later():
    steps = {1: 1, 10_000: 1, 10_001: 10, 100_000: 10, 100_001: 100, 10**6: 100, 10**6 + 1: 1000}
    assert {step: steps_a_row(step) for step in steps} == steps
    rows = [step for step in range(1, 10**6 + 1) if step % steps_a_row(step) == 0]
    assert len(rows) == 10_000 + 9_000 + 9_000
    assert rows[9_998:10_002] == [9_999, 10_000, 10_010, 10_020]
    assert rows[-1] == 10**6
