"""CTC models of speech, end to end: from nothing, with a CTC teacher, and with features of a Whisper."""

import json

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

import kdalign
from kdalign.distillation.inspection import load_pair
from kdalign.errors import UsageError
from kdalign.evaluation.request import EvalRequest
from kdalign.evaluation.rescoring import rescore
from kdalign.recipe import Recipe
from kdalign.runs.finished import finished_runs
from support.speech_setting import save_whisper, write_splits

STUDENT = "new:wav2vec2,layers=2,width=32,heads=2,feed_forward=64,conv=8,dropout=0"
ALONE = {"hard": 1.0, "alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0, "embeddings": 0.0, "relations": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return save_whisper(tmp_path_factory.mktemp("whisper"))


def recipe(data, out, teacher="none", objective=None, train=None, **changes):
    return Recipe(
        teacher=teacher,
        data={"task": ["speech-recognition:wav-text"], "folder": str(data)},
        objective=ALONE | (objective or {}),
        train={"max_steps": 4, "batch_size": 8, "lr": 3e-3, "profile": False, **(train or {})},
        out=str(out),
        **{"student": STUDENT, "tokenizer": "train:chars", **changes},
    )


def steps(folder):
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [line["parts"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "alone"
    train = {"max_steps": 60, "lr": 1e-2}
    [record] = kdalign.distill(recipe(data, out, train=train))
    return record, out


def test_a_new_model_learns_transcripts_by_ctc(alone):
    record, out = alone
    losses = [parts["hard"] for parts in steps(out)]
    assert min(losses) < losses[0] / 4
    scores = record.scores["validation"]["student"]
    assert [score["metric"] for score in scores] == ["wer", "cer", "wer_normalized", "cer_normalized"]
    assert record.metrics[0] == "wer"


def test_the_student_is_a_stock_checkpoint_whose_card_runs(alone, tmp_path):
    _, out = alone
    student = out / "student"
    model = AutoModelForCTC.from_pretrained(student).eval()
    tokenizer, extractor = AutoTokenizer.from_pretrained(student), AutoFeatureExtractor.from_pretrained(student)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert model.config.vocab_size == len(tokenizer)
    assert extractor.return_attention_mask
    code = (student / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace('name = "."', f"name = {str(student)!r}").replace("print", "str"), {})
    result, *_ = kdalign.evaluate([str(out)], EvalRequest(out=str(tmp_path / "scores.json"), metrics=("cer",)))
    [recorded] = [score for score in alone[0].scores["validation"]["student"] if score["metric"] == "cer"]
    [again] = [score for score in result.scores if score.metric == "cer"]
    assert again.value == pytest.approx(recorded["value"])


def test_frames_of_a_ctc_teacher_are_soft_targets_and_its_transcripts_are_compared(alone, data, tmp_path):
    _, teacher = alone
    objective = {"alpha": 1.0, "beta": 1.0, "delta": 1.0, "temperature": 2.0}
    cut = {"student": "layers=1", "tokenizer": None}
    [record] = kdalign.distill(recipe(data, tmp_path / "cut", str(teacher / "student"), objective, **cut))
    parts = steps(tmp_path / "cut")
    assert parts[0].keys() == {"hard", "soft", "cosine", "attention"}
    scores = record.scores["validation"]
    assert scores["agreement"]["signature"] == "same transcript"
    recorded = {score["metric"]: score["value"] for score in alone[0].scores["validation"]["student"]}
    assert {score["metric"]: score["value"] for score in scores["teacher"]} == recorded
    table = kdalign.compare([teacher, tmp_path / "cut"], against="alone")
    [tested] = [row for row in table.rows if row.name == "cut − alone"]
    ours = {score["metric"]: score["value"] for score in scores["student"]}
    for metric in ("cer", "wer"):  # an improvement is a fall
        [cell] = [cell for key, cell in tested.cells.items() if key.endswith(f"/{metric}")]
        assert cell.value == pytest.approx(recorded[metric] - ours[metric])
    again = rescore([str(tmp_path / "cut")])
    assert (again.scores, again.differences, again.skipped) == (9, (), ())


FEATURES = {"beta": 1.0, "gamma": 0.1}


def test_features_of_a_whisper_teach_a_ctc_student_and_are_the_same_from_a_cache(data, whisper, tmp_path):
    [record] = kdalign.distill(recipe(data, tmp_path / "computed", whisper, FEATURES))
    computed = steps(tmp_path / "computed")
    assert computed[0].keys() == {"hard", "cosine", "euclid"}
    assert computed[-1]["cosine"] < computed[0]["cosine"]
    assert record.scores["validation"]["teacher"] == []
    assert record.scores["validation"]["agreement"] is None
    with pytest.raises(UsageError, match="has a teacher of features alone"):
        load_pair(finished_runs([tmp_path / "computed"])[0], "cpu")
    cache = {"cache": {"folder": str(tmp_path / "cache"), "states": "fp32"}}
    kdalign.distill(recipe(data, tmp_path / "kept", whisper, FEATURES, **cache))
    for one, other in zip(computed, steps(tmp_path / "kept"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        ({"alpha": 1.0}, "is a seq2seq model, whose answers are not labels of frames.*give --alpha 0"),
        ({"beta": 1.0, "delta": 1.0}, "attends to other positions than a ctc student: give --delta 0"),
    ],
)
def test_more_than_features_of_a_whisper_is_refused(data, whisper, tmp_path, objective, line):
    with pytest.raises(UsageError, match=line):
        kdalign.distill(recipe(data, tmp_path / "run", whisper, objective))
    assert not (tmp_path / "run").exists()


def test_labels_of_frames_are_not_kept_in_a_cache(alone, data, tmp_path):
    _, teacher = alone
    cut = {"student": "layers=1", "tokenizer": None, "cache": {"folder": str(tmp_path / "cache")}}
    with pytest.raises(UsageError, match="labels of frames cannot be kept, features can: give --alpha 0"):
        kdalign.distill(recipe(data, tmp_path / "run", str(teacher / "student"), {"alpha": 1.0}, **cut))


def test_a_tokenizer_of_subwords_is_refused(data, tmp_path):
    with pytest.raises(UsageError, match=r"train:300: accepted for a ctc model is train:chars"):
        kdalign.distill(recipe(data, tmp_path / "run", tokenizer="train:300"))
    with pytest.raises(UsageError, match=r"needs --tokenizer: a hub id, a folder, or train:chars"):
        kdalign.distill(recipe(data, tmp_path / "run", tokenizer=None))


def test_positions_of_a_whisper_are_the_frames_of_its_student(whisper):
    """Position i of Whisper is centred on sample 320 i, frame i of wav2vec 2.0 on sample 320 i + 200: 12.5 ms apart."""
    from kdalign.models.checkpoint_files import find_checkpoint
    from kdalign.models.media_reader import load_media_reader
    from support.speech_setting import reader

    theirs, ours = load_media_reader(find_checkpoint(whisper)), reader().media
    assert (theirs.stride, theirs.rate) == (ours.stride, ours.rate) == (320, 16_000)
    samples = torch.arange(400, 16_000, 111).numpy()
    assert (ours.positions_of(samples) <= theirs.positions_of(samples)).all()
