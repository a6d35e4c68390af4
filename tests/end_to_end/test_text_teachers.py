"""Teachers of text that read transcripts, and students that hear them, end to end."""

import json

import pandas as pd
import pytest
from transformers import AutoModelForCTC

from kdalign.data.transcript_reader import TranscriptReader
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from support.dual_setting import byte_fallback
from support.media_setting import save_image_data, save_whisper
from support.ranks import each_step
from support.speech_setting import write_splits
from support.tiny import one_line, save_model
from support.transcript_setting import SIZES

NEW = ("--student", "new:wav2vec2,layers=2,width=32,heads=2,feed_forward=64,conv=8,dropout=0", "--tokenizer")
CTC = (*NEW, "train:chars")
WEIGHTS = ("--alpha", "0", "--beta", "1", "--gamma", "0.5", "--delta", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Sounds, a teacher that is an encoder, one that is a causal model, and a Whisper."""
    folder = tmp_path_factory.mktemp("across")
    write_splits(folder / "speech")
    held = pd.read_parquet(folder / "speech" / "validation.parquet")
    held.assign(text="tone").to_parquet(folder / "speech" / "validation.parquet")
    save_model(folder / "bert", "bert", width=24)
    tokenizer = byte_fallback()
    config = scratch_config(parse_scratch_spec(f"new:llama,{SIZES}"), tokenizer)
    build_from_scratch(config, 0).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    save_whisper(folder / "whisper")
    return folder


def words(place, teacher, out, *more, weights=WEIGHTS):
    task = ("--task", "speech-recognition:wav-text", "--data", place / "speech")
    short = ("--max-steps", "6", "--batch-size", "8", "--lr", "3e-3", "--max-length", "32", "--eval-every", "3")
    still = ("--device", "cpu", "--set", "train.profile=false", "--set", "train.dropout=0")
    return ["distill", "--teacher", place / teacher, *task, *weights, *short, *still, "--out", out, *more]


@pytest.fixture
def read(monkeypatch):
    """Texts that a teacher of text was given to read."""
    texts, add_to = [], TranscriptReader.add_to

    def spied(self, split, given):
        texts.extend(given)
        return add_to(self, split, given)

    monkeypatch.setattr(TranscriptReader, "add_to", spied)
    return texts


def test_a_ctc_student_learns_from_what_a_teacher_reads_of_the_transcripts_of_train_alone(
    place, kdalign, tmp_path, read
):
    status, out, err = kdalign(*words(place, "bert", "run", *CTC))
    assert status == 0, err
    assert "features are averaged over time and compared across modalities" in err.split("before training")[0]
    assert "map: uniform; features are averaged over time and compared across modalities" in err
    parts = each_step(tmp_path / "run", "parts")
    assert parts[0].keys() == {"hard", "cosine", "euclid"}
    assert parts[-1]["cosine"] < parts[0]["cosine"]
    assert set(read) == {"one", "two", "zero", "nine"}, "those of validation are 'tone'"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["pooled"] is True
    assert plan["maps"][0]["pairs"] == [[0, 1], [1, 3]]
    scores = json.loads((tmp_path / "run" / "record.json").read_text())["scores"]["validation"]
    assert scores["teacher"] == []
    assert scores["agreement"] is None
    assert [score["metric"] for score in scores["student"]] == ["wer", "cer", "wer_normalized", "cer_normalized"]
    assert "it teaches features alone, so that its answers are not scored" in " ".join(out.split())
    for column in ("retained", "agreement", "speed-up"):
        assert f" {column} " not in out
    AutoModelForCTC.from_pretrained(tmp_path / "run" / "student")
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "up to 128 tokens after a sound (of the teacher, up to 128 tokens), float32" in card
    assert "features are averaged over time and compared across modalities; student:teacher" in card


def test_a_whisper_learns_from_a_causal_model_and_writes_alike_whoever_taught_it(place, kdalign, tmp_path, read):
    status, _, err = kdalign(*words(place, "llama", "run", "--student", place / "whisper"))
    assert status == 0, err
    assert "predictions are compared" not in err
    parts = each_step(tmp_path / "run", "parts")
    assert parts[0].keys() == {"hard", "cosine", "euclid"}
    assert parts[-1]["euclid"] < parts[0]["euclid"]
    assert "tone" not in read
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["maps"][0]["student_stack"], plan["maps"][0]["teacher_stack"]) == ("encoder", "decoder")
    assert "llama" in plan["teacher"]["model_type"]


def test_a_plan_of_averages_is_read_back_and_is_for_no_other_models(place, kdalign, tmp_path):
    status, out, err = kdalign("map-layers", "--teacher", place / "bert", "--student", CTC[1], "--out", "plan.json")
    assert status == 0, err
    assert "averaged over time" in " ".join(out.split())
    status, _, err = kdalign(*words(place, "bert", "run", *CTC, "--plan", "plan.json", "--dry-run"))
    assert status == 0, err
    tree = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(tree | {"pooled": False}))
    status, _, err = kdalign(*words(place, "bert", "run", *CTC, "--plan", "plan.json", "--dry-run"))
    assert status == 2
    assert "the plan's features are compared position by position, and those of these models averaged" in one_line(err)


REFUSED = {
    "answers, maps and relations": (
        "bert",
        (*CTC, "--alpha", "1", "--delta", "1", "--set", "objective.relations=1", "--set", "objective.embeddings=1"),
        "averages of features alone are compared: give --alpha 0, --delta 0, --set objective.embeddings=0, --set "
        "objective.relations=0",
    ),
    "answers of a Whisper": ("llama", ("--student", "whisper", "--alpha", "1"), "are compared: give --alpha 0"),
    "terms on positions": (
        "bert",
        (*CTC, "--set", "objective.terms={cka: {weight: 1}, nmse: {weight: 1}}"),
        "are compared: give no term 'cka'",
    ),
    "cut out of the teacher": ("bert", ("--student", "layers=2"), "is cut out of teacher"),
    "a student of text": ("bert", ("--student", "bert"), "is a bert model, which reads text, and task"),
    "cache": ("bert", (*CTC, "--cache", "kept"), "--cache keeps features at the student's positions"),
    "measured map": ("bert", (*CTC, "--map", "cka"), "map 'cka' compares layers at their positions"),
    "learned map": ("bert", (*CTC, "--map", "learned"), "map 'learned' compares layers at their positions"),
    "fitted start": ("bert", (*CTC, "--set", "align.start=pca"), "align.start=pca fits a projection to features at"),
    "frozen encoder": (
        "bert",
        ("--student", "whisper", "--set", "train.freeze=encoder"),
        "train.freeze=encoder leaves what hears as it is",
    ),
    "two teachers": ("bert", (*CTC, "--teacher", "llama"), "reads transcripts, which it does alone"),
    "frames of a tokenizer of subwords": ("bert", (*NEW, "train:300"), "accepted for a ctc model is train:chars"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_across_modalities_is_refused_in_one_line_before_anything_is_written(
    place, kdalign, tmp_path, name
):
    teacher, more, line = REFUSED[name]
    more = [str(place / word) if word in ("whisper", "bert", "llama") else word for word in more]
    given = words(place, teacher, "run", *more)
    for dry in ((), ("--dry-run",)):
        status, _, err = kdalign(*given, *dry)
        assert status == 2, err
        assert line in one_line(err)
    assert not (tmp_path / "run").exists()


def test_labels_of_images_are_no_sentences_for_a_teacher_of_text(place, kdalign, tmp_path):
    save_image_data(tmp_path / "images", rows=4)
    status, _, err = kdalign(
        "distill", "--teacher", place / "bert", "--student", "new:vit,layers=1,width=32,heads=4,image=32,patch=8",
        "--task", "image-classification", "--data", "images", "--out", "run", "--dry-run",
    )  # fmt: skip
    assert status == 2
    assert "is a bert model, which reads text, and task 'images' has images" in one_line(err)


def test_a_run_across_modalities_has_no_positions_to_inspect(place, kdalign):
    status, _, err = kdalign(*words(place, "bert", "run", *CTC))
    assert status == 0, err
    status, _, err = kdalign("inspect", "run")
    assert status == 2
    assert "has a teacher of features alone" in one_line(err)
