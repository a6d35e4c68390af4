"""Epochs: every row once, in an order that seed and epoch decide, for any number of ranks."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data import epochs
from kdalign.data.epoch_order import NEIGHBOURHOOD
from kdalign.data.epochs import (
    epoch_batches,
    fewest_rows,
    in_order,
    micro_batches,
    steps_per_epoch,
    total_steps,
)
from kdalign.recipe import TrainSettings
from support.numbered_rows import numbered, numbers

lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=400).map(np.array)


@given(lengths_of_rows, st.integers(1, 70), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_every_row_comes_once_an_epoch(lengths, size, seed, epoch):
    batches = epoch_batches(lengths, size, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)


@given(st.integers(1, 5000), st.integers(1, 40))
def test_the_number_of_steps_is_known_beforehand(n, size):
    lengths = np.ones(n, dtype=int)
    assert steps_per_epoch(lengths, size) == len(epoch_batches(lengths, size, 0, 0))


@given(st.integers(1, 40), st.integers(1, 5), st.none() | st.integers(1, 12))
def test_the_fewest_rows_are_those_of_the_smallest_micro_batch_of_all_ranks(rows, ranks, size):
    data = numbered([1] * rows)
    shares = [micro_batches(data, range(rows), rank, ranks, size) for rank in range(ranks)]
    assert fewest_rows(rows, ranks, size) == min(len(share.counted) for each in shares for share in each)


@given(lengths_of_rows, st.integers(40, 3000), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_batches_by_tokens_hold_every_row_once_and_about_as_many_tokens_each(lengths, tokens, seed, epoch):
    batches = epoch_batches(lengths, 64, seed, epoch, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == steps_per_epoch(lengths, 64, tokens) == max(1, lengths.sum() // tokens)
    share = lengths.sum() / len(batches)  # between the tokens asked for and twice as many
    assert all(abs(lengths[batch].sum() - share) <= lengths.max() for batch in batches)


def test_batches_by_tokens_hold_rows_of_similar_length_where_neighbourhoods_meet_too():
    lengths = np.random.default_rng(0).integers(1, 101, 5000)  # some six neighbourhoods
    batches = epoch_batches(lengths, 1, 0, 0, 200)
    assert max(np.ptp(lengths[batch]) for batch in batches) < 25


def test_batches_by_tokens_give_short_rows_no_more_steps_than_their_tokens():
    lengths = np.repeat([4, 100], [10_000, 400])  # as many tokens of each
    means = [lengths[batch].mean() for batch in epoch_batches(lengths, 64, 0, 0, 2000)]
    assert len(means) == 40
    assert sum(mean == 4 for mean in means) == sum(mean == 100 for mean in means) >= 18
    by_rows = [lengths[batch].mean() for batch in epoch_batches(lengths, 64, 0, 0)]
    assert sum(mean == 4 for mean in by_rows) > 20 * sum(mean == 100 for mean in by_rows)


def digest(batches):
    return hashlib.sha256("".join(map(repr, batches)).encode()).hexdigest()[:16]


def test_the_batches_of_up_to_a_million_rows_are_those_of_earlier_versions():
    lengths = np.random.default_rng(7).integers(3, 60, 1_000_000)
    assert digest(epoch_batches(lengths[:100_000], 32, 5, 2)) == "c0edb5d7c272cd38"
    assert digest(epoch_batches(lengths[:100_000], 32, 5, 2, 900)) == "6fa544f3666caa9c"
    assert digest(epoch_batches(lengths, 32, 5, 2)) == "76b5c4a5dafeea00"


@pytest.mark.parametrize(
    ("n", "size", "steps"),
    [(1, 64, 1), (64, 64, 1), (65, 64, 2), (67_349, 64, 1053), (3200, 64, 50), (3201, 64, 51), (100, 1, 100)],
)
def test_the_number_of_steps_by_hand(n, size, steps):
    assert steps_per_epoch(np.ones(n, dtype=int), size) == steps


def test_no_batch_but_the_last_of_the_sort_is_short():
    sizes = [len(batch) for batch in epoch_batches(np.arange(1000), 64, 0, 0)]
    assert sorted(sizes) == [1000 - 15 * 64] + [64] * 15


LENGTHS = np.random.default_rng(0).integers(3, 60, 500)


def test_seed_and_epoch_decide_the_order_and_nothing_else():
    torch.manual_seed(1)
    np.random.seed(1)
    first = epoch_batches(LENGTHS, 16, 3, 4)
    torch.manual_seed(2)
    np.random.seed(2)
    assert epoch_batches(LENGTHS, 16, 3, 4) == first


def test_other_seeds_and_other_epochs_have_other_orders():
    orders = [epoch_batches(LENGTHS, 16, seed, epoch) for seed in range(5) for epoch in range(5)]
    assert all(orders[i] != orders[j] for i in range(25) for j in range(i))
    together = [{frozenset(batch) for batch in order} for order in orders]
    assert all(together[i] != together[j] for i in range(25) for j in range(i)), "the rows of a batch change as well"


def test_batches_do_not_come_sorted_by_length():
    means = [LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, 16, 0, 0)]
    assert means != sorted(means)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.7


# How many of SST-2's 67,349 training rows have 3, 4, 5, ... tokens in BERT's uncased WordPiece, special ones too.
SST2 = (
    *(1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515, 1373, 1285),
    *(1132, 1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400, 337, 304, 286, 242, 195, 203, 192),
    *(155, 148, 130, 89, 82, 85, 73, 55, 42, 50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2),
)


def test_at_batch_64_at_least_95_per_cent_of_sst2s_tokens_are_real():
    lengths = np.repeat(np.arange(3, 3 + len(SST2)), SST2)
    assert len(lengths) == 67_349
    for epoch in range(3):
        batches = epoch_batches(lengths, 64, 0, epoch)
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        assert lengths.sum() / padded >= 0.95


def test_rows_are_mixed_beyond_their_neighbourhood():
    # Of equal lengths, a batch is a random draw: rows of the file's first half and second half meet.
    n = 64 * NEIGHBOURHOOD * 3
    halves = [np.mean(np.array(batch) < n / 2) for batch in epoch_batches(np.ones(n, dtype=int), 64, 0, 0)]
    assert 0.1 < min(halves)
    assert max(halves) < 0.9


@given(st.integers(1, 70), st.integers(1, 8), st.none() | st.integers(1, 20))
def test_ranks_and_micro_batches_together_are_the_batch_each_row_once(n, ranks, micro_batch):
    data = numbered(np.arange(1, n + 1))
    rows = np.random.default_rng(n).permutation(n).tolist()
    shares = [micro_batches(data, rows, rank, ranks, micro_batch) for rank in range(ranks)]
    assert sorted(row for share in shares for batch in share for row in numbers(batch)) == list(range(n))
    assert len({len(share) for share in shares}) == 1, "every rank has the same number of micro-batches"
    for batch in (batch for share in shares for batch in share):
        assert len(batch.counted) <= (micro_batch or n)
        assert batch.counted.all() or not batch.counted.any()
        assert batch.labels[batch.counted].tolist() == numbers(batch)
    assert micro_batch is not None or len(shares[0]) == 1


@pytest.mark.parametrize(
    ("n", "ranks", "micro_batch", "count"), [(8, 1, None, 1), (8, 1, 3, 3), (8, 2, 2, 2), (8, 2, 3, 2), (3, 4, None, 1)]
)
def test_the_number_of_micro_batches_by_hand(n, ranks, micro_batch, count):
    data = numbered([4] * n)
    assert [len(micro_batches(data, range(n), rank, ranks, micro_batch)) for rank in range(ranks)] == [count] * ranks


def test_ranks_get_rows_of_like_length():
    data = numbered(range(1, 33))
    work = [sum(b.inputs["input_ids"].numel() for b in micro_batches(data, range(32), rank, 4, 4)) for rank in range(4)]
    assert max(work) < 1.2 * min(work)


def test_a_stand_in_has_no_real_tokens():
    (batch,) = micro_batches(numbered([3, 4]), [0, 1], rank=2, ranks=3, micro_batch=None)
    assert batch.counted.tolist() == [False]
    assert batch.inputs["attention_mask"].sum() == 3, "the model still sees a row"
    assert batch.tokens.sum() == 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 20))
def test_a_pass_in_order_gives_every_row_once_with_its_number(lengths, size):
    data, seen = numbered(lengths), []
    for rows, batch in in_order(data, size):
        assert numbers(batch) == rows
        assert len(rows) <= size
        seen += rows
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("most", [1, 10**6])
@given(st.lists(st.integers(1, 9), min_size=2, max_size=30), st.integers(1, 5), st.integers(1, 2000))
def test_a_budget_of_tokens_is_reached_by_the_last_of_its_steps(most, lengths, size, tokens):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(epochs, "MOST_PERMUTED", most)
        steps = total_steps(TrainSettings(batch_size=size, max_tokens=tokens), numbered(lengths))
        trained, epoch = [], 0
        while len(trained) < steps:
            trained += [sum(lengths[row] for row in rows) for rows in epoch_batches(np.array(lengths), size, 0, epoch)]
            epoch += 1
    assert sum(trained[:steps]) >= tokens > sum(trained[: steps - 1])


def test_a_budget_of_tokens_ends_with_the_step_that_reaches_it():
    # Four rows of ten tokens, two a step: 20 after one step, 40 after two, 60 after three, in the second epoch.
    encoded = numbered([10, 10, 10, 10])
    for tokens, steps in ((1, 1), (20, 1), (21, 2), (40, 2), (41, 3)):
        assert total_steps(TrainSettings(batch_size=2, max_tokens=tokens), encoded) == steps
