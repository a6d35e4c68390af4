"""Text without labels: what is read, what is left out, what learns from it, and that steps stay what they are."""

import json
import math
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from kdalign.data.batches import collate
from kdalign.data.epochs import epoch_batches, micro_batches, steps_per_epoch
from kdalign.data.tasks import Examples
from kdalign.data.tasks.holdout import rows_around, rows_inside
from kdalign.data.tokenized_split import IGNORED, EpochSampler
from kdalign.distillation.pipeline import distill, prepare_all
from kdalign.errors import Interrupted
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.observer import NullObserver
from kdalign.recipe import ARMS, build_recipe
from kdalign.recipe import ObjectiveWeights as Weights
from support.classifier_setting import ALL, Setting, examples
from support.tiny import one_line, save_model, sentences


def mixed(n: int = 8, labelled: int = 3):
    """Rows of which the first are labelled, and the others are not."""
    whole = examples(n)
    return whole.take(range(labelled)).with_unlabelled(whole.take(range(labelled, n)), n - labelled)


def test_only_the_hard_term_leaves_out_rows_without_labels():
    setting, both, whole = Setting("bert", "bert", 32), mixed(), examples()
    batch, known, few = collate(both, range(8)), collate(whole, range(8)), collate(whole, range(3), width=12)
    units = count_units([batch])
    assert (units[Unit.EXAMPLE], units[Unit.LABELLED]) == (8.0, 3.0)
    parts, of_all = (setting.breakdown(each, count_units([each])).parts for each in (batch, known))
    of_few = setting.breakdown(few, count_units([few])).parts
    for name in ("soft", "cosine", "euclid", "attention"):
        torch.testing.assert_close(parts[name], of_all[name])
    torch.testing.assert_close(parts["hard"], of_few["hard"])
    logits = setting.learner(batch.inputs, setting.teacher(batch, setting.learner.wanted_of_teacher)).logits.tolist()
    by_hand = [math.log(sum(map(math.exp, logits[row]))) - logits[row][whole.labels[row]] for row in range(3)]
    assert parts["hard"].item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def test_a_step_of_both_kinds_split_into_micro_batches_and_ranks_has_the_same_gradient():
    setting, both = Setting("bert", "bert", 32), mixed()
    rows = [7, 0, 5, 2, 6, 1, 4, 3]
    whole = setting.gradient(micro_batches(both, rows, 0, 1, None))
    ones = setting.gradient(micro_batches(both, rows, 0, 1, 1))  # five of them without a label
    ranks = [batch for rank in (0, 1) for batch in micro_batches(both, rows, rank, 2, 2)]
    torch.testing.assert_close(ones, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(setting.gradient(ranks), whole, atol=1e-5, rtol=1e-5)


def test_a_step_without_any_label_has_a_hard_term_of_zero_and_the_others_gradient():
    setting, both = Setting("bert", "bert", 32), mixed()
    batches = micro_batches(both, [3, 4, 5], 0, 1, None)
    assert count_units(batches)[Unit.LABELLED] == 0
    gradient = setting.gradient(batches)
    assert gradient.isfinite().all()
    setting.objective = build_classification_objective(
        ALL.model_copy(update={"hard": 0.0}), setting.plan, regression=False
    )
    torch.testing.assert_close(setting.gradient(batches), gradient)
    parts = {"hard": 0.0, "soft": 1.0}
    objective = build_classification_objective(
        Weights(hard=1, alpha=1, beta=0, gamma=0, delta=0), None, regression=False
    )
    assert objective.present_terms(parts, count_units(batches)) == {"soft": 1.0}, (
        "a balance hears of no mean over nothing"
    )


def test_a_score_that_is_not_known_enters_nothing():
    whole = examples()
    scores = whole.take(range(3))
    object.__setattr__(scores, "labels", np.array([1.0, 2.0, 3.0]))
    batch = collate(scores.with_unlabelled(whole.take(range(3, 8)), 5), range(8))
    assert batch.labels.isnan().tolist() == [False] * 3 + [True] * 5
    objective = build_classification_objective(
        Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0), None, regression=True
    )
    [(_, hard)] = objective.terms.values()
    setting = Setting("bert", "bert", 32)
    signals = setting.learner(batch.inputs, setting.teacher(batch, setting.learner.wanted_of_teacher))
    signals.logits = signals.logits[:, :1]
    expected = sum((signals.logits[row].item() - row - 1) ** 2 for row in range(3))
    assert hard(TermInputs(signals, None, batch)).item() == pytest.approx(expected, rel=1e-5)


