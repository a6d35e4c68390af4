"""What tokens alone tell before a run: ends that are never learned, other beginnings, templates and vocabularies."""

import json

import pandas as pd
import pytest

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from support.dual_setting import byte_level, unigram, word_piece
from support.tiny import one_line, sentences, tiny_config

ROLES = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + END }}{% endfor %}"
ASKED = "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"


def template(end):
    return ROLES.replace("END", f"'{end}\\n'") + ASKED


def save_language_model(folder, kind="gpt2", pieces=None, chat_template=None, entries=None, seed=0):
    """A tiny language model with its tokenizer, and rows beyond its tokens if asked."""
    positions = "" if kind == "xlnet" else ",positions=96"
    spec = parse_scratch_spec(f"new:{kind},layers=2,width=32,heads=4,feed_forward=64{positions}")
    family = {"t5": "seq2seq", "bart": "seq2seq", "marian": "seq2seq", "xlnet": "permutation"}.get(kind, "causal")
    pieces = pieces or train_tokenizer(sentences(200, 0)[0], 300, family, 96)
    pieces.chat_template = chat_template
    model = build_from_scratch(scratch_config(spec, pieces), seed)
    if entries is not None:
        model.resize_token_embeddings(entries)
    model.save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def with_end_of_turn():
    pieces = train_tokenizer(sentences(200, 0)[0], 300, "causal", 96)
    pieces.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return pieces


def chats(folder, answers=("fine", "dull", "great")):
    folder.mkdir()
    rows = [{"messages": [{"role": "user", "content": "a film"}, {"role": "assistant", "content": a}]} for a in answers]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(teacher, task, data, *more):
    return ("distill", "--teacher", teacher, "--student", "layers=1", "--task", task, "--data", data, "--max-length",
            "48", "--max-steps", "1", "--device", "cpu", "--out", "runs/a", *more, "--dry-run", "--json")  # fmt: skip


def checks(kdalign, *words):
    status, out, err = kdalign(*words)
    assert status == 0, err
    return {finding["what"]: finding for finding in json.loads(out)[0]["checks"]}


def test_a_chat_whose_template_writes_no_special_token_learns_the_tokenizers_end(kdalign, tmp_path):
    teacher = save_language_model(tmp_path / "t", chat_template=template("[END]"))
    assert "no-end" not in checks(kdalign, *command(teacher, "chat", chats(tmp_path / "data")))


def test_a_chat_whose_answers_are_all_cut_is_refused_before_weights_load(kdalign, tmp_path):
    data = chats(tmp_path / "data", answers=["fine " * 60] * 3)
    teacher = save_language_model(tmp_path / "t", chat_template=template("<|endoftext|>"))
    status, _, err = kdalign(*command(teacher, "chat", data))
    line = one_line(err)
    assert status == 2
    assert (
        "no training target contains the end token '<|endoftext|>' (3 rows read), so the student would not learn"
        in line
    )
    assert "all 3 rows are cut at 48 tokens, raise --max-length" in line
    assert "--allow no-end" in line
    assert checks(kdalign, *command(teacher, "chat", data, "--allow", "no-end"))["no-end"]["allowed"]


def test_a_permutation_model_is_asked_for_no_end(kdalign, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        (tmp_path / f"data/{split}.txt").write_text("\n".join(sentences(20, 0)[0]))
    found = checks(kdalign, *command(save_language_model(tmp_path / "t", "xlnet"), "lm", tmp_path / "data"))
    assert "no-end" not in found


def test_a_chat_with_its_end_token_is_let_through(kdalign, tmp_path):
    teacher = save_language_model(tmp_path / "t", chat_template=template("<|endoftext|>"))
    assert "no-end" not in checks(kdalign, *command(teacher, "chat", chats(tmp_path / "data")))


def test_turns_that_end_with_another_special_token_name_it_and_count_once_it_is_an_end(kdalign, tmp_path):
    data = chats(tmp_path / "data")
    teacher = save_language_model(tmp_path / "t", pieces=with_end_of_turn(), chat_template=template("<|im_end|>"))
    status, _, err = kdalign(*command(teacher, "chat", data))
    assert status == 2
    assert "name '<|im_end|>', which ends texts there, as eos_token_id" in one_line(err)
    file = teacher / "generation_config.json"
    ends = [0, with_end_of_turn().convert_tokens_to_ids("<|im_end|>")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
    assert "no-end" not in checks(kdalign, *command(teacher, "chat", data))


def documents(folder, n=40, texts=None):
    folder.mkdir()
    for split in ("train", "validation"):
        pd.DataFrame({"text": texts or sentences(n, 0)[0]}).to_parquet(folder / f"{split}.parquet")
    return folder


def test_documents_end_with_the_tokenizers_end_which_must_be_the_one_that_generation_stops_at(kdalign, tmp_path):
    data, teacher = documents(tmp_path / "data", texts=["a film " * 400] * 3), save_language_model(tmp_path / "t")
    assert "no-end" not in checks(kdalign, *command(teacher, "lm", data))
    file = teacher / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 7}))
    status, _, err = kdalign(*command(teacher, "lm", data))
    assert status == 2
    assert "name '<|endoftext|>', which ends texts there" in one_line(err)


