"""Teachers that teach nothing, rows out of order, and students that know more: refused before the first step."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.devices import make_accelerator
from kdalign.distillation.prepare import prepare
from kdalign.distillation.teacher_checks import check_scored_teacher, compare_with_start
from kdalign.distillation.tokenize import open_run
from kdalign.errors import RefusedRun
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.recipe import build_recipe
from kdalign.runs.prediction_table import Predictions, TokenPredictions
from support import ranks
from support.tiny import WORDS, save_model, sentences


def opened(teacher, task, data, **more):
    given = {"teacher": str(teacher), "student": "layers=1", "data.task": str(task), "data.folder": str(data),
             "data.max_length": 48, "train.device": "cpu", "train.max_steps": 1, "out": str(data / "run")}  # fmt: skip
    return open_run(prepare(build_recipe(None, {**given, **more})), make_accelerator("cpu"))


def findings(run):
    """What the checks say of the run's teacher."""
    adapter = run.run.adapter
    model = adapter.load_model(run.run.teacher, fresh_head=False, seed=0)
    predict = partial(adapter.predict, model)
    return check_scored_teacher(run, predict(run.texts.watched_by_teacher), predict)


def random_classifier(folder, **changes):
    return save_model(folder, "bert", seed=3, knows=False, **changes)


def test_a_classifier_that_knows_its_task_is_let_through(teacher, data):
    assert findings(opened(teacher, "sst2", data)) == []


def test_a_classifier_with_a_random_head_is_refused_with_both_shares(tmp_path, data):
    run = opened(random_classifier(tmp_path / "t"), "sst2", data)
    labels = run.texts.watched.labels
    commonest = 100 * max(np.mean(labels), 1 - np.mean(labels))
    line = rf"on 100 rows part of train: .* right, {commonest:.1f} % by the commonest class alone.*--allow weak-teacher"
    with pytest.raises(RefusedRun, match=line):
        findings(run)
    [finding] = findings(opened(tmp_path / "t", "sst2", data, allow=["weak-teacher"]))
    assert (finding.what, finding.allowed) == ("weak-teacher", True)


def test_on_few_rows_a_teacher_that_cannot_be_told_from_chance_is_said_and_not_refused(tmp_path, teacher):
    folder = table(tmp_path / "few", sentence=sentences(24, 0)[0], label=[row % 2 for row in range(24)])
    [finding] = findings(opened(teacher, "sst2", folder))
    assert finding.said.endswith("but 24 rows are too few to tell")
    assert (finding.mend, finding.allowed) == ("", False)


