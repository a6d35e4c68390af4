"""Tasks of language modelling, from the word on the command line to a run that can be stopped and split."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import numpy as np
import pandas as pd
import pytest

from kdalign.data.tasks import find_task, load_texts
from kdalign.data.tasks.language import FAMILIES, LanguageTask
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import UsageError
from kdalign.evaluation.likelihood import perplexities, protocol, token_agreement
from kdalign.recipe import EMBEDDING_TASK, TOKEN_TASKS, build_recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import TokenPredictions
from kdalign.runs.record import read_record
from support.covering import first_only
from support.tiny import make_tokenizer, one_line, sentences, tiny_config


def folder(path: Path, table: pd.DataFrame, *splits: str) -> Path:
    path.mkdir(exist_ok=True)
    for split in splits or ("train", "validation"):
        table.to_parquet(path / f"{split}.parquet")
    return path


def test_the_recipe_knows_the_tasks_of_tokens_by_the_same_names():
    assert {*TOKEN_TASKS, EMBEDDING_TASK, "image-text"} == set(FAMILIES)


def test_tokens_start_from_other_defaults_than_classes_and_flags_win_over_both():
    classes = build_recipe(None, {"teacher": "t", "data.task": "sst2"})
    tokens = build_recipe(None, {"teacher": "t", "data.task": "lm:sst2"})
    asked = build_recipe(None, {"teacher": "t", "data.task": "lm:sst2", "objective.gamma": 0.5})
    assert (classes.objective.temperature, classes.objective.gamma, classes.data.max_length) == (2.0, 1.0, 128)
    assert (tokens.objective.temperature, tokens.objective.gamma, tokens.data.max_length) == (1.0, 0.0, 256)
    assert (asked.objective.temperature, asked.objective.gamma) == (1.0, 0.5)
    assert build_recipe(None, json.loads(tokens.model_dump_json())) == tokens


def test_without_a_teacher_the_labels_are_all_there_is():
    alone = build_recipe(None, {"teacher": "none", "data.task": "lm:sst2", "student": "new:gpt2"})
    assert (alone.objective.hard, alone.objective.needs_teacher) == (1.0, False)
    with pytest.raises(UsageError, match=r"^there is no teacher: every weight but hard and masked_lm must be 0"):
        build_recipe(None, {"teacher": "none", "data.task": "lm:sst2", "objective.alpha": 0.5})


def test_a_glue_tasks_sentences_are_documents_both_of_a_pair(tmp_path):
    table = pd.DataFrame({"sentence1": ["one", "two"], "sentence2": ["three", " "], "label": [0.0, 5.0]})
    task = find_task("lm:stsb", str(folder(tmp_path / "stsb", table)))
    found = load_texts(task, "train")
    assert task.name == "lm-stsb"
    assert found.texts == (("one", "two", "three"),)
    assert found.passed_over == 1
    assert found.labels is None


def test_each_line_of_a_text_file_is_a_document_and_blank_ones_are_none(tmp_path):
    (tmp_path / "train.txt").write_text("first line \n\n  \nsecond\nthird", encoding="utf-8")
    task = find_task("language-modeling", str(tmp_path))
    assert task.columns == ("text",)
    assert load_texts(task, "train").texts == (("first line ", "second", "third"),)


@pytest.mark.parametrize(
    ("columns", "found"), [({"idx": [1], "body": ["a"]}, "body"), ({"text": ["a"], "author": ["b"]}, "text")]
)
def test_the_text_column_is_worked_out_and_said(tmp_path, columns, found):
    task = find_task("lm", str(folder(tmp_path / "d", pd.DataFrame(columns))))
    assert (task.columns, task.found) == ((found,), f"text in {found}")


def test_a_column_of_text_is_named_in_the_task(tmp_path):
    place = folder(tmp_path / "d", pd.DataFrame({"en": ["a", "b"], "de": ["c", "d"]}))
    task = find_task("masked-lm:de", str(place))
    assert (task.name, task.word) == ("masked-lm-de", "masked-lm:de")
    assert load_texts(task, "train").texts == (("c", "d"),)


def test_a_misspelt_glue_task_is_no_column_where_no_data_is_named():
    with pytest.raises(UsageError, match="'lm:sst3' names no data; did you mean 'sst2'"):
        find_task("lm:sst3")


def test_a_pair_of_columns_is_named_in_the_task(tmp_path):
    table = pd.DataFrame({"en": ["a", "b"], "de": ["c", "d"], "fr": ["e", "f"]})
    task = find_task("translation:en-fr", str(folder(tmp_path / "d", table)))
    assert load_texts(task, "train").texts == (("a", "b"), ("e", "f"))


def test_a_pair_may_lie_in_one_object_as_in_the_hubs_translations(tmp_path):
    table = pd.DataFrame({"id": [1, 2], "translation": [{"en": "a", "de": "c"}, {"en": "b", "de": "d"}]})
    task = find_task("translation:de-en", str(folder(tmp_path / "d", table)))
    assert load_texts(task, "train").texts == (("c", "d"), ("a", "b"))


BAD = [
    ("lm", {"a": ["x"], "b": ["y"]}, "which column is the text. It has a, b; name it as in lm:a"),
    ("lm", {"n": [1, 2]}, "which column is the text"),
    ("lm", {"text": ["", " "]}, "every document is empty"),
    ("lm:sentense", {"sentence": ["x"]}, "needs column 'sentense', which .* lacks; did you mean 'sentence'"),
    ("lm:", {"sentence": ["x"]}, "names no column: give one, as in lm:text"),
    ("embedding:sst2", {"sentence": ["x"]}, "as in embedding:stsb"),
    ("translation:en", {"en": ["x"]}, "name two columns"),
    ("translation:en-de", {"en": ["x"], "german": ["y"]}, "needs column 'de'"),
    ("translation:en-de", {"en": ["x", "y"], "de": ["z", " "]}, "row 1 lacks its en or its de"),
    ("masked-llm", {"text": ["x"]}, "did you mean 'masked-lm'"),
]


@pytest.mark.parametrize(("name", "columns", "said"), BAD)
def test_what_is_no_text_is_refused_with_its_reason(tmp_path, name, columns, said):
    place = folder(tmp_path / "d", pd.DataFrame(columns))
    with pytest.raises(UsageError, match=said):
        load_texts(find_task(name, str(place)), "train")


def test_a_family_that_cannot_learn_a_task_is_refused():
    task = LanguageTask("masked-lm", "masked-lm", ("text",), None)
    with pytest.raises(UsageError, match="'x' is a causal model; task 'masked-lm' is not for it"):
        task.check("causal", "x")


def test_perplexity_is_from_the_total_over_all_tokens_and_words_by_hand():
    # 2 ln 2 over 2 tokens and ln 8 over 1: total ln 32 over 3 tokens, over 2 words.
    answers = TokenPredictions(np.log([4.0, 8.0]), np.array([2, 1]), np.array([1, 2, 3]))
    encoded = TokenizedSplit({"input_ids": [[1, 2], [3]]}, None, {}, words=2, bytes=5)
    token, word, byte, bits = perplexities(answers, encoded, protocol("causal", 8), interval=True)
    assert (byte.value, bits.value, bits.unit) == (pytest.approx(2.0), pytest.approx(1.0), "bits")  # ln 32 over 5 bytes
    assert (token.metric, token.value, token.n) == ("ppl", pytest.approx(32 ** (1 / 3)), 3)
    assert (word.metric, word.value, word.n) == ("word_ppl", pytest.approx(32**0.5), 2)
    # Resampled rows give ln 4 / 2 = ln 2 to ln 8 a token; the same scale, 3 tokens for 2 words, makes them words'.
    assert (token.low, token.high) == (pytest.approx(2), pytest.approx(8))
    assert (word.low, word.high) == (pytest.approx(2**1.5), pytest.approx(8**1.5))
    assert not token.higher_is_better


def test_agreement_of_tokens_is_their_share_whatever_the_rows():
    ours = TokenPredictions(np.zeros(3), np.array([2, 0, 2]), np.array([1, 2, 3, 4]))
    theirs = TokenPredictions(np.zeros(3), np.array([2, 0, 2]), np.array([1, 0, 3, 4]))
    assert token_agreement(ours, theirs, interval=False).value == 75.0


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame({"text": sentences(96 // (number + 1), number)[0]}).to_parquet(place / f"{split}.parquet")
    return place


@pytest.fixture(scope="module", params=first_only(["gpt2", "bert", "xlnet"]))
def taught(request, tmp_path_factory, texts):
    """A teacher made by kdalign itself, from nothing."""
    from kdalign.distillation.pipeline import distill

    out = tmp_path_factory.mktemp("made") / request.param
    flags = {"teacher": "none", "student": f"new:{request.param},layers=2,width=32,heads=4,positions=64",
             "tokenizer": "train:300", "data.task": "lm", "data.folder": str(texts), "data.max_length": 32,
             "train.max_steps": 6, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32",
             "train.lr": 3e-3, "out": str(out)}  # fmt: skip
    distill(build_recipe(None, flags))
    return out


def words(teacher, texts, out, *more):
    return ["distill", "--teacher", teacher, "--student", "layers=1", "--task", "lm", "--data", texts, "--max-steps", 6,
            "--batch-size", 8, "--micro-batch", 4, "--max-length", 32, "--precision", "fp32", "--device", "cpu",
            "--set", "train.dropout=0", "--allow", "weak-teacher", "--out", out, *more]  # fmt: skip


@pytest.mark.slow
def test_a_teacher_made_from_nothing_teaches_and_the_record_says_how_each_number_was_made(
    kdalign,
    taught,
    texts,
    tmp_path,
):
    status, out, err = kdalign(*words(taught, texts, "runs/a"))
    assert status == 0, err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    alone = json.loads((taught / "record.json").read_text())
    assert alone["teacher"] is None
    scores = record["scores"]["validation"]
    primary = scores["student"][0]
    assert primary["metric"] in ("ppl", "masked_ppl")
    assert primary["low"] < primary["value"] < primary["high"] < 310
    assert primary["signature"].split(";")[0] in (
        "left to right, windows of 32, no overlap, from a start token",
        "left to right, windows of 32, no overlap, each text's first token unscored",
        "15 % of the tokens masked, one fixed draw",
    )
    # The teacher's score in this run is its own from the run that made it.
    assert scores["teacher"][0]["value"] == pytest.approx(
        alone["scores"]["validation"]["student"][0]["value"], rel=1e-5
    )
    assert set(record["training"]["terms"]) == {"hard", "soft", "cosine"}
    assert "retained" in out


def test_the_exported_language_model_scores_the_same_from_its_folder(kdalign, taught, texts, tmp_path):
    status, _, err = kdalign(*words(taught, texts, "runs/a"))
    assert status == 0, err
    status, _, err = kdalign("eval", "runs/a", "runs/a/student", "--task", "lm", "--data", texts, "--max-length", 32,
                             "--out", "scores.json")  # fmt: skip
    assert status == 0, err
    of_run, of_folder = json.loads((tmp_path / "scores.json").read_text())["results"]
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    first = record["scores"]["validation"]["student"][0]
    assert of_run["scores"][0]["value"] == pytest.approx(first["value"], rel=1e-6)
    assert of_folder["scores"][0]["value"] == pytest.approx(first["value"], rel=1e-6)
    assert [score["metric"] for score in of_run["scores"]][-1] == "agreement"
    # Its texts are scored in a column of the run's own row, beside what it was scored by when it was made.
    status, _, err = kdalign("eval", "runs/a", "--metrics", "chrf", "--limit", 3, "--out", "few.json")
    assert status == 0, err
    status, _, err = kdalign("eval", "runs/a", "--metrics", "chrf", "--new-tokens", 4, "--out", "texts.json")
    assert status == 0, err
    scores = json.loads((tmp_path / "texts.json").read_text())["results"][0]["scores"]
    [chrf] = [score["value"] for score in scores if score["metric"] == "chrf"]
    status, out, err = kdalign("compare", "runs/a", "texts.json", "few.json", "--json")
    assert status == 0, err
    rows = {row["name"]: row["cells"] for row in json.loads(out)["rows"]}
    assert rows["a"]["lm/chrf"]["value"] == chrf
    assert rows["a"][f"lm/{first['metric']}"]["value"] == first["value"]
    assert {name for name in rows if name.startswith("a")} == {"a", "a (validation)"}
    assert "lm/chrf" in rows["a (validation)"]  # of three texts alone


@pytest.mark.parametrize("taught", ["gpt2"], indirect=True)
def test_samples_are_what_transformers_generates_from_each_models_files(kdalign, taught, texts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kdalign(*words(taught, texts, "runs/a", "--set", "train.samples=2"))
    samples = json.loads((tmp_path / "runs/a/record.json").read_text())["samples"]
    assert len(samples) == 2
    tokenizer = AutoTokenizer.from_pretrained(taught / "student")
    for who, folder in (("student", tmp_path / "runs/a/student"), ("teacher", taught / "student")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        for sample in samples:
            ids = tokenizer(tokenizer.bos_token + sample["prompt"], return_tensors="pt")
            found = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            new = found[0, ids["input_ids"].shape[1] :]
            assert tokenizer.decode(new, skip_special_tokens=True) == sample[who]
    events = [json.loads(line) for line in (tmp_path / "runs/a/history.jsonl").read_text().splitlines()]
    looked = [event["samples"] for event in events if event["kind"] == "evaluation"]
    assert all(len(said) == 2 for said in looked)
    assert looked[-1] == [sample["student"] for sample in samples]
    log = (tmp_path / "runs/a/log.txt").read_text()
    assert log.count("teacher's sample: ") == 2
    assert log.count("sample: ") - 2 == len(looked)


@pytest.mark.slow
@pytest.mark.parametrize("taught", ["gpt2"], indirect=True)
def test_a_student_of_adapters_is_exported_as_a_stock_checkpoint_of_its_family(kdalign, taught, texts, tmp_path):
    status, _, err = kdalign(*words(taught, texts, "runs/a", "--lora", 2))
    assert status == 0, err
    from safetensors import safe_open

    with safe_open(tmp_path / "runs/a/student/model.safetensors", "pt") as ours:
        with safe_open(taught / "student/model.safetensors", "pt") as theirs:
            # The same names but those of the second layer, which was cut.
            assert set(ours.keys()) < set(theirs.keys())
            assert all(".h.0." in name or ".h.1." not in name for name in ours.keys())
            name = "transformer.wte.weight"
            assert (ours.get_tensor(name) == theirs.get_tensor(name)).all()
    assert json.loads((tmp_path / "runs/a/record.json").read_text())["recipe"]["train"]["lora"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("taught", ["gpt2"], indirect=True)
def test_a_killed_run_on_tokens_resumes_to_the_same_weights_tied_ones_too(taught, texts, tmp_path):
    import signal

    from support.ranks import run, stop_after

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--max-steps", 24, "--set", "train.checkpoint_every=2", "--select", "best")
    assert run(["-m", "kdalign", *map(str, words(taught, texts, whole, *more))]).returncode == 0
    command = ["-m", "kdalign", *map(str, words(taught, texts, killed, *more))]
    status, _ = stop_after(command, killed, 7, signal.SIGKILL)
    assert status == -signal.SIGKILL, "it was killed in the middle"
    assert list((killed / "checkpoints").glob("step-*"))
    done = run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"])
    assert done.returncode == 0, done.stderr
    for name in ("student/model.safetensors", "history.jsonl", "predictions/validation.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


# XLNet has weights that no step reaches, for which DDP would wait.
@pytest.mark.slow
@pytest.mark.parametrize("taught", first_only(["gpt2", "xlnet"], 0), indirect=True)
def test_two_ranks_take_the_steps_of_one_process_on_tokens(taught, texts, tmp_path):
    from support.ranks import each_step, run

    one, two = tmp_path / "one", tmp_path / "two"
    command = ["-m", "kdalign", *map(str, words(taught, texts, one))]
    done = run(command)
    assert done.returncode == 0, done.stderr
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    done = run([*torchrun, "-m", "kdalign", *map(str, words(taught, texts, two))])
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "record.json").read_text())["training"]["ranks"] == 2
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)


def test_training_stops_with_the_step_that_reaches_the_tokens(kdalign, taught, texts, tmp_path):
    asked = [word for word in words(taught, texts, "runs/a") if word not in ("--max-steps", 6)]
    status, _, err = kdalign(*asked, "--max-tokens", 900)
    assert status == 0, err
    events = [json.loads(line) for line in (tmp_path / "runs/a/history.jsonl").read_text().splitlines()]
    training = json.loads((tmp_path / "runs/a/record.json").read_text())["training"]
    steps = sum(event["kind"] == "step" for event in events)
    assert training["steps"] == steps
    assert training["tokens"] >= 900
    assert training["tokens"] * (steps - 1) / steps < 900 * 1.5


WRONG = [
    (("--student", "layers=2"), "is cut out of a teacher"),
    (("--student", "new:gpt2,layers=1"), "needs --tokenizer"),
    (("--student", "new:gpt2,layers=1", "--tokenizer", "train:many"), "accepted is train:SIZE"),
    (("--student", "new:gpt2,layers=1", "--tokenizer", "train:100", "--dry-run"), "train:100 has no room"),
    (("--student", "new:gpt2,layers=1,positions=16", "--tokenizer", "train:300"), "more than the 16 positions"),
    (("--student", "new:gpt3", "--tokenizer", "train:300"), "gpt2"),
    (("--student", "new:t5", "--tokenizer", "train:300", "--task", "masked-lm"), "seq2seq model"),
    (("--student", "new:gpt2", "--tokenizer", "./missing", "--dry-run"), "'./missing' has no tokenizer"),
    (("--student", "new:gpt2", "--tokenizer", "train:300", "--device", "gpu", "--dry-run"), "unknown device 'gpu'"),
    (
        ("--student", "new:gpt2", "--tokenizer", "train:300", "--max-steps", 9, "--max-tokens", 9),
        "train.max_steps or train.max_tokens, not both",
    ),
    (("--student", "new:t5", "--tokenizer", "train:300"), "not for it (fitting: translation, summarization, dialogue"),
]


@pytest.mark.parametrize(("more", "said"), WRONG)
def test_a_student_that_cannot_be_made_is_one_line_and_nothing_is_written(
    kdalign,
    texts,
    tmp_path,
    more,
    said,
):
    task = () if "--task" in more else ("--task", "lm")
    status, _, err = kdalign("distill", "--teacher", "none", "--data", texts, "--max-length", 32, *task, *more)
    assert status == 2
    assert said in one_line(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_by_tokens_takes_as_many_steps_as_its_tokens_fill(kdalign, texts, tmp_path):
    student = "new:bert,layers=1,width=32,heads=4,positions=32"
    status, _, err = kdalign("distill", "--teacher", "none", "--student", student, "--tokenizer", "train:300",
                             "--task", "lm", "--data", texts, "--max-length", 32, "--batch-tokens", 200,
                             "--epochs", 2, "--device", "cpu", "--out", "runs/t")  # fmt: skip
    assert status == 0, err
    record = json.loads((tmp_path / "runs/t/record.json").read_text())
    trained, each = record["training"], record["data"]["train"]["tokens"]
    assert trained["steps"] == 2 * (each // 200)
    assert trained["tokens"] == 2 * each


def test_a_tokenizer_of_another_model_is_told_by_its_numbers(kdalign, texts, tmp_path):
    from transformers import AutoModelForMaskedLM

    make_tokenizer(teacher := tmp_path / "small", "bert")
    AutoModelForMaskedLM.from_config(tiny_config("bert", vocab_size=40)).save_pretrained(teacher)
    status, _, err = kdalign("distill", "--teacher", "none", "--student", teacher, "--task", "lm", "--data", texts,
                            "--max-length", 32)  # fmt: skip
    assert status == 2
    assert "is not this model's: it gives '" in err
    assert "and the model has 40 entries; put the model's own tokenizer beside it" in err
    assert not (tmp_path / "runs").exists()


def test_a_classifier_has_no_tokens_to_give(kdalign, teacher, texts):
    status, _, err = kdalign("distill", "--teacher", teacher, "--student", "layers=2", "--task", "lm", "--data", texts)
    assert status == 2
    assert "has no language-model head; `kdalign distill --teacher none --student" in one_line(err)


@pytest.mark.parametrize("taught", ["gpt2"], indirect=True)
def test_runs_compare_though_one_lacks_a_metric_that_its_texts_made_impossible(kdalign, taught, tmp_path):
    record = read_record(taught)
    for name, metrics in (("whole", 2), ("cut", 1)):
        scores = record.scores["validation"]
        changed = {"validation": {**scores, "student": scores["student"][:metrics]}}
        (tmp_path / "runs" / name).mkdir(parents=True)
        RunFolder(tmp_path / "runs" / name).write_record(replace(record, task=name, scores=changed))
    status, _, err = kdalign("compare", "runs")
    assert status == 0, err


def test_the_command_that_would_make_a_head_can_be_followed(kdalign, teacher, data):
    status, out, _ = kdalign("eval", teacher, "--task", "lm:sst2", "--data", data, "--max-length", 64)
    assert status == 2
    assert f"--task lm:sst2 --data {data}" in " ".join(out.split()).replace("- ", "-")


def test_samples_end_where_a_models_positions_end(kdalign, texts, tmp_path):
    student = "new:gpt2,layers=1,width=32,heads=4,positions=16"
    status, _, err = kdalign("distill", "--teacher", "none", "--student", student, "--tokenizer", "train:300",
                             "--task", "lm", "--data", texts, "--max-length", 16, "--max-steps", 1,
                             "--device", "cpu", "--out", "runs/p")  # fmt: skip
    assert status == 0, err
    assert len(json.loads((tmp_path / "runs/p/record.json").read_text())["samples"]) == 3


@pytest.mark.parametrize(
    ("columns", "task"),
    [(("source", "translation"), "translation:source-translation"), (("en", "de"), "translation:en-de")],
)
def test_a_column_named_translation_may_be_a_text_like_any_other(tmp_path, columns, task):
    table = pd.DataFrame({name: ["a", "b"] for name in (*columns, "translation")})
    assert load_texts(find_task(task, str(folder(tmp_path / "d", table))), "train").texts == (("a", "b"), ("a", "b"))


def test_a_row_without_its_object_of_texts_is_named(tmp_path):
    table = pd.DataFrame({"translation": [{"en": "a", "de": "b"}, None]})
    with pytest.raises(UsageError, match="row 1 has no object of texts in column 'translation'"):
        load_texts(find_task("translation:en-de", str(folder(tmp_path / "d", table))), "train")


def test_text_that_is_only_scored_needs_no_training_split(tmp_path):
    (tmp_path / "validation.txt").write_text("a film", encoding="utf-8")
    task = find_task("lm", str(tmp_path))
    assert load_texts(task, "validation").texts == (("a film",),)


@pytest.mark.parametrize("taught", ["gpt2"], indirect=True)
def test_the_examples_bigram_is_a_distribution_and_is_scored_on_the_runs_own_tokens(taught):
    script = Path(__file__).resolve().parents[2] / "examples" / "bigram.py"
    Bigram = run_path(str(script), run_name="example")["Bigram"]  # noqa: N806
    counted = np.array([[-1, 0, 1, 0], [0, 1, 0, 1]])
    bigram = Bigram(counted, counted, 3)
    everything = np.stack([np.zeros(3, dtype=int), np.arange(3)])
    assert (bigram.parts(everything) @ bigram.weights).sum() == pytest.approx(1)
    # After 0 always came 1; each of 0 and 1 is half of all tokens; 3 entries.
    np.testing.assert_allclose(bigram.parts(np.array([[0], [1]])), [[1.0, 0.5, 1 / 3]])
    out = subprocess.run([sys.executable, script, taught], capture_output=True, text=True, check=True).stdout
    assert "; bigram " in out


def test_a_model_that_is_not_there_is_said_not_to_be(kdalign):
    status, _, err = kdalign("eval", "runs/nope")
    assert status == 2
    assert "there is no 'runs/nope' here; if it is a model on the hub, say what to score it on: --task" in one_line(err)


def test_a_new_student_of_another_family_than_its_teachers_is_refused(kdalign, taught, texts, tmp_path):
    words = ("distill", "--teacher", taught, "--task", "lm", "--data", texts, "--max-length", 32, "--dry-run")
    other = "gpt2" if "gpt2" not in json.loads((taught / "student/config.json").read_text())["model_type"] else "xlnet"
    status, _, err = kdalign(*words, "--student", f"new:{other},layers=1,width=32,heads=4")
    assert status == 2
    assert re.search("is a (causal|permutation) model, teacher", one_line(err))


@pytest.mark.slow
def test_a_bart_reads_its_marian_teachers_targets_and_no_samples_are_none(kdalign, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for number, split in enumerate(("train", "validation")):
        english, _ = sentences(40, number)
        pd.DataFrame({"en": english, "de": english[::-1]}).to_parquet(pairs / f"{split}.parquet")
    words = ("distill", "--task", "translation:en-de", "--data", pairs, "--max-length", 24, "--max-steps", 2)
    words += ("--set", "train.samples=0", "--allow", "weak-teacher")
    made = "new:marian,layers=1,width=32,heads=4,positions=32"
    status, _, err = kdalign(*words, "--teacher", "none", "--student", made, "--tokenizer", "train:300", "--out", "big")
    assert status == 0, err
    status, _, err = kdalign(*words, "--teacher", "big", "--student", made.replace("marian", "bart"), "--out", "small")
    assert status == 0, err
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("big", "small")]
    first, again = (records[0]["scores"]["validation"]["student"], records[1]["scores"]["validation"]["teacher"])
    assert [score["value"] for score in first] == pytest.approx([score["value"] for score in again])
    starts = [
        json.loads((tmp_path / name / "student/config.json").read_text())["decoder_start_token_id"]
        for name in ("big", "small")
    ]
    assert starts[0] == starts[1]
