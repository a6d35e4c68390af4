"""Splits that are concatenated: rows of texts one after the other, and of nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from kdalign.data.tokenized_split import TokenizedSplit, concatenate_splits
from kdalign.data.transcript_rows import Transcripts
from support.media_setting import images, reader_of, saved


def split(*rows, label):
    return TokenizedSplit(
        {"input_ids": [list(row) for row in rows]}, np.full(len(rows), label), {"input_ids": 0}, truncated=1, words=2
    )


def test_rows_and_labels_of_texts_follow_each_other_and_counts_are_added():
    both = concatenate_splits([split((1, 2), (3,), label=0), split((4, 5, 6), label=1)])
    assert [list(row) for row in both.columns["input_ids"]] == [[1, 2], [3], [4, 5, 6]]
    assert both.labels.tolist() == [0, 0, 1]
    assert (both.truncated, both.words) == (2, 4)


def test_rows_of_sounds_and_images_are_not_concatenated_as_they_would_lose_what_all_but_the_first_read():
    read = images(reader_of(saved("vit")).media, n=2)
    labelled = replace(split((1,), label=0), transcripts=Transcripts((("a",),), ("", "a"), 0))
    for part in (read, labelled):
        with pytest.raises(AssertionError, match="rows of sounds or images are read at once"):
            concatenate_splits([part, part])
