"""Commands on models of images and of speech: what they say, what they write, and what they refuse."""

import html
import json
import re

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from kdalign.data.media.rows import media_digest
from kdalign.errors import printable
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.flop_count import count_flops
from kdalign.models.loading import load_any
from support.media_setting import reader_of, save_image_data, save_speech_data, saved, sounds, spoken
from support.tiny import one_line

TRAINING = (
    *("--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--allow", "weak-teacher"),
    *("--allow", "shifted-rows", "--no-profile"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_image_data(tmp_path_factory.mktemp("images"), rows=32)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return save_speech_data(tmp_path_factory.mktemp("speech"), rows=8)


def of_images(images, out="runs/a", *more, teacher="vit"):
    return (
        *("distill", "--teacher", saved(teacher), "--student", "layers=2", "--task", "image-classification"),
        *("--data", images, "--max-steps", "4", "--out", out, *TRAINING, *more),
    )


def of_speech(speech, out="runs/s", *more):
    return (
        *("distill", "--teacher", saved("whisper"), "--student", "layers=encoder:4,decoder:2"),
        *("--task", "speech-recognition", "--data", speech, "--max-length", "40", "--max-steps", "2", "--out", out),
        *(*TRAINING, *more),
    )


def said(kdalign, *words):
    """What a command prints, with its lines joined."""
    status, out, err = kdalign(*words)
    assert status == 0, err
    return " ".join(out.split())


def test_costs_of_an_image_are_those_of_a_forward_and_images_have_no_lengths(kdalign):
    [found] = json.loads(kdalign("profile", saved("vit"), "--no-weights", "--json")[1])
    model = load_any(find_checkpoint(str(saved("vit"))))
    model.set_attn_implementation("eager")
    assert found["flops_per_token"] == {"1": count_flops(model, 1).total}
    shown = said(kdalign, "profile", saved("vit"), saved("convnext"), "--no-weights", "--layers", "--plot", "costs.png")
    assert "MFLOP per image" in shown
    assert "vision.0 to 3, each" in shown
    assert not re.search(r"token|length²", shown)
    assert "images of one size" in one_line(kdalign("profile", saved("vit"), "--seq-len", "64")[2])
    assert "models of one kind" in one_line(kdalign("profile", saved("vit"), saved("whisper"), "--no-weights")[2])


def test_costs_of_speech_are_by_the_token_after_a_sound(kdalign):
    assert "MFLOP per token, 16 tokens after a sound" in said(
        kdalign, "profile", saved("whisper"), "--seq-len", "16", "--no-weights"
    )
    status, _, err = kdalign("profile", saved("whisper"), "--no-weights")
    assert (status, "more than the 40 positions" in one_line(err)) == (2, True)


@pytest.mark.parametrize("kind", ["vit", "convnext", "whisper"])
def test_layers_are_mapped_by_their_similarity_on_what_the_models_read(kdalign, kind, images, speech):
    student, task, data = {
        "vit": ("layers=2", "image-classification", images),
        "convnext": (saved("convnext"), "image-classification", images),
        "whisper": ("layers=encoder:2,decoder:2", "speech-recognition", speech),
    }[kind]
    pair = ("map-layers", "--teacher", saved("vit" if kind == "convnext" else kind), "--student", student)
    init = () if kind == "convnext" else ("--init", "first")
    found = kdalign(*pair, *init, "--map", "cka", "--task", task, "--data", data, "--json")
    similarities = json.loads(found[1])["similarities"]
    assert sorted(similarities) == (["decoder", "encoder"] if kind == "whisper" else ["vision"])
    if init:  # the first two layers of the encoder are the teacher's, and read the same
        first = similarities["encoder" if kind == "whisper" else "vision"]
        assert [first[layer][layer] for layer in (0, 1)] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.usefixtures("measured")
def test_a_dry_run_says_how_images_are_read_and_counts_the_memory_of_a_step(kdalign, images):
    status, out, err = kdalign(*of_images(images), "--max-length", "64", "--dry-run", "--json")
    assert status == 0, err
    [plan] = json.loads(out)
    found = {finding["what"]: finding["said"] for finding in plan["checks"]}
    assert found["images"].startswith("student 32 x 32 pixels, teacher 32 x 32 pixels")
    assert "4 x 4 and 1 class token" in found["images"]
    assert "data.max_length is for texts" in found["no effect"]
    assert "by a formula" not in found["memory"]
    assert not {"lengths", "tokenizers"} & set(found)


def test_a_run_over_images_is_resumed_compared_and_inspected(kdalign, stopped, images, tmp_path):
    assert stopped(*of_images(images, "runs/b", "--set", "train.checkpoint_every=2"))[0] != 0
    assert kdalign(*of_images(images, "runs/b", "--set", "train.checkpoint_every=2"), "--resume")[0] == 0
    assert kdalign(*of_images(images, "runs/a", "--set", "train.checkpoint_every=2"))[0] == 0
    weights = [(tmp_path / f"runs/{run}/student/model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    shown = said(kdalign, "compare", "runs/a", "runs/b")
    assert "positions: of images on the grid" in shown
    assert "tokens: trained on" not in shown
    shown = said(kdalign, "inspect", "runs/a", "--plots", "pictures")
    assert re.search(r"image: \S+\.png", shown)
    assert "positions of training images" in shown
    assert (tmp_path / "pictures" / "attention.png").is_file()
    assert "--text is for models of text" in one_line(kdalign("inspect", "runs/a", "--text", "a film")[2])


@pytest.mark.parametrize("channels", [3, 1])
def test_the_card_of_a_student_of_images_runs_as_it_stands(kdalign, images, channels, tmp_path, monkeypatch, capsys):
    student = f"new:vit,layers=1,width=16,heads=2,feed_forward=16,image=32,patch=8,channels={channels}"
    assert kdalign(*of_images(images, "runs/a", "--student", student, "--delta", "0"))[0] == 0
    assert run_card(tmp_path / "runs/a/student", "image-classification", monkeypatch, capsys) in ("across", "down")


def run_card(student, pipeline, monkeypatch, capsys):
    """What the code of a card prints."""
    card = ModelCard.load(student / "README.md")
    assert card.data.pipeline_tag == pipeline
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    monkeypatch.chdir(student)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out.strip()


def test_a_student_of_speech_is_scored_with_its_speed_and_its_card_runs(kdalign, speech, tmp_path, monkeypatch, capsys):
    assert kdalign(*of_speech(speech))[0] == 0
    asked = ("eval", saved("whisper"), "runs/s", "--task", "speech-recognition", "--data", speech, "--new-tokens", "4")
    shown = said(kdalign, *asked, "--max-length", "40", "--out", "scores.json")
    assert "RTF: real-time factor, seconds of work for each second of sound" in shown
    assert "transcribes on cpu by" in shown
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    results = [result for result in results if result["kind"] == "model"]
    assert all(result["real_time_factor"] > 0 for result in results)
    assert [result["trained_tokens"] for result in results] == [None, None]
    table = json.loads(kdalign("compare", "runs/s", "scores.json", "--json")[1])
    factors = {row["name"]: row["cells"]["real-time-factor"]["value"] for row in table["rows"] if row["cells"].get(
        "real-time-factor")}  # fmt: skip
    assert sorted(factors.values()) == sorted(result["real_time_factor"] for result in results)
    assert {"s"} <= set(factors)
    assert kdalign("compare", "runs/s", "scores.json", "--out", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('<svg class="waveform"') == page.count('data-name="transcript"') == 4
    for name in "student", "teacher":
        said_by = [result for result in results if (result["run"] != "") == (name == "student")]
        for text in pd.read_parquet(said_by[0]["texts"])["prediction"]:
            assert f'<td data-name="{name}">{html.escape(printable(text))}</td>' in page
    assert "training sounds and tokens of their transcripts" in said(kdalign, "inspect", "runs/s")
    run_card(tmp_path / "runs/s/student", "automatic-speech-recognition", monkeypatch, capsys)


def test_transcripts_of_a_teacher_replace_those_of_train_and_can_be_trained_on(kdalign, speech, tmp_path):
    command = ("generate", "--teacher", saved("whisper"), "--task", "speech-recognition", "--data", speech)
    limits = ("--new-tokens", "4", "--keep", "any-end")
    shown = said(kdalign, *command, "--out", "new", *limits, "--dry-run")
    assert "files train.parquet, validation.parquet" in shown
    assert not (tmp_path / "new").exists()
    assert kdalign(*command, "--out", "new", *limits)[0] == 0
    train, validation = (pd.read_parquet(tmp_path / "new" / f"{split}.parquet") for split in ("train", "validation"))
    assert [media_digest(cell) for cell in train["audio"]] == [media_digest(spoken(row)[0]) for row in train.index]
    assert not set(train["text"]) & {spoken(number)[1] for number in range(8)}
    assert sorted(validation["text"]) == sorted(spoken(number)[1] for number in range(1000, 1004))
    said(kdalign, *of_speech(tmp_path / "new"), "--dry-run")
    status, _, err = kdalign(*command, "--out", "few", *limits, "--keep", "wer<=10")
    assert (status, "none of 8 answers is left (8 not wer<=10)" in err) == (1, True), err


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (("--samples", "2"), "transcribed greedily or by --beams"),
        (("--max-length", "8"), "sounds have none"),
        (("--keep", "source_ratio>=1"), "source_ratio counts the words of sources"),
        (("--teacher", "openai:x"), "reads text alone, and task 'speech-recognition' has sounds"),
        (("--teacher", saved("vit")), "which reads images, and task 'speech-recognition' has sounds"),
    ],
)
def test_what_does_not_transcribe_is_refused_before_anything_is_written(kdalign, speech, tmp_path, option, line):
    command = ("generate", "--teacher", saved("whisper"), "--task", "speech-recognition", "--data", speech)
    status, _, err = kdalign(*command, "--out", "new", *option)
    assert (status, line in one_line(err)) == (2, True), err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("task", "taught_by", "option", "line"),
    [
        ("image", "TEXT", (), "a bert model, which reads text, and task 'images0' has images"),
        ("image", "whisper", (), "a whisper model, which reads sounds, and task 'images0' has images"),
        ("image", "vit", ("--student", "TEXT"), "a bert model, which reads text"),
        ("image", "vit", ("--student", "new:bert,layers=2"), "a bert model, which reads text"),
        ("image", "vit", ("--student", saved("whisper")), "a whisper model, which reads sounds"),
        ("image", "vit", ("--tokenizer", "train:1000"), "--tokenizer is for models of text"),
        (
            "image",
            "vit",
            ("--student", "new:vit,layers=1", "--tokenizer", "train:1000"),
            "--tokenizer is for models of",
        ),
        ("image", "vit", ("--student", "layers=2,width=16"), "model type 'vit' cannot be narrowed"),
        ("image", "vit", ("--set", "data.augment.by=spans"), "accepted: crop"),
        ("image", "convnext", (), "none can be left out"),
        ("image", "swin", ("--student", "layers=half"), "none can be left out"),
        ("image", "openai:x", ("--student", saved("vit")), "reads text alone, and task 'images0' has images"),
        ("speech", "openai:x", ("--student", saved("whisper")), "reads text alone, and task 'speech-recognition' has"),
        ("speech", "TEXT", (), "which reads text and hears no sounds (accepted: a speech model's checkpoint"),
        ("speech", "vit", (), "a vit model, which reads images, and task 'speech-recognition' has sounds"),
        ("speech", "whisper", ("--student", "layers=1,width=8"), "model type 'whisper' cannot be narrowed"),
        ("speech", "whisper", ("--tokenizer", "train:1000"), "--tokenizer is for models of text"),
        ("speech", "whisper", ("--unlabelled", "DATA"), "--unlabelled is for tasks of classes"),
        ("speech", "whisper", ("--set", "data.augment.by=crop"), "data.augment is for tasks of classes or scores"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_a_dry_run(
    kdalign, task, taught_by, option, line, images, speech, teacher
):
    places = {"TEXT": teacher, "DATA": speech}
    model = places.get(taught_by) or (taught_by if taught_by.startswith("openai:") else saved(taught_by))
    data = {"image": images, "speech": speech}[task]
    command = (
        *("distill", "--teacher", model, "--student", "layers=2", "--data", data, "--max-length", "40"),
        *("--task", {"image": "image-classification", "speech": "speech-recognition"}[task], "--dry-run"),
    )
    status, _, err = kdalign(*command, *(places.get(word) or word for word in option))
    assert (status, line in one_line(err)) == (2, True), err


@pytest.mark.parametrize(
    ("kind", "option", "line"),
    [
        ("vit", ("--noise", "typos=0.1"), "--noise changes letters, and task 'images0' has images"),
        ("whisper", ("--noise", "typos=0.1"), "--noise changes letters, and task 'speech-recognition' has sounds"),
        ("vit", ("--shots", "2"), "--shots"),
        ("TEXT", (), "which reads text, and task 'images0' has images"),
        ("openai:x", (), "reads text alone, and task 'images0' has images"),
    ],
)
def test_what_cannot_be_scored_is_refused(kdalign, kind, option, line, images, speech, teacher):
    model = {"TEXT": teacher, "openai:x": kind}.get(kind) or saved(kind)
    task, data = ("speech-recognition", speech) if kind == "whisper" else ("image-classification", images)
    status, _, err = kdalign("eval", model, "--task", task, "--data", data, *option)
    assert (status, line in one_line(err)) == (2, True), err


@pytest.mark.parametrize("kind", ["vit", "whisper"])
def test_adapters_of_low_rank_are_trained_and_merged(kdalign, kind, images, speech, tmp_path):
    command = of_images(images) if kind == "vit" else of_speech(speech, "runs/a")
    assert kdalign(*command, "--lora", "2")[0] == 0
    names = load_file(tmp_path / "runs/a/student/model.safetensors").keys()
    assert not [name for name in names if "lora" in name]


@pytest.mark.parametrize("kind", ["vit", "whisper"])
def test_a_kept_teacher_teaches_as_one_that_computes(kdalign, kind, images, speech, tmp_path):
    weights = () if kind == "vit" else ("--delta", "0")
    formats = ("logs=fp32", "states=fp32", *(["top_k=263"] if kind == "whisper" else []))  # of a vocabulary of 264
    settings = [word for each in formats for word in ("--set", f"cache.{each}")]
    command = of_images(images, "runs/a", *weights) if kind == "vit" else of_speech(speech, "runs/a", *weights)
    found = kdalign(*command)
    assert found[0] == 0, found[2]
    kept = of_images(images, "runs/b", *weights) if kind == "vit" else of_speech(speech, "runs/b", *weights)
    found = kdalign(*kept, "--cache", "kept", *settings)
    assert found[0] == 0, found[2]
    ours, theirs = (load_file(tmp_path / f"runs/{run}/student/model.safetensors") for run in "ab")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    if kind == "whisper":
        status, _, err = kdalign(*of_speech(speech, "runs/c"), "--delta", "1", "--cache", "kept")
        assert (status, "attends beyond them" in one_line(err)) == (2, True), err


def test_arms_over_images_are_compared_with_verdicts(kdalign, images, tmp_path):
    command = [str(word) for word in of_images(images)]
    command = ["ablate", *command[1 : command.index("--max-steps")], "--arms", "labels,soft", "--seeds", "2"]
    settings = ("train.max_steps=2", "train.batch_size=8", "train.precision=fp32", "train.device=cpu")
    status, out, err = kdalign(
        *command, *(word for each in settings for word in ("--set", each)), "--allow", "weak-teacher", "--out", "ab"
    )
    assert status == 0, err
    assert "soft" in out
    status, _, err = kdalign(
        *(word if word != "2" else "1" for word in command), *(word for each in settings for word in ("--set", each)),
        *("--allow", "weak-teacher", "--search", "train.lr=1e-4,1e-3", "--search-only", "--out", "searched"),
    )  # fmt: skip
    assert status == 0, err
    trials = json.loads((tmp_path / "searched/search/tried.json").read_text())
    assert len(trials) == 4
    assert all(trial["score"] is not None for trial in trials), trials


def test_a_plan_of_a_run_counts_images_and_the_tokens_of_transcripts(kdalign, images, speech, tmp_path):
    recipes = {
        "vit": f"teacher: {saved('vit')}\nstudent: layers=2\ndata: {{task: image-classification, folder: {images}}}\n",
        "whisper": f"teacher: {saved('whisper')}\nstudent: layers=2\n"
        f"data: {{task: speech-recognition, folder: {speech}, max_length: 40}}\n",
    }
    found = {}
    for kind, recipe in recipes.items():
        (tmp_path / f"{kind}.yaml").write_text(recipe + "train: {batch_size: 8, precision: fp32}\n")
        found[kind] = said(kdalign, "profile", "--plan", f"{kind}.yaml", "--peak-tflops", "1", "--memory-gb", "8")
    assert "GFLOP per image: teacher, student" in found["vit"]
    assert "token" not in found["vit"]
    read = sounds(reader_of(saved("whisper"))).columns["targets"]  # of the same eight sentences
    mean = sum(len(ids) for ids in read) / 8
    assert re.search(r"tokens of a transcript, mean (\S+)", found["whisper"])[1] == f"{mean:.1f}"
