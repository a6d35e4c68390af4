"""Runs whose teacher reads other tokens than the student: from the command line, killed, on two ranks, scored."""

import json
import re
import signal
import time

import pandas as pd
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdalign.recipe import build_recipe
from support.covering import first_only
from support.ranks import each_step, run, stop_after
from support.tiny import one_line, save_model, sentences

TASKS = ("classes", "masked", "causal")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for number, split in enumerate(("train", "validation")):
        rows = sentences(96 // (number + 1), number)[0]
        rows[0] = "A naïve café — 🎉 don't you?"
        pd.DataFrame({"text": rows}).to_parquet(place / f"{split}.parquet")
    return place


@pytest.fixture(scope="module")
def language_teachers(tmp_path_factory, texts):
    """A masked and a causal teacher made from nothing, with 300 entries each."""
    from kdalign.distillation.pipeline import distill

    made = {}
    for kind, model in (("masked", "bert"), ("causal", "gpt2")):
        made[kind] = tmp_path_factory.mktemp("made") / kind
        flags = {"teacher": "none", "student": f"new:{model},layers=2,width=32,heads=4,positions=64",
                 "tokenizer": "train:300", "data.task": "lm", "data.folder": str(texts), "data.max_length": 32,
                 "train.max_steps": 4, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32",
                 "out": str(made[kind])}  # fmt: skip
        distill(build_recipe(None, flags))
    return made


@pytest.fixture
def words(teacher, data, texts, language_teachers):
    """The command that teaches a student with a vocabulary of its own, for each kind of task."""

    def of(kind, out, *more):
        common = ["distill", "--tokenizer", "train:290", "--batch-size", 8, "--micro-batch", 4, "--max-steps", 12,
                  "--max-length", 40, "--precision", "fp32", "--device", "cpu", "--set", "train.dropout=0", "--set",
                  "train.checkpoint_every=3", "--allow", "weak-teacher", "--out", out, *more]  # fmt: skip
        if kind == "classes":
            given = ["--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data]
        else:
            student = "layers=1" if kind == "masked" else "new:llama,layers=1,width=32,heads=2,positions=64"
            given = ["--teacher", language_teachers[kind], "--student", student, "--task", "lm", "--data", texts]
        return [str(word) for word in common[:1] + given + common[1:]]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", first_only(TASKS))
def test_a_student_with_a_vocabulary_of_its_own_is_taught_and_all_is_said(kdalign, words, tmp_path, kind):
    status, out, err = kdalign(*words(kind, "runs/a"))
    assert status == 0, err
    assert "tokenizers differ" in err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    facts = record["data"]["tokenizers"]
    assert facts["covered"] >= 0.99 * facts["characters"] > 0
    assert facts["shared_entries"] > 30
    assert {"soft", "cosine", "hard"} <= set(record["training"]["terms"])
    assert all(value > 0 for value in record["training"]["terms"].values())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "runs/a/student")
    assert len(tokenizer) == facts["student_entries"] == load_rows(tmp_path / "runs/a/student")
    scores = record["scores"]["validation"]
    assert (scores["agreement"] is None) == (kind != "classes"), "answers to other tokens do not compare"
    assert scores["teacher"]
    status, out, err = kdalign("eval", "runs/a", "--out", "again.json")
    assert status == 0, err
    again = json.loads((tmp_path / "again.json").read_text())["results"][0]["scores"][0]
    assert again["value"] == pytest.approx(scores["student"][0]["value"], rel=1e-6)
    status, out, err = kdalign("compare", "runs/a", "--format", "json")
    assert status == 0, err
    assert ("do not compare" in out) == (kind != "classes")


def load_rows(folder):
    weights = load_file(folder / "model.safetensors")
    return next(len(value) for name, value in weights.items() if "word_embeddings" in name or "embed_tokens" in name)


@pytest.mark.slow
def test_the_scored_student_is_the_stock_model_with_its_own_tokenizer(kdalign, words, data, tmp_path):
    assert kdalign(*words("classes", "runs/a"))[0] == 0
    folder = tmp_path / "runs/a/student"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    table = pd.read_parquet(data / "validation.parquet")
    found = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in table["sentence"]]
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    accuracy = 100 * sum(int(f == label) for f, label in zip(found, table["label"], strict=True)) / len(found)
    assert record["scores"]["validation"]["student"][0]["value"] == pytest.approx(accuracy)


@pytest.mark.slow
def test_two_checkpoints_whose_vocabularies_are_numbered_otherwise_are_matched_whole(
    kdalign, teacher, data, tmp_path, tmp_path_factory
):
    from transformers import BertTokenizer

    other = save_model(tmp_path_factory.mktemp("other"), "bert", layers=2)
    entries = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(entries, key=entries.get)
    tokens[10], tokens[11] = tokens[11], tokens[10]  # the same size, two tokens exchanged
    BertTokenizer(vocab={t: i for i, t in enumerate(tokens)}, do_lower_case=True).save_pretrained(other)
    command = ["distill", "--teacher", teacher, "--student", other, "--task", "sst2", "--data", data,
               "--max-steps", "2", "--batch-size", "16", "--precision", "fp32", "--device", "cpu"]  # fmt: skip
    status, out, err = kdalign(*command, "--dry-run")
    assert status == 0, err
    assert "matched by the characters" in " ".join(out.split())
    status, _, err = kdalign(*command, "--out", "runs/a")
    assert status == 0, err
    facts = json.loads((tmp_path / "runs/a/record.json").read_text())["data"]["tokenizers"]
    assert facts["covered"] == facts["characters"]
    assert facts["shared_entries"] == len(tokens) - 2, "all but padding and unknown"


