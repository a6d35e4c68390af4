"""Rows of tokens in one array behave as lists of lists do, in 4 bytes a token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data.token_rows import TokenRows, hash_columns

rows_of_tokens = st.lists(st.lists(st.integers(-100, 2**31 - 1), max_size=6), max_size=12)


@given(rows_of_tokens)
def test_rows_are_those_that_were_given(rows):
    column = TokenRows.of(rows)
    assert list(column) == rows
    assert column == rows
    assert len(column) == len(rows)
    assert column.lengths.tolist() == [len(row) for row in rows]
    assert [column[number] for number in range(len(rows))] == rows
    assert column[1:4] == rows[1:4]


@given(rows_of_tokens, st.data())
def test_taking_and_joining_rows_is_what_it_is_for_lists(rows, data):
    column = TokenRows.of(rows)
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    assert column.take(numbers) == [rows[number] for number in numbers]
    assert TokenRows.concatenated([column, column.take(numbers), column]) == [
        *rows,
        *(rows[number] for number in numbers),
        *rows,
    ]


def test_more_rows_than_are_copied_at_a_time_keep_their_order():
    rows = [[number] * (number % 3) for number in range(10_000)]
    assert TokenRows.of(iter(rows)) == rows


def test_a_column_that_is_one_already_is_not_copied():
    column = TokenRows.of([[1, 2], [3]])
    assert TokenRows.of(column) is column
    assert np.shares_memory(column.array(0), column.values)


def test_a_token_takes_four_bytes_and_a_row_eight_more():
    column = TokenRows.of([[1] * 20] * 1000)
    assert (column.values.nbytes, column.starts.nbytes) == (80_000, 8_008)


def test_what_does_not_fit_is_an_error_not_another_number():
    with pytest.raises(OverflowError):
        TokenRows.of([[2**31]])
    with pytest.raises(IndexError):
        TokenRows.of([[1]])[1]
    assert TokenRows.of([[1], [2]])[-1] == [2]


def test_a_hash_tells_rows_from_their_neighbours_and_columns_by_name():
    def hashed(**columns):
        return hash_columns({name: TokenRows.of(rows) for name, rows in columns.items()})

    one = hashed(a=[[1, 2], [3]])
    assert one == hashed(a=[[1, 2], [3]])
    assert len({one, hashed(a=[[1], [2, 3]]), hashed(b=[[1, 2], [3]]), hashed(a=[[1, 2], [3], []])}) == 4