@pytest.mark.parametrize(("words", "refused"), [(2, False), (60, True)])
def test_pairs_whose_targets_are_all_cut_never_teach_to_stop(kdalign, tmp_path, words, refused):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        table = pd.DataFrame({"source": ["a film", "a plot"], "target": ["fine " * words, "dull " * words]})
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    teacher = save_language_model(tmp_path / "t", "t5")
    status, out, err = kdalign(*command(teacher, "translation:source-target", tmp_path / "data"))
    if refused:
        assert status == 2
        assert "all 2 rows are cut at 48 tokens, raise --max-length" in one_line(err)
    else:
        assert status == 0, err
        assert "no-end" not in out


def test_a_cache_with_two_tokenizers_says_what_soft_leaves_out(kdalign, tmp_path):
    teacher = save_language_model(tmp_path / "t")
    other = train_tokenizer(sentences(40, 3)[0], 280, "causal", 96)
    student = save_language_model(tmp_path / "s", pieces=other)
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        pd.DataFrame({"text": sentences(24, 5)[0]}).to_parquet(data / f"{split}.parquet")
    words = [student if word == "layers=1" else word for word in command(teacher, "lm", data, "--cache", "auto")]
    assert "leaves out the distance between the others" in checks(kdalign, *words)["unshared tokens"]["said"]
    assert "unshared tokens" not in checks(kdalign, *words, "--alpha", "0")
    assert "unshared tokens" not in checks(kdalign, *[word for word in words if word not in ("--cache", "auto")])
    assert "unshared tokens" not in checks(kdalign, *command(teacher, "lm", data, "--cache", "auto"))


def test_one_vocabulary_padded_to_two_sizes_says_how_many_rows_are_compared(kdalign, tmp_path):
    data = documents(tmp_path / "data")
    teacher = save_language_model(tmp_path / "t", entries=320)
    student = save_language_model(tmp_path / "s", seed=1)
    tokens = len(train_tokenizer(sentences(200, 0)[0], 300, "causal", 96))
    found = checks(kdalign, *command(teacher, "lm", data, "--student", student))
    assert found["vocabulary"]["said"] == (
        f"{tokens} rows in the student, 320 in the teacher: predictions are compared on the first {tokens}, which hold "
        f"all {tokens} tokens"
    )
    assert "vocabulary" not in checks(kdalign, *command(teacher, "lm", data))


def save_masked(folder, pieces):
    from transformers import AutoModelForMaskedLM

    config = tiny_config("bert", 2, vocab_size=len(pieces), pad_token_id=pieces.pad_token_id)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def test_special_tokens_around_texts_are_said_where_one_side_has_others(kdalign, tmp_path):
    data = documents(tmp_path / "data")
    teacher, student = save_masked(tmp_path / "t", unigram()), save_masked(tmp_path / "s", word_piece())
    found = checks(kdalign, *command(teacher, "masked-lm", data, "--student", student))
    assert found["beginnings"]["said"] == (
        "the student's rows begin with [CLS] and end with [SEP], the teacher's rows begin with the text and end with "
        "<sep> <cls>; positions are matched by the text between"
    )
    alike = save_masked(tmp_path / "alike", byte_level())
    assert "beginnings" not in checks(kdalign, *command(alike, "masked-lm", data, "--student", student))


def test_a_start_token_that_only_one_tokenizer_adds_is_said(kdalign, tmp_path):
    from support.dual_setting import byte_fallback

    data = documents(tmp_path / "data")
    teacher, student = (
        save_language_model(tmp_path / "t", "llama", byte_fallback()),
        save_language_model(tmp_path / "s"),
    )
    found = checks(kdalign, *command(teacher, "lm", data, "--student", student))
    assert found["beginnings"]["said"] == (
        "the student's rows begin with <|endoftext|> (its tokenizer itself adds none), the teacher's rows begin with "
        "<s>; positions are matched by the text between"
    )


def test_two_chat_templates_are_said_by_where_they_differ_first(kdalign, tmp_path):
    data = chats(tmp_path / "data")
    own, other = template("<|endoftext|>"), "{{ '[system] be kind ' }}" + template("<|endoftext|>")
    teacher = save_language_model(tmp_path / "t", chat_template=other)
    student = save_language_model(tmp_path / "s", chat_template=own, seed=1)
    found = checks(kdalign, *command(teacher, "chat", data, "--student", student))
    assert found["templates"]["said"] == (
        "chat templates differ: a conversation begins with '[user] ' in the student's and '[system] be kind [user] ' "
        "in the teacher's; both models read the student's"
    )
    assert "templates" not in checks(kdalign, *command(teacher, "chat", data))
