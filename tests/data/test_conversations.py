"""What causal models are asked to answer: rows are the prompts of generation, and answers learn their end."""

from dataclasses import replace

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.conversations import SourcePrompts, answer_rows, merge_rows, tokenize_chats, tokenize_prompted
from kdalign.data.tasks import DataSource, Examples, LanguageTask
from kdalign.data.tasks.conversations import Conversation
from kdalign.data.tasks.generation_cases import source_cases
from kdalign.data.tokenized_split import IGNORED
from kdalign.errors import UsageError
from kdalign.evaluation.generation import GenerationSettings, generate
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.observer import no_progress
from support.chats import TEMPLATES, chat_tokenizer, said
from support.dual_setting import byte_fallback, byte_level
from support.tiny import sentences

TASK = LanguageTask("t", "translation", ("en", "de"), DataSource())
SOURCES = tuple(" ".join(pair) for pair in zip(sentences(6, 1)[0], sentences(6, 3)[0], strict=True))
PAIRS = Examples("train", (SOURCES, tuple(sentences(6, 2)[0])), None)
TOKENIZERS = {
    "template": lambda: chat_tokenizer("plain"),
    "prompt alone": lambda: chat_tokenizer("none"),
    "SentencePiece": byte_fallback,
    "tokens around a text": byte_level,
}
EVERY = pytest.mark.parametrize("kind", TOKENIZERS)


def net(tokenizer, positions):
    new = parse_scratch_spec(f"new:llama,layers=2,width=32,heads=4,feed_forward=64,positions={positions}")
    return build_from_scratch(scratch_config(new, tokenizer), 0).eval()


def answers(encoded):
    return [[token for token in row if token != IGNORED] for row in encoded.columns["targets"]]


@EVERY
@pytest.mark.parametrize("cut", [False, True])
def test_a_row_is_the_prompt_that_generation_reads_and_the_answer_after_it(kind, cut, monkeypatch):
    tokenizer = TOKENIZERS[kind]()
    prompts = SourcePrompts(TASK, tokenizer)
    max_length = int(tokenize_prompted(PAIRS, prompts, 200).lengths.max()) - (3 if cut else 0)
    encoded = tokenize_prompted(PAIRS, prompts, max_length)
    rows = list(zip(encoded.columns["input_ids"], encoded.columns["targets"], strict=True))
    begins = [ids[: sum(target == IGNORED for target in targets) + 1] for ids, targets in rows]
    model, read = net(tokenizer, 256), []

    def write(ids, attention_mask, **rest):
        read.extend(row[real.bool()].tolist() for row, real in zip(ids, attention_mask, strict=True))
        return torch.cat([ids, ids[:, :1]], dim=1)

    monkeypatch.setattr(model, "generate", write)
    for case, answer in zip(source_cases(PAIRS), answers(encoded), strict=True):
        settings = GenerationSettings(new_tokens=8, prompts=prompts, prompt_length=max_length + 1 - len(answer))
        generate(model, tokenizer, [case], settings, no_progress)
    assert read == begins
    assert (encoded.truncated > 0) is cut
    assert encoded.words == sum(len(text.split()) for text in PAIRS.texts[1])


@EVERY
def test_the_target_and_its_end_alone_are_predicted_one_position_ahead(kind):
    tokenizer = TOKENIZERS[kind]()
    encoded = tokenize_prompted(PAIRS, SourcePrompts(TASK, tokenizer), 200)
    for ids, targets, text in zip(
        encoded.columns["input_ids"], encoded.columns["targets"], PAIRS.texts[1], strict=True
    ):
        assert len(ids) == len(targets)
        (asked,) = answers(replace(encoded, columns={"targets": [targets]}))
        start = len(targets) - len(asked)
        assert targets[start:] == [*ids[start + 1 :], asked[-1]]
        assert asked[-1] == tokenizer.convert_tokens_to_ids("[stop]" if kind == "template" else tokenizer.eos_token)
        assert tokenizer.decode(asked[:-1]).strip() == text


