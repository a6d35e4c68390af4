"""Texts in one array of bytes behave as tuples of strings do."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data import text_rows
from kdalign.data.tasks import Examples
from kdalign.data.text_rows import TextRows, holds_zeros, longest_rows

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=12)


def column(texts):
    written = [text.encode() + b"\0" for text in texts]
    starts = np.cumsum([0, *map(len, written)])
    return TextRows(np.frombuffer(b"".join(written), dtype=np.uint8), starts)


@given(TEXTS)
def test_texts_are_those_that_were_given(texts):
    rows = column(texts)
    assert list(rows) == texts
    assert rows == texts
    assert [rows[number] for number in range(-len(texts), len(texts))] == texts * 2
    assert rows[1:4] == texts[1:4]
    assert rows[::-2] == texts[::-2]
    assert rows != [*texts, "one more"]


@given(TEXTS, st.data())
def test_rows_are_taken_from_rows_that_were_taken(texts, data):
    def draw(n):
        return data.draw(st.lists(st.integers(0, n - 1), max_size=8)) if n else []

    numbers = draw(len(texts))
    again = draw(len(numbers))
    rows = column(texts).take(numbers)
    assert rows == [texts[number] for number in numbers]
    assert rows.take(again) == [texts[numbers[number]] for number in again]
    middle = range(len(texts) // 3, len(texts) // 2)
    assert column(texts).take(middle) == texts[middle.start : middle.stop]
    assert column(texts).take(middle).take(range(1)) == texts[middle.start : middle.stop][:1]


@given(TEXTS.filter(bool))
def test_examples_have_the_fingerprint_of_the_same_texts_in_memory(texts):
    labels = np.arange(len(texts))
    for rows in (range(len(texts)), range(len(texts) // 2), [len(texts) - 1, 0]):
        mapped, held = (Examples("train", (one,), labels).take(rows) for one in (column(texts), tuple(texts)))
        assert mapped.fingerprint() == held.fingerprint()
        assert holds_zeros(mapped.texts[0]) == holds_zeros(held.texts[0]) == ("\0" in "".join(held.texts[0]))


def test_a_pass_over_more_than_is_read_at_once_gives_all(monkeypatch):
    monkeypatch.setattr(text_rows, "CHUNK", 3)
    monkeypatch.setattr(text_rows, "_BLOCK", 5)
    texts = [f"text {number}" for number in range(10)]
    assert list(column(texts)) == texts
    digest = hashlib.sha256()
    column(texts).update(digest)
    assert digest.digest() == hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).digest()


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 4))
def test_the_longest_rows_are_found_in_any_parts(texts, n, part):
    expected = sorted(sorted(range(len(texts)), key=lambda row: -2 * len(texts[row]))[:n])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "_SIZED", part)
        assert longest_rows([texts, texts], n) == longest_rows([column(texts), texts], n) == expected
        picked = list(range(len(texts)))[::-1]
        assert [picked[row] for row in longest_rows([column(texts).take(picked)], 1)] == [
            max(picked, key=lambda row: (len(texts[row]), row))
        ]
