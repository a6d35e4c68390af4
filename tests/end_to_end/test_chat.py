"""Conversations: which tokens are asked for, and a run that learns what the assistant says."""

import json

import pandas as pd
import pytest

from kdalign.data.conversations import tokenize_chats
from kdalign.data.tasks import Examples, find_task, load_texts
from kdalign.data.tokenized_split import IGNORED
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.errors import UsageError
from kdalign.evaluation.samples import chat_prompts
from kdalign.recipe import build_recipe
from support.tiny import sentences

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
LAST_ONLY = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}{{ m.role }}{% endif %}{% endfor %}"


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer(template=TEMPLATE):
    made = train_tokenizer(sentences(200, 0)[0], 300, "causal", 64)
    made.chat_template = template
    return made


def examples(*chats):
    return Examples("train", (tuple(json.dumps(chat) for chat in chats),), None)


TWO_TURNS = said(
    ("system", "be warm"), ("user", "a film"), ("assistant", "great"), ("user", "plot"), ("assistant", "dull")
)


def test_only_what_the_assistant_says_is_asked_for_with_its_ends_one_position_ahead():
    pieces = tokenizer()
    encoded = tokenize_chats(examples(TWO_TURNS), pieces, 200)
    [ids], [targets] = encoded.columns["input_ids"], encoded.columns["targets"]
    assert len(ids) == len(targets)
    written = pieces.apply_chat_template(TWO_TURNS, tokenize=False).rstrip()
    whole = pieces(written, add_special_tokens=False, verbose=False)["input_ids"]
    assert ids == whole[:-1]
    assert all(target in (IGNORED, token) for target, token in zip(targets, whole[1:], strict=True))
    assert pieces.decode([t for t in targets if t != IGNORED]) == "great<|endoftext|>dull<|endoftext|>"


def test_a_long_conversation_is_cut_at_its_end_and_counted():
    encoded = tokenize_chats(examples(TWO_TURNS, TWO_TURNS[1:3]), tokenizer(), 48)
    [first, second] = encoded.columns["input_ids"]
    assert len(first) == 48 > len(second)
    assert (encoded.truncated, encoded.passed_over) == (1, 0)


def test_a_conversation_as_long_as_the_limit_and_its_last_token_is_whole():
    pieces = tokenizer()
    written = pieces.apply_chat_template(TWO_TURNS, tokenize=False).rstrip()
    whole = len(pieces(written, add_special_tokens=False, verbose=False)["input_ids"])
    assert tokenize_chats(examples(TWO_TURNS), pieces, whole - 1).truncated == 0
    assert tokenize_chats(examples(TWO_TURNS), pieces, whole - 2).truncated == 1


def test_a_conversation_whose_answer_is_cut_off_is_passed_over_and_counted():
    long = said(("user", "a film " * 40), ("assistant", "great"))
    encoded = tokenize_chats(examples(long, TWO_TURNS), tokenizer(), 60)
    assert (len(encoded), encoded.passed_over) == (1, 1)
    with pytest.raises(UsageError, match="no answer is within the first 60 tokens"):
        tokenize_chats(examples(long), tokenizer(), 60)


def test_a_first_turn_of_the_assistants_is_not_asked_for():
    greeting = said(("assistant", "hello"), ("user", "a film"), ("assistant", "fine"))
    pieces = tokenizer()
    [targets] = tokenize_chats(examples(greeting), pieces, 200).columns["targets"]
    assert pieces.decode([t for t in targets if t != IGNORED]).strip() == "fine<|endoftext|>"


def test_what_a_template_refuses_is_one_line():
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match=r"template refuses a conversation \(roles must alternate\): \["):
        tokenize_chats(examples(TWO_TURNS), tokenizer(refusing), 200)


def test_a_prompt_ends_where_the_assistant_begins():
    pieces = tokenizer()
    [prompt] = chat_prompts(examples(TWO_TURNS), pieces, 3)
    assert prompt.text == "a film"
    assert pieces.decode(prompt.ids).endswith("[user]\na film<|endoftext|>\n[assistant]\n")


def test_a_template_that_renders_the_beginning_otherwise_is_refused():
    with pytest.raises(UsageError, match="renders a conversation's beginning otherwise"):
        tokenize_chats(examples(TWO_TURNS), tokenizer(LAST_ONLY), 200)


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(UsageError, match=r"no chat template; save one next to it as chat_template\.jinja"):
        tokenize_chats(examples(TWO_TURNS), tokenizer(None), 200)


