"""What a run would meet: said by a dry run, refused with its mend, let through by its name."""

import json
import shutil
from collections import namedtuple

import pandas as pd
import psutil
import pytest
from safetensors.torch import load_file, save_file

from kdalign.runs.record import read_record
from support.tiny import one_line, save_model, sentences


def words(teacher, data, *more):
    return ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--max-steps",
            "2", "--batch-size", "16", "--precision", "fp32", "--device", "cpu", "--out", "runs/a", *more)  # fmt: skip


def checks(kdalign, *command):
    status, out, err = kdalign(*command, "--dry-run", "--json")
    assert status == 0, err
    return {finding["what"]: finding["said"] for finding in json.loads(out)[0]["checks"]}


@pytest.mark.usefixtures("measured")
def test_a_dry_run_says_what_it_looked_at(kdalign, teacher, data):
    found = checks(kdalign, *words(teacher, data))
    assert found["tokenizers"].startswith("one")
    assert found["lengths"] == "128 tokens of positions: teacher 160, student 160"
    assert found["attention"].startswith("teacher: SDPA")
    assert found["dropout"] == "the student's own (0.1); the teacher has none"
    assert {"memory", "disk"} <= set(found)
    assert "special-tokens" not in found
    status, out, _ = kdalign(*words(teacher, data), "--dry-run")
    assert status == 0
    assert "at most, in " in " ".join(out.split())


def test_disk_is_counted_by_hand(kdalign, teacher, data):
    found = checks(kdalign, *words(teacher, data, "--student", "layers=4"))
    parameters = sum(value.numel() for value in load_file(teacher / "model.safetensors").values())
    assert found["disk"].startswith(f"{40 * parameters / 1e6:.1f} MB for student")


def test_a_limit_on_the_size_of_files_is_refused_or_let_through_by_the_name_it_gives(
    kdalign, teacher, data, monkeypatch
):
    monkeypatch.setattr("kdalign.distillation.preflight._limit_of_files", lambda: 1000)
    status, _, err = kdalign(*words(teacher, data))
    assert (status, "--allow file-size" in one_line(err)) == (2, True)
    assert "file-size" in checks(kdalign, *words(teacher, data, "--allow", "file-size"))


@pytest.mark.usefixtures("measured")
def test_too_little_memory_or_disk_is_refused_or_let_through_by_name(kdalign, teacher, data, monkeypatch, tmp_path):
    memory = namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1000))
    status, _, err = kdalign(*words(teacher, data))
    assert status == 2
    assert "--allow memory" in one_line(err)
    for mend in ("train.micro_batch", "data.max_length", "train.gradient_checkpointing", "train.optimizer_state"):
        assert mend in err
    assert not (tmp_path / "runs").exists()
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "0.0 MB free for each of 2 ranks" in one_line(kdalign(*words(teacher, data))[2])
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    status, _, err = kdalign(*words(teacher, data, "--allow", "memory"))
    assert status == 2
    assert "--allow disk" in one_line(err)
    status, _, err = kdalign(*words(teacher, data, "--allow", "memory", "--allow", "disk"))
    assert status == 0, err
    assert "memory does not suffice" in err
    assert any(line.startswith("memory: ") and "(predicted " in line for line in err.splitlines())
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    assert record["recipe"]["allow"] == ["memory", "disk"]
    assert "does not suffice" in record["data"]["checks"]["disk"]
    assert record["memory"]["peak"] > record["memory"]["predicted"] // 10 > 0


def test_too_little_disk_for_a_cache_is_refused_before_anything_is_written(
    kdalign, teacher, data, monkeypatch, tmp_path
):
    usage = namedtuple("Usage", "total used free")
    kept = tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10 if path == kept.parent else 10**12))
    given = [*words(teacher, data, "--cache", kept)]
    status, _, err = kdalign(*given)
    assert (status, "for the cache" in one_line(err), "--allow disk" in err) == (2, True, True), err
    assert not (tmp_path / "runs").exists()
    assert not kept.exists()
    status, _, err = kdalign(*given, "--allow", "disk")
    assert status == 0, err