def test_a_template_gets_the_tasks_prompt_as_a_users_message():
    tokenizer = chat_tokenizer("plain")
    prompts = SourcePrompts(TASK, tokenizer)
    assert prompts.render("a film") == "[start]user\nen: a film\nde:[stop]\n[start]assistant\n"
    assert str(prompts) == "the prompt 'en: ...\\nde:' as a user's message in the chat template"
    bare = SourcePrompts(TASK, chat_tokenizer("none"))
    assert bare.render("a film") == "en: a film\nde:"
    assert str(bare) == "the prompt 'en: ...\\nde:'"
    assert tokenize_prompted(PAIRS, prompts, 200).form == str(prompts)


@EVERY
def test_a_source_that_is_too_long_loses_its_end_and_its_answer_stays_whole(kind):
    tokenizer = TOKENIZERS[kind]()
    prompts = SourcePrompts(TASK, tokenizer)
    long = Examples("train", ((("a film " * 40).strip(), "plot"), ("great", "dull")), None)
    encoded, whole = (tokenize_prompted(long, prompts, length) for length in (50, 2000))
    assert (encoded.truncated, whole.truncated) == (1, 0)
    assert answers(encoded) == answers(whole)
    cut, uncut = (each.columns["input_ids"][0] for each in (encoded, whole))
    assert 40 < len(cut) <= 50
    assert "a film a film" in tokenizer.decode(cut)
    assert tokenizer.decode(cut).partition("de:")[2] == tokenizer.decode(uncut).partition("de:")[2] != ""
    assert encoded.words == 2


def test_a_target_that_is_too_long_has_no_end_and_is_counted():
    tokenizer = chat_tokenizer("none")
    prompts = SourcePrompts(TASK, tokenizer)
    long = Examples("train", (("a film", "plot"), ("great " * 40, "dull")), None)
    encoded = tokenize_prompted(long, prompts, 30)
    assert len(encoded.columns["input_ids"][0]) == 30
    assert (encoded.truncated, encoded.words, encoded.bytes) == (1, 0, 0)
    assert [asked[-1] == tokenizer.eos_token_id for asked in answers(encoded)] == [False, True]
    with pytest.raises(UsageError, match="--max-length 4 leaves no room for a target: the prompt of task 't' has"):
        tokenize_prompted(long, prompts, 4)


def test_an_end_token_that_also_pads_is_learnt():
    tokenizer = byte_fallback()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = collate(tokenize_prompted(PAIRS, SourcePrompts(TASK, tokenizer), 200), range(len(PAIRS)))
    ends = (batch.targets == tokenizer.eos_token_id) & batch.predicted
    assert ends.sum(dim=1).tolist() == [1] * len(PAIRS)
    assert batch.real.sum(dim=1).tolist() == [
        int(batch.predicted[row].nonzero().max()) + 1 for row in range(len(PAIRS))
    ]


def test_an_answer_that_joins_its_prompts_last_token_is_tokenized_by_itself():
    tokenizer = chat_tokenizer("none")
    ending = replace(TASK, prompt="{en} = ")
    encoded = tokenize_prompted(Examples("train", (("a",), ("great",)), None), SourcePrompts(ending, tokenizer), 60)
    (prompt,), _ = SourcePrompts(ending, tokenizer).tokenize(["a"], [60])
    assert encoded.columns["input_ids"][0][: len(prompt)] == prompt
    assert tokenizer.decode(answers(encoded)[0]) == "great<|endoftext|>"


def gradient(model, batches):
    """Gradient of the mean loss of a step's answers."""
    model.zero_grad()
    units = sum(int(batch.predicted.sum()) for batch in batches)
    for batch in batches:
        logits = model(**batch.inputs).logits[batch.predicted]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets[batch.predicted], reduction="sum")
        (loss / units).backward()
    return torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])


