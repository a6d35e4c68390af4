"""The exported student: loaded by Transformers alone it has the scores of the record, and nothing is lost."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from kdalign.distillation.export import write_sentence_modules
from kdalign.distillation.pipeline import distill
from kdalign.distillation.prepare import resume_command
from kdalign.errors import UsageError
from kdalign.recipe import build_recipe
from kdalign.runs.folder import RunFolder
from support.tiny import save_model, sentences


def run_of(tmp_path, teacher, **flags):
    """A run of one step, and its record."""
    flags = {"data.task": flags.pop("task"), "data.folder": str(flags.pop("data")), **flags}
    given = {"teacher": str(teacher), "student": "layers=half", "out": str(tmp_path / "run"), "train.max_steps": 1,
             "allow": ["weak-teacher"]}  # fmt: skip
    sets = ("train.batch_size=4", "train.samples=0")
    return distill(build_recipe(None, {**given, **flags}, sets))[0], tmp_path / "run" / "student"


def first_score(record):
    [split] = record.scores.values()
    return split["student"][0]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A causal model that ends its texts by either of two tokens, with settings that Transformers would not save."""
    from kdalign.data.tokenizer_training import train_tokenizer
    from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config

    folder = tmp_path_factory.mktemp("writer")
    tokenizer = train_tokenizer(sentences(200, 7)[0], 300, "causal", 64)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    new = parse_scratch_spec("new:llama,layers=2,width=32,heads=4,feed_forward=64,positions=64")
    build_from_scratch(scratch_config(new, tokenizer), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"eos_token_id": [1, 5], "pad_token_id": 0, "temperature": 0.6, "suppress_tokens": [7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_a_student_that_writes_keeps_its_teachers_settings_and_scores_as_its_record_says(writer, tmp_path):
    texts = sentences(12, 3)[0]
    (tmp_path / "lm").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "lm" / f"{split}.txt").write_text("\n".join(texts) + "\n")
    record, student = run_of(tmp_path, writer, task="lm", data=tmp_path / "lm", **{"data.max_length": 64})
    assert len({file.stat().st_mode for file in student.iterdir()}) == 1, "weights are read by whom the rest is"
    settings = json.loads((student / "generation_config.json").read_text())
    assert {key: settings[key] for key in ("eos_token_id", "temperature", "suppress_tokens")} == {
        "eos_token_id": [1, 5],
        "temperature": 0.6,
        "suppress_tokens": [7],
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student).eval(), AutoTokenizer.from_pretrained(student)
    theirs = AutoTokenizer.from_pretrained(writer)
    assert (tokenizer.chat_template, tokenizer.get_vocab()) == (theirs.chat_template, theirs.get_vocab())
    assert tokenizer.special_tokens_map == theirs.special_tokens_map
    assert tokenizer.model_max_length == theirs.model_max_length
    assert model.generation_config.eos_token_id == [1, 5]
    total = count = 0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(logs.gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert first_score(record)["metric"] == "ppl"
    assert first_score(record)["value"] == pytest.approx(np.exp(total / count), rel=1e-4)


def test_the_student_of_a_head_for_several_labels_is_exported_for_one_and_scores_as_its_record_says(tmp_path):
    names = {0: "negative", 1: "positive"}
    teacher = save_model(tmp_path / "teacher", "bert", id2label=names, problem_type="multi_label_classification")
    (tmp_path / "sst2").mkdir()
    for number, split in enumerate(("train", "validation")):
        texts, labels = sentences(24, number)
        pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(tmp_path / "sst2" / f"{split}.parquet")
    record, student = run_of(tmp_path, teacher, task="sst2", data=tmp_path / "sst2")
    assert "for several labels of a text at once" in record.data["checks"]["labels"]
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert (model.config.problem_type, model.config.id2label) == ("single_label_classification", names)
    texts, labels = sentences(24, 1)
    with torch.no_grad():
        found = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    assert first_score(record)["value"] == pytest.approx(100 * np.mean(np.array(found) == labels))


def pooled(folder, texts):
    """Vectors as sentence-transformers makes them by the files of a folder: its modules one after another."""
    kinds = [each["type"].rpartition(".")[2] for each in json.loads((folder / "modules.json").read_text())]
    assert kinds[:2] == ["Transformer", "Pooling"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    read = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        features = model(**read).last_hidden_state
    assert features.shape[-1] == pooling["word_embedding_dimension"]
    real = read["attention_mask"].unsqueeze(-1)
    vectors = (features * real).sum(1) / real.sum(1)
    return torch.nn.functional.normalize(vectors, dim=1) if kinds[2:] == ["Normalize"] else vectors


@pytest.mark.slow
def test_an_embedding_student_says_how_it_pools_and_scores_as_its_record_says(tmp_path):
    teacher = save_model(tmp_path / "with-head", "bert")
    model = AutoModel.from_pretrained(teacher)
    shutil.rmtree(teacher / "checkpoints", ignore_errors=True)
    model.save_pretrained(teacher)
    write_sentence_modules(teacher, 32, 64, True)
    (tmp_path / "pairs").mkdir()
    generator = np.random.default_rng(0)
    for number, split in enumerate(("train", "validation")):
        first, second = sentences(16, number)[0], sentences(16, number + 9)[0]
        pairs = pd.DataFrame({"sentence1": first, "sentence2": second, "label": generator.random(16)})
        pairs = pairs[["sentence1"]] if split == "train" else pairs
        pairs.to_csv(tmp_path / "pairs" / f"{split}.csv", index=False)
    record, student = run_of(tmp_path, teacher, task="embedding", data=tmp_path / "pairs", **{"objective.hard": 0})
    read = pd.read_csv(tmp_path / "pairs" / "validation.csv")
    ours = (pooled(student, list(read.sentence1)) * pooled(student, list(read.sentence2))).sum(1).numpy()
    scores = {score["metric"]: score["value"] for score in next(iter(record.scores.values()))["student"]}
    assert scores["spearman"] == pytest.approx(100 * spearmanr(ours, read.label).statistic, abs=1e-3)
    assert [each["type"].rpartition(".")[2] for each in json.loads((student / "modules.json").read_text())] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]


def test_a_folder_whose_name_is_no_text_costs_no_training(tmp_path):
    teacher = save_model(tmp_path / "teacher", "bert", id2label={0: "negative", 1: "positive"})
    folder = tmp_path / os.fsdecode(b"sst2-\xff")
    folder.mkdir()
    for number, split in enumerate(("train", "validation")):
        texts, labels = sentences(24, number)
        pd.DataFrame({"sentence": texts, "label": labels}).to_json(
            folder / f"{split}.jsonl", orient="records", lines=True
        )
    record, student = run_of(tmp_path, teacher, task="sst2", data=folder)
    assert record.data["source"] == str(tmp_path / "sst2-\\udcff")
    assert (student / "README.md").is_file()
    with pytest.raises(UsageError, match="is not UTF-8"):
        run_of(tmp_path, teacher, task="sst2", data=folder, out=str(tmp_path / os.fsdecode(b"run-\xff")))


def test_a_card_that_cannot_be_made_leaves_a_finished_run(tmp_path, monkeypatch):
    teacher = save_model(tmp_path / "teacher", "bert", id2label={0: "negative", 1: "positive"})
    (tmp_path / "sst2").mkdir()
    for number, split in enumerate(("train", "validation")):
        texts, labels = sentences(24, number)
        pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(tmp_path / "sst2" / f"{split}.parquet")

    def refused(record, path):
        raise UsageError("no")

    monkeypatch.setattr("kdalign.distillation.export.model_card", refused)
    record, student = run_of(tmp_path, teacher, task="sst2", data=tmp_path / "sst2")
    assert first_score(record)["metric"] == "accuracy"
    assert not (student / "README.md").exists()


def test_the_command_that_goes_on_allows_the_code_of_every_task():
    def run(terms):
        objective = SimpleNamespace(terms=terms)
        recipe = SimpleNamespace(objective=objective, align=SimpleNamespace(map="auto"))
        return SimpleNamespace(recipe=recipe, task=SimpleNamespace(metrics=("accuracy",)))

    folder = RunFolder(Path("runs/a b"))
    assert resume_command([run({})], folder) == "kdalign distill --out 'runs/a b' --resume"
    assert resume_command([run({}), run({"own.py:Gap": 1.0})], folder).endswith("--resume --allow code")
