"""Training-free baseline rows: against numbers worked out by hand, and against a real teacher's predictions."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from kdalign.comparison.compare import CompareOptions, build_table
from kdalign.distillation import baseline_rows
from kdalign.distillation.baseline_rows import build_baseline_rows
from kdalign.distillation.pipeline import distill
from kdalign.errors import UsageError
from kdalign.models.architecture import count_parameters
from kdalign.models.quantization import count_quantized_parameters, quantize_dynamic, quantized_megabytes
from kdalign.recipe import build_recipe
from kdalign.runs.discovery import discover
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import read_record
from support import records
from support.family_setting import KINDS, model
from support.tiny import one_line, save_model, sentences, tiny_classifier

QUICK = {"train.max_steps": 2, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32"}


def run(out, teacher, **flags):
    own = {"teacher": str(teacher), "student": "layers=2", "allow": ["weak-teacher"], "out": str(out)}
    distill(build_recipe(None, QUICK | own | flags))
    return out


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """70 negative and 30 positive films to learn from, 18 and 12 to be scored on."""
    folder = tmp_path_factory.mktemp("films")
    for number, (split, negative, positive) in enumerate((("train", 70, 30), ("validation", 18, 12))):
        labels = [0] * negative + [1] * positive
        pd.DataFrame({"sentence": sentences(len(labels), number)[0], "label": labels}).to_parquet(
            folder / f"{split}.parquet"
        )
    task = folder / "films.yaml"
    task.write_text("columns: [sentence]\nlabels: [negative, positive]\nmetrics: [accuracy, macro_f1, matthews, ece]\n")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher, films):
    return run(tmp_path_factory.mktemp("runs") / "a", teacher,
               **{"data.task": str(films / "films.yaml"), "data.folder": str(films)})  # fmt: skip


def row(table, name):
    [found] = [row for row in table.rows if row.name == name]
    return found


def table_with(*paths, kinds=("int8", "majority")):
    return build_table(discover(paths), CompareOptions(), build_baseline_rows(paths, kinds))


# The majority


def test_the_class_that_most_of_train_has_is_scored_by_hand(finished):
    found = row(table_with(finished, kinds=["majority"]), "majority")
    assert found.kind == "baseline"
    cells = {key.partition("/")[2]: cell for key, cell in found.cells.items()}
    assert cells["accuracy"].value == pytest.approx(100 * 18 / 30)
    # Wilson's interval of 18 of 30: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    p, n, z = 0.6, 30, 1.959964
    middle, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = [100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert [cells["accuracy"].low, cells["accuracy"].high] == pytest.approx(ends, abs=1e-4)
    # F1 of the class that is said is 2 * 18 / (2 * 18 + 12), of the other 0.
    assert cells["macro_f1"].value == pytest.approx(100 * (36 / 48) / 2)
    assert cells["matthews"].value == 0
    # It says its class with train's share, 70 %, and is right on 60 %.
    assert cells["ece"].value == pytest.approx(10)
    assert set(cells) == {"accuracy", "macro_f1", "matthews", "ece"}, "no size, no speed, nothing retained"


def test_the_note_says_the_class_and_its_share(finished):
    [note] = [note for note in table_with(finished).notes if note.startswith("majority")]
    assert note == "majority, films: every example gets the majority class of train, negative (70.0 % of 100)"


def test_of_scores_the_mean_is_said_which_has_no_correlation(tmp_path):
    teacher = save_model(tmp_path / "t", "bert", num_labels=1)
    data = tmp_path / "data"
    data.mkdir()
    for number, split in enumerate(("train", "validation")):
        (first, _), (second, _) = sentences(24, number), sentences(24, number + 2)
        table = pd.DataFrame({"sentence1": first, "sentence2": second, "label": np.linspace(0, 5, 24)})
        table.to_parquet(data / f"{split}.parquet")
    (tmp_path / "likeness.yaml").write_text("columns: [sentence1, sentence2]\nmetrics: [pearson]\n")
    path = run(tmp_path / "r", teacher, **{"data.task": str(tmp_path / "likeness.yaml"), "data.folder": str(data)})
    cells = row(table_with(path, kinds=["majority"]), "majority").cells
    assert {(cell.value, cell.reason) for cell in cells.values()} == {
        (None, "all 24 predictions are 2.5, and a constant has no correlation")
    }
    assert row(table_with(path, kinds=["int8"]), "teacher t in int8").cells["agreement"].value > 50


def test_data_that_is_gone_or_another_is_a_dash_with_the_reason(tmp_path, teacher, films):
    data = tmp_path / "data"
    shutil.copytree(films, data)
    path = run(tmp_path / "r", teacher, **{"data.task": str(films / "films.yaml"), "data.folder": str(data)})
    train = pd.read_parquet(data / "train.parquet")
    train[::-1].to_parquet(data / "train.parquet")
    cells = row(table_with(path, kinds=["majority"]), "majority").cells
    assert {cell.reason for cell in cells.values()} == {
        "split 'train' holds other examples now than when the run was made"
    }
    shutil.rmtree(data)
    for name in ("majority", f"teacher {teacher.name} in int8"):
        found = row(table_with(path), name)
        assert {cell.value for cell in found.cells.values()} == {None}
        assert {cell.reason for cell in found.cells.values()} == {
            f"no data folder {str(data)!r} (accepted: a folder that holds <split>.parquet|csv|tsv|jsonl)"
        }
    train.to_parquet(films / "x.parquet")  # what failed is tried again
    (films / "x.parquet").unlink()
    shutil.copytree(films, data)
    assert row(table_with(path), "majority").cells["films/accuracy"].value == 60


# The teacher in int8


def test_a_quantised_model_has_the_same_parameters_in_less_room_and_mostly_the_same_answers():
    plain = tiny_classifier("bert", layers=4, width=64, vocab_size=100).eval()
    small = quantize_dynamic(plain)
    assert count_quantized_parameters(small) == count_parameters(plain) == count_quantized_parameters(plain)
    linear = [module for module in plain.modules() if type(module) is torch.nn.Linear]
    rounded = sum(module.weight.numel() for module in linear)
    assert quantized_megabytes(plain) == pytest.approx(4 * count_parameters(plain) / 1e6)
    assert quantized_megabytes(small) == pytest.approx((4 * (count_parameters(plain) - rounded) + rounded) / 1e6)
    inputs = {"input_ids": torch.randint(5, 100, (64, 12))}
    with torch.no_grad():
        ours, theirs = small(**inputs).logits, plain(**inputs).logits
    assert not torch.equal(ours, theirs)
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.8
    assert type(plain.bert.encoder.layer[0].output.dense) is torch.nn.Linear, "the model itself is as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_can_be_held_in_int8_and_still_tells_tokens_apart(kind):
    plain = model(kind)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small = quantize_dynamic(plain)
    assert not said
    assert count_quantized_parameters(small) == count_parameters(plain)
    assert quantized_megabytes(small) < 0.8 * quantized_megabytes(plain)
    ids = torch.randint(5, 250, (4, 12))
    extra = {"decoder_input_ids": ids} if plain.config.is_encoder_decoder else {}
    with torch.no_grad():
        ours, theirs = (each(input_ids=ids, **extra).logits for each in (small, plain))
    assert not torch.equal(ours, theirs)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.8


def test_the_teacher_in_int8_is_scored_as_the_teacher_is(finished, teacher):
    record = read_record(finished)
    table = table_with(finished, kinds=["int8"])
    found, fp32 = row(table, f"teacher {teacher.name} in int8"), row(table, f"teacher {teacher.name}")
    assert found.kind == "baseline"
    assert found.cells["parameters"] == fp32.cells["parameters"]
    assert found.cells["megabytes"].value < fp32.cells["megabytes"].value
    assert found.cells["latency"].value > 0
    assert found.cells["speed-up"].value > 0
    assert 50 < found.cells["agreement"].value <= 100
    assert not {"steps", "seconds", "samples/s", "tokens", "flops"} & set(found.cells)
    [accuracy] = [s["value"] for s in record.scores["validation"]["teacher"] if s["metric"] == "accuracy"]
    assert abs(found.cells["films/accuracy"].value - accuracy) <= 100 - found.cells["agreement"].value
    [note] = [note for note in table.notes if note.startswith("int8: ")]
    assert f"torch {torch.__version__}, quantize_dynamic" in note


def test_the_row_in_int8_is_what_the_quantised_model_answers(finished, teacher, films):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    small = quantize_dynamic(AutoModelForSequenceClassification.from_pretrained(teacher))
    reads, table = AutoTokenizer.from_pretrained(teacher), pd.read_parquet(films / "validation.parquet")
    with torch.no_grad():
        answers = [int(small(**reads(text, return_tensors="pt")).logits.argmax()) for text in table.sentence]
    kept = pd.read_parquet(finished / "predictions" / "validation.parquet")
    cells = row(table_with(finished), f"teacher {teacher.name} in int8").cells
    # Activations are rounded by batch, so that an example beside others may come out otherwise.
    assert cells["agreement"].value == pytest.approx(100 * np.mean(np.array(answers) == kept.teacher), abs=7)
    macro = 100 * f1_score(table.label, answers, average="macro")
    assert cells["films/macro_f1"].value == pytest.approx(macro, abs=12)


def test_rows_are_made_once_and_no_torch_is_loaded_for_them_again(kdalign, finished, monkeypatch):
    status, first, err = kdalign("compare", finished, "--beside", "int8,majority", "--format", "markdown")
    assert status == 0, err
    assert "in int8 on films, validation, cached for the next table" in " ".join(err.split())

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(baseline_rows, "_int8", never)
    monkeypatch.setattr(baseline_rows, "_majority", never)
    status, second, err = kdalign("compare", finished, "--beside", "int8,majority", "--format", "markdown")
    assert (status, second, err) == (0, first, "")


def test_baselines_are_never_best(kdalign, finished):
    status, out, _ = kdalign("compare", finished, finished, "--beside", "majority,int8", "--json")
    assert status == 0
    rows = json.loads(out)["rows"]
    assert [row["kind"] for row in rows] == ["teacher", "baseline", "baseline", "student"]
    assert not any(cell["best"] for row in rows if row["kind"] == "baseline" for cell in row["cells"].values())


@pytest.mark.slow
def test_a_fine_tuned_teacher_is_taken_from_the_cache_or_the_command_is_said(tmp_path, films, monkeypatch):
    from transformers import AutoModel

    headless = save_model(tmp_path / "body", "bert")
    AutoModel.from_pretrained(headless).save_pretrained(headless)
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "cache"))
    data = {"data.task": str(films / "films.yaml"), "data.folder": str(films), "finetune.epochs": 0.1}
    path = run(tmp_path / "r", headless, **data)
    monkeypatch.setattr("kdalign.distillation.baseline_rows.cache_folder", lambda: tmp_path / "other")
    assert row(table_with(path, kinds=["int8"]), "teacher body in int8").cells["agreement"].value > 50
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(tmp_path / "cache")
    cell = row(table_with(path, kinds=["int8"]), "teacher body in int8").cells["films/accuracy"]
    assert cell.value is None
    assert cell.reason.startswith("the fine-tuned teacher is no longer in the cache")
    assert cell.reason.endswith(f"kdalign distill --recipe {path}/recipe.yaml --out {path}-again")


def test_a_teacher_that_was_trained_on_is_another(tmp_path, films):
    teacher = save_model(tmp_path / "t", "bert")
    path = run(tmp_path / "r", teacher, **{"data.task": str(films / "films.yaml"), "data.folder": str(films)})
    save_model(tmp_path / "t", "bert", seed=1)
    cell = row(table_with(path, kinds=["int8"]), "teacher t in int8").cells["films/accuracy"]
    assert cell.reason == f"teacher {str(teacher)!r} has other weights now than when the run was made"


@pytest.mark.slow
def test_a_language_models_teacher_in_int8_has_its_perplexity_and_no_majority(tmp_path, films):
    own = {"data.task": "lm:sentence", "data.folder": str(films), "data.max_length": 16}
    new = "new:gpt2,layers=2,width=32,heads=4,positions=64"
    teacher = run(tmp_path / "t", "none", student=new, tokenizer="train:300", **own)
    path = run(tmp_path / "r", teacher, student="layers=1", **own)
    table = table_with(path)
    small, fp32 = row(table, "teacher t in int8"), row(table, "teacher t")
    [key] = [key for key in small.cells if key.endswith("/ppl")]
    assert small.cells[key].value == pytest.approx(fp32.cells[key].value, rel=0.05)
    assert small.cells[key].value != fp32.cells[key].value
    assert small.cells["retained"].value == pytest.approx(100 * fp32.cells[key].value / small.cells[key].value)
    assert row(table, "majority").cells[key].reason == "it needs a task of classes or scores"
    alone = table_with(teacher, kinds=["int8"])
    assert row(alone, "int8").cells[key].reason == "the run has no teacher"


def test_an_unknown_row_is_one_line_with_the_nearest(kdalign, finished):
    status, out, err = kdalign("compare", finished, "--beside", "majorty")
    assert (status, out) == (2, "")
    assert "unknown baseline row 'majorty'; did you mean 'majority'? (accepted: int8, majority)" in one_line(err)
    with pytest.raises(UsageError):
        build_baseline_rows([finished], ["int4"])


def test_a_record_that_lacks_what_a_row_is_made_of_is_a_dash_with_the_reason(tmp_path):
    path = records.run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    record = read_record(path)
    for part in ("finetune", "align"):
        del record.recipe[part]
    del record.recipe["data"]["max_length"]
    RunFolder(path).write_record(record)
    made = build_baseline_rows([path], ["int8", "majority"])
    reason = "the run's record lacks the fingerprint of its training texts"
    assert [one.reasons for one in made] == [{"sst2": reason}] * 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 5}'])
def test_what_is_no_row_in_the_cache_is_made_again(tmp_path, content):
    file = tmp_path / "row.json"
    file.write_text(content)
    assert baseline_rows._read(file) is None
