"""`kdalign generate`: folders of a teacher's answers, what they hold, how they resume, and what is refused."""

import json
import re
import shutil

import pandas as pd
import pytest

from kdalign.data.tasks import find_task, load_texts
from kdalign.data.tasks.columns import is_blank
from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.distillation.sequence_level import generate as story
from kdalign.distillation.sequence_level import teachers
from kdalign.distillation.sequence_level.folder import GenerationFolder
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import _rest, generate
from kdalign.models import loading
from kdalign.observer import no_progress
from kdalign.recipe import build_recipe
from support.answering_server import answering_server
from support.chats import said
from support.family_setting import model, tokenizer
from support.tiny import one_line, sentences

EN, DE = sentences(14, 1)[0], sentences(14, 2)[0]
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ' ' + m.content + '|' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)
FEW = ["--new-tokens", 6, "--batch-size", 4, "--keep", "any-end", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Teachers t (an encoder-decoder), c (a causal model), chat (one with a template), and pairs to translate."""
    root = tmp_path_factory.mktemp("reader")
    for name, kind, family in (("t", "marian", "seq2seq"), ("c", "llama", "causal"), ("chat", "gpt2", "causal")):
        model(kind).save_pretrained(root / name)
        tokenizer(family).save_pretrained(root / name)
    (root / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    (root / "pairs").mkdir()
    train = {"id": range(10), "en": EN[:9] + EN[:1], "de": DE[:10]}
    pd.DataFrame(train).to_parquet(root / "pairs/train.parquet")
    # The validation split has a source of train in other case and spacing; the test split has no targets.
    pd.DataFrame({"en": [EN[3].upper() + " ", EN[10]], "de": DE[10:12]}).to_parquet(root / "pairs/validation.parquet")
    (root / "pairs/test.csv").write_text(f"en\n{EN[11]}\n{EN[5]}\n")
    return root


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """An empty folder with links to the teachers and the pairs."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("t", "c", "chat", "pairs"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def words(teacher="t", task="translation:en-de", data="pairs", out="out", *more):
    return ["generate", "--teacher", teacher, "--task", task, "--data", data, "--out", out, *FEW, *more]


def record_of(folder):
    return json.loads((folder / "generation.json").read_text())


def contents(folder):
    """All files of a folder but its record, whose times differ, and the record without them."""
    record = record_of(folder)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    files.pop("generation.json")
    return files, {name: value for name, value in record.items() if name not in ("seconds", "known_before", "seal")}


# What a folder holds


@pytest.mark.parametrize("teacher", ["t", pytest.param("c", marks=pytest.mark.slow), "chat"])
def test_train_has_the_answers_that_evaluation_would_generate_and_the_other_splits_are_copies(kdalign, here, teacher):
    status, out, err = kdalign(*words(teacher))
    assert status == 0, err
    written = pd.read_parquet(here / "out/train.parquet")
    assert list(written.columns) == ["id", "en", "de"]
    assert written["en"].tolist() == [EN[row] for row in written["id"]]
    for name in ("validation.parquet", "test.csv"):
        assert (here / "out" / name).read_bytes() == (here / "pairs" / name).read_bytes()
    task = find_task("translation:en-de", str(here / "pairs"))
    settings = story.GenerateSettings(teacher=str(here / teacher), task="translation:en-de", out="x", new_tokens=6)
    local = teachers.LocalWriter.find(settings, task)
    cases = local.cases([(row, 0) for row in story.read_train(task).rows])
    net = loading.load_language_model(local.checkpoint)
    told = GenerationSettings(new_tokens=6, prompts=local._prompts)
    texts, _ = generate(net, local.tokenizer, cases, told, no_progress)
    # Rows 3 and 5 are in validation and test; row 9 has the source of row 0, so the same answer.
    assert written["id"].tolist() == [row for row in (0, 1, 2, 4, 6, 7, 8) if not is_blank(texts[row])]
    assert written["de"].tolist() == [texts[row] for row in written["id"]]
    record = record_of(here / "out")
    assert record["rows"] == {
        "train": 10, "left_out": {"also in validation": 1, "also in test": 1}, "answered": 8, "kept": len(written),
    }  # fmt: skip
    empty = sum(is_blank(texts[row]) for row in (0, 1, 2, 4, 6, 7, 8, 9))
    assert record["answers"]["dropped"] == {"empty": empty, "duplicate": int(not is_blank(texts[0]))}
    assert record["prompts"]["different"] == 7
    assert record["teacher"]["teacher_hash"] == local.checkpoint.hash
    assert "kept" in out
    assert not (here / "out/.lock").exists()


def test_distill_and_ablate_read_the_folder_and_a_run_names_the_generation(kdalign, here):
    assert kdalign(*words())[0] == 0
    from kdalign.distillation.pipeline import prepare_all

    flags = {"teacher": "t", "data.task": "translation:en-de", "student": "layers=1", "out": "r", "data.max_length": 48}
    [run] = prepare_all(build_recipe(flags={**flags, "data.folder": "out"}))
    assert run.inputs["generation"] == record_of(here / "out")["fingerprint"]
    assert len(run.splits.train) == record_of(here / "out")["answers"]["kept"]
    [other] = prepare_all(build_recipe(flags={**flags, "data.folder": "pairs"}))
    assert "generation" not in other.inputs
    arms = "arms: {references: {from: labels}, answers: {from: labels, data.folder: out}}\n"
    (here / "arms.yaml").write_text(arms)
    given = (
        "--teacher",
        "t",
        "--student",
        "layers=1",
        "--task",
        "translation:en-de",
        "--data",
        "pairs",
        "--max-length",
        48,
    )
    status, _, err = kdalign("ablate", "--recipe", "arms.yaml", *given, "--max-steps", 2, "--out", "a", "--dry-run")
    assert status == 0, err


def test_conversations_get_another_last_answer_and_keep_all_before_it(kdalign, here):
    (here / "chats").mkdir()
    turns = [{"role": "user", "content": "a film", "name": "me"}, *said(("assistant", "x"), ("user", "good"))]
    chats = [[*turns, *said(("assistant", "old"), ("user", "bye"))], said(("user", "a plot"), ("assistant", "old"))]
    rows = [{"messages": chat, "id": number} for number, chat in enumerate(chats)]
    (here / "chats/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reported = said(("user", "A Plot"), ("assistant", "y"), ("user", "z"), ("assistant", "w"))
    (here / "chats/validation.jsonl").write_text(json.dumps({"messages": reported}) + "\n")
    status, _, err = kdalign(*words("chat", "chat", "chats"))
    assert status == 0, err
    [line] = (here / "out/train.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["id"], row["messages"][:3]) == (0, turns)
    [_, _, _, answer] = row["messages"]
    assert answer["role"] == "assistant"
    net, reads = model("gpt2"), tokenizer("causal")
    prompt = "u a film|a x|u good|a "
    case = GenerationCase(prompt, ("x",), rendered=True)
    assert generate(net, reads, [case], GenerationSettings(new_tokens=6), no_progress)[0] == [answer["content"]]
    assert record_of(here / "out")["rows"]["left_out"] == {"also in validation": 1}
    assert len(load_texts(find_task("chat", str(here / "out")), "train")) == 1


def test_documents_keep_their_first_half_and_are_continued(kdalign, here):
    (here / "texts").mkdir()
    (here / "texts/train.txt").write_text(f"{EN[0]}\none\n\n{EN[1]}\n")
    (here / "texts/validation.txt").write_text(f"{EN[2]}\n")
    status, _, err = kdalign(*words("c", "lm", "texts"))
    assert status == 0, err
    texts = [json.loads(line)["text"] for line in (here / "out/train.jsonl").read_text().splitlines()]
    net, reads = model("llama"), tokenizer("causal")
    for document, text in zip((EN[0], EN[1]), texts, strict=True):
        words_ = document.split()
        half = " ".join(words_[: max(1, len(words_) // 2)])
        ids = reads(half, return_tensors="pt")["input_ids"]
        whole = net.generate(ids, do_sample=False, max_new_tokens=6)
        assert text == reads.decode(whole[0], skip_special_tokens=True).rstrip() != document
    assert (here / "out/validation.txt").is_file()
    assert record_of(here / "out")["rows"]["left_out"] == {"of one word or none": 2, "also in validation": 0}


def test_a_continuation_has_no_space_before_its_comma():
    reads = tokenizer("causal")
    prompt, comma, word = (reads(text, add_special_tokens=False)["input_ids"] for text in ("a film", ",", " good"))
    assert _rest(reads, prompt, comma + word) == ", good"
    assert _rest(reads, prompt, word) == " good"


def test_rows_without_a_target_are_answered_but_not_compared(kdalign, here):
    (here / "asked").mkdir()
    shutil.copy(here / "pairs/validation.parquet", here / "asked")
    (here / "asked/train.csv").write_text("".join(f"{text}\n" for text in ("en", *EN[:2])))
    status, _, err = kdalign(*words("c", "translation:en-de", "asked"))
    assert status == 0, err
    rows = [json.loads(line) for line in (here / "out/train.jsonl").read_text().splitlines()]
    assert {row["en"] for row in rows} <= set(EN[:2])
    assert all(row["de"] for row in rows)
    for more in (["--keep", "chrf>=3"], ["--keep", "words<=9", "--best-of", "wer"]):
        status, _, err = kdalign(*words("c", "translation:en-de", "asked", "other", *more))
        assert status == 2
        assert re.search(r"row 0 has no de, with which (chrf|wer) compares its answer \(without one: ", one_line(err))
    (here / "asked/train.csv").write_text(f"en,de\n{EN[0]},alt\n,neu\n")
    status, _, err = kdalign(*words("c", "translation:en-de", "asked", "other"))
    assert (status, "row 1 lacks its en" in one_line(err)) == (2, True)


def test_conversations_that_do_not_fit_are_not_answered_in_part(kdalign, here):
    (here / "chats").mkdir()
    for split, texts in (("train", [EN[0], " ".join(EN)]), ("validation", [EN[2]])):
        rows = [{"messages": said(("user", text), ("assistant", "old"))} for text in texts]
        (here / f"chats/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = kdalign(*words("chat", "chat", "chats", "out", "--samples", 2))
    assert status == 0, err
    record = record_of(here / "out")
    assert (record["answers"]["dropped"]["prompt too long"], record["prompts"]["cut"]) == (2, 1)
    assert "1 of 2 prompts are too long: their answers are dropped" in err


def test_a_data_set_of_the_hub_is_written_with_all_its_splits(kdalign, here):
    (here / "set").mkdir()  # which the library of data sets reads as it reads the hub's
    for split, rows in (("train", EN[:3]), ("validation", EN[3:4])):
        pd.DataFrame({"en": rows, "de": "alt"}).to_parquet(here / "set" / f"{split}.parquet")
    line = ["generate", "--teacher", "c", "--task", "translation:en-de", "--dataset", "./set", "--out", "out", *FEW]
    status, _, err = kdalign(*line)
    assert status == 0, err
    assert pd.read_parquet(here / "out/validation.parquet").to_dict("list") == {"en": EN[3:4], "de": ["alt"]}
    train = pd.read_parquet(here / "out/train.parquet")
    assert set(train["en"]) <= set(EN[:3])
    assert "alt" not in set(train["de"])


def test_objects_of_translations_stay_objects(kdalign, here):
    (here / "wmt").mkdir()
    for split in ("train", "validation"):
        rows = [{"translation": {"en": text, "de": "alt", "id": split}} for text in EN[: 3 if split == "train" else 1]]
        (here / "wmt" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kdalign(*words(data="wmt"))[0] == 0
    rows = [json.loads(line)["translation"] for line in (here / "out/train.jsonl").read_text().splitlines()]
    assert [row["en"] for row in rows] == EN[1:3]
    assert all(row["de"] != "alt" and row["id"] == "train" for row in rows)


def test_samples_are_rows_of_their_own_or_the_best_of_their_row(kdalign, here):
    assert kdalign(*words("t", "translation:en-de", "pairs", "all", "--samples", 3))[0] == 0
    assert kdalign(*words("t", "translation:en-de", "pairs", "best", "--samples", 3, "--best-of", "chrf"))[0] == 0
    every, best = (pd.read_parquet(here / name / "train.parquet") for name in ("all", "best"))
    assert best["id"].is_unique
    pairs = set(zip(every["id"], every["de"], strict=True))
    assert len(pairs) == len(every) > len(best)
    kept = {(row, text) for row, text in zip(best["id"], best["de"], strict=True) if row != 9}
    assert kept <= pairs
    assert record_of(here / "all")["decoding"]["temperature"] == 1
    assert record_of(here / "all")["answers"]["all"] == 24


# Resuming


@pytest.mark.parametrize(("teacher", "more"), [("t", []), pytest.param("c", ["--samples", 2], marks=pytest.mark.slow)])
def test_a_command_that_was_killed_goes_on_to_the_same_bytes(kdalign, here, monkeypatch, teacher, more):
    assert kdalign(*words(teacher, "translation:en-de", "pairs", "whole", *more))[0] == 0
    append, batches = GenerationFolder.append, []

    def stop(folder, answers):
        append(folder, answers)
        batches.append(answers)
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(GenerationFolder, "append", stop)
        assert kdalign(*words(teacher, "translation:en-de", "pairs", "parts", *more))[0] == 9
    assert not (here / "parts/train.parquet").exists()
    kept = here / "parts/generation/answers.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    kept.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # a batch in part, and a line in part
    assert kdalign(*words(teacher, "translation:en-de", "pairs", "parts", *more, "--dry-run"))[0] == 0
    assert kept.read_bytes().endswith(lines[2][:9])
    assert kdalign(*words(teacher, "translation:en-de", "pairs", "parts", *more))[0] == 0
    assert contents(here / "parts") == contents(here / "whole")
    assert record_of(here / "parts")["known_before"] == 2


def test_a_complete_folder_is_left_as_it_is_and_a_changed_one_refused(kdalign, here, monkeypatch):
    status, out, _ = kdalign(*words())
    monkeypatch.setattr(loading, "load_language_model", None)  # which is not called again
    status, again, err = kdalign(*words())
    assert (status, again) == (0, out)
    assert "out is complete already" in err
    (here / "out/test.csv").write_text("en\nother\n")
    status, _, err = kdalign(*words())
    assert status == 2
    assert "test.csv' was changed after it was written: generate it again by: kdalign generate --teacher t" in one_line(
        err
    )


def test_another_command_is_refused_with_what_differs_and_replaced_when_asked(kdalign, here):
    assert kdalign(*words())[0] == 0
    before = contents(here / "out")
    status, _, err = kdalign(*words("t", "translation:en-de", "pairs", "out", "--beams", 2))
    assert status == 2
    assert "holds data of another command (beams is 1 there, 2 here): give --overwrite" in one_line(err)
    assert contents(here / "out") == before
    assert kdalign(*words("t", "translation:en-de", "pairs", "out", "--beams", 2, "--overwrite"))[0] == 0
    assert kdalign(*words("t", "translation:en-de", "pairs", "fresh", "--beams", 2))[0] == 0
    assert contents(here / "out") == contents(here / "fresh")


def test_a_refused_server_leaves_no_folder_and_the_corrected_command_makes_it(kdalign, here):
    with answering_server(upper) as server:
        wrong = served(server.url.removesuffix("/v1") + "/v2")
        status, _, err = kdalign(*wrong)
        assert (status, "mostly with /v1" in one_line(err)) == (2, True)
        assert not (here / "out").exists()
        assert kdalign(*served(server.url))[0] == 0
        assert record_of(here / "out")["teacher"]["url"] == server.url
        status, _, err = kdalign(*wrong)
        assert (status, "holds data of another command (url is " in one_line(err)) == (2, True)


def test_a_folder_in_which_a_killed_command_had_not_said_what_it_makes_is_free(kdalign, here):
    (here / "out/generation").mkdir(parents=True)
    for left in ("out/generation/.command.json.7.0123abcd.tmp", "out/.lock"):
        (here / left).write_text("{")
    assert kdalign(*words())[0] == 0
    assert kdalign(*words("t", "translation:en-de", "pairs", "fresh"))[0] == 0
    assert contents(here / "out") == contents(here / "fresh")


def test_a_record_that_was_changed_is_refused(kdalign, here):
    assert kdalign(*words())[0] == 0
    record = here / "out/generation.json"
    record.write_text(record.read_text().replace('"kept": ', '"kept": 1', 1))
    status, out, err = kdalign(*words())
    assert (status, out) == (2, "")
    assert "generation.json' was changed after it was written" in one_line(err)
    record.write_text(json.dumps({key: value for key, value in record_of(here / "out").items() if key != "seal"}))
    assert kdalign(*words())[0] == 0, "older versions wrote no seal"


def test_answers_are_selected_again_without_the_teacher_where_only_the_filters_differ(kdalign, here, monkeypatch):
    assert kdalign(*words())[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_language_model", None)
        more = ["--keep", "characters>=4", "--overwrite"]
        assert kdalign(*words("t", "translation:en-de", "pairs", "out", *more))[0] == 0
    assert kdalign(*words("t", "translation:en-de", "pairs", "fresh", *more[:2]))[0] == 0
    assert contents(here / "out") == contents(here / "fresh")


def test_the_record_says_by_what_languages_were_identified(kdalign, here):
    from py3langid import classify

    def answers():
        return pd.read_parquet(here / "out/train.parquet")["de"].tolist()

    assert kdalign(*words())[0] == 0
    all_of_them = answers()
    code = classify(all_of_them[0])[0]
    more = ("--keep", f"language={code}", "--overwrite")
    assert kdalign(*words("t", "translation:en-de", "pairs", "out", *more))[0] == 0
    assert answers() == [answer for answer in all_of_them if classify(answer)[0] == code]
    selection = json.loads((here / "out/generation.json").read_text())["selection"]
    assert selection["languages_by"].startswith("py3langid 0.")


def test_ctrl_c_ends_with_130_and_the_command_that_resumes(kdalign, here, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GenerationFolder, "append", stop)
        status, _, err = kdalign(*words())
    assert status == 130
    line = err.splitlines()[-1]
    assert line.startswith("kdalign: stopped: ")
    assert line.endswith(
        "to resume: kdalign generate --teacher t --task translation:en-de --out out --data pairs --new-tokens 6 "
        "--keep any-end --batch-size 4 --device cpu"
    )


# Served teachers


def upper(body):
    text = (body["prompt"] if "prompt" in body else body["messages"][-1]["content"]).upper()
    return f"{text} {body['seed']}\nmore", "stop"


def served(url, *more):
    return [
        *("generate", "--teacher", "openai:m", "--base-url", url, "--task", "translation:en-de", "--data", "pairs"),
        *("--out", "out", "--concurrency", 1, *more),
    ]


def test_a_served_model_is_asked_once_for_each_prompt_and_its_answers_are_kept(kdalign, here):
    with answering_server(upper) as server:
        status, _, err = kdalign(*served(server.url))
        assert status == 0, err
        assert [body["prompt"] for body in server.asked] == [f"en: {EN[row]}\nde:" for row in (0, 1, 2, 4, 6, 7, 8)]
        rows = pd.read_parquet(here / "out/train.parquet")
        assert rows["de"].tolist() == ["EN: " + EN[row].upper() for row in rows["id"]]  # one line
        record = record_of(here / "out")
        assert (record["teacher"]["url"], record["teacher"]["requests"]) == (server.url, 7)
        assert record["teacher"]["answered_by"] == ["m-2"]
        assert record["tokens"] == {"prompts": 49, "answers": sum(len(upper(b)[0].split()) for b in server.asked)}
        assert kdalign(*served(server.url, "--keep", "words>=3", "--overwrite"))[0] == 0
        assert len(server.asked) == 7


def test_a_spent_budget_resumes_with_a_larger_one(kdalign, here):
    with answering_server(upper) as server:
        status, _, err = kdalign(*served(server.url, "--max-requests", 3))
        assert status == 1
        assert "run the same command with a larger budget to resume" in err
        assert not (here / "out/generation.json").exists()
        assert kdalign(*served(server.url, "--max-requests", 10))[0] == 0
        assert len(server.asked) == 7


def test_samples_of_a_server_have_a_seed_each_and_conversations_their_roles(kdalign, here):
    (here / "chats").mkdir()
    chat = said(("system", "be warm"), ("user", EN[0]), ("assistant", "old"))
    for split, turns in (("train", chat), ("validation", said(("user", EN[1]), ("assistant", "old")))):
        (here / f"chats/{split}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with answering_server(upper) as server:
        line = ["generate", "--teacher", "openai:m", "--base-url", server.url, "--task", "chat", "--data", "chats"]
        status, _, err = kdalign(*line, "--out", "out", "--samples", 2, "--temperature", 0.5, "--top-p", 0.9)
        assert status == 0, err
        assert "a server need not heed the seed" in err
        assert [body["messages"] for body in server.asked] == [chat[:2]] * 2
        assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(0.5, 0.9)}
        assert len({body["seed"] for body in server.asked}) == 2
    rows = [json.loads(row)["messages"] for row in (here / "out/train.jsonl").read_text().splitlines()]
    assert [turns[:2] for turns in rows] == [chat[:2]] * 2
    assert rows[0][2]["content"].startswith(EN[0].upper())
    assert rows[0][2]["content"].endswith("\nmore")  # a chat's answer is whole


# Dry runs and bad input


@pytest.mark.parametrize(
    ("teacher", "prompt"),
    [
        ("t", f"{EN[0]}</s>"),
        ("c", f"en: {EN[0]}\nde:"),
        ("chat", f"u en: {EN[0]}\nde:|a "),
    ],
)
def test_a_dry_run_shows_prompts_as_the_model_sees_them_and_loads_and_writes_nothing(
    kdalign, here, monkeypatch, teacher, prompt
):
    monkeypatch.setattr(loading, "load_language_model", None)
    status, out, err = kdalign(*words(teacher), "--dry-run", "--json")
    assert status == 0, err
    plan = json.loads(out)
    assert plan["first_prompts"][0].replace("<|endoftext|>", "") == prompt
    assert (len(plan["first_prompts"]), plan["prompts"], plan["answers"]) == (3, 7, 7)
    assert plan["rows"]["left_out"] == {"also in validation": 1, "also in test": 1}
    assert not (here / "out").exists()
    status, out, _ = kdalign(*words(teacher), "--dry-run")
    assert (status, "prompt 3, as the model sees it" in out) == (0, True)


BAD = [
    (["--samples", 2, "--temperature", 0], "--samples 2 at --temperature 0 are all the same answer"),
    (["--beams", 2, "--samples", 2], "--beams finds the likeliest answer and goes with no samples"),
    (["--top-p", 0.5], "--top-p is for samples"),
    (["--top-p", 2], "--top-p 2.0: must be less than or equal to 1"),
    (["--temperature", -1], "--temperature -1.0: must be greater than or equal to 0"),
    (["--precision", "fp8"], "--precision 'fp8': must be 'fp32' or 'bf16'"),
    (["--keep", "rougel>=3"], "unknown name in --keep: 'rougel'; did you mean 'rougeL'?"),
    (["--best-of", "rouge"], "unknown --best-of 'rouge'; did you mean 'rougeL'?"),
    (["--language", "klingon"], "--language"),
    (["--max-requests", 3], "--max-requests does not apply to a local teacher: leave it out"),
    (["--max-length", 65], "--max-length 65 is more than the 64 positions of 't'"),
    (["--task", "sst2"], "task 'sst2' has no prompts that are answered by a text (accepted: translation"),
    (["--task", "translation:en-fr"], "needs column 'fr'"),
    (["--task", "lm:en"], "'t' is a seq2seq model, and task 'lm:en' is answered by a causal model"),
    (["--out", "pairs/new"], "are inside each other: give another --out"),
    (["--out", "."], "are inside each other: give another --out"),
    (["--teacher", "nothing/here/x"], "model 'nothing/here/x' does not exist"),
]


@pytest.mark.parametrize(("more", "said_"), BAD, ids=lambda value: " ".join(map(str, value))[:30])
def test_bad_input_gets_one_line_and_writes_nothing(kdalign, here, more, said_):
    before = sorted(here.iterdir())
    for dry in ([], ["--dry-run"]):
        status, _, err = kdalign(*words(), *more, *dry)
        assert (status, said_ in one_line(err)) == (2, True), err
    assert sorted(here.iterdir()) == before


def test_what_is_no_generated_folder_is_not_written_into(kdalign, here):
    (here / "out").mkdir()
    (here / "out/mine.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        status, _, err = kdalign(*words(), *more)
        assert (status, "is not empty and holds no generated data" in one_line(err)) == (2, True)


def test_a_train_that_is_all_reported_and_a_folder_without_train_are_refused(kdalign, here):
    (here / "same").mkdir()
    shutil.copy(here / "pairs/validation.parquet", here / "same/validation.parquet")
    status, _, err = kdalign(*words(data="same"))
    assert (status, "has no split 'train'" in one_line(err)) == (2, True)
    shutil.copy(here / "pairs/validation.parquet", here / "same/train.parquet")
    status, _, err = kdalign(*words(data="same"))
    assert (status, "every row of 'train' is also in a reported split" in one_line(err)) == (2, True)


def test_where_no_answer_is_left_the_run_fails_with_the_counts_and_keeps_the_answers(kdalign, here):
    status, _, err = kdalign(*words(), "--keep", "rougeL>=101")
    assert status == 1
    assert re.search(r"none of 8 answers is left \((. empty, )?. not rougeL>=101\)", err)
    assert not (here / "out/generation.json").exists()
    assert not (here / "out/train.parquet").exists()
    assert kdalign(*words(), "--overwrite")[0] == 0


def test_another_template_is_another_command(kdalign, here, folder):
    (here / "chat").unlink()
    shutil.copytree(folder / "chat", here / "chat")
    assert kdalign(*words("chat"))[0] == 0
    (here / "chat/chat_template.jinja").write_text(TEMPLATE.replace("|", "!"))
    status, _, err = kdalign(*words("chat"))
    assert (status, "holds data of another command (prompts is " in one_line(err)) == (2, True)


@pytest.mark.parametrize(
    "line", ["another", '{"prompt": "a"}', '{"prompt": "a", "draw": 0, "text": ["x"]}', "[1]", "x"]
)
def test_kept_answers_that_are_none_are_named_with_their_line(kdalign, here, line):
    assert kdalign(*words())[0] == 0
    (here / "out/generation.json").unlink()
    kept = here / "out/generation/answers.jsonl"
    first = kept.read_text().splitlines()[0]
    line = first.replace('"draw": 0', '"draw": 1') if line == "another" else line
    kept.write_text(f"{first}\n{line}\n")
    status, _, err = kdalign(*words())
    assert status == 2
    assert "answers.jsonl', line 2: " in one_line(err)


@pytest.mark.parametrize("files", [5, ["../pairs/train.parquet"], [["x"]], ["a/b"], {"x": 1}])
def test_a_strangers_folder_has_no_file_outside_of_it_removed(kdalign, here, files):
    assert kdalign(*words())[0] == 0
    command = here / "out/generation/command.json"
    command.write_text(json.dumps(json.loads(command.read_text()) | {"files": files, "seed": 9}))
    status, _, err = kdalign(*words(), "--overwrite")
    assert (status, "does not hold a command of kdalign" in one_line(err)) == (2, True)
    assert (here / "pairs/train.parquet").is_file()


def test_a_kept_answer_that_is_none_is_said_before_anything_is_removed(kdalign, here):
    assert kdalign(*words())[0] == 0
    kept = here / "out/generation/answers.jsonl"
    kept.write_text("[1]\n" + kept.read_text())
    before = contents(here / "out")
    status, _, err = kdalign(*words(), "--keep", "characters>=4", "--overwrite")
    assert (status, "answers.jsonl', line 1" in one_line(err)) == (2, True)
    assert contents(here / "out") == before


@pytest.mark.parametrize("more", [["--json"], []])
def test_no_prompt_of_a_strangers_steers_the_terminal(kdalign, here, more):
    (here / "odd").mkdir()
    pairs = {"en": ["\x1b[31m\x9b31m a\u202e", "b\x07"], "de": ["c", "d"]}
    for split in ("train", "validation"):
        rows = {"en": [f"{text}{split}" for text in pairs["en"]], "de": pairs["de"]}
        pd.DataFrame(rows).to_parquet(here / "odd" / f"{split}.parquet")
    status, out, err = kdalign(*words(data="odd"), "--dry-run", *more)
    assert status == 0, err
    assert not set(out + err) & set("\x1b\x9b\x07\u202e")