def test_special_tokens_of_another_number_are_refused_and_let_through_by_name(kdalign, data, tmp_path_factory):
    odd = save_model(tmp_path_factory.mktemp("odd"), "bert", id2label={0: "negative", 1: "positive"})
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    status, _, err = kdalign(*words(odd, data))
    assert status == 2
    assert "pad token is 7 in its configuration and 0 in its tokenizer" in one_line(err)
    assert kdalign(*words(odd, data, "--allow", "special-tokens"))[0] == 0


def test_an_unknown_name_is_not_let_through(kdalign, teacher, data):
    status, _, err = kdalign(*words(teacher, data, "--allow", "everything"))
    assert status == 2
    assert "memory" in one_line(err)


def test_labels_in_another_order_and_inputs_that_one_model_lacks_are_said(kdalign, data, tmp_path_factory):
    turned = save_model(tmp_path_factory.mktemp("turned"), "bert", id2label={0: "positive", 1: "negative"})
    plain = save_model(tmp_path_factory.mktemp("plain"), "distilbert", layers=2)
    found = checks(kdalign, *words(turned, data, "--student", plain))
    assert found["labels"] == "the teacher's are matched by name: negative is output 1, positive is output 0"
    assert "teacher alone" in found["inputs"]


def test_reported_texts_that_are_trained_on_are_counted_whatever_their_case_and_spacing(kdalign, teacher, tmp_path):
    texts, labels = sentences(40, 0)
    texts[:5] = ["a film that i saw"] * 5
    place = tmp_path / "leaky"
    place.mkdir()
    pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(place / "train.parquet")
    rows = ["A film that  I saw", "another one", "one more of them", "and the last"]
    pd.DataFrame({"sentence": rows, "label": [0, 1, 0, 1]}).to_parquet(place / "validation.parquet")
    command = words(teacher, place, "--max-length", "32")
    assert checks(kdalign, *command)["leak"] == "1 of the 4 texts of validation are in the training text, too"
    status, _, err = kdalign(*command)
    assert status == 0
    assert "leak: 1 of the 4 texts" in err


