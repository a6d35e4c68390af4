"""Epochs of very many rows: every row once, by seed and epoch, found from the number of a batch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data import epoch_order
from kdalign.data.epoch_order import MOST_PERMUTED, NeighbourhoodBatches, Permutation, sample_numbers
from kdalign.data.epochs import epoch_batches, steps_per_epoch

seeds = st.integers(0, 2**31 - 1)


@given(st.integers(1, 5000), seeds, st.integers(0, 100))
def test_a_permutation_gives_every_number_once_and_the_same_for_the_same_seeds(n, seed, epoch):
    found = Permutation(n, seed, epoch)(np.arange(n))
    assert sorted(found) == list(range(n))
    one_by_one = [Permutation(n, seed, epoch)(np.array([number]))[0] for number in (0, n // 2, n - 1)]
    assert one_by_one == [found[0], found[n // 2], found[-1]]


def test_a_permutation_is_as_even_as_chance():
    # Places of the first of 6 numbers over 6,000 seeds: 1,000 each, standard deviation 29. And neighbours part ways.
    counts = np.bincount([Permutation(6, seed)(np.array([0]))[0] for seed in range(6000)], minlength=6)
    assert abs(counts - 1000).max() < 5 * 29
    found = Permutation(100_000, 1)(np.arange(100_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(100_000)
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 5 / np.sqrt(100_000)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=900).map(np.array), st.integers(1, 4), seeds)
def test_every_row_comes_once_an_epoch_in_batches_of_the_size(lengths, size, seed):
    batches = NeighbourhoodBatches(lengths, size, seed, 3)
    assert len(batches) == steps_per_epoch(lengths, size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) != size for batch in batches) <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=900).map(np.array), st.integers(40, 200), seeds)
def test_batches_by_tokens_hold_every_row_once_an_epoch_and_none_is_empty(lengths, tokens, seed):
    steps = steps_per_epoch(lengths, 1, tokens)
    batches = NeighbourhoodBatches(lengths, 1, seed, 3, tokens, steps)
    assert len(list(batches)) == len(batches) == steps
    assert all(batches)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


LENGTHS = np.random.default_rng(0).integers(3, 60, 20_000)


@pytest.mark.parametrize("tokens", [None, 600])
def test_a_batch_is_found_from_its_number_alone_and_seed_and_epoch_decide_it(tokens):
    def batches(seed=0, epoch=0):
        return NeighbourhoodBatches(LENGTHS, 16, seed, epoch, tokens, steps_per_epoch(LENGTHS, 16, tokens))

    whole, last = list(batches()), batches()
    assert [last[number] for number in (1000, 3, 700, -1)] == [whole[number] for number in (1000, 3, 700, -1)]
    assert len({tuple(map(tuple, batches(seed, epoch))) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("tokens", [None, 600])
def test_rows_of_a_batch_are_of_similar_length_and_from_all_over_the_file(tokens):
    batches = NeighbourhoodBatches(LENGTHS, 16, 0, 0, tokens, steps_per_epoch(LENGTHS, 16, tokens))
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    assert LENGTHS.sum() / padded > 0.97
    means = [LENGTHS[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.1, "batches of a length are spread over the epoch"
    assert abs(np.mean([np.mean(batch) for batch in list(batches)[:200]]) - 10_000) < 5 * 20_000 / np.sqrt(12 * 3200)
    if tokens is not None:
        sums = np.array([LENGTHS[batch].sum() for batch in batches])
        assert abs(sums / sums.mean() - 1).max() < 0.2


def test_an_epoch_of_very_many_rows_reads_the_lengths_of_one_neighbourhood():
    class Lengths(np.ndarray):
        def __getitem__(self, key):
            read.append(len(key))
            return super().__getitem__(key)

    read, lengths = [], np.ones(MOST_PERMUTED + 1, dtype=np.int32).view(Lengths)
    batches = epoch_batches(lengths, 32, 0, 0)
    assert isinstance(batches, NeighbourhoodBatches)
    assert len(batches[20_000]) == 32
    assert sum(read) == 32 * epoch_order.NEIGHBOURHOOD


@given(st.integers(1, 100), st.integers(1, 120), seeds, st.booleans())
def test_a_sample_has_no_number_twice(n, count, seed, large):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(epoch_order, "MOST_PERMUTED", 0 if large else n)
        found = sample_numbers([seed], n, count)
    assert len(set(found.tolist())) == len(found) == min(n, count)
    assert set(found.tolist()) <= set(range(n))