BAD = [
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None}], "needs content, .* message 1 is"),
    ([{"role": "robot", "content": "x"}], "a role of system, developer, user, assistant, tool"),
    ([{"role": "user"}], "a message needs content"),
    ([{"role": "user", "content": "x"}], "no message of the conversation is the assistant's"),
    ("hello", "a conversation is a list of messages"),
    (5, "a conversation is a list of messages"),
]


@pytest.mark.parametrize(("chat", "line"), BAD)
def test_what_is_no_conversation_is_named_with_its_row(tmp_path, chat, line):
    rows = [{"messages": TWO_TURNS}, {"messages": chat}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=f"row 1: .*{line}"):
        load_texts(find_task("chat", str(tmp_path)), "train")


def test_conversations_are_the_same_from_jsonl_and_parquet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text(json.dumps({"messages": TWO_TURNS}))
    pd.DataFrame({"conversations": [TWO_TURNS]}).to_parquet(tmp_path / "b" / "train.parquet")
    found = [load_texts(find_task("chat", str(tmp_path / name)), "train") for name in "ab"]
    assert found[0] == found[1]


def test_a_column_of_conversations_is_asked_for_by_name(tmp_path):
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="needs one column of conversations named messages or conversations"):
        find_task("chat", str(tmp_path))


@pytest.mark.slow
def test_a_student_learns_to_answer_and_its_template_goes_with_it(kdalign, tmp_path):
    from kdalign.distillation.pipeline import distill

    texts = tmp_path / "texts"
    texts.mkdir()
    chats = [said(("user", a), ("assistant", b)) for a, b in zip(sentences(48, 0)[0], sentences(48, 1)[0], strict=True)]
    for split in ("train", "validation"):
        pd.DataFrame({"text": sentences(48, 2)[0]}).to_parquet(texts / f"{split}.parquet")
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    flags = {"teacher": "none", "student": "new:gpt2,layers=2,width=32,heads=4,positions=96",
             "tokenizer": "train:300", "data.task": "lm", "data.folder": str(texts), "data.max_length": 32,
             "train.max_steps": 4, "train.batch_size": 8, "train.device": "cpu", 
             "out": str(tmp_path / "t")}  # fmt: skip
    distill(build_recipe(None, flags))
    words = ["distill", "--teacher", "t", "--student", "layers=1", "--task", "chat", "--data", tmp_path,
             "--max-steps", 4, "--batch-size", 8, "--max-length", 96, "--device", "cpu", "--allow", "weak-teacher",
             "--out", "runs/c"]  # fmt: skip
    for more in ((), ("--dry-run",)):
        status, _, err = kdalign(*words, *more)
        assert status == 2
        assert "has no chat template" in err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "t" / "student" / "chat_template.jinja").write_text(TEMPLATE)
    status, _, err = kdalign(*words)
    assert status == 0, err
    assert (tmp_path / "runs/c/student/chat_template.jinja").is_file()
    [ppl] = json.loads((tmp_path / "runs/c/record.json").read_text())["scores"]["validation"]["student"]
    assert ppl["signature"].startswith("the assistant's tokens given all before, conversations cut at 96")
    # Every letter of the answers, or a piece of several, and an end each.
    assert 48 < ppl["n"] <= sum(len(chat[1]["content"]) + 1 for chat in chats)
    status, _, err = kdalign("eval", "runs/c", "--out", "c.json")
    assert status == 0, err
    assert json.loads((tmp_path / "c.json").read_text())["results"][0]["scores"][0]["value"] == pytest.approx(
        ppl["value"], rel=1e-6
    )


def test_answers_in_rows_of_their_own_are_scored_as_such_and_verified(kdalign, tmp_path):
    from support.chats import REWRITES_SHORT
    from support.family_setting import model
    from support.family_setting import tokenizer as causal

    chats = [said(*[("user", text), ("assistant", text[:9])] * 2) for text in sentences(8, 0)[0]]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    model("llama").save_pretrained(tmp_path / "t")
    causal("causal").save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(REWRITES_SHORT)
    words = ["--teacher", "t", "--student", "layers=1", "--task", "chat", "--data", tmp_path, "--max-steps", 2]
    more = ["--batch-size", 8, "--max-length", 64, "--device", "cpu", "--allow", "weak-teacher", "--out", "runs/c"]
    status, _, err = kdalign("distill", *words, *more)
    assert status == 0, err
    scores = json.loads((tmp_path / "runs/c/record.json").read_text())["scores"]["validation"]
    assert scores["student"][0]["signature"].startswith("each answer given all before it, a row an answer, rows cut at")
    assert scores["agreement"]["n"] == scores["student"][0]["n"]
    status, out, err = kdalign("compare", "runs/c", "--verify")
    assert status == 0, out + err
