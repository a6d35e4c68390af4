"""Transcripts become labels as the tokenizer spells them, and are read back as it reads them."""

from collections import Counter
from dataclasses import replace

import pytest

from kdalign.data.tokenizer_training import character_tokenizer
from kdalign.data.transcripts import Speller, collapse, frames_needed
from kdalign.errors import UsageError
from support.speech_setting import TEXTS, adapter, encoded, examples, reader, tokenizer


def test_a_text_has_the_entries_that_its_tokenizer_gives_it():
    own = tokenizer()
    speller = Speller.of(own)
    for text in TEXTS:
        assert speller.spell(text, Counter()) == own(text)["input_ids"]
    assert speller.spell("  two \n zero ", Counter()) == own("two zero")["input_ids"]


def test_a_character_is_spelled_by_its_other_case_or_counted():
    missing = Counter()
    speller = Speller.of(character_tokenizer(["HELLO THERE"]))
    assert speller.spell("Hello, there!", missing) == speller.spell("HELLO THERE", Counter())
    assert missing == {",": 1, "!": 1}
    assert speller.spell("— hello", missing) == speller.spell("HELLO", Counter()), (
        "a word without an entry leaves no space"
    )


def test_labels_are_read_back_as_the_tokenizer_reads_frames():
    own, transcripts = tokenizer(), encoded(scored=True).transcripts
    a, b, space = (own.get_vocab()[entry] for entry in ("o", "n", "|"))
    for frames in ([a, a, 0, a, b, b, 0], [space, a, space, space, 0, space, b], [0, 0], [b]):
        expected = " ".join(own.decode(frames).split())
        assert transcripts.write(collapse(frames, 0)) == expected
    assert collapse([0, 5, 5, 0, 5, 6], 0) == [5, 5, 6]


def test_equal_neighbours_need_a_frame_between_them():
    assert [frames_needed(ids) for ids in ([], [3], [3, 3], [3, 4, 3], [3, 3, 3])] == [0, 1, 3, 3, 5]


def test_rows_that_no_path_can_spell_are_left_out_of_training_alone():
    # 0.1 s are 4 frames of 20 ms: "zero" has 4 labels, "zoo" 4 with the blank between, "two zero" 8.
    texts, seconds = ("zero", "zoo", "two zero", "???"), (0.1, 0.1, 0.1, 0.3)
    train = encoded(texts=texts, seconds=seconds)
    assert (len(train), train.passed_over, len(train.columns["targets"])) == (2, 2, 2)
    assert train.transcripts.references == (("zero",), ("zoo",))
    assert train.remarks.startswith("3 of 18 characters of the transcripts are not in the tokenizer")
    scored = encoded(texts=texts, seconds=seconds, scored=True)
    assert (len(scored), scored.passed_over) == (4, 0)
    with pytest.raises(UsageError, match="no sound has as many frames as its transcript has characters"):
        encoded(texts=("two zero",), seconds=(0.1,))


def test_a_tokenizer_of_characters_has_the_blank_first_and_loses_nothing_when_it_is_saved(tmp_path):
    own = tokenizer()
    assert own.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<unk>", "|"]
    assert len(own) == 3 + len(set("".join(TEXTS)) - {" "})
    own.save_pretrained(tmp_path)
    again = type(own).from_pretrained(tmp_path)
    assert again.get_vocab() == own.get_vocab()
    assert again("two zero")["input_ids"] == own("two zero")["input_ids"]
    with pytest.raises(UsageError, match="found 0 different characters"):
        character_tokenizer(["  "])


def test_a_tokenizer_of_other_kinds_is_refused(tmp_path):
    from kdalign.data.tokenizer_training import train_tokenizer

    with pytest.raises(UsageError, match="needs a tokenizer of characters"):
        adapter().check_tokenizer(train_tokenizer(["a b"] * 9, 300, "masked", 32), "x", scored=False)
    assert adapter().check_tokenizer(tokenizer(), "x", scored=True) is None
    assert adapter().tokenize(examples(), reader(), scored=False).remarks == ""


def test_training_on_frames_that_depend_on_padding_is_remarked_upon():
    padded = replace(reader(), media=replace(reader().media, masks=False))
    assert "group norm" in adapter().tokenize(examples(), padded, scored=False).remarks
    assert adapter().tokenize(examples(), padded, scored=True).remarks == ""