def test_rows_without_labels_are_right_for_themselves_alone():
    terms = {"info-nce": {"weight": 1, "supervised": True}}
    weights = Weights(hard=0, alpha=0, beta=0, gamma=0, delta=0, terms=terms)
    setting, both = Setting("bert", "bert", 32, weights), mixed()
    batch = collate(both, range(8))
    [(_, term)] = setting.objective.terms.values()
    view = TermInputs(
        setting.learner(batch.inputs, setting.teacher(batch, setting.learner.wanted_of_teacher)), None, batch
    )
    labels = examples().labels[:3]
    right = np.eye(8, dtype=bool)
    right[:3, :3] |= labels[:, None] == labels[None]
    assert term._positives(view, torch.arange(8)).tolist() == right.tolist()


def test_an_epoch_of_a_mixture_has_all_labelled_rows_and_others_drawn_anew():
    mixture = EpochSampler(np.arange(6), np.arange(6, 40), 12)
    lengths = np.arange(40) % 7 + 1
    epochs = [epoch_batches(lengths, 4, seed=3, epoch=number, mixture=mixture) for number in range(3)]
    assert [len(batches) for batches in epochs] == [steps_per_epoch(lengths, 4, mixture=mixture)] * 3 == [5] * 3
    rows = [sorted(row for batch in batches for row in batch) for batches in epochs]
    for each in rows:
        assert len(each) == len(set(each)) == 18
        assert each[:6] == list(range(6))
    assert rows[0] != rows[1] != rows[2]
    assert epochs[1] == epoch_batches(lengths, 4, seed=3, epoch=1, mixture=mixture)
    assert epoch_batches(lengths, 4, 3, 1) == epoch_batches(
        lengths, 4, 3, 1, mixture=EpochSampler(np.arange(40), np.arange(0), 0)
    )


def recipe(teacher, data, out, *sets, **flags):
    words = {
        "teacher": str(teacher),
        "student": "layers=2",
        "data.task": "sst2",
        "data.folder": str(data),
        "out": str(out),
    }
    small = {"train.batch_size": 16, "train.precision": "fp32", "train.device": "cpu", "train.seed": 0}
    return build_recipe(None, words | small | flags, sets)


def prepared(*given, **flags):
    [run] = prepare_all(recipe(*given, **flags))
    return run


@pytest.fixture
def pool(tmp_path, data):
    """Texts of which one is learnt, one is scored (both in capitals), and one is neither."""
    train, scored = (
        pd.read_parquet(data / f"{split}.parquet").sentence.iloc[0].upper() for split in ("train", "validation")
    )
    folder = tmp_path / "pool"
    folder.mkdir()
    pd.DataFrame({"sentence": [train, scored, "a new text"], "label": ["?", "?", "?"]}).to_csv(folder / "train.csv")
    return folder


def test_texts_that_are_learnt_or_scored_already_are_left_out_and_counted(teacher, data, pool, tmp_path):
    run = prepared(teacher, data, tmp_path / "run", **{"data.unlabelled": str(pool)})
    assert run.splits.unlabelled.examples.texts == (("a new text",),)
    assert run.splits.unlabelled.dropped == {"labelled rows": 1, "validation": 1}
    assert run.inputs["unlabelled"] == run.splits.unlabelled.examples.fingerprint()
    assert str(run.splits.unlabelled) == f"1 from {pool} (left out: 1 equal to labelled rows, 1 equal to validation)"


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "txt"])
def test_every_format_gives_the_same_texts(ending, teacher, data, tmp_path):
    texts, file = ["one new text", "another new one"], tmp_path / f"texts.{ending}"
    table = pd.DataFrame({"sentence": texts})
    match ending:
        case "parquet":
            table.to_parquet(file)
        case "jsonl":
            table.to_json(file, orient="records", lines=True)
        case "txt":
            file.write_text("\n".join([texts[0], "", texts[1]]) + "\n")
        case _:
            table.to_csv(file, index=False, sep="\t" if ending == "tsv" else ",")
    run = prepared(teacher, data, tmp_path / "run", **{"data.unlabelled": str(file)})
    assert run.splits.unlabelled.examples.texts == (tuple(texts),)


