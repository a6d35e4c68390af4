"""Columns that are shifted against each other, told by a teacher that knows what belongs together."""

import numpy as np
import pytest

from kdalign.data.tasks import ClassificationTask, DataSource, Examples
from kdalign.distillation.row_shifts import (
    few_blocks,
    find_shifted_labels,
    find_shifted_targets,
    neighbouring_rows,
    with_offsets,
)
from kdalign.runs.prediction_table import Predictions, TokenPredictions
from support.dual_setting import word_piece
from support.tiny import WORDS, sentences


def pairs(n=200, shift=0, after=0):
    """Sources of numbered words with their targets, moved by ``shift`` rows from row ``after`` on."""
    sources = [f"{WORDS[row % 37]} {WORDS[row // 37]}" for row in range(n)]
    targets = [*sources[:after], *np.roll(sources[after:], shift).tolist()]
    return Examples("train", (tuple(sources), tuple(targets)), None)


def by_overlap(examples):
    """A teacher to which a target is the likelier, the more of its words are at their places in the source."""
    rows = zip(*examples.texts, strict=True)
    nll = [sum(a != b for a, b in zip(x.split(), y.split(), strict=True)) for x, y in rows]
    return TokenPredictions(np.array(nll, dtype=float), np.full(len(nll), 2), np.zeros(2 * len(nll)))


def blind(examples):
    """A teacher that does not read its source."""
    generator = np.random.default_rng(len(examples.texts[0][0]))
    return TokenPredictions(generator.random(len(examples)), np.full(len(examples), 2), np.zeros(2 * len(examples)))


def test_blocks_are_rows_that_follow_one_another_from_the_first_to_the_last():
    blocks = neighbouring_rows(pairs())
    assert [len(block) for block in blocks] == [8] * 8
    assert blocks[0].texts[0] == pairs().texts[0][:8]
    assert blocks[-1].texts[0] == pairs().texts[0][-8:]
    assert [len(block) for block in neighbouring_rows(pairs(20))] == [8, 8]
    assert [len(block) for block in neighbouring_rows(pairs(5))] == [5]


def test_a_column_is_taken_from_the_rows_before_or_after_within_its_block():
    block = Examples("train", (tuple("abcd"), tuple("ABCD")), np.arange(4))
    shifted = with_offsets([block, block], (0, 1), -1)
    assert shifted.texts == (("b", "c") * 2, ("C", "D") * 2)
    assert shifted.labels.tolist() == [0, 1, 0, 1]


def test_long_texts_leave_fewer_blocks_and_one_at_least():
    blocks = neighbouring_rows(Examples("train", (tuple(["good film"] * 80),), None))
    assert len(few_blocks(blocks, word_piece(), 512)) == 8
    blocks = neighbouring_rows(Examples("train", (tuple(["good film " * 200] * 80),), None))
    assert len(few_blocks(blocks, word_piece(), 512)) == 1
    assert len(few_blocks(blocks, word_piece(), 64)) == 8, "of which so many tokens are read"
    assert few_blocks(neighbouring_rows(pairs(2)), word_piece(), 64) == []


@pytest.mark.parametrize(("shift", "neighbour"), [(1, "the row before"), (-1, "the next row")])
def test_targets_that_are_off_by_a_row_are_found_with_their_direction(shift, neighbour):
    [found] = find_shifted_targets(by_overlap, neighbouring_rows(pairs(shift=shift)))
    assert found.what == "shifted-rows"
    assert f"fits the source of {neighbour} best" in found.said


def test_targets_that_are_off_by_a_row_from_the_middle_on_are_found():
    [found] = find_shifted_targets(by_overlap, neighbouring_rows(pairs(shift=-1, after=100)))
    assert "the target of 24 in 48 rows of train fits the source of the next row best (its own: 24" in found.said


def test_targets_in_their_rows_and_a_teacher_that_reads_no_source_are_no_finding():
    assert not list(find_shifted_targets(by_overlap, neighbouring_rows(pairs())))
    assert not list(find_shifted_targets(blind, neighbouring_rows(pairs())))
    same = Examples("train", (("a film",) * 80, ("a film",) * 80), None)
    assert not list(find_shifted_targets(by_overlap, neighbouring_rows(same))), "equal rows fit their own"


def labelled(shift=0, columns=1, moved="label"):
    texts, labels = sentences(200, 0)
    second = list(texts)
    if moved == "label":
        labels = np.roll(labels, shift).tolist()
    elif moved == "second":
        second = np.roll(second, shift).tolist()
        labels = [row % 2 for row in range(200)]
        second = [text if label else text[::-1] for text, label in zip(second, np.roll(labels, shift), strict=True)]
    return Examples("train", (tuple(texts), tuple(second))[:columns], np.array(labels))


def by_words(examples):
    """A teacher that knows the labels of ``sentences``."""
    known = dict(zip(*sentences(200, 0), strict=True))
    logits = np.array([[0.0, 3.0 if known[text] else -3.0] for text in examples.texts[0]])
    return Predictions(logits, logits.argmax(axis=1))


def by_equality(examples):
    """A teacher that knows whether both texts of a pair are equal."""
    logits = np.array([[0.0, 3.0 if a == b else -3.0] for a, b in zip(*examples.texts, strict=True)])
    return Predictions(logits, logits.argmax(axis=1))


def task(columns=1):
    return ClassificationTask("t", ("first", "second")[:columns], ("no", "yes"), ("accuracy",), DataSource())


@pytest.mark.parametrize(("shift", "neighbour"), [(1, "the next row"), (-1, "the row before")])
def test_labels_that_are_off_by_a_row_are_found_with_the_column_and_direction(shift, neighbour):
    found = next(find_shifted_labels(by_words, neighbouring_rows(labelled(shift)), task()))
    assert f"column 'label' is taken from {neighbour}" in found.said


def test_a_text_of_a_pair_that_is_off_by_a_row_is_found_by_its_column():
    found = next(find_shifted_labels(by_equality, neighbouring_rows(labelled(1, 2, "second")), task(2)))
    assert "column 'second' is taken from the next row" in found.said


def test_labels_without_any_order_are_no_shift():
    examples = labelled()
    shuffled = Examples("train", examples.texts, np.random.default_rng(0).permutation(examples.labels))
    assert not list(find_shifted_labels(by_words, neighbouring_rows(shuffled), task()))
