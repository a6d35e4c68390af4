"""Runs on images and speech from the command line: what they export, how they resume, sounds encoded once."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)

from kdalign.data.media.rows import MediaItem
from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.transcription import transcribe
from kdalign.models import student
from support.commands import run_in
from support.covering import first_only
from support.media_setting import (
    CLASSES,
    DUAL_TYPES,
    IMAGE_TYPES,
    RATE,
    load,
    reader_of,
    rows_of,
    save_captions,
    save_dual_model,
    save_image_data,
    save_image_model,
    save_speech_data,
    save_whisper,
    spoken,
    striped,
)
from support.ranks import each_step, on_ranks

STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of images and of speech, and their teachers."""
    folder = tmp_path_factory.mktemp("media")
    save_image_data(folder / "images")
    save_speech_data(folder / "speech", rows=8)
    save_captions(folder / "captions")
    for kind in ("vit", "resnet"):
        save_image_model(folder / kind, IMAGE_TYPES[kind])
    save_whisper(folder / "whisper")
    for kind, spec in DUAL_TYPES.items():
        save_dual_model(folder / kind, spec)
    return folder


IMAGES = ("images", "--task", "image-classification")
SPEECH = ("speech", "--task", "speech-recognition", "--max-length", "40")
PAIRS = ("captions", "--task", "image-text", "--max-length", "40")


def words(place, teacher, out, *more, data=None):
    """A short run of a teacher in this folder, or elsewhere, on what it reads."""
    kind = Path(teacher).name
    own, *task = SPEECH if "whisper" in kind else PAIRS if kind in DUAL_TYPES else IMAGES
    return [
        "distill", "--teacher", place / teacher, *task, "--data", data or place / own,
        "--max-steps", STEPS, "--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--eval-every", "3",
        "--set", "train.checkpoint_every=3", "--allow", "weak-teacher", "--out", out, *more,
    ]  # fmt: skip


CROP = ("--set", "data.augment.by=crop", "--set", "data.augment.flip=true", "--delta", "0")


@pytest.fixture(scope="module")
def image_run(place):
    run_in(place, *words(place, "vit", "image-run", "--student", "layers=2", *CROP))
    return place / "image-run"


@pytest.fixture(scope="module")
def speech_run(place):
    run_in(place, *words(place, "whisper", "speech-run", "--student", "layers=2"))
    return place / "speech-run"


def test_an_exported_student_of_images_answers_alike_in_plain_transformers(image_run):
    model = AutoModelForImageClassification.from_pretrained(image_run / "student").eval()
    processor = AutoImageProcessor.from_pretrained(image_run / "student", backend="pil")
    assert (len(model.vit.layers), model.config.id2label) == (2, dict(enumerate(CLASSES)))
    found = pd.read_parquet(image_run / "predictions" / "validation.parquet")
    shown = sorted(range(1000, 1008), key=lambda number: number % 2)  # a folder of each class, one after the other
    assert found["label"].tolist() == [number % 2 for number in shown]
    with torch.no_grad():
        logits = model(**processor([striped(number) for number in shown], return_tensors="pt")).logits
    told = torch.tensor(found[[f"logit/{name}" for name in CLASSES]].to_numpy())
    torch.testing.assert_close(told, logits, atol=1e-5, rtol=1e-5)


def test_an_exported_student_of_speech_writes_alike_in_plain_transformers(speech_run):
    model = AutoModelForSpeechSeq2Seq.from_pretrained(speech_run / "student").eval()
    extractor = AutoFeatureExtractor.from_pretrained(speech_run / "student")
    tokenizer = AutoTokenizer.from_pretrained(speech_run / "student")
    assert (model.config.encoder_layers, model.config.decoder_layers) == (2, 2)
    reader = reader_of(speech_run / "student")
    rows = rows_of("audio", [spoken(number)[0] for number in range(3)])
    cases = [GenerationCase("", ("",), media=MediaItem(rows, number)) for number in range(3)]
    answers = transcribe(load(speech_run / "student"), reader.tokenizer, cases, GenerationSettings(media=reader.media))
    sounds = [reader.media.decode(rows.read(number), "a") for number in range(3)]
    features = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    # As many tokens as the decoder has positions for after the longest prompt.
    written = tokenizer.batch_decode(
        model.generate(features, do_sample=False, max_new_tokens=36), skip_special_tokens=True
    )
    assert [answer.text for answer in answers] == [text.strip() for text in written]
    assert any(written)


RUNS = {
    "changed images": ("vit", ("--student", "layers=2", *CROP)),
    "batch norm": ("resnet", ("--student", "new:resnet,depths=1-1,widths=8-16,image=28", *CROP)),
    "speech": ("whisper", ("--student", "layers=2")),
}


