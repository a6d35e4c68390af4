"""Runs, an ablation and evaluations of kdalign 0.1.0 are read, scored again, resumed and checked by today's code.

``data/version-0.1.0`` was written once, on a CPU, and is never written again::

    C="--task sst2 --data data --max-length 32 --device cpu"
    S="--teacher teacher --student layers=1 --batch-size 16 --lr 0.05 --precision fp32"
    W="--set objective.hard=1 --set objective.alpha=0.1 --set objective.beta=0.1 \
       --set objective.gamma=0.01 --set objective.delta=0.01"
    kdalign distill $C $S $W --max-steps 40 --no-finetune-teacher --out runs/films \
        --set train.checkpoint_every=20 --set train.eval_every=20
    kdalign ablate $C $S $W --max-steps 20 --set finetune_teacher=false --arms labels,joint --seeds 2 --out ablation
    kdalign eval teacher $C --metrics accuracy,ece --out scores.json

``runs/stories`` and ``perplexities.json`` are the same for a language model. The last checkpoints, the ablation's run
folders and the language model's teacher and texts were left out.
"""

import json
import shutil
from pathlib import Path

import pytest

from kdalign.errors import TamperedRun
from kdalign.evaluation.rescoring import rescore
from kdalign.files import read_json
from kdalign.runs.curves import read_curves
from kdalign.runs.disagreements import find_disagreements
from kdalign.runs.finished import finished_runs
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.prediction_table import read_predictions
from kdalign.runs.record import read_record

FILMS, STORIES = Path("runs/films"), Path("runs/stories")
SCORES = {
    ("films", "sst2/accuracy"): 87.5,
    ("films", "agreement"): 28.125,
    ("films", "ece"): 12.123155389726328,
    ("stories", "lm/ppl"): 43.150404499563635,
    ("stories", "lm/bits_per_byte"): 1.1544796901020824,
    ("stories", "agreement"): 36.36363636363637,
    ("labels", "sst2/accuracy"): 71.875,
    ("labels", "agreement"): 0.0,
    ("labels", "ece"): 9.981943562811024,
    ("joint", "sst2/accuracy"): 75.0,
    ("joint", "agreement"): 6.25,
    ("joint", "ece"): 8.430945877911341,
}
PATHS = ("runs/films", "runs/stories", "ablation", "scores.json", "perplexities.json")


def read_logits(run: RunFolder):
    return read_predictions(run.predictions("validation")).student.logits


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kept files as the working directory, which their paths are relative to."""
    shutil.copytree(Path(__file__).parent / "data" / "version-0.1.0", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_old_runs_stand_in_a_table_with_the_scores_that_they_had(old, kdalign):
    status, out, err = kdalign("compare", *PATHS, "--verify", "--json")
    assert status == 0, err
    rows = {row["name"]: row["cells"] for row in json.loads(out)["rows"]}
    values = {(name, key): rows[name][key]["value"] for name, key in SCORES}
    assert values == pytest.approx(SCORES)


def test_every_score_of_the_old_files_is_what_their_kept_answers_give(old):
    report = rescore(PATHS)
    assert report.differences == ()
    assert (report.runs, report.scores) == (2, 30)


def test_an_old_run_shows_its_curves_and_the_examples_on_which_its_teacher_differs(old):
    films, stories = finished_runs([FILMS, STORIES])
    curves = read_curves(films)
    assert curves is not None
    assert [*curves.terms] == ["hard", "soft", "cosine", "euclid", "attention"]
    assert len(curves.steps) == 40
    assert curves.loss[-1] == pytest.approx(0.2655349671840668)
    most = find_disagreements(films, most=1)
    assert most is not None
    assert (most.differ, most.n) == (23, 32)
    assert most.examples[0].texts == ("great some warm",)
    assert find_disagreements(stories) is None  # answers to tokens


def test_the_card_of_an_old_run_has_its_scores(old, kdalign):
    status, out, err = kdalign("card", FILMS)
    assert status == 0, err
    assert "| accuracy (%) | 87.50" in out
    assert "distilled from `teacher` on the task `sst2` by kdalign 0.1.0" in out


def test_an_old_run_is_inspected(old, kdalign):
    status, out, err = kdalign("inspect", FILMS, "--device", "cpu")
    assert status == 0, err
    assert "sst2, validation: 23 of 32 answers differ" in out
    assert "great some warm" in out


def test_an_old_run_that_was_stopped_is_resumed_to_the_scores_that_it_had(old, kdalign):
    films = RunFolder(FILMS)
    before, events, logits = read_record(FILMS), films.read_history(), read_logits(films)
    (FILMS / "record.json").unlink()
    for folder in ("student", "predictions"):
        shutil.rmtree(FILMS / folder)
    assert films.check_begun()
    assert films.history_fits(read_json(films.checkpoints / "step-20" / "progress.json")["histories"]["."])
    status, _, err = kdalign("distill", "--out", FILMS, "--resume")
    assert status == 0, err
    after = read_checked(FILMS)
    assert after.training["steps"] == 40
    assert after.scores["validation"]["teacher"] == before.scores["validation"]["teacher"]
    assert read_logits(films) == pytest.approx(logits, abs=1e-3)  # other processors add in another order
    assert [event["step"] for event in films.read_history()] == [event["step"] for event in events]


@pytest.mark.parametrize(
    "name", ["student/model.safetensors", "predictions/validation.parquet", "history.jsonl", "record.json"]
)
def test_an_edited_file_of_an_old_run_is_found_by_its_seal(old, name):
    check_weights(FILMS, read_checked(FILMS))
    content = (FILMS / name).read_bytes()
    (FILMS / name).write_bytes(content.replace(b"0.1.0", b"0.1.1") if name == "record.json" else content + b"\n")
    with pytest.raises(TamperedRun, match=name.replace(".", r"\.")):
        check_weights(FILMS, read_checked(FILMS))
