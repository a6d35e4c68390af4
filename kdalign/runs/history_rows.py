"""Which steps of a run have a row in its history."""

HISTORY_STEPS = 10_000
"""Steps that each have a row in the history; of ten times as many every tenth has one, and so on."""


def steps_a_row(step: int) -> int:
    """Return how many steps share a row of the history: 1 up to ``HISTORY_STEPS``, then 10, 100, ...

    So 10^6 steps have 28,000 rows. Each step says by its number alone whether it has one, so that a resumed run has
    the same. Steps with an alarm always have a row, and so has the last one unless training is stopped early.
    """
    steps, end = 1, HISTORY_STEPS
    while step > end:
        steps, end = 10 * steps, 10 * end
    return steps
