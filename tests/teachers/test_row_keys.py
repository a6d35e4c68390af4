"""A row's key is a hash of what the teacher reads, and of nothing else."""

from dataclasses import replace

import numpy as np

from kdalign.data.batches import collate
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.teachers.row_keys import row_keys
from support.classifier_setting import examples
from support.speech_setting import encoded

PAD = {"input_ids": 0, "targets": IGNORED, "position_ids": 0, "document": -1}


def packed(ids, document, targets=None):
    first = [document.index(each) for each in document]
    positions = [place - begin for place, begin in enumerate(first)]
    columns = {"input_ids": [ids], "targets": [targets or ids], "position_ids": [positions], "document": [document]}
    return TokenizedSplit(columns, None, PAD)


def key(split, row=0, **options):
    return row_keys(collate(split, [row], **options))[0]


def test_a_key_depends_on_no_number_of_a_row_no_neighbour_and_no_padding():
    split = examples(8)
    keys = row_keys(collate(split, range(8)))
    assert len(set(keys)) == 8
    assert row_keys(collate(split, [5, 2])) == [keys[5], keys[2]]
    assert row_keys(collate(split.take([6, 1]), [1, 0])) == [keys[1], keys[6]]
    assert key(split, 3, width=50) == keys[3]
    assert key(split, 3, draw=(7, 9), counted=False) == keys[3]


def test_a_key_depends_on_ids_token_types_and_their_order():
    split = examples(1)
    ids, kinds = split.columns["input_ids"][0], split.columns["token_type_ids"][0]
    others = [
        {"input_ids": [[*ids[:-2], *ids[:-3:-1]]], "token_type_ids": [kinds]},
        {"input_ids": [[*ids, 0]], "token_type_ids": [[*kinds, 0]]},  # a real token that has the padding's number
        {"input_ids": [ids], "token_type_ids": [[0] * len(ids)]},
    ]
    keys = {key(split), *(key(replace(split, columns=columns)) for columns in others)}
    assert len(keys) == 4


def test_packed_rows_differ_by_where_their_documents_begin_and_by_what_is_asked_for():
    ids = [5, 6, 7, 8, 9, 10]
    whole = packed(ids, [0] * 6)
    halves = packed(ids, [0, 0, 0, 1, 1, 1])
    asked = packed(ids, [0] * 6, targets=[IGNORED] * 3 + ids[3:])
    assert len({key(whole), key(halves), key(asked)}) == 3
    assert key(halves, width=11) == key(packed(ids, [4, 4, 4, 9, 9, 9])), "documents are compared, not their numbers"


def test_labels_and_masked_copies_are_the_students_alone():
    split = examples(2)
    relabelled = replace(split, labels=np.array(1 - split.labels))
    assert key(split) == key(relabelled)


def test_a_sound_has_its_own_key_whatever_is_beside_it_and_whoever_reads_it():
    split = encoded()
    keys = row_keys(collate(split, range(len(split))))
    assert len(set(keys)) == len(split)
    assert [key(split, row) for row in range(len(split))] == keys, "alone, without the padding of sounds and labels"
    read_apart = replace(split, media=replace(split.media, teacher=replace(split.media.reader, masks=False)))
    assert row_keys(collate(read_apart, range(len(split)))) == keys
