"""Transcripts are read by a teacher of text beside the sounds, row by row."""

import json

import torch
from tokenizers import Tokenizer

from kdalign.data.batches import collate
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.data.transcript_reader import TranscriptReader
from support.dual_setting import byte_fallback, fast, word_piece
from support.transcript_setting import Setting

TWO_ZERO = [33, 100, 93, 38, 83, 95, 93]


def read(tokenizer, texts, most=64, remarks=""):
    split = TokenizedSplit({"targets": [[1]] * len(texts)}, None, {"targets": -100}, remarks=remarks)
    return TranscriptReader(tokenizer, most).add_to(split, texts)


def test_a_transcript_beyond_the_teachers_positions_is_cut_and_counted():
    found = read(word_piece(), ["one", "two zero"], most=5, remarks="no sound")
    assert list(found.columns["teacher input_ids"]) == [[2, 29, 192, 3], [2, *TWO_ZERO[:4]]]
    assert list(found.columns["teacher told"]) == [[0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert (
        found.remarks == "no sound; 1 of 2 transcripts are longer than the teacher reads (5 tokens) and were cut for it"
    )
    whole = read(word_piece(), ["two zero"])
    assert list(whole.columns["teacher input_ids"]) == [[2, *TWO_ZERO, 3]]
    assert (whole.remarks, list(whole.columns["targets"])) == ("", [[1]])


def test_a_transcript_without_a_token_is_read_as_one_of_padding():
    tree = json.loads(byte_fallback().backend_tokenizer.to_str()) | {"post_processor": None}
    adds_nothing = fast(Tokenizer.from_str(json.dumps(tree)), pad_token="</s>")
    assert adds_nothing("")["input_ids"] == []
    found = read(adds_nothing, ["", "zero"])
    assert list(found.columns["teacher input_ids"][0]) == [adds_nothing.pad_token_id]
    assert list(found.columns["teacher told"][0]) == [0]
    assert set(found.columns["teacher told"][1]) == {1}


def test_rows_of_a_batch_keep_which_tokens_are_told():
    batch = collate(Setting().data, range(4))
    chosen = batch.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.told, batch.told[[2, 0]])
    assert torch.equal(chosen.other_inputs["input_ids"], batch.other_inputs["input_ids"][[2, 0]])
    assert torch.equal(batch.to(torch.device("cpu")).told, batch.told)
