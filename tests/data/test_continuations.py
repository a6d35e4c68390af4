"""Prompts of training rows, and rows with samples in place of what follows."""

from dataclasses import replace

import numpy as np

from kdalign.data.batches import collate
from kdalign.data.continuations import Continuation, continuation_of, with_samples
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit

NO = IGNORED
PAD = {"input_ids": 0, "targets": IGNORED, "decoder_input_ids": 0, "document": -1, "position_ids": 0}


def split(**columns):
    return TokenizedSplit({name: [column] for name, column in columns.items()}, None, PAD)


def test_a_conversations_prompt_reaches_up_to_its_first_answer():
    encoded = split(input_ids=[1, 5, 6, 7, 8, 2, 5, 9], targets=[NO, NO, 7, 8, 2, NO, 9, 2])
    assert continuation_of(encoded, 0, 1) == Continuation([1, 5, 6], [7, 8, 2], followed=True)


def test_a_pairs_prompt_is_its_source():
    encoded = split(input_ids=[5, 6, 2], decoder_input_ids=[0, 7, 8], targets=[7, 8, 2])
    assert continuation_of(encoded, 0, 1) == Continuation([5, 6, 2], [7, 8, 2])


def test_a_text_is_continued_from_the_beginning_of_the_rows_longest_document():
    encoded = split(
        input_ids=[9, 9, 1, 4, 5, 6, 7, 8, 1, 4],
        targets=[9, 2, 4, 5, 6, 7, 8, 2, 4, 5],
        document=[0] * 2 + [1] * 6 + [2] * 2,
    )
    assert continuation_of(encoded, 0, 2) == Continuation([1, 4], [5, 6, 7, 8, 2], followed=True)
    assert continuation_of(encoded, 0, 32) == Continuation([1, 4, 5], [6, 7, 8, 2], followed=True), "at most half"


def test_a_prompt_of_one_token_reaches_over_two_beginning_tokens_to_the_first_target():
    encoded = split(input_ids=[1, 3, 5, 6, 7, 8], targets=[NO, 5, 6, 7, 8, 2], document=[0] * 6)
    assert continuation_of(encoded, 0, 1) == Continuation([1, 3], [5, 6, 7, 8, 2])
    assert continuation_of(encoded, 0, 2) == Continuation([1, 3], [5, 6, 7, 8, 2])


def test_a_row_without_targets_is_all_prompt():
    plain = split(input_ids=[1, 5, 6], targets=[NO, NO, NO])
    packed = split(input_ids=[1, 5, 6, 1], targets=[NO, NO, NO, 2], document=[0, 0, 0, 1])
    assert continuation_of(plain, 0, 1) == Continuation([1, 5, 6], [])
    assert continuation_of(packed, 0, 1) == Continuation([1, 5, 6], [], followed=True)


def test_samples_are_predicted_with_their_ends_and_nothing_else_is():
    encoded = split(input_ids=[1, 5, 6, 7], targets=[NO, NO, 7, 2])
    made = with_samples(encoded, [Continuation([1, 5, 6], [7, 2]), Continuation([1, 5], [])], [[8, 9, 2], [2]], [0, 0])
    batch = collate(made, [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[1, 5, 6, 8, 9], [1, 5, 0, 0, 0]]
    assert batch.targets.tolist() == [[NO, NO, 8, 9, 2], [NO, 2, NO, NO, NO]]
    assert batch.predicted.sum() == 4
    assert batch.tokens.sum() == 7


def test_samples_have_no_groups_labels_or_teachers_of_the_rows():
    encoded = split(input_ids=[1, 5, 6, 7], targets=[NO, NO, 7, 2])
    encoded = replace(encoded, groups=np.array([0]), labelled=np.array([True]), taught_by=np.array([1]))
    batch = collate(with_samples(encoded, [Continuation([1, 5], [])] * 2, [[2]] * 2, [0, 0]), [0, 1])
    assert (batch.labels, batch.labelled, batch.taught_by) == (None, None, None)
    assert len(encoded.take([]).groups) == 0


def test_an_encoder_decoders_samples_are_its_targets():
    encoded = split(input_ids=[5, 6, 2], decoder_input_ids=[3, 7, 8], targets=[7, 8, 2])
    made = with_samples(encoded, [Continuation([5, 6, 2], [])], [[9, 2]], [0])
    batch = collate(made, [0])
    assert batch.inputs["decoder_input_ids"].tolist() == [[3, 9]]
    assert batch.targets.tolist() == [[9, 2]]
    assert batch.inputs["decoder_attention_mask"].tolist() == [[1, 1]]
