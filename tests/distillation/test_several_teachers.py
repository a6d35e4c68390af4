"""Runs with several teachers: recipes, what is refused, the record, tables and cards, and resuming."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdalign.alignment.plan import read_plan
from kdalign.comparison.compare import compare
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.devices import make_accelerator
from kdalign.distillation.map_layers import CalibrationTexts, plan_layers
from kdalign.distillation.preflight import preflight
from kdalign.distillation.prepare import prepare
from kdalign.distillation.tokenize import open_run
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.recipe import build_recipe
from kdalign.recipe.command import distill_command
from kdalign.runs.prediction_table import read_predictions
from kdalign.runs.record import read_record
from support.commands import steps_of
from support.ranks import each_step, run
from support.records import cell
from support.tiny import fit_head, make_tokenizer, one_line, save_model, sentences, tiny_classifier

LABELS = {"id2label": {0: "negative", 1: "positive"}}


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    """A BERT of other sizes, whose outputs are in another order."""
    labels = {"id2label": {0: "positive", 1: "negative"}}
    return save_model(tmp_path_factory.mktemp("second"), "bert", 3, 40, seed=5, **labels)


@pytest.fixture(scope="session")
def apart(tmp_path_factory):
    """A BERT with a tokenizer of its own: the same entries, numbered from the end."""
    folder = tmp_path_factory.mktemp("apart")
    make_tokenizer(folder, "bert")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    names = list(tokenizer["model"]["vocab"])
    numbered = [*names[:5], *reversed(names[5:])]  # special tokens stay
    tokenizer["model"]["vocab"] = {name: number for number, name in enumerate(numbered)}
    file.write_text(json.dumps(tokenizer))
    own = AutoTokenizer.from_pretrained(folder)
    model = tiny_classifier("bert", 3, 40, seed=5, vocab_size=len(own), **LABELS)
    fit_head(model, own)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def divided(tmp_path_factory):
    """Reviews from two places, which a column names."""
    folder = tmp_path_factory.mktemp("divided")
    for number, (split, n) in enumerate({"train": 48, "validation": 20}.items()):
        texts, labels = sentences(n, number)
        origins = ["mail" if row % 3 else "news" for row in range(n)]
        pd.DataFrame({"sentence": texts, "label": labels, "origin": origins}).to_csv(
            folder / f"{split}.csv", index=False
        )
    return folder


def prepared(teachers, data, *sets, **flags):
    given = {
        "teacher": tuple(map(str, teachers)),
        "data.task": ("sst2",),
        "data.folder": str(data),
        "student": "layers=2",
    }
    return prepare(build_recipe(flags={**given, "train.device": "cpu", **flags}, sets=sets))


def test_a_recipe_keeps_one_teacher_as_a_text_and_several_as_a_list(teacher, second):
    one = build_recipe(flags={"teacher": ("a",), "data.task": ("sst2",)})
    two = build_recipe(flags={"teacher": ("a", "b"), "data.task": ("sst2",)}, sets=["teachers.weights=[1, 3]"])
    assert (one.teacher, two.teacher) == ("a", ("a", "b"))
    assert two.teacher_shares == (0.25, 0.75)
    assert "--teacher a --teacher b" in distill_command(two)
    assert build_recipe(flags={"teacher": two.model_dump()["teacher"], "data.task": ("sst2",)}).teacher == ("a", "b")
    assert build_recipe(flags={"data.task": ("sst2",)}, sets=["teacher=[a, b]"]).teacher == ("a", "b")


@pytest.mark.parametrize(
    ("names", "sets", "said"),
    [
        (("a", "a"), (), "teacher 'a' is named twice"),
        (("a", "none"), (), "--teacher none is for a student without a teacher"),
        (("a", "b"), ("teachers.weights=[1, 2, 3]",), r"3 weights for 2 teachers \(a, b\)"),
        (("a", "b"), ("teachers.weights=[0, 0]",), "must have one above 0"),
        (("a", "b"), ("teachers.weights=[1, -1]",), "greater than or equal to 0"),
        (("a", "b"), ("teachers.weights=[1, 1]", "teachers.combine=confidence"), "give one of them"),
        (("a", "b"), ("teachers.sources={x: a}",), "give teachers.by, too"),
        (("news-bert", "b"), ("teachers.by=c", "teachers.sources={x: news-bart}"), "did you mean 'news-bert'"),
        (("a",), ("teachers.weights=[1]",), "is for several teachers"),
        (("a", "b"), ("revision=main",), "--revision is for one teacher"),
        (("a", "b"), ("cache.folder=auto",), "--cache keeps the outputs of one teacher"),
        (("a", "b"), ("teachers.combine=max",), "mean.*confidence"),
    ],
)
def test_teachers_that_do_not_combine_are_refused_with_the_reason(names, sets, said):
    with pytest.raises(UsageError, match=said):
        build_recipe(flags={"teacher": names, "data.task": ("sst2",)}, sets=sets)


BY = "teachers.by=origin"
EACH = "teachers.sources={news: 1, mail: 2}"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("teachers.by=orign",), "needs column 'orign'.*did you mean 'origin'"),
        ((BY,), "row 0: value 'news' in column 'origin' has no teacher"),
        (
            (BY, "teachers.sources={news: 1, mial: 2}"),
            "value 'mail' in column 'origin' has no teacher; did you mean 'mial'",
        ),
        ((BY, "teachers.sources={news: 1, mail: 1}"), "would teach no row of train"),
        (
            (BY, "teachers.sources={news: 1, mail: 2}", "objective.terms={cka: 1}"),
            "term 'cka' compares the rows of a batch",
        ),
    ],
)
def test_rows_without_a_teacher_and_teachers_without_rows_are_refused(teacher, second, divided, sets, said):
    with pytest.raises(UsageError, match=said):
        prepared((teacher, second), divided, *sets)


def test_a_teacher_of_other_labels_is_named(teacher, data, tmp_path):
    labels = {"id2label": {0: "negative", 1: "neutral"}}
    (tmp_path / "unlike").mkdir()
    unlike = save_model(tmp_path / "unlike", "bert", 2, **labels)
    with pytest.raises(UsageError, match="unlike' has a head for negative, neutral; task 'sst2' has negative"):
        prepared((teacher, unlike), data)


def test_teachers_of_other_tokenizers_are_announced_and_changes_of_tokens_refused(teacher, apart, data):
    run = prepared((teacher, apart), data)
    assert [each is None for each in run.readers] == [True, False]
    findings = {finding.what: finding.said for finding in preflight(run)}
    assert findings["tokenizers"].startswith("other than the student's: teacher 2; ")
    assert [each is None for each in prepared((apart, teacher), data).readers] == [True, False]
    with pytest.raises(UsageError, match="by=cutoff changes tokens, and teacher and student read different ones"):
        prepared((teacher, apart), data, "data.augment={by: cutoff}")


def test_a_later_teachers_special_tokens_are_checked_by_its_own_tokenizer(teacher, apart, data, tmp_path):
    shutil.copytree(apart, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    with pytest.raises(UsageError, match="teacher 2's pad token is 7 in its configuration and 0 in its tokenizer"):
        preflight(prepared((teacher, tmp_path / "other"), data))


def test_each_tokenizers_overlap_with_the_students_is_counted(teacher, apart, data, tmp_path):
    shutil.copytree(apart, tmp_path / "letters")
    file = tmp_path / "letters/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    names = [name for name in tokenizer["model"]["vocab"] if len(name.strip("#")) == 1 or name[0] == "["]
    tokenizer["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    file.write_text(json.dumps(tokenizer))
    run = prepared((teacher, apart, tmp_path / "letters"), data, **{"data.max_length": 16})
    first, second, third = open_run(run, make_accelerator("cpu")).texts.overlaps
    assert first is None
    assert second.covered == second.characters
    assert 0 < third.covered < third.characters  # 16 letters are less of a text than 16 words


def test_a_teacher_without_a_head_is_fine_tuned_on_its_own_tokens(kdalign, teacher, apart, data, tmp_path):
    body = tmp_path / "body"
    shutil.copytree(apart, body)
    AutoModelForSequenceClassification.from_pretrained(apart).base_model.save_pretrained(body)
    more = ("--set", "finetune.epochs=0.2", "--allow", "weak-teacher")
    status, _, err = distilled(kdalign, teacher, body, data, tmp_path / "run", *more)
    assert status == 0, err
    [kept] = (cache_folder() / "teachers").glob("*/tokenizer.json")
    wanted = json.loads((body / "tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads(kept.read_text())["model"]["vocab"] == wanted


def test_language_models_of_other_tokenizers_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, 0)[0]))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": sentences(1, 9)[0][0]}) + "\n")
    for name, entries in (("one", 300), ("other", 290)):
        words = train_tokenizer(sentences(200, 7)[0], entries, "causal", 64)
        new = parse_scratch_spec("new:gpt2,layers=4,width=32,heads=4,positions=64")
        build_from_scratch(scratch_config(new, words), 0).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    flags = {"data.task": ("lm",), "data.max_length": 24}
    said = "have different tokenizers, so their distributions of tokens cannot be"
    with pytest.raises(UsageError, match=said):
        prepared((tmp_path / "one", tmp_path / "other"), tmp_path, **flags)
    names = (str(tmp_path / "one"), str(tmp_path / "other"))
    with pytest.raises(UsageError, match=said):
        plan_layers(names, "layers=2", "cka", reading=CalibrationTexts("lm", str(tmp_path)))


def test_samples_must_fit_the_positions_of_every_teacher(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, 0)[0]))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": sentences(1, 9)[0][0]}) + "\n")
    words = train_tokenizer(sentences(200, 7)[0], 300, "causal", 64)
    for name, positions in (("long", 64), ("short", 32)):
        new = parse_scratch_spec(f"new:gpt2,layers=4,width=32,heads=4,positions={positions}")
        build_from_scratch(scratch_config(new, words), positions).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    flags = {"data.task": ("lm",), "data.max_length": 24, "on_policy.share": 0.5}
    teachers = (tmp_path / "long", tmp_path / "short")
    with pytest.raises(UsageError, match="max_new_tokens=40 is more than the 32 positions"):
        prepared(teachers, tmp_path, "on_policy.max_new_tokens=40", **flags)
    prepared(teachers, tmp_path, "on_policy.max_new_tokens=32", **flags)


def test_the_same_weights_twice_are_said_before_training(teacher, data, tmp_path):
    shutil.copytree(teacher, tmp_path / "copy")
    findings = {finding.what: finding.said for finding in preflight(prepared((teacher, tmp_path / "copy"), data))}
    assert "have the same weights" in findings["teachers"]
    assert "mixed equally" in findings["teachers"]


def test_a_plan_of_several_teachers_is_shown_and_saved(kdalign, teacher, second, data):
    words = ("--teacher", teacher, "--teacher", second, "--student", "layers=2")
    status, out, _ = kdalign("map-layers", *words, "--out", "plan.json")
    assert status == 0
    assert "2:encoder.2" in out
    run = ("distill", *words, "--task", "sst2", "--data", data, "--plan", "plan.json", "--dry-run", "--out", "run")
    status, out, err = kdalign(*run)
    assert status == 0, err
    assert "teacher 2" in out
    status, _, err = kdalign(*run[:3], *run[5:])
    assert status == 2
    assert "the plan is for the teacher bert and bert" in one_line(err)


TRAINED = ("--max-steps", 4, "--batch-size", 8, "--eval-every", 2, "--device", "cpu", "--precision", "fp32")


def distilled(kdalign, teacher, second, data, out, *more):
    words = ("--teacher", teacher, "--teacher", second, "--student", "layers=2", "--task", "sst2", "--data", data)
    return kdalign("distill", *words, *TRAINED, "--out", out, *more)


def test_a_run_records_scores_and_shows_each_teacher_and_all_as_one(kdalign, teacher, second, divided, tmp_path):
    status, _, err = distilled(kdalign, teacher, second, divided, tmp_path / "run")
    assert status == 0, err
    record = read_record(tmp_path / "run")
    assert [each.source for each in record.teachers] == [str(teacher), str(second)]
    assert record.teacher.parameters == sum(each.parameters for each in record.teachers)
    first, other = (scores[0].value for scores in record.first_scores.teachers)
    names = {"cosine", "cosine 2", "euclid", "euclid 2", "attention", "attention 2", "soft", "hard"}
    assert all(set(step["parts"]) == names for step in steps_of(tmp_path / "run"))
    assert {one.teacher_stack for one in read_plan(tmp_path / "run" / "plan.json").maps} == {"encoder", "2:encoder"}
    # Combined: the mean of both teachers' probabilities, in the order of the task's labels.
    table = compare([tmp_path / "run"])
    assert [row.name for row in table.rows[:3]] == [
        f"teacher {teacher.name}", f"teacher {second.name}", "2 teachers combined"
    ]  # fmt: skip
    joint = record.first_scores.teacher[0].value
    assert cell(table, "2 teachers combined", "sst2/accuracy").value == joint
    assert cell(table, f"teacher {second.name}", "retained").value == pytest.approx(100 * other / joint)
    kept = read_predictions(tmp_path / "run" / "predictions" / "validation.parquet")
    labels = np.array(sentences(20, 1)[1])
    assert 100 * np.mean(kept.teacher.values == labels) == pytest.approx(joint)
    assert first != joint or other != joint or first == other
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "| all teachers |" in card.replace("student | ", "| ")
    assert str(second) in card


@pytest.mark.parametrize("sets", [(), ("--set", BY, "--set", EACH)], ids=["mixed", "by source"])
def test_each_teacher_is_scored_and_shown_on_its_own_tokens(kdalign, teacher, apart, divided, tmp_path, sets):
    status, _, err = distilled(kdalign, teacher, apart, divided, tmp_path / "run", *sets)
    assert status == 0, err
    assert "teacher 2: tokenizers differ: 100.00 % of" in err
    record = read_record(tmp_path / "run")
    assert set(record.data["tokenizers_by_teacher"]) == {"teacher 2"}
    # Labels of the tests depend on words: of the other tokenizer's numbers a teacher would know nothing.
    texts, labels = sentences(20, 1)
    for folder, (score, *_) in zip((teacher, apart), record.first_scores.teachers, strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            right = model(**tokens).logits.argmax(dim=1).numpy() == np.array(labels)
        assert score.value == pytest.approx(100 * right.mean())
        assert score.value > 60


def test_layers_of_teachers_of_several_families_are_not_planned(teacher, tmp_path):
    words = train_tokenizer(sentences(200, 7)[0], 300, "causal", 64)
    new = parse_scratch_spec("new:gpt2,layers=4,width=32,heads=4,positions=64")
    build_from_scratch(scratch_config(new, words), 0).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"several families do not teach together: .*\(masked\), .*\(causal\)"):
        plan_layers((str(teacher), str(tmp_path)), "layers=2")


def test_layers_of_teachers_with_other_tokenizers_are_measured(kdalign, teacher, apart, data):
    words = ("--student", "layers=2", "--map", "cka", "--task", "sst2", "--data", data)
    status, _, err = kdalign("map-layers", "--teacher", teacher, "--teacher", apart, *words, "--out", "both.json")
    assert status == 0, err
    status, _, err = kdalign("map-layers", "--teacher", teacher, *words, "--out", "one.json")
    assert status == 0, err
    both, one = (read_plan(Path(name)).similarities for name in ("both.json", "one.json"))
    np.testing.assert_allclose(both["encoder"], one["encoder"], rtol=1e-4)
    assert np.shape(both["2:encoder"]) == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("sets", [(), ("--set", BY, "--set", EACH)], ids=["mixed", "by source"])
def test_a_run_that_is_resumed_ends_in_the_same_weights(kdalign, stopped, teacher, second, divided, tmp_path, sets):
    more = ("--set", "train.checkpoint_every=2", *sets)
    assert distilled(kdalign, teacher, second, divided, tmp_path / "whole", *more)[0] == 0
    assert distilled(stopped, teacher, second, divided, tmp_path / "stopped", *more)[0] == 9
    assert kdalign("distill", "--out", tmp_path / "stopped", "--resume")[0] == 0
    one, other = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "stopped"))
    assert all((one[name] == other[name]).all() for name in one)
    one, other = (load_file(tmp_path / name / "projections.safetensors") for name in ("whole", "stopped"))
    assert set(one) == set(other) == {"maps.encoder_0_to_2:encoder_1.weight", "maps.encoder_1_to_2:encoder_2.weight"}
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("sets", [(), ("--set", BY, "--set", EACH)], ids=["mixed", "by source"])
@pytest.mark.parametrize("other", ["second", "apart"])
def test_two_ranks_of_several_teachers_take_the_steps_of_one_process(request, teacher, other, divided, tmp_path, sets):
    words = ("-m", "kdalign", "distill", "--teacher", teacher, "--teacher", request.getfixturevalue(other))
    words += ("--student", "layers=2")
    words += ("--task", "sst2", "--data", divided, *TRAINED, "--set", "train.dropout=0", "--micro-batch", 2, *sets)
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 0)
    torchrun += ("--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
    for start, out in (((), "one"), (torchrun, "two")):
        done = run([str(word) for word in (*start, *words, "--out", tmp_path / out)])
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)
