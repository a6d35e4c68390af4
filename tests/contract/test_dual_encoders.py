"""Pairs of image and text: what both towers are compared by, what is exported, and what a class's caption finds."""

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import kdalign
from kdalign.comparison.arm_run import ArmRun, agreement_outputs
from kdalign.comparison.compare import compare
from kdalign.data.batches import collate
from kdalign.data.tasks import find_task
from kdalign.distillation.prepare import prepare
from kdalign.distillation.tokenize import student_tokenizer, tokenize_run
from kdalign.errors import UsageError
from kdalign.evaluation.request import EvalRequest
from kdalign.evaluation.rescoring import rescore_run
from kdalign.evaluation.zero_shot import classify_by_captions
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.media_reader import load_reader
from kdalign.recipe import build_recipe
from kdalign.runs.curves import read_curves
from kdalign.runs.disagreements import find_disagreements
from kdalign.runs.finished import finished_runs
from kdalign.runs.folder import RunFolder
from support.media import encode_image

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "white": (230, 230, 230)}
SETTINGS = ("data.max_length=16", "train.batch_size=8", "train.precision=fp32", "train.profile=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of one colour with a little noise, some of them dark, and words for them."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in {"train": 32, "validation": 12}.items():
        rows = np.random.default_rng(count)
        names = [list(COLOURS)[row % 4] for row in range(count)]
        dark = [row % 3 == 0 for row in range(count)]
        shades = [np.array(COLOURS[name]) // (1 + 2 * each) for name, each in zip(names, dark, strict=True)]
        noisy = [np.clip(shade + rows.integers(-9, 9, (8, 8, 3)), 0, 255).astype(np.uint8) for shade in shades]
        texts = [f"a {'dark ' * each}{name} square" for name, each in zip(names, dark, strict=True)]
        table = {"image": [encode_image(image) for image in noisy], "text": texts, "label": names}
        pd.DataFrame(table).to_parquet(folder / f"{split}.parquet")
    return folder


def recipe(folder, out, *settings, **keys):
    data = {"task": ["image-text"], "folder": str(folder)}
    return build_recipe(None, {"data": data, "out": str(out), **keys}, [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    """A dual encoder that has learned the colours."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    student = "new:clip,layers=2,width=32,heads=2,image=8,patch=4,joint=16,positions=16"
    settings = ("train.epochs=40", "train.lr=3e-3")
    (record,) = kdalign.distill(recipe(folder, out, *settings, teacher="none", student=student, tokenizer="train:300"))
    assert record.first_scores.student[0].value > 80  # of 12 pairs, equal texts count alike
    return out / "student"


def test_a_half_as_deep_student_learns_from_both_towers_and_loads_by_transformers_alone(folder, teacher, tmp_path):
    given = recipe(folder, tmp_path / "run", teacher=str(teacher), student="layers=1")
    (record,) = kdalign.distill(given)
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    terms = next(line for line in history if line["kind"] == "step")["parts"]
    assert {"contrastive", "pair-similarity", "embedding", "cosine vision", "cosine text", "attention text"} <= set(
        terms
    )
    curves = read_curves(*finished_runs([tmp_path / "run"]))
    nats = {name for name, unit in curves.units.items() if unit == "nats"}
    assert nats == {"contrastive", "pair-similarity"}, "divergences, not the spreads by which texts' similarities count"
    place = tmp_path / "run/student"
    model = AutoModel.from_pretrained(place).eval()
    images, texts = pd.read_parquet(folder / "validation.parquet")[["image", "text"]].T.to_numpy()
    read = AutoTokenizer.from_pretrained(place)(list(texts), padding=True, return_tensors="pt")
    pictures = [Image.open(BytesIO(image)).convert("RGB") for image in images]
    pixels = AutoImageProcessor.from_pretrained(place, backend="pil")(pictures, return_tensors="pt")
    with torch.no_grad():
        found = model(read["input_ids"], pixels["pixel_values"], attention_mask=read["attention_mask"])
    best = found.logits_per_image.argmax(dim=1).numpy()
    scores = {score.metric: score.value for score in record.first_scores.student}
    assert scores["i2t_recall_1"] == pytest.approx(100 * np.mean(texts[best] == texts))


def test_agreement_is_that_of_both_directions_wherever_it_is_computed(folder, teacher, tmp_path):
    given = recipe(folder, tmp_path / "run", "train.max_steps=2", teacher=str(teacher), student="layers=1")
    (record,) = kdalign.distill(given)
    kept = pd.read_parquet(tmp_path / "run/predictions/validation.parquet")
    first = [divmod(kept[model].to_numpy().astype(int), 2**26) for model in ("prediction", "teacher")]
    by_hand = 100 * np.mean([(ours == 0) == (theirs == 0) for ours, theirs in zip(*first, strict=True)])
    told = record.first_scores.agreement
    assert told.value == pytest.approx(by_hand)
    assert 0 < by_hand < 100
    assert told.low <= told.value <= told.high
    found = rescore_run(tmp_path / "run")
    assert (found.scores, found.differences, found.skipped) == (13, (), ())
    pairs = np.ones((1, len(kept)))
    assert agreement_outputs(ArmRun.read(RunFolder(tmp_path / "run"))).under(pairs)[0] == pytest.approx(by_hand)
    assert any("agreement on image-text: the share of queries" in note for note in compare([tmp_path / "run"]).notes)
    assert find_disagreements(*finished_runs([tmp_path / "run"])) is None


def test_padding_of_a_text_moves_neither_tower(folder, teacher, tmp_path):
    run = prepare(recipe(folder, tmp_path / "run", teacher=str(teacher), student="layers=1"))
    texts = tokenize_run(run, student_tokenizer(run))
    model = AutoModel.from_pretrained(teacher).eval()
    rows = [0, 1, 2, 3]
    short, long = collate(texts.train, rows), collate(texts.train, rows, width=15)
    assert long.real.size(1) == 15
    assert long.real.sum() == short.real.sum()
    assert short.patches.shape == (4, 5)
    assert bool(short.patches.all())
    with torch.no_grad():
        one, other = (forward(model, batch.inputs, CaptureSpec(), None) for batch in (short, long))
    torch.testing.assert_close(one.text_features, other.text_features)
    torch.testing.assert_close(one.image_features, other.image_features)


def test_a_dual_encoder_finds_the_class_of_an_image_by_a_caption_of_each(folder, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colours.yaml").write_text(
        "kind: image-classification\ncolumns: image\nlabels: [red, green, blue, white]\nprompt: a {label} square\n"
    )
    task = find_task("colours.yaml", str(folder))
    assert task.captions == tuple(f"a {name} square" for name in COLOURS)
    request = EvalRequest(task=("colours.yaml",), folder=str(folder))
    ((result,),) = [kdalign.evaluate([str(teacher)], request)]
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModel.from_pretrained(teacher).eval()
    processor = AutoImageProcessor.from_pretrained(teacher, backend="pil")
    table = pd.read_parquet(folder / "validation.parquet")
    pictures = [Image.open(BytesIO(image)).convert("RGB") for image in table.image]
    captions = tokenizer(list(task.captions), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(
            captions["input_ids"],
            processor(pictures, return_tensors="pt")["pixel_values"],
            attention_mask=captions["attention_mask"],
        ).logits_per_image
    right = np.array([list(COLOURS).index(name) for name in table.label])
    assert result.scores[0].value == pytest.approx(100 * np.mean(logits.argmax(dim=1).numpy() == right))


def test_captions_whose_end_cannot_be_found_are_refused(folder, teacher):
    """Each would be embedded at its first token: all captions alike, and the first class for every image."""
    reader = load_reader(find_checkpoint(str(teacher)))
    reader.config.text_config.eos_token_id += 1
    with pytest.raises(UsageError, match="takes a text's embedding at its end token"):
        classify_by_captions(None, reader, None, None, None)