@EVERY
def test_neither_padding_nor_the_split_of_a_step_moves_the_gradient_of_answers(kind):
    tokenizer = TOKENIZERS[kind]()
    encoded, model = tokenize_prompted(PAIRS, SourcePrompts(TASK, tokenizer), 60), net(tokenizer, 128)
    whole = gradient(model, [collate(encoded, range(6))])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient(model, [collate(encoded, range(6), width=70)]), whole, atol=1e-5, rtol=1e-4)
    ones = gradient(model, [collate(encoded, [row]) for row in range(6)])
    torch.testing.assert_close(ones, whole, atol=1e-5, rtol=1e-4)


def test_what_precedes_an_answer_is_context_and_moves_no_other_row():
    tokenizer = chat_tokenizer("plain")
    prompts, model = SourcePrompts(TASK, tokenizer), net(tokenizer, 128)
    other = Examples("train", (("dull", *SOURCES[1:]), PAIRS.texts[1]), None)
    found = []
    for examples in (PAIRS, other):
        batch = collate(tokenize_prompted(examples, prompts, 60), range(6))
        with torch.no_grad():
            logits = model(**batch.inputs).logits
        found.append([logits[row][batch.predicted[row]] for row in range(6)])
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-4)
    for one, same in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, same, atol=1e-5, rtol=1e-4)


# Conversations

TALK = said(("system", "be warm"), ("user", "a film"), ("assistant", "great"), ("user", "plot"), ("assistant", "dull"))
ENDS = {"channels": "[done]", "strips": "<|endoftext|>", "no end": "<|endoftext|>", "bare": "<|endoftext|>"}
EVERY_TEMPLATE = pytest.mark.parametrize("kind", TEMPLATES)


def chats(*talks):
    return Examples("train", (tuple(Conversation(tuple(talk)).to_json() for talk in talks),), None)


def texts(encoded, tokenizer):
    return [tokenizer.decode(asked) for asked in answers(encoded)]


@EVERY_TEMPLATE
def test_each_answer_and_its_end_are_learnt_and_nothing_else(kind):
    tokenizer = chat_tokenizer(kind)
    found = "".join(texts(tokenize_chats(chats(TALK), tokenizer, 300), tokenizer))
    end, lead = ENDS.get(kind, "[stop]"), {"channels": "[channel]final[text]", "no end": "\n"}.get(kind, "")
    assert found == f"{lead}great{end}{lead}dull{end}"


@EVERY_TEMPLATE
def test_a_row_begins_with_the_prompt_that_generation_is_given(kind):
    from kdalign.data.chat_templates import render_prompt

    tokenizer = chat_tokenizer(kind)
    for row, turn in zip(answer_rows(Conversation(tuple(TALK)), tokenizer), (2, 4), strict=True):
        written, _ = render_prompt(TALK[:turn], tokenizer)
        assert row.prompt == tokenizer(written, add_special_tokens=False)["input_ids"]


def test_answers_share_a_row_where_the_template_writes_each_turn_once_and_for_all():
    rows = {kind: len(tokenize_chats(chats(TALK), chat_tokenizer(kind), 300)) for kind in TEMPLATES}
    assert {kind for kind, count in rows.items() if count == 1} == {"plain", "closes"}
    assert set(rows.values()) == {1, 2}


@EVERY_TEMPLATE
def test_answers_in_one_row_have_the_loss_of_answers_in_rows_of_their_own(kind):
    tokenizer = chat_tokenizer(kind)
    apart = answer_rows(Conversation(tuple(TALK)), tokenizer)
    model, totals = net(tokenizer, 256), []
    for rows in (merge_rows(apart), [row for answer in apart for row in merge_rows([answer])]):
        total, count = 0.0, 0
        for ids, targets in rows:
            asked = torch.tensor(targets)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, asked, ignore_index=IGNORED, reduction="sum"))
            count += int((asked != IGNORED).sum())
        totals.append((total, count))
    assert totals[0][1] == totals[1][1]
    assert totals[0][0] == pytest.approx(totals[1][0], rel=1e-5)