@pytest.mark.parametrize("kind", ["bert"])
def test_one_vocabulary_that_is_tied_and_one_that_is_not_are_said(kdalign, tmp_path, kind):
    rows = sentences(40, 0)[0]
    for split in ("train", "validation"):
        pd.DataFrame({"text": rows}).to_parquet(tmp_path / f"{split}.parquet")
    common = ["--task", "lm", "--data", tmp_path, "--max-length", "32", "--max-steps", "1", "--device", "cpu"]
    status, _, err = kdalign("distill", "--teacher", "none", "--student", f"new:{kind},layers=2,width=32,heads=4",
                             "--tokenizer", "train:290", "--out", "runs/tied", *common)  # fmt: skip
    assert status == 0, err
    loose = tmp_path / "loose"
    shutil.copytree(tmp_path / "runs/tied/student", loose)
    config = json.loads((loose / "config.json").read_text())
    (loose / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(loose / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    save_file(weights, loose / "model.safetensors", {"format": "pt"})
    found = checks(kdalign, "distill", "--teacher", "runs/tied", "--student", loose, *common)
    assert found["tied weights"] == "the teacher's vocabulary alone is tied to its embeddings"


def test_what_a_run_does_not_read_and_a_rate_at_which_nothing_is_learnt_are_said(kdalign, teacher, data, tmp_path):
    more = ["--lr", "1e10", "--set", "train.holdout=0.1", "--set", "data.limit_seed=3", "--set", "finetune.lr=1e-3"]
    more += ["--set", "train.sharding=fsdp2"]
    alone = ["--alpha", "0", "--beta", "0", "--gamma", "0", "--delta", "0", "--temperature", "4", "--map", "last"]
    found = checks(kdalign, *words(teacher, data, *more, *alone))
    assert "train.lr=1e+10 is far above" in found["learning rate"]
    for said in (
        "data.limit_seed",
        "train.sharding=fsdp2 is for several ranks",
        "train.holdout",
        "finetune",
        "align",
        "objective.temperature",
    ):
        assert said in found["no effect"]
    found = checks(kdalign, *words(teacher, data, "--temperature", "4", "--map", "last", "--init", "first"))
    assert not {"learning rate", "no effect"} & set(found)
    own = tmp_path / "own"
    shutil.copytree(teacher, own)
    found = checks(kdalign, *words(teacher, data, "--student", own, "--init", "first"))
    assert "init=first is for a student that is cut" in found["no effect"]


def test_train_of_one_class_alone_is_a_warning_before_training(kdalign, teacher, tmp_path):
    folder = tmp_path / "ones"
    folder.mkdir()
    for split, labels in (("train", [1] * 4), ("validation", [0, 1, 0, 1])):
        pd.DataFrame({"sentence": ["good", "bad", "fine", "dull"], "label": labels}).to_csv(
            folder / f"{split}.csv", index=False
        )
    found = checks(kdalign, *words(teacher, folder))
    assert found["classes"] == "warning: all 4 training examples are of the class 'positive'; labels teach no other"


def test_train_of_all_classes_is_no_warning(kdalign, teacher, data):
    assert "classes" not in checks(kdalign, *words(teacher, data))


@pytest.mark.usefixtures("measured")
def test_a_new_student_that_is_trained_alone_is_looked_at_before_its_tokenizer_is_trained(kdalign, tmp_path):
    for split in ("train", "validation"):
        pd.DataFrame({"text": sentences(40, 0)[0]}).to_parquet(tmp_path / f"{split}.parquet")
    words = ("distill", "--teacher", "none", "--student", "new:bert,layers=2,width=32,heads=4,positions=64", "--task",
             "masked-lm", "--data", tmp_path, "--tokenizer", "train:290", "--max-length", "32")  # fmt: skip
    found = checks(kdalign, *words)
    assert found["lengths"] == "32 tokens of positions: student 64"
    assert found["dropout"].startswith("the student's own (0.1)")
    # No token can be counted yet.
    assert found["memory"].startswith("about ")
    assert "the tokenizer is still to be trained" in found["memory"]
    status, _, err = kdalign(*words, "--set", "train.freeze=[head, embeddings, layers=0-1]", "--dry-run")
    assert (status, "leaves nothing to train" in one_line(err)) == (2, True)


def test_a_cache_that_cannot_be_written_is_refused_before_a_teacher_is_fine_tuned(teacher, data, tmp_path, monkeypatch):
    from transformers import AutoModel

    from kdalign.distillation.prepare import prepare
    from kdalign.errors import UsageError
    from kdalign.recipe import build_recipe

    body = shutil.copytree(teacher, tmp_path / "body")
    AutoModel.from_pretrained(teacher).save_pretrained(body)
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "file"))
    given = {"teacher": str(body), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    with pytest.raises(UsageError, match="file"):
        prepare(build_recipe(None, {**given, "out": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_written_is_said_with_what_it_costs(kdalign, teacher, data, tmp_path, monkeypatch):
    assert "cache folder" not in checks(kdalign, *words(teacher, data))
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "file"))
    said = checks(kdalign, *words(teacher, data))["cache folder"]
    assert said.startswith(f"cannot make folder '{tmp_path / 'file'}'")
    assert "every run computes anew" in said
    status, _, err = kdalign(*words(teacher, data))
    assert (status, err.count(f"cache folder: {said}")) == (0, 1)
    assert "cache folder" not in read_record(tmp_path / "runs" / "a").data["checks"], "it is of the machine"