def test_a_classifier_whose_outputs_have_the_other_order_is_told_so(tmp_path, teacher, data):
    turned = shutil.copytree(teacher, tmp_path / "turned")
    config = json.loads((turned / "config.json").read_text())
    names = {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (turned / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(RefusedRun, match=r"worse than labels in random order.*name its outputs in their order"):
        findings(opened(turned, "sst2", data))


def table(folder, validation=None, **columns):
    folder.mkdir()
    frame = pd.DataFrame(columns)
    frame.to_parquet(folder / "train.parquet")
    (frame if validation is None else validation).to_parquet(folder / "validation.parquet")
    return folder


def test_labels_that_are_off_by_a_row_are_named_in_place_of_a_weak_teacher(tmp_path, teacher):
    texts, labels = sentences(256, 0)
    folder = table(tmp_path / "shifted", sentence=texts, label=np.roll(labels, 1))
    with pytest.raises(RefusedRun, match=r"column 'label' is taken from the next row.*--allow shifted-rows"):
        findings(opened(teacher, "sst2", folder))


def test_a_scorer_must_rise_with_the_scores_of_the_data(tmp_path):
    from transformers import AutoTokenizer

    scorer = save_model(tmp_path / "scorer", "bert", num_labels=1, problem_type="regression")
    model = AutoModelForSequenceClassification.from_pretrained(scorer).eval()
    first, second = sentences(120, 0)[0], sentences(120, 1)[0]
    pieces = AutoTokenizer.from_pretrained(scorer)(first, second, padding=True, return_tensors="pt")
    with torch.no_grad():
        said = model(**pieces).logits[:, 0].numpy()
    scale = 5 * (said - said.min()) / (said.max() - said.min())
    known = table(tmp_path / "known", sentence1=first, sentence2=second, label=scale)
    assert findings(opened(scorer, "stsb", known)) == []
    random = np.random.default_rng(0).random(120) * 5
    unknown = table(tmp_path / "unknown", sentence1=first, sentence2=second, label=random)
    with pytest.raises(RefusedRun, match="its scores do not rise with those of the data"):
        findings(opened(scorer, "stsb", unknown))


STORY = (
    "Once upon a time, there was a little {a} named {b}.",
    "{b} liked to play with the {c} in the park.",
    "One day, {b} saw a big {c} and wanted to touch it.",
    '"Look, mommy, I have a {c}!" said {b} with a smile.',
    "The {a} was very happy and said thank you.",
    "They went home and {b} told mom about the {c}.",
)


def stories(folder):
    words = [{"a": a, "b": b, "c": c} for a in ("girl", "boy", "dog", "cat") for b in ("Lily", "Tom", "Sam", "Mia")
             for c in ("ball", "toy", "bird", "tree")]  # fmt: skip
    return table(folder, text=[STORY[number % len(STORY)].format(**each) for number, each in enumerate(words)])


def test_a_language_model_of_such_texts_is_let_through_and_one_with_a_new_head_is_not(shared, tmp_path):
    texts = stories(tmp_path / "texts")
    assert findings(opened(shared / "models" / "stories260K", "lm", texts)) == []
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K")
    model.config.tie_word_embeddings = False
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(0.02 * torch.randn_like(model.lm_head.weight))
    model.save_pretrained(broken)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "models" / "stories260K" / file, broken)
    with pytest.raises(RefusedRun) as refused:
        findings(opened(broken, "lm", texts))
    assert "a guess among all entries 512: give a teacher" in str(refused.value)
    assert "(tie_word_embeddings), or let it through by --allow weak-teacher" in str(refused.value)


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    """An encoder-decoder that has learned to write its source again."""
    pieces = train_tokenizer(sentences(200, 0)[0], 400, "seq2seq", 48)
    spec = parse_scratch_spec("new:bart,layers=1,width=32,heads=4,feed_forward=32,positions=48,dropout=0")
    model, generator = build_from_scratch(scratch_config(spec, pieces), 0).train(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(70):
        ids = pieces(drawn(generator, 48), padding=True, return_tensors="pt")
        labels = ids["input_ids"].masked_fill(ids["input_ids"] == pieces.pad_token_id, -100)
        loss = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("copier")
    model.save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def drawn(generator, n):
    return [" ".join(generator.choice(WORDS, 3)) for _ in range(n)]


def copies(folder, shift=0):
    sources = drawn(np.random.default_rng(5), 120)
    right = pd.DataFrame({"source": sources[:8], "target": sources[:8]})
    return table(folder, right, source=sources, target=np.roll(sources, shift).tolist())


def words(teacher, data, *more):
    return ("distill", "--teacher", teacher, "--student", "layers=1", "--task", "translation:source-target", "--data",
            data, "--max-length", "48", "--max-steps", "1", "--batch-size", "4", "--device", "cpu", "--out", "runs/a",
            *more)  # fmt: skip


def test_pairs_whose_targets_are_off_by_a_row_end_a_run_that_leaves_nothing(kdalign, copier, tmp_path):
    data = copies(tmp_path / "data", 1)
    status, _, err = kdalign(*words(copier, data))
    line = err.splitlines()[-1]
    assert status == 1
    assert "rows of train fits the source of the row before best" in line
    assert line.endswith("or let it through by --allow shifted-rows")
    assert not (tmp_path / "runs").exists()
    status, _, err = kdalign(*words(copier, data, "--allow", "shifted-rows", "--allow", "weak-teacher"))
    assert status == 0, err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    assert "the row before best" in record["data"]["checks"]["shifted-rows"]
    assert "let through" not in err
    assert "shifted-rows: the target of" in err
    card = (tmp_path / "runs/a/student/README.md").read_text()
    assert "A finding of the checks before the run was allowed: shifted-rows" in card


def test_pairs_in_their_rows_are_let_through(copier, tmp_path):
    assert findings(opened(copier, "translation:source-target", copies(tmp_path / "data"))) == []


def test_a_student_that_is_better_than_its_teacher_before_training_is_refused(kdalign, teacher, data, tmp_path):
    noisy = random_classifier(tmp_path / "noisy", id2label={0: "negative", 1: "positive"})
    command = ("distill", "--teacher", noisy, "--student", teacher, "--task", "sst2", "--data", data, "--max-steps",
               "1", "--batch-size", "8", "--device", "cpu", "--out", "runs/a", "--allow", "weak-teacher")  # fmt: skip
    status, _, err = kdalign(*command)
    assert status == 0, err
    assert "no better than the student before its first step" in err
    assert "weak-teacher: before its first step, the student is better than teacher" in err
    said = json.loads((tmp_path / "runs/a/record.json").read_text())["data"]["checks"]["weak-teacher"]
    assert "the commonest class alone" in said
    assert "before its first step, the student is better" in said


class Tracker(GeneralTracker):
    """Stands in for a tracker that is not installed here: a file of what it was told."""

    name, requires_logging_directory, tracker = "tensorboard", True, None

    def __init__(self, run_name, logging_dir, **_):
        super().__init__()
        self.file = Path(logging_dir) / "tracked.jsonl"

    def _tell(self, *said):
        with self.file.open("a") as file:
            print(json.dumps(said), file=file)

    def start(self):
        self._tell("start")

    def store_init_configuration(self, values):
        self._tell("recipe", values["student"])

    def log(self, values, step=None, **_):
        self._tell("step", step)


@pytest.mark.slow
def test_trackers_start_after_the_check_of_the_first_step_which_may_refuse_the_run(
    kdalign, teacher, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    worse = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        worse.classifier.bias += torch.tensor([0.0, -2.5])
    worse.save_pretrained(tmp_path / "worse")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "worse")
    command = ("distill", "--teacher", tmp_path / "worse", "--student", teacher, "--task", "sst2", "--data", data,
               "--max-steps", "2", "--batch-size", "8", "--device", "cpu", "--no-profile", "--out", "runs/a",
               "--tracker", "tensorboard")  # fmt: skip
    status, _, err = kdalign(*command)
    assert status == 1
    assert "before its first step, the student is better than teacher" in err.splitlines()[-1]
    assert not (tmp_path / "runs/a").exists()
    status, _, err = kdalign(*command, "--allow", "weak-teacher")
    assert status == 0, err
    told = [json.loads(line) for line in (tmp_path / "runs/a/tracked.jsonl").read_text().splitlines()]
    assert told == [["start"], ["recipe", str(teacher)], ["step", 1], ["step", 2]]


def answers(run, right):
    labels = run.texts.watched.labels
    values = np.where(np.arange(len(labels)) < right, labels, 1 - labels)
    return Predictions(np.eye(2)[values], values)


def test_the_student_must_be_better_by_more_than_noise(teacher, data):
    run = opened(teacher, "sst2", data)
    line, found = compare_with_start(run, answers(run, 52), answers(run, 90))
    assert (line, found) == ("the teacher on the same texts: accuracy 90", [])
    line, found = compare_with_start(run, answers(run, 90), answers(run, 90))
    assert (line.startswith("the teacher on the same texts: accuracy 90, no better"), found) == (True, [])
    # McNemar's exact test: 4 rows against none is p = 1/8, 8 rows p = 1/128.
    line, found = compare_with_start(run, answers(run, 94), answers(run, 90))
    assert (line.endswith("(94; 100 rows); p = 0.12"), found) == (True, [])
    _, [finding] = compare_with_start(run, answers(run, 98), answers(run, 90))
    assert "on 100 rows part of train: accuracy 98 against 90 (p = 0.0078)" in finding.said
    assert finding.mend.endswith("or compare on rows held out of train (--select best)")


def test_a_language_model_is_compared_on_the_same_target_tokens(shared, tmp_path):
    run = opened(shared / "models" / "stories260K", "lm", stories(tmp_path / "texts"))
    encoded = run.texts.watched
    tokens = np.array([sum(target >= 0 for target in row) for row in encoded.columns["targets"]])

    def at(nats):
        return TokenPredictions(nats * tokens.astype(float), tokens, np.zeros(tokens.sum()))

    line, found = compare_with_start(run, at(3.0), at(2.0))
    assert (line, found) == ("the teacher on the same texts: ppl 7.389", [])
    _, [finding] = compare_with_start(run, at(2.0), at(3.0))
    assert "ppl 7.389 against 20.09" in finding.said


@pytest.mark.slow
def test_a_refused_run_takes_what_it_wrote_with_it_and_leaves_other_files(kdalign, data, tmp_path):
    weak = random_classifier(tmp_path / "t")
    command = ("distill", "--teacher", weak, "--student", "layers=1", "--task", "sst2", "--data", data, "--max-steps",
               "1", "--batch-size", "8", "--device", "cpu", "--out", "runs/a")  # fmt: skip
    status, _, err = kdalign(*command)
    assert (status, "fit labels no better than labels in random order" in err) == (1, True)
    assert not (tmp_path / "runs").exists()
    status, _, err = kdalign(*command, "--allow", "weak-teacher")
    assert status == 0, err
    status, _, err = kdalign(*command, "--dry-run", "--overwrite")
    assert status == 0, "without weights there is nothing to find"
    (tmp_path / "runs/a/mine.txt").write_text("mine")
    assert kdalign(*command, "--overwrite")[0] == 1
    assert sorted(file.name for file in (tmp_path / "runs/a").iterdir()) == ["mine.txt"]


@pytest.mark.slow
def test_what_is_allowed_may_be_added_when_a_run_is_resumed(stopped, kdalign, data, tmp_path):
    weak = random_classifier(tmp_path / "t")
    command = ("distill", "--teacher", weak, "--student", "layers=1", "--task", "sst2", "--data", data, "--max-steps",
               "2", "--batch-size", "8", "--device", "cpu", "--set", "train.checkpoint_every=1", "--out", "runs/a",
               "--allow", "weak-teacher")  # fmt: skip
    stopped(*command)
    status, _, err = kdalign("distill", "--out", "runs/a", "--resume", "--allow", "memory")
    assert status == 0, err
    checks = json.loads((tmp_path / "runs/a/record.json").read_text())["data"]["checks"]
    assert "in random order" in checks["weak-teacher"]


@pytest.mark.slow
def test_two_ranks_are_refused_together(data, tmp_path):
    weak = random_classifier(tmp_path / "t")
    out = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
             "--rdzv_endpoint", "localhost:0", "-m", "kdalign", "distill", "--teacher", weak, "--student", "layers=1",
             "--task", "sst2", "--data", data, "--max-steps", "1", "--device", "cpu", "--out", out]  # fmt: skip
    done = ranks.run([str(word) for word in words], timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("kdalign: error: teacher") == 2
    assert not out.exists()
