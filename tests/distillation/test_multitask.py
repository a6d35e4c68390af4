"""Multi-task students: the schedule of steps, what a step leaves unchanged, stops, ranks, files and refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdalign.alignment.projections import Projections
from kdalign.data.tasks import Examples
from kdalign.data.tokenization import tokenize_labelled
from kdalign.devices import make_accelerator
from kdalign.distillation.multitask import BLOCK, find_leaks, sampling_probabilities, task_schedule, tie_bodies
from kdalign.distillation.run_folders import split_by_task
from kdalign.errors import UsageError
from kdalign.objective.objective import Objective
from kdalign.objective.terms import HardLabels
from kdalign.observer import NullObserver
from kdalign.recipe import MultiTask, TrainSettings, build_recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import read_record
from kdalign.training.learner import Learner
from kdalign.training.loop import Trainer
from kdalign.training.task_trainer import Stage, TrainTask
from support.ranks import environment
from support.tiny import make_tokenizer, one_line, sentences, tiny_classifier

TASKS = ("cola", "mrpc", "stsb")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A BERT of 4 layers without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    make_tokenizer(folder, "bert")
    size = len(AutoTokenizer.from_pretrained(folder))
    tiny_classifier("bert", vocab_size=size).base_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """Three small tasks: a sentence, a pair, and a score of a pair."""
    folder = tmp_path_factory.mktemp("glue")
    for number, (task, train_rows) in enumerate({"cola": 96, "mrpc": 48, "stsb": 24}.items()):
        for split, rows in {"train": train_rows, "validation": 16}.items():
            first, labels = sentences(rows, 10 * number + len(split))
            second, others = sentences(rows, 10 * number + len(split) + 5)
            columns = {"sentence": first} if task == "cola" else {"sentence1": first, "sentence2": second}
            same = [int(a == b) for a, b in zip(labels, others, strict=True)]
            label = labels if task == "cola" else [5.0 * each for each in same] if task == "stsb" else same
            (folder / task).mkdir(exist_ok=True)
            pd.DataFrame({**columns, "label": label, "idx": range(rows)}).to_parquet(folder / task / f"{split}.parquet")
    return folder


def words(encoder, glue, out, *more):
    return [
        "distill", "--teacher", str(encoder), "--student", "layers=2", "--task", ",".join(TASKS), "--multi-task",
        "--data", str(glue), "--max-steps", "12", "--batch-size", "8", "--precision", "fp32", "--device", "cpu",
        "--eval-every", "6", "--lr", "1e-3", "--set", "finetune.epochs=0.2", "--allow", "weak-teacher",
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(encoder, glue, tmp_path_factory) -> Path:
    """A finished run; cola's answers count more."""
    from kdalign.cli import main

    out = tmp_path_factory.mktemp("together") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDALIGN_CACHE", str(out.parent / "cache"))
        more = ("--set", "multi_task.tasks.cola.objective.alpha=3", "--set", "train.checkpoint_every=5")
        patch.setattr(sys, "argv", ["kdalign", *words(encoder, glue, out, *more)])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert exit_.value.code == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def steps_of(folder: Path) -> list[dict]:
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]


def test_tasks_are_drawn_by_a_root_of_their_sizes():
    sizes = [100, 400, 900]
    assert sampling_probabilities(sizes, MultiTask(sampling="size")) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert sampling_probabilities(sizes, MultiTask(temperature=2)) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert sampling_probabilities(sizes, MultiTask(sampling="equal")) == pytest.approx([1 / 3] * 3)
    assert sampling_probabilities(sizes, MultiTask(temperature=1)) == pytest.approx(
        sampling_probabilities(sizes, MultiTask(sampling="size"))
    )
    assert sampling_probabilities(sizes, MultiTask(temperature=1e9)) == pytest.approx([1 / 3] * 3)


def test_whose_turn_a_step_is_depends_on_seed_and_step_alone():
    shares = np.array([0.2, 0.7, 0.1])
    turns = task_schedule(shares, 5, 20_000)
    assert (task_schedule(shares, 5, 300) == turns[:300]).all(), "however long the run"
    assert (task_schedule(shares, 6, 300) != turns[:300]).any()
    assert np.bincount(turns) / len(turns) == pytest.approx(shares, abs=0.003)
    assert np.bincount(turns[::BLOCK]) / len(turns[::BLOCK]) == pytest.approx(shares, abs=0.05), "a step as any other"
    counts = [np.bincount(block, minlength=3) for block in turns.reshape(-1, BLOCK)]
    assert np.abs(np.array(counts) - BLOCK * shares).max() < 2