@pytest.mark.slow
def test_layers_of_models_with_two_tokenizers_are_compared_over_the_same_text(kdalign, words, language_teachers, texts):
    assert kdalign(*words("masked", "runs/a"))[0] == 0
    status, out, err = kdalign("map-layers", "--teacher", language_teachers["masked"], "--student", "runs/a",
                               "--map", "cka", "--task", "lm", "--data", texts, "--json")  # fmt: skip
    assert status == 0, err
    alike = json.loads(out)["similarities"]["encoder"]
    assert max(alike[0]) > 0.3


@pytest.mark.slow
def test_an_encoder_decoder_with_a_vocabulary_of_its_own_is_taught(kdalign, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rows = sentences(40, 0)[0]
    for split in ("train", "validation"):
        pd.DataFrame({"en": rows, "de": rows[::-1]}).to_parquet(pairs / f"{split}.parquet")
    common = ["--task", "translation:en-de", "--data", pairs, "--max-steps", "2", "--max-length", 40, "--device", "cpu"]
    made = kdalign("distill", "--teacher", "none", "--student", "new:t5,layers=2,width=32,heads=4", "--tokenizer",
                   "train:290", "--out", "runs/t5", *common)  # fmt: skip
    assert made[0] == 0, made[2]
    status, _, err = kdalign("distill", "--teacher", "runs/t5", "--student", "layers=1", "--tokenizer", "train:280",
                             "--allow", "weak-teacher", "--out", "runs/own", "--delta", "1", *common)  # fmt: skip
    assert status == 0, err
    plain = " ".join(err.split())
    assert "tokenizers differ: 100.00 % of" in plain
    assert re.search(r"step 2/2 .* soft [0-9.]+", plain)
    assert "teacher's sample" in plain
    record = json.loads((tmp_path / "runs/own/record.json").read_text())
    assert record["scores"]["validation"]["student"][0]["metric"] == "ppl"


@pytest.mark.slow
def test_the_teacher_is_asked_to_go_on_from_the_same_text(kdalign, words, tmp_path):
    assert kdalign(*words("causal", "runs/a"))[0] == 0
    samples = json.loads((tmp_path / "runs/a/record.json").read_text())["samples"]
    assert len(samples) == 3
    assert all("\ufffd" not in sample["prompt"] and "teacher" in sample for sample in samples)


@pytest.mark.slow
def test_embeddings_are_learnt_from_a_teacher_with_other_tokens(kdalign, teacher, tmp_path):
    place = tmp_path / "pairs"
    place.mkdir()
    first, labels = sentences(60, 1)
    pd.DataFrame({"text": first}).to_parquet(place / "train.parquet")
    pairs = {"sentence1": first, "sentence2": first[::-1], "label": [float(x) for x in labels]}
    pd.DataFrame(pairs).to_parquet(place / "validation.parquet")
    status, _, err = kdalign("distill", "--teacher", teacher, "--student", "layers=2", "--tokenizer", "train:290",
                             "--task", "embedding", "--data", place, "--max-steps", "4", "--batch-size", "16",
                             "--precision", "fp32", "--device", "cpu", "--out", "runs/a")  # fmt: skip
    assert status == 0, err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    assert record["scores"]["validation"]["agreement"]["value"] is not None
    assert 0 < record["training"]["terms"]["embedding"] < 2


def test_adapters_leave_no_way_to_learn_a_vocabulary(kdalign, words, tmp_path):
    pytest.importorskip("peft")
    status, _, err = kdalign(*words("classes", "runs/a", "--lora", "2"))
    assert status == 2
    assert "--lora leaves embeddings" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_keeps_its_tokenizer(kdalign, teacher, data, tmp_path_factory):
    other = save_model(tmp_path_factory.mktemp("other"), "bert", layers=2)
    status, _, err = kdalign("distill", "--teacher", teacher, "--student", other, "--tokenizer", "train:300", "--task",
                             "sst2", "--data", data)  # fmt: skip
    assert status == 2
    assert "a checkpoint brings its own" in one_line(err)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_a_run_with_two_tokenizers_killed_and_resumed_ends_in_the_same_weights(words, tmp_path, kind):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(["-m", "kdalign", *words(kind, whole)])
    assert done.returncode == 0, done.stderr
    status, _ = stop_after(["-m", "kdalign", *words(kind, killed)], killed, 5, signal.SIGKILL)
    assert status == -signal.SIGKILL
    time.sleep(0.1)
    done = run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"])
    assert done.returncode == 0, done.stderr
    assert (whole / "student/model.safetensors").read_bytes() == (killed / "student/model.safetensors").read_bytes()
    assert (whole / "history.jsonl").read_bytes() == (killed / "history.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_two_ranks_take_the_steps_of_one_process_with_two_tokenizers(words, tmp_path, kind):
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(["-m", "kdalign", *words(kind, one)])
    assert done.returncode == 0, done.stderr
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    done = run([*torchrun, "-m", "kdalign", *words(kind, two)])
    assert done.returncode == 0, done.stderr
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=2e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)