def test_rest_is_what_the_limit_leaves_out(teacher, data, tmp_path):
    flags = {"data.limit": 40, "data.unlabelled": "rest"}
    run = prepared(teacher, data, tmp_path / "run", **flags)
    whole = pd.read_parquet(data / "train.parquet").sentence
    learnt, others = run.splits.train.texts[0], run.splits.unlabelled.examples.texts[0]
    known = {*learnt, *run.splits.reported["validation"].texts[0]}
    assert len(run.splits.train) == 40
    assert sorted(others) == sorted(text for text in whole if text not in known)
    few = prepared(
        teacher, data, tmp_path / "run", "data.unlabelled_limit=50", **flags
    ).splits.unlabelled.examples.texts[0]
    assert len(few) == 50
    assert set(few) < set(others)
    again = prepared(teacher, data, tmp_path / "run", "data.unlabelled_limit=50", "data.limit_seed=1", **flags)
    assert few != again.splits.unlabelled.examples.texts[0]


def test_no_text_lies_inside_one_that_is_held_out(teacher, data, tmp_path):
    run = prepared(
        teacher, data, tmp_path / "run", "train.select=best", **{"data.limit": 40, "data.unlabelled": "rest"}
    )
    held = [f" {' '.join(text.split())} " for text in run.splits.watched.texts[0]]
    assert not any(f" {text} " in whole for text in run.splits.unlabelled.examples.texts[0] for whole in held)


