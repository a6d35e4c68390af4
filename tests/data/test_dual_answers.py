"""Answers by two tokenizers and two templates: which positions are matched, and what is learnt at them."""

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.conversations import SourcePrompts, tokenize_chats, tokenize_prompted
from kdalign.data.dual_answers import tokenize_chats_dual, tokenize_prompted_dual
from kdalign.data.tasks import DataSource, Examples, LanguageTask
from kdalign.data.tasks.conversations import Conversation
from kdalign.data.token_matching import SharedVocabulary, shared_vocabulary
from kdalign.data.tokenized_split import IGNORED, TEACHER
from support.chats import TEMPLATES, chat_tokenizer, other_chat_tokenizer, said
from support.dual_setting import HARD_TEXTS
from support.tiny import sentences

TASK = LanguageTask("t", "translation", ("en", "de"), DataSource())
TALK = said(("user", "a film"), ("assistant", "great indeed"), ("user", "plot"), ("assistant", "dull and long"))
HARD = said(("user", "a film"), ("assistant", HARD_TEXTS[0]), ("user", "plot"), ("assistant", HARD_TEXTS[1]))
PAIRS = Examples("train", (tuple(sentences(5, 1)[0]), tuple(sentences(5, 2)[0])), None)


def chats(*talks):
    return Examples("train", (tuple(Conversation(tuple(talk)).to_json() for talk in talks),), None)


def matched(encoded):
    """Of each row, the pairs of positions that are matched: the student's and the teacher's."""
    batch = collate(encoded, range(len(encoded)))
    answers = torch.where(batch.predicted, batch.matching.answers, -1)
    return [[(here, int(there)) for here, there in enumerate(row) if there >= 0] for row in answers]


def texts_read(sides, encoded, row, pairs):
    """What both have read of the row's first answer at its matched positions."""
    ids = encoded.columns["input_ids"][row], encoded.columns[TEACHER + "input_ids"][row]
    targets = encoded.columns["targets"][row]
    last = next((n for n in range(pairs[0][0], len(targets)) if targets[n] == IGNORED), len(targets))
    first = pairs[0]
    return [
        tuple(
            "".join(side.decode(read[begin + 1 : place + 1]).split())
            for side, read, begin, place in zip(sides, ids, first, pair, strict=True)
        )
        for pair in pairs
        if pair[0] < last
    ]


@pytest.mark.parametrize("ours", TEMPLATES)
@pytest.mark.parametrize("theirs", ["plain", "rewrites", "channels", "no end"])
def test_positions_are_matched_where_both_models_have_read_the_same_of_an_answer(ours, theirs):
    sides = chat_tokenizer(ours), other_chat_tokenizer(theirs)
    encoded = tokenize_chats_dual(chats(TALK), sides, 600)
    for row, pairs in enumerate(matched(encoded)):
        texts = texts_read(sides, encoded, row, pairs)
        assert len(texts) > 2
        assert all(one == another for one, another in texts)
        assert texts[-1][0].endswith(("greatindeed", "dullandlong"))
    assert encoded.covered[0] == encoded.covered[1] >= len("greatindeeddullandlong")


@pytest.mark.parametrize("talk", [TALK, HARD])
@pytest.mark.parametrize("ours", TEMPLATES)
def test_both_models_predict_the_ends_of_the_same_answers(ours, talk):
    encoded = tokenize_chats_dual(chats(talk), (chat_tokenizer(ours), other_chat_tokenizer("channels")), 600)
    rows = zip(encoded.columns["targets"], matched(encoded), strict=True)
    assert sum(targets[here] == encoded.ends[0] for targets, pairs in rows for here, _ in pairs) == 2
    assert encoded.covered[0] == encoded.covered[1]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_one_tokenizer_on_both_sides_gives_the_rows_of_one_and_matches_each_position_with_itself(kind):
    tokenizer = chat_tokenizer(kind)
    one = tokenize_chats(chats(TALK, TALK[:2]), tokenizer, 90)
    both = tokenize_chats_dual(chats(TALK, TALK[:2]), (tokenizer, tokenizer), 90)
    assert {name: both.columns[name] for name in one.columns} == one.columns
    assert both.columns[TEACHER + "input_ids"] == one.columns["input_ids"]
    assert (both.truncated, both.passed_over) == (one.truncated, one.passed_over)
    for targets, pairs in zip(one.columns["targets"], matched(both), strict=True):
        predicted = [place for place, target in enumerate(targets) if target != IGNORED]
        assert pairs == [(place, place) for place in predicted]


@pytest.mark.parametrize("max_length", [300, 40])
def test_pairs_by_one_tokenizer_on_both_sides_are_those_of_one(max_length):
    for kind in ("plain", "none"):
        prompts = SourcePrompts(TASK, chat_tokenizer(kind))
        one, both = (
            tokenize_prompted(PAIRS, prompts, max_length),
            tokenize_prompted_dual(PAIRS, (prompts, prompts), max_length),
        )
        assert {name: both.columns[name] for name in one.columns} == one.columns
        assert (both.truncated, both.form) == (one.truncated, one.form)
        for targets, pairs in zip(one.columns["targets"], matched(both), strict=True):
            assert [here for here, _ in pairs] == [here for here, target in enumerate(targets) if target != IGNORED]
            assert all(here == there for here, there in pairs)


@pytest.mark.parametrize("theirs", ["none", "channels"])
@pytest.mark.parametrize("ours", ["none", "plain"])
def test_targets_of_pairs_are_matched_whatever_each_models_prompt_is(ours, theirs):
    sides = chat_tokenizer(ours), other_chat_tokenizer(theirs)
    prompts = SourcePrompts(TASK, sides[0]), SourcePrompts(TASK, sides[1])
    encoded = tokenize_prompted_dual(PAIRS, prompts, 300)
    assert encoded.covered[0] == encoded.covered[1]
    for row, (pairs, target) in enumerate(zip(matched(encoded), PAIRS.texts[1], strict=True)):
        texts = texts_read(sides, encoded, row, pairs)
        assert all(one == another for one, another in texts)
        assert texts[-1][0] == target.replace(" ", "")
        assert encoded.columns["targets"][row][pairs[-1][0]] == encoded.ends[0]


def test_ends_of_answers_stand_for_one_another():
    sides = chat_tokenizer("plain"), other_chat_tokenizer("channels")
    encoded = tokenize_chats_dual(chats(TALK), sides, 600)
    assert encoded.ends == tuple(
        side.convert_tokens_to_ids(end) for side, end in zip(sides, ("[stop]", "[done]"), strict=True)
    )
    shared = shared_vocabulary(*sides).with_pair(*encoded.ends)
    found = dict(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
    assert found[encoded.ends[0]] == encoded.ends[1]
    assert len(found) == len(shared) == len(set(found.values()))
    assert shared.student.tolist() == sorted(found)
    small = SharedVocabulary(torch.tensor([1, 3]), torch.tensor([5, 2])).with_pair(3, 5)
    assert (small.student.tolist(), small.teacher.tolist()) == ([3], [5])