def courses(tmp_path, names=("one", "two"), decay=0.0):
    """Two classifiers with one body, each on texts of its own, from labels alone."""
    folder = tmp_path / "tokenizer"
    folder.mkdir(exist_ok=True)
    make_tokenizer(folder, "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [tiny_classifier("bert", 2, seed=seed, vocab_size=len(tokenizer)) for seed in range(len(names))]
    tie_bodies(models)
    found = []
    for number, (name, model) in enumerate(zip(names, models, strict=True)):
        texts, labels = sentences(40, number)
        encoded = tokenize_labelled(Examples(name, (texts,), np.array(labels)), tokenizer, 32)
        objective = Objective({"hard": (1.0, HardLabels(False))})
        learner = Learner(model, Projections((), 0), None, [objective], (0, 1), False)
        history = RunFolder(tmp_path / name)
        history.path.mkdir(exist_ok=True)
        found.append(TrainTask(name, learner, None, [Stage(0, objective)], encoded, history))
    return found


def trained(tmp_path, chosen, turns):
    settings = TrainSettings(batch_size=8, lr=1e-3, weight_decay=0.5, device="cpu")
    return Trainer(chosen, turns, settings, make_accelerator("cpu"), RunFolder(tmp_path), NullObserver()).train()


def test_steps_of_one_task_are_those_of_its_own_run_and_leave_the_other_head_alone(tmp_path):
    (tmp_path / "alone").mkdir()
    one, two = courses(tmp_path)
    before = {name: value.clone() for name, value in two.learner.student.state_dict().items()}
    trained(tmp_path, [one, two], [0] * 7)
    after = two.learner.student.state_dict()
    assert torch.equal(after["classifier.weight"], before["classifier.weight"]), "no decay without a gradient"
    assert not torch.equal(after["bert.encoder.layer.0.output.dense.weight"],
                           before["bert.encoder.layer.0.output.dense.weight"])  # fmt: skip
    (alone, _) = courses(tmp_path / "alone")
    trained(tmp_path / "alone", [alone], [0] * 7)
    ours, theirs = one.learner.student.state_dict(), alone.learner.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_task_goes_through_its_own_examples_whatever_comes_between(tmp_path):
    (one, two) = courses(tmp_path)
    read: dict[str, list[int]] = {"one": [], "two": []}
    for course in (one, two):
        forward = course.learner.forward
        course.learner.forward = lambda inputs, taught=None, forward=forward, of=read[course.name]: (
            of.append(len(inputs["input_ids"])) if torch.is_grad_enabled() else None,
            forward(inputs, taught),
        )[1]
    progress = trained(tmp_path, [one, two], [0, 1, 1, 0, 1, 0, 0, 1, 1, 0])  # 40 rows each: 5 steps of 8
    assert progress.of("one").examples == progress.of("two").examples == 40
    assert (progress.of("one").step, progress.of("two").step, progress.step) == (5, 5, 10)
    assert progress.seconds == pytest.approx(sum(progress.of(name).seconds for name in read))
    assert [event["step"] for event in steps_of(tmp_path / "one")] == [1, 4, 6, 7, 10]
    assert {event["task"] for event in steps_of(tmp_path / "two")} == {"two"}


def test_students_share_a_body_that_is_on_disk_once_and_load_as_stock_checkpoints(run, kdalign, monkeypatch):
    whole = [weights(run / task / "student") for task in TASKS]
    for other in whole[1:]:
        assert all(torch.equal(other[name], value) for name, value in whole[0].items() if name.startswith("bert."))
    assert not torch.equal(whole[0]["classifier.weight"], whole[1]["classifier.weight"])
    files = [run / task / "student" / "model-00001-of-00002.safetensors" for task in TASKS]
    assert len({file.stat().st_ino for file in files}) == 1
    records = [read_record(run / task) for task in TASKS]
    for record, student in zip(records, whole, strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(run / record.task / "student")
        assert all(torch.equal(model.state_dict()[name], value) for name, value in student.items())
        assert record.student.parameters == sum(value.numel() for value in student.values())
    facts = records[0].training["multi_task"]
    body = sum(value.numel() for name, value in whole[0].items() if name.startswith("bert."))
    heads = 2 * (32 * 2 + 2) + 32 + 1
    assert facts["parameters"] == body + heads
    assert facts["megabytes"] == pytest.approx(4 * (body + heads) / 1e6)
    assert sum(record.training["steps"] for record in records) == facts["steps"] == 12
    assert sum(record.training["seconds"] for record in records) == pytest.approx(facts["seconds"])
    assert [facts["tasks"][task]["steps"] for task in TASKS] == [record.training["steps"] for record in records]


def test_what_was_exported_scores_as_recorded_and_a_table_has_the_macro_mean(run, glue, kdalign):
    status, out, _ = kdalign("eval", run / "stsb", "--task", "stsb", "--data", glue / "stsb", "--json")
    assert status == 0
    found = {score["metric"]: score["value"] for score in json.loads(out)[0]["scores"]}
    kept = {s["metric"]: s["value"] for s in read_record(run / "stsb").scores["validation"]["student"]}
    assert {name: found[name] for name in kept} == pytest.approx(kept, abs=1e-4)
    status, out, _ = kdalign("compare", run, "--format", "json")
    assert status == 0
    table = json.loads(out)
    row = next(row for row in table["rows"] if row["kind"] == "student")
    assert row["cells"]["steps"]["value"] == 12
    assert "macro" in row["cells"]
    assert any("one student for 3 tasks" in note and "cola" in note for note in table["notes"])


def test_what_differs_for_a_task_is_in_its_record_and_in_no_other(run, encoder):
    recipes = {task: read_record(run / task).parsed_recipe() for task in TASKS}
    assert {task: recipe.objective.alpha for task, recipe in recipes.items()} == {"cola": 3.0, "mrpc": 0.7, "stsb": 0.7}
    assert {recipe.init_from for recipe in recipes.values()} == {"pretrained"}
    assert read_record(run / "cola").student.source.startswith(f"layers 1 3 of {encoder} before fine-tuning, shared")
    assert all(set(recipe.multi_task.tasks) == set(TASKS) for recipe in recipes.values())
    from kdalign.recipe.command import distill_command

    assert distill_command(recipes["mrpc"]).endswith(f"--recipe {run}/recipe.yaml")


@pytest.mark.slow
def test_the_body_starts_from_one_tasks_teacher_where_that_is_named(encoder, glue, tmp_path, kdalign):
    from kdalign.environment import cache_folder

    little = ("--lr", "1e-12", "--weight-decay", "0", "--set", "multi_task.body_from=mrpc")
    assert kdalign(*words(encoder, glue, tmp_path / "out", *little))[0] == 0
    teachers = [AutoModelForSequenceClassification.from_pretrained(one.parent)
                for one in (cache_folder() / "teachers").glob("*/config.json")]  # fmt: skip
    [teacher] = [one.state_dict() for one in teachers if one.config.id2label[0] == "not_equivalent"]
    taken = {"bert.encoder.layer.1.output.dense.weight": "bert.encoder.layer.3.output.dense.weight"}
    for task, names in {"cola": taken, "mrpc": {**taken, "classifier.weight": "classifier.weight"}}.items():
        found = weights(tmp_path / "out" / task / "student")
        assert all(torch.allclose(found[ours], teacher[theirs], atol=1e-8) for ours, theirs in names.items())
    recipes = [read_record(tmp_path / "out" / task).recipe for task in TASKS]
    assert [recipe["init_from"] for recipe in recipes] == ["pretrained", "fine-tuned", "pretrained"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights_and_histories(run, encoder, glue, tmp_path, kdalign, monkeypatch):
    from kdalign.training import loop

    out, kept = tmp_path / "out", loop.save_checkpoint
    monkeypatch.setenv("KDALIGN_CACHE", str(run.parent / "cache"))

    def stop(*given):
        kept(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", stop)
    more = ("--set", "multi_task.tasks.cola.objective.alpha=3", "--set", "train.checkpoint_every=5")
    assert kdalign(*words(encoder, glue, out, *more))[0] == 130
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-5"]
    monkeypatch.setattr(loop, "save_checkpoint", kept)
    assert "holds an unfinished run" in one_line(kdalign(*words(encoder, glue, out, *more))[2])
    said = one_line(kdalign("compare", out / "cola")[2])
    assert f"is not finished; `kdalign distill --out {out} --resume` resumes it" in said
    status, _, err = kdalign("distill", "--out", out, "--resume")
    assert status == 0, err
    assert "resumed after step 5" in err
    for task in TASKS:
        ours, theirs = (weights(folder / task / "student") for folder in (out, run))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), task
        lines = [(folder / task / "history.jsonl").read_text().splitlines() for folder in (out, run)]
        assert len(lines[0]) == len(lines[1])
        assert [ours for ours, theirs in zip(*lines, strict=True) if ours != theirs] == []
    status, _, err = kdalign("distill", "--out", out, "--resume")
    assert (status, "is finished already" in err) == (0, True)
    assert one_line(kdalign(*words(encoder, glue, out, *more))[2]).endswith(
        "holds a finished run: give --resume, --overwrite or another --out"
    )


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process(encoder, glue, tmp_path, kdalign, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    still = shutil.copytree(encoder, tmp_path / "still")  # two ranks fine-tune another teacher where it has dropout
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    # Cola's layers are aligned first: its head is reached later than the others', and its wrapping made anew.
    staged = '{"objective.align_first": 0.5, "objective.hard": 1, "objective.alpha": 0}'
    more = ("--micro-batch", "4", "--set", f"multi_task.tasks.cola={staged}")
    assert kdalign(*words(still, glue, one, *more))[0] == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0", "-m", "kdalign"]  # fmt: skip
    command = [sys.executable, *torchrun, *words(still, glue, two, *more)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    for task in TASKS:
        ours, theirs = (steps_of(folder / task) for folder in (two, one))
        assert [event["step"] for event in ours] == [event["step"] for event in theirs]
        for key, near in (("loss", 1e-3), ("gradient_norm", 1e-2)):
            assert [event[key] for event in ours] == pytest.approx([event[key] for event in theirs], rel=near), task
    assert {tuple(event["parts"]) for event in steps_of(one / "cola")} == {("cosine", "euclid", "attention"), ("hard",)}


def test_a_tasks_card_says_its_own_steps_and_the_wholes_and_how_all_are_made_again(run):
    own = read_record(run / "cola").training
    text = (run / "cola" / "student" / "README.md").read_text()
    assert "- The body, shared with `mrpc`, `stsb`: 12 steps of 8 examples in all" in text
    assert f"- Of these, this task and its head had {own['steps']} steps: {8 * own['steps']} examples" in text
    assert 0 < own["steps"] < 12
    assert f"`kdalign distill --recipe {run / 'recipe.yaml'}`" in text


def test_a_dry_run_shows_shares_and_steps_and_writes_nothing(encoder, glue, tmp_path, kdalign):
    status, out, _ = kdalign(*words(encoder, glue, tmp_path / "out", "--dry-run"))
    assert status == 0
    assert "one student, 3 tasks: 12 steps of 8 examples" in out
    status, out, _ = kdalign(*words(encoder, glue, tmp_path / "out", "--dry-run", "--json"))
    found = [each["multi_task"] for each in json.loads(out)]
    assert sum(each["steps"] for each in found) == 12
    roots = np.sqrt([96, 48, 24])
    assert [each["share"] for each in found] == pytest.approx((roots / roots.sum()).tolist())
    assert not (tmp_path / "out").exists()


def test_texts_that_another_task_is_trained_on_are_said(encoder, glue, tmp_path):
    from kdalign.distillation.pipeline import prepare_all

    shutil.copytree(glue, tmp_path / "glue")
    pairs = pd.read_parquet(glue / "mrpc" / "train.parquet")
    scored = pd.read_parquet(glue / "stsb" / "validation.parquet")
    scored.loc[:2, ["sentence1", "sentence2"]] = pairs.loc[:2, ["sentence1", "sentence2"]]
    scored.loc[0, "sentence1"] = scored.loc[0, "sentence1"].upper().replace(" ", "  ")
    scored.to_parquet(tmp_path / "glue" / "stsb" / "validation.parquet")
    flags = {"teacher": str(encoder), "student": "layers=2", "data.task": "mrpc,stsb", "multi_task.together": True}
    flags |= {"data.folder": str(tmp_path / "glue"), "train.max_steps": 30, "out": str(tmp_path / "out")}
    runs = prepare_all(build_recipe(None, flags))
    assert find_leaks(runs) == ["3 of the 16 texts of stsb, validation, are in the training text of mrpc"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--task", "cola"), "--multi-task takes two tasks or more: given 'cola' alone"),
        (("--task", "cola,lm"), "--multi-task is for tasks of classes or scores: not for task 'lm'"),
        (("--lora", "4"), "--multi-task does not support --lora: train the tasks one by one"),
        (("--select", "best"), "--multi-task does not support --select best: train the tasks one by one"),
        (("--patience", "2"), "--multi-task does not support --patience: train the tasks one by one"),
        (
            ("--set", "train.sharding=fsdp2"),
            "--multi-task does not support train.sharding: train the tasks one by one",
        ),
        (
            ("--set", "train.batch_tokens=256"),
            "--multi-task does not support --batch-tokens: train the tasks one by one",
        ),
        (
            ("--tokenizer", "train:80"),
            "--multi-task does not support --tokenizer train:SIZE: train the tasks one by one",
        ),
        (
            ("--set", "align.remap_every=2"),
            "--multi-task does not support align.remap_every: train the tasks one by one",
        ),
        (
            ("--set", "multi_task.tasks.cula.objective.beta=1"),
            "multi_task.tasks names 'cula'; did you mean 'cola'? (accepted: cola, mrpc, stsb)",
        ),
        (
            ("--set", "multi_task.tasks.cola.objective.betta=1"),
            "cola cannot change 'objective.betta'; did you mean 'objective.beta'?",
        ),
        (("--set", "multi_task.tasks.cola.train.lr=1"), "cola cannot change 'train'"),
        (("--set", "multi_task.tasks.cola.objective.beta=-1"), "multi_task.tasks, cola: objective.beta=-1"),
        (("--set", "multi_task.tasks=3"), "multi_task.tasks takes names of tasks, each with keys"),
        (
            ("--set", "multi_task.body_from=sst2"),
            "multi_task.body_from names 'sst2' (accepted: cola, mrpc, stsb, pretrained)",
        ),
        (
            ("--set", "multi_task.body_from=cola", "--init", "random"),
            "multi_task.body_from=cola is for a student that copies layers of a teacher that is fine-tuned first",
        ),
        (("--max-steps", "1"), "would get none of the 1 steps"),
        (
            ("--set", "multi_task.together=false", "--set", "multi_task.sampling=size"),
            "multi_task.sampling, temperature and body_from are for tasks that are trained together: give --multi-task",
        ),
    ],
    ids=lambda given: " ".join(given)[:40] if isinstance(given, tuple) else "",
)
def test_refusals_are_one_line_and_write_nothing(encoder, glue, tmp_path, kdalign, more, said):
    given = words(encoder, glue, tmp_path / "out")
    if more[0] in given:
        given[given.index(more[0]) + 1] = more[1]
        more = more[2:]
    if more and more[1] == "multi_task.together=false":
        given.remove("--multi-task")
    status, _, err = kdalign(*given, *more)
    assert status == 2
    assert said in one_line(err)
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_a_head_for_one_task_is_refused_for_the_others(teacher, glue, tmp_path, kdalign):
    status, _, err = kdalign(*words(teacher, glue, tmp_path / "out"))
    assert status == 2
    assert "has a head for negative, positive; task 'cola' has unacceptable, acceptable" in one_line(err)


def test_single_runs_of_several_tasks_are_as_before():
    recipe = build_recipe(None, {"teacher": "t", "data.task": "cola,mrpc", "out": "runs/x"})
    one, two = split_by_task(recipe)
    assert (one.out, two.out, one.data.task) == ("runs/x/cola", "runs/x/mrpc", ("cola",))
    assert one.init_from == "fine-tuned"
    assert not one.multi_task.tasks
    own = {"multi_task.tasks": {"mrpc": {"objective.beta": 3}}}
    one, two = split_by_task(build_recipe(None, {"teacher": "t", "data.task": "cola,mrpc", **own}))
    assert (one.objective.beta, two.objective.beta) == (1, 3)
    assert not two.multi_task.tasks
    with pytest.raises(UsageError, match=r"multi_task\.tasks is for several tasks"):
        build_recipe(None, {"teacher": "t", "data.task": "mrpc", **own})
    learnt = {"multi_task.together": True, "multi_task.tasks": {"cola": {}, "mrpc": {}}}  # as in a task's own folder
    with pytest.raises(UsageError, match="'cola' is learned together with mrpc: give the folder above"):
        split_by_task(build_recipe(None, {"teacher": "t", "data.task": "cola", **learnt}))
    with pytest.raises(UsageError, match="two tasks or more"):
        split_by_task(build_recipe(None, {"teacher": "t", "data.task": "cola", "multi_task.together": True}))