def test_no_text_lies_around_a_held_one_of_four_words_or_more():
    held = Examples("held", (("A fine little Film", "too slow"),), None)
    texts = Examples("texts", (("it is a fine little film indeed", "too slow for me", "a fine little", "other"),), None)
    assert rows_around(texts, held) == [0]
    assert rows_inside(texts, held) == [2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher", "none", "--student", "TEACHER"), "give --teacher"),
        (("--hard", "1", "--alpha", "0", "--beta", "0", "--gamma", "0", "--delta", "0"), "only learns from labels"),
        (("--hard", "1", "--alpha", "0", "--set", "objective.align_first=0.5"), "part after objective.align_first"),
        (("--task", "masked-lm"), "add the texts to its split 'train'"),
        (("--unlabelled", "nowhere"), "no such folder or file"),
        (("--unlabelled", "pool.xlsx"), "another format (accepted: parquet, csv, tsv, jsonl, txt)"),
        (("--unlabelled", "other.csv"), "needs column 'sentence', which other.csv lacks; did you mean 'sentences'?"),
        (("--unlabelled", "rest"), "there is no --limit"),
        (("--unlabelled", "rest", "--limit", "256"), "it leaves out none"),
        (("--unlabelled", "known.txt"), "every text equals one"),
        (("--set", "data.unlabelled_share=0.9"), "takes 2,304 texts without labels next to 256 labelled rows"),
        (("--set", "data.unlabelled_share=0.5", "--batch-tokens", "500"), "use it with --batch-size"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused_in_one_line(more, said, teacher, data, kdalign, tmp_path):
    (tmp_path / "pool.txt").write_text("a new text\nanother new text\n")
    (tmp_path / "pool.xlsx").write_text("")
    (tmp_path / "other.csv").write_text("sentences\nsome text\n")
    (tmp_path / "known.txt").write_text(sentences(256, 0)[0][0] + "\n")
    more = [str(teacher) if word == "TEACHER" else word for word in more]
    words = (
        "distill",
        *(() if "--teacher" in more else ("--teacher", teacher)),
        "--task",
        "sst2",
        "--data",
        data,
        "--unlabelled",
        "pool.txt",
        "--out",
        "run",
    )
    status, _, err = kdalign(*words, *more)
    assert status == 2
    assert said in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_pair_task_takes_pairs_and_refuses_lines(kdalign, tmp_path):
    def rows(n, seed):
        texts, labels = sentences(2 * n, seed)
        return pd.DataFrame({"sentence1": texts[:n], "sentence2": texts[n:], "label": labels[:n]})

    folder = tmp_path / "mrpc"
    folder.mkdir()
    for split, n, seed in (("train", 40, 0), ("validation", 20, 1)):
        rows(n, seed).to_parquet(folder / f"{split}.parquet")
    more = rows(6, 2).drop(columns="label")
    pd.concat([more, rows(40, 0).iloc[:1].drop(columns="label")]).to_parquet(tmp_path / "more.parquet")
    teacher = save_model(tmp_path / "teacher", "bert")
    flags = {"data.task": "mrpc", "data.unlabelled": str(tmp_path / "more.parquet")}
    run = prepared(teacher, folder, tmp_path / "run", **flags)
    assert run.splits.unlabelled.examples.texts == (tuple(more.sentence1), tuple(more.sentence2))
    (tmp_path / "lines.txt").write_text("one\n")
    words = ("distill", "--teacher", teacher, "--task", "mrpc", "--data", folder, "--unlabelled", "lines.txt")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "one text per line, and task 'mrpc' reads pairs (sentence1, sentence2)" in one_line(err)


class Watching(NullObserver):
    """Someone who keeps what is said, and presses Ctrl-C after a step."""

    def __init__(self, step=None):
        self.step, self.said = step, []

    def announce(self, line):
        self.said.append(line)

    def stepped(self, report):
        if report.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_run_says_what_it_learns_from_records_it_and_goes_on_where_it_stopped(teacher, data, tmp_path):
    flags = {"data.limit": 40, "data.unlabelled": "rest", "train.max_steps": 12}
    sets = ("data.unlabelled_share=0.75", "objective.balance=size", "train.batch_size=4", "train.samples=0")
    whole, stopped = (recipe(teacher, data, tmp_path / name, *sets, **flags) for name in ("whole", "stopped"))
    watching = Watching()
    [record] = distill(whole, watching)
    facts = record.data
    assert (facts["train"]["n"], facts["unlabelled"]["an_epoch"]) == (40, 120)
    assert facts["unlabelled"]["source"] == "the rest of train"
    assert any(line.startswith("text without labels, in addition to 40 labelled rows: ") for line in watching.said)
    events = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    hard = [event["parts"]["hard"] for event in events if event["kind"] == "step"]
    assert 0 in hard, "a step had no labelled row"
    assert max(hard) > 0
    with pytest.raises(Interrupted):
        distill(stopped, Watching(5))
    distill(stopped, resume=True)
    for name in ("student/model.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name


@pytest.mark.slow
def test_a_teacher_is_fine_tuned_on_the_labelled_rows_alone(data, tmp_path):
    from transformers import BertModel

    from kdalign.distillation.tokenize import student_tokenizer, tokenize_run
    from kdalign.training.finetuning import FinetuneJob
    from support.tiny import make_tokenizer, tiny_config

    make_tokenizer(tmp_path / "bare", "bert")
    BertModel(tiny_config("bert", 2)).save_pretrained(tmp_path / "bare")
    flags = {"data.limit": 20, "train.max_steps": 1, "student": "layers=1"}
    with_, without = ({**flags, "data.unlabelled": "rest"}, flags)
    runs = [
        prepared(tmp_path / "bare", data, tmp_path / "run", "finetune.epochs=1", **each) for each in (with_, without)
    ]
    places = []
    for run in runs:
        texts = tokenize_run(run, student_tokenizer(run))
        places.append(FinetuneJob(run.teacher, run.task, texts.labelled, run.recipe.finetune, 1, "cpu", False).path)
    assert places[0] == places[1]
    distill(runs[0].recipe)
    assert (places[1] / "config.json").is_file(), "of the labelled rows alone"


def test_in_an_ablation_an_arm_of_labels_alone_goes_without(teacher, data, tmp_path):
    from kdalign.runs.ablation_spec import build_ablation

    flags = {
        "teacher": str(teacher),
        "data.task": "sst2",
        "data.folder": str(data),
        "data.limit": 40,
        "data.unlabelled": "rest",
    }
    made = build_ablation(None, flags, arms=",".join(ARMS), seeds="1")
    given = {trial.arm: trial.recipe.data.unlabelled for trial in made.trials(tmp_path)}
    assert given == {"labels": None, "soft": "rest", "align": None, "joint": "rest"}
    file = tmp_path / "arms.yaml"
    arms = {"few": {"from": "soft"}, "more": {"from": "soft", "data.unlabelled": "rest"}}
    file.write_text(yaml.safe_dump({"arms": arms, "seeds": 1}))
    del flags["data.unlabelled"]
    trials = build_ablation(file, flags).trials(tmp_path)
    assert [trial.recipe.data.unlabelled for trial in trials] == [None, "rest"]


def test_labels_that_are_not_known_are_no_class():
    assert collate(mixed(), range(8)).labels[3:].tolist() == [IGNORED] * 5