@pytest.mark.parametrize("name", first_only(RUNS, quick=2))
def test_a_run_stopped_and_resumed_ends_in_the_weights_of_one_never_stopped(place, kdalign, stopped, tmp_path, name):
    kind, more = RUNS[name]
    assert kdalign(*words(place, kind, "whole", *more))[0] == 0
    assert stopped(*words(place, kind, "halves", *more))[0] == 9
    status, _, err = kdalign("distill", "--out", "halves", "--resume")
    assert status == 0, err
    assert "resumed after step 3" in err
    for name in ("student/model.safetensors", "history.jsonl", "predictions/validation.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes(), name


def test_the_length_of_captions_has_an_effect_and_that_of_images_has_none(place, kdalign):
    for kind, idle in (("siglip", False), ("vit", True)):
        status, out, err = kdalign(
            *words(place, kind, "run", "--student", "layers=2", "--max-length", "30"), "--dry-run"
        )
        assert status == 0, err
        assert ("data.max_length is for texts" in " ".join(out.split())) == idle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layers", "more"),
    [("vit", 2, CROP), ("whisper", 2, ()), ("resnet", 3, ("--delta", "0")), *((kind, 2, ()) for kind in DUAL_TYPES)],
)
def test_two_ranks_take_the_steps_of_one_process(place, tmp_path, kind, layers, more):
    still = ("--student", f"layers={layers}", "--set", "train.dropout=0", *more)
    run_in(tmp_path, *words(place, kind, tmp_path / "one", *still))
    on_ranks(2, run_in, tmp_path, *words(place, kind, tmp_path / "two", *still))
    one, two = tmp_path / "one", tmp_path / "two"
    assert json.loads((two / "record.json").read_text())["training"]["ranks"] == 2
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-4, rel=1e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3)
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (one, two))
    # A softmax over keys is blind to their bias, whose gradient is rounding alone.
    moved = {name: ours[name] for name in ours if not name.endswith(("key.bias", "k_proj.bias"))}
    torch.testing.assert_close(moved, {name: theirs[name] for name in moved}, atol=1e-5, rtol=0)


def unwrapped(text):
    return " ".join(text.split())


def statistics_of(folder):
    """The running statistics of a saved model."""
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if "running" in name}


@pytest.fixture(scope="module")
def moved_resnet(place):
    """A ResNet whose running statistics are those of images."""
    net = load(place / "resnet").train()
    with torch.no_grad():
        for first in range(0, 32, 8):
            images = [striped(number) for number in range(first, first + 8)]
            net(**reader_of(place / "resnet").media.inputs(images))
    net.save_pretrained(place / "moved-resnet")
    reader_of(place / "resnet").save(place / "moved-resnet")
    return place / "moved-resnet"


def test_a_students_batch_norm_keeps_the_statistics_of_its_teacher_so_that_micro_batches_change_nothing(
    place, moved_resnet, kdalign, tmp_path
):
    for out, more in (("eight", ()), ("ones", ("--set", "train.micro_batch=1"))):
        more = ("--student", "layers=3", "--delta", "0", "--lr", "1e-3", *more)
        status, _, err = kdalign(*words(place, moved_resnet, out, *more))
        assert status == 0, err
        assert "kept statistics: batch norm normalises by the means and variances that the student starts with" in err
        assert "batch norm: sees" not in err
    eight, ones = tmp_path / "eight", tmp_path / "ones"
    assert each_step(ones, "loss") == pytest.approx(each_step(eight, "loss"), rel=1e-4)
    assert each_step(ones, "gradient_norm") == pytest.approx(each_step(eight, "gradient_norm"), rel=1e-3)
    theirs = statistics_of(moved_resnet)
    assert min(float(value.std()) for value in theirs.values()) > 0.001
    for run in (eight, ones):
        ours = statistics_of(run / "student")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    norm = "resnet.embedder.embedder.normalization.weight"
    trained, before = (load_file(folder / "model.safetensors")[norm] for folder in (eight / "student", moved_resnet))
    assert not torch.equal(trained, before)


def test_a_teacher_that_is_fine_tuned_first_keeps_the_statistics_that_it_starts_with(moved_resnet, place, kdalign):
    load(moved_resnet).base_model.save_pretrained(place / "headless")
    reader_of(moved_resnet).save(place / "headless")
    new = ("--student", "new:vit,layers=1,width=16,heads=2,image=32,patch=8", "--delta", "0", "--max-steps", "1")
    status, _, err = kdalign(*words(place, "headless", "run", *new, "--set", "finetune.epochs=1"))
    assert status == 0, err
    [tuned] = [file.parent for file in Path(os.environ["KDALIGN_CACHE"], "teachers").glob("*/model.safetensors")]
    theirs, ours = statistics_of(moved_resnet), statistics_of(tuned)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    name = "resnet.embedder.embedder.convolution.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (moved_resnet, tuned))
    assert not torch.equal(before, after)


