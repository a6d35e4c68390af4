"""Rows of sounds and images behave as texts that name their content."""

import hashlib

import numpy as np
import pytest

from kdalign.data.media.rows import MediaRows, media_digest
from kdalign.data.noise import TextNoise
from kdalign.data.tasks import Examples, hold_out
from kdalign.data.tasks.holdout import count_leaks
from kdalign.data.text_rows import holds_zeros, take_texts
from kdalign.errors import UsageError

CONTENT = [b"one", b"two", b"one", b"three"]


def rows_of(cells, encoded=None):
    digests = [media_digest(each) for each in encoded or cells]
    return MediaRows("audio", cells, [f"{number}.wav" for number in range(len(cells))], digests)


def test_a_row_is_named_by_the_hash_of_its_bytes():
    rows = rows_of(CONTENT)
    assert rows[1] == f"audio {hashlib.sha256(b'two').hexdigest()[:16]}"
    assert list(rows)[-1] == rows[-1] == rows[3]
    assert rows[0] == rows[2]
    assert rows == list(rows)
    assert rows != [*rows, "one more"]
    with pytest.raises(IndexError):
        rows[4]


def test_rows_that_are_taken_keep_their_bytes_and_names():
    rows = rows_of(CONTENT)
    for taken in (take_texts(rows, [3, 1]), rows[3:0:-2]):
        assert isinstance(taken, MediaRows)
        assert list(taken) == [rows[3], rows[1]]
        assert [taken.read(row) for row in range(2)] == [b"three", b"two"]
        assert [taken.name(row) for row in range(2)] == ["3.wav", "1.wav"]


def test_examples_of_sounds_are_as_those_of_the_texts_that_name_them():
    rows, texts = rows_of(CONTENT), ("eins", "zwei", "eins", "drei")
    examples = Examples("train", (rows, texts), None)
    assert examples.fingerprint() == Examples("train", (tuple(rows), texts), None).fingerprint()
    assert examples.fingerprint() != Examples("train", (rows_of(CONTENT[::-1]), texts), None).fingerprint()
    assert examples.take([2, 0]).fingerprint() == examples.take([0, 2]).fingerprint()
    assert len(examples.take(range(1, 3))) == 2
    assert not examples.mapped
    assert not holds_zeros(rows)


def test_a_file_is_read_when_asked_for_and_must_be_as_it_was(tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    rows = rows_of([file], [b"one"])
    assert rows.read(0) == b"one"
    file.write_bytes(b"two")
    with pytest.raises(UsageError, match=r"a\.wav' is not as it was when the split was loaded: its bytes changed$"):
        rows.read(0)
    file.unlink()
    with pytest.raises(UsageError, match=r"^cannot read .*a\.wav'"):
        rows.read(0)


def test_typing_mistakes_are_put_into_texts_alone():
    with pytest.raises(UsageError, match=r"^noise 'typos=0\.1' changes words, and a column of sounds has none$"):
        TextNoise.parse("typos=0.1")(rows_of(CONTENT))


def test_a_sound_is_on_one_side_of_a_hold_out_and_one_word_of_many_speakers_on_both():
    sounds = [f"sound {number // 2}".encode() for number in range(40)]  # each twice
    words = tuple(("yes", "no")[number // 2 % 2] for number in range(40))
    train, held = hold_out(Examples("train", (rows_of(sounds), words), None), 0.25, seed=0)
    assert len(held) == 10
    assert {number // 2 for number in train}.isdisjoint({number // 2 for number in held})
    assert len(train) >= 20


def test_a_sentence_is_on_one_side_of_a_hold_out_whoever_reads_it():
    sounds = [f"sound {number}".encode() for number in range(40)]
    sentences = tuple(f"this is sentence number {number // 2}" for number in range(40))
    train, held = hold_out(Examples("train", (rows_of(sounds), sentences), None), 0.25, seed=0)
    assert {number // 2 for number in train}.isdisjoint({number // 2 for number in held})


def test_images_that_are_in_train_too_are_counted():
    train = Examples("train", (rows_of(CONTENT),), np.zeros(4, dtype=np.int64))
    reported = Examples("test", (rows_of([b"three", b"four", b"one", b"one"]),), None)
    assert count_leaks([reported], train) == [3]