@pytest.mark.parametrize("kind", ["rewrites", "rewrites unasked", "strips"])
def test_thinking_is_learnt_where_the_conversation_has_it_and_never_where_the_template_adds_it(kind):
    tokenizer = chat_tokenizer(kind)
    thought = [*TALK[:4], {"role": "assistant", "content": "dull", "reasoning_content": "it is long"}]
    found = texts(tokenize_chats(chats(TALK, thought), tokenizer, 300), tokenizer)
    assert [text for text in found if "think" in text] == [text for text in found if "long" in text] != []
    assert len(found) == 4


def test_a_users_turn_at_the_first_token_is_not_learnt():
    tokenizer = chat_tokenizer("bare")
    encoded = tokenize_chats(chats(said(("user", "a film"), ("assistant", "great"))), tokenizer, 300)
    assert texts(encoded, tokenizer) == ["great<|endoftext|>"]
    assert encoded.columns["targets"][0][0] == IGNORED


def test_a_cut_answer_is_learnt_up_to_the_cut_and_counted():
    tokenizer = chat_tokenizer("plain")
    long = said(("user", "a film"), ("assistant", "great " * 60 + "indeed"))
    (whole,) = answers(tokenize_chats(chats(long), tokenizer, 300))
    encoded = tokenize_chats(chats(long, TALK), tokenizer, 60)
    cut = answers(encoded)[0]
    assert (encoded.truncated, encoded.passed_over) == (1, 0)
    assert len(encoded.columns["input_ids"][0]) == 60
    assert 0 < len(cut) < len(whole)
    assert cut == whole[: len(cut)]
    assert tokenizer.convert_tokens_to_ids("[stop]") not in cut


def test_answers_beyond_the_limit_are_left_out_one_by_one_and_rows_of_a_conversation_are_one_group():
    tokenizer = chat_tokenizer("rewrites")
    longer = [*TALK, *said(("user", "a film " * 40), ("assistant", "fine"))]
    encoded = tokenize_chats(chats(TALK, longer), tokenizer, 90)
    assert (len(encoded), encoded.passed_over, encoded.truncated) == (4, 1, 0)
    assert encoded.groups.tolist() == [0, 0, 1, 1]
    assert tokenize_chats(chats(TALK, TALK), chat_tokenizer("plain"), 90).groups is None


@EVERY_TEMPLATE
def test_an_end_token_that_also_pads_is_learnt_in_chats(kind):
    end = ENDS.get(kind, "[stop]")
    tokenizer = chat_tokenizer(kind, end, end) if kind not in ("channels", "strips") else chat_tokenizer(kind)
    batch = collate(encoded := tokenize_chats(chats(TALK, TALK[:3]), tokenizer, 300), range(len(encoded)))
    token = tokenizer.convert_tokens_to_ids(end)
    assert int(((batch.targets == token) & batch.predicted).sum()) == 3
    assert batch.real.sum(dim=1).tolist() == [len(ids) for ids in encoded.columns["input_ids"]]


def test_a_template_without_an_end_needs_a_tokenizer_with_one():
    tokenizer = chat_tokenizer("no end", None)
    with pytest.raises(UsageError, match="writes no special token after an answer, and the tokenizer has no end token"):
        tokenize_chats(chats(TALK), tokenizer, 300)


@pytest.mark.parametrize("kind", ["plain", "rewrites"])
def test_neither_padding_nor_the_split_of_a_step_moves_the_gradient_of_chats(kind):
    tokenizer = chat_tokenizer(kind)
    encoded, model = tokenize_chats(chats(TALK, TALK[:3], TALK[1:]), tokenizer, 300), net(tokenizer, 256)
    every = range(len(encoded))
    whole = gradient(model, [collate(encoded, every)])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient(model, [collate(encoded, every, width=120)]), whole, atol=1e-5, rtol=1e-4)
    ones = gradient(model, [collate(encoded, [row]) for row in every])
    torch.testing.assert_close(ones, whole, atol=1e-5, rtol=1e-4)