def test_a_new_students_batch_norm_sees_each_micro_batch_and_the_run_says_so(place, kdalign, tmp_path):
    more = ("--student", "new:resnet,depths=1-1,widths=8-16,image=28", "--delta", "0", "--set", "train.micro_batch=4")
    said = "another train.micro_batch (4 here) or number of processes (1 here) gives other numbers"
    _, out, _ = kdalign(*words(place, "resnet", "new", *more, "--dry-run", "--json"))
    [finding] = [each for each in json.loads(out)[0]["checks"] if each["what"] == "batch norm"]
    assert finding["said"] == f"sees each micro-batch: {said}"
    status, out, err = kdalign(*words(place, "resnet", "new", *more))
    assert status == 0, err
    assert f"batch norm: sees each micro-batch: {said}" in err
    assert f"new: batch norm sees each micro-batch: {said}" in unwrapped(out)
    assert said in json.loads((tmp_path / "new" / "record.json").read_text())["data"]["checks"]["batch norm"]
    card = unwrapped((tmp_path / "new" / "student" / "README.md").read_text())
    assert "In training, batch norm sees each micro-batch: another train.micro_batch (4 here)" in card
    for name, value in statistics_of(tmp_path / "new" / "student").items():
        assert not torch.equal(value, torch.full_like(value, float("var" in name))), name


def test_a_row_alone_of_which_batch_norm_sees_one_value_is_refused_before_anything_is_written(place, kdalign, tmp_path):
    new = ("--student", "new:resnet,depths=1-1-1-1,widths=8-8-8-16,image=32", "--delta", "0")
    for more, steps in (
        (("--set", "train.micro_batch=1"), "steps of 8 rows, train.micro_batch=1"),
        (("--batch-size", "31"), "steps of 1 or 31 rows, train.micro_batch=none"),
        (("--batch-size", "30", "--set", "train.micro_batch=29"), "steps of 2 or 30 rows, train.micro_batch=29"),
    ):
        for dry in ((), ("--dry-run",)):
            status, _, err = kdalign(*words(place, "vit", "run", *new, *more, *dry))
            assert status == 2
            assert f"{steps} and processes: 1 leave a row alone" in err
    assert not any(tmp_path.iterdir())
    assert kdalign(*words(place, "vit", "run", *new, "--batch-size", "30", "--dry-run"))[0] == 0
    larger = ("--student", "new:resnet,depths=1-1-1,widths=8-8-16,image=32", "--delta", "0")
    assert kdalign(*words(place, "vit", "run", *larger, "--set", "train.micro_batch=1", "--dry-run"))[0] == 0


ONCE = ("--set", "train.freeze=encoder", "--set", "train.dropout=0", "--delta", "1")
CUT = "layers=encoder:4,decoder:2"


def test_sounds_that_are_encoded_once_give_the_losses_of_sounds_that_are_encoded_each_time(place, kdalign, tmp_path):
    small = student.copy_layers(load(place / "whisper"), {"encoder": range(4), "decoder": (1, 3)})
    small.save_pretrained(tmp_path / "small")
    reader_of(place / "whisper").save(tmp_path / "small")
    status, _, err = kdalign(*words(place, "whisper", "once", "--student", CUT, *ONCE))
    assert status == 0, err
    assert "sounds are encoded once" in err
    # A checkpoint of the same weights is encoded each time: that it shares its teacher's encoder is not known.
    status, _, err = kdalign(*words(place, "whisper", "each", "--student", "small", *ONCE))
    assert status == 0, err
    assert "encoded once" not in err
    once, each = tmp_path / "once", tmp_path / "each"
    assert each_step(once, "gradient_norm") == pytest.approx(each_step(each, "gradient_norm"), rel=1e-5)
    for parts, again in zip(each_step(once, "parts"), each_step(each, "parts"), strict=True):
        of_decoder = {name.removesuffix(" decoder"): each for name, each in again.items() if "encoder" not in name}
        assert of_decoder == pytest.approx(parts, rel=1e-5, abs=1e-7)
        assert set(parts) == {"hard", "soft", "cosine", "attention", "attention cross"}
    theirs = load_file(place / "whisper" / "model.safetensors")
    ours = load_file(once / "student" / "model.safetensors")
    encoder = [name for name in ours if name.startswith("model.encoder.")]
    assert len(encoder) > 60
    assert all(torch.equal(ours[name], theirs[name]) for name in encoder)
    assert not torch.equal(ours["model.decoder.layers.0.fc1.weight"], theirs["model.decoder.layers.1.fc1.weight"])


@pytest.mark.slow
def test_encodings_are_kept_for_the_same_encoder_and_sounds_alone(place, kdalign, tmp_path):
    def kept(teacher, data):
        """Files of kept encodings after a run; one that is written again is another."""
        more = ("--student", CUT, *ONCE, "--overwrite")
        status, _, err = kdalign(*words(place, teacher, "out", *more, data=data))
        assert status == 0, err
        files = Path(os.environ["KDALIGN_CACHE"], "encodings").rglob("*.safetensors")
        return {file: file.stat().st_ino for file in files}

    first = kept("whisper", place / "speech")
    loss = each_step(tmp_path / "out", "loss")
    assert first
    assert kept("whisper", place / "speech") == first
    assert each_step(tmp_path / "out", "loss") == loss
    save_whisper(tmp_path / "other-whisper", seed=1)
    other = kept(tmp_path / "other-whisper", place / "speech")
    assert first.items() < other.items()
    more = kept("whisper", save_speech_data(tmp_path / "longer", rows=9))
    assert other.items() < more.items()
