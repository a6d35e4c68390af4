"""Pairs of image and text: what both towers are compared by, what is exported, and what a class's caption finds."""

import copy
import json
import re
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
from kdalign.models.architecture import Layer, layout_of
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.media_reader import load_reader
from kdalign.recipe import build_recipe
from kdalign.runs.curves import read_curves
from kdalign.runs.disagreements import find_disagreements
from kdalign.runs.finished import finished_runs
from kdalign.runs.folder import RunFolder
from support.media import encode_image
from support.media_setting import DUAL_TYPES, save_dual_model

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


def train_teacher(folder, out, student):
    """A dual encoder that has learned the colours."""
    settings = ("train.epochs=40", "train.lr=3e-3")
    (record,) = kdalign.distill(recipe(folder, out, *settings, teacher="none", student=student, tokenizer="train:300"))
    assert record.first_scores.student[0].value > 80  # of 12 pairs, equal texts count alike
    return out / "student"


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    student = "new:clip,layers=2,width=32,heads=2,image=8,patch=4,joint=16,positions=16"
    return train_teacher(folder, tmp_path_factory.mktemp("runs") / "clip", student)


@pytest.fixture(scope="module")
def siglip(folder, tmp_path_factory):
    student = "new:siglip,layers=2,width=32,heads=2,image=8,patch=4,positions=16"
    return train_teacher(folder, tmp_path_factory.mktemp("runs") / "siglip", student)


@pytest.fixture(params=["teacher", "siglip"])
def each_teacher(request):
    return request.getfixturevalue(request.param)


def similarities(place, texts, images):
    """What a model on disk says of all pairs, in Transformers alone: SigLIP as it was trained, padding unmasked."""
    model, tokenizer = AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    whole = model.config.model_type == "siglip"
    ways = {"padding": "max_length", "max_length": 16} if whole else {"padding": True}
    read = tokenizer(list(texts), return_tensors="pt", **ways)
    assert ("attention_mask" in read) != whole, "an exported tokenizer tells what its model reads"
    pictures = [Image.open(BytesIO(image)).convert("RGB") for image in images]
    pixels = AutoImageProcessor.from_pretrained(place, backend="pil")(pictures, return_tensors="pt")
    with torch.no_grad():
        return model(**read, **pixels).logits_per_image


def test_a_half_as_deep_student_learns_from_both_towers_and_loads_by_transformers_alone(
    folder, each_teacher, tmp_path, monkeypatch, capsys
):
    given = recipe(folder, tmp_path / "run", teacher=str(each_teacher), student="layers=half")
    (record,) = kdalign.distill(given)
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    terms = next(line for line in history if line["kind"] == "step")["parts"]
    assert {"contrastive", "pair-similarity", "embedding", "cosine vision", "cosine text", "attention text"} <= set(
        terms
    )
    curves = read_curves(*finished_runs([tmp_path / "run"]))
    nats = {name for name, unit in curves.units.items() if unit == "nats"}
    assert nats == {"contrastive", "pair-similarity"}, "divergences, not the spreads by which texts' similarities count"
    images, texts = pd.read_parquet(folder / "validation.parquet")[["image", "text"]].T.to_numpy()
    best = similarities(tmp_path / "run/student", texts, images).argmax(dim=1).numpy()
    scores = {score.metric: score.value for score in record.first_scores.student}
    assert scores["i2t_recall_1"] == pytest.approx(100 * np.mean(texts[best] == texts))
    card = (tmp_path / "run/student/README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    monkeypatch.chdir(tmp_path / "run/student")
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})  # what a reader would copy
    told = similarities(".", ["A text.", "Another text."], [encode_image(np.zeros((64, 64, 3), np.uint8))])
    assert capsys.readouterr().out.strip() == str(told.softmax(-1))


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


def test_a_dual_encoder_finds_the_class_of_an_image_by_a_caption_of_each(folder, each_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colours.yaml").write_text(
        "kind: image-classification\ncolumns: image\nlabels: [red, green, blue, white]\nprompt: a {label} square\n"
    )
    task = find_task("colours.yaml", str(folder))
    assert task.captions == tuple(f"a {name} square" for name in COLOURS)
    request = EvalRequest(task=("colours.yaml",), folder=str(folder))
    ((result,),) = [kdalign.evaluate([str(each_teacher)], request)]
    table = pd.read_parquet(folder / "validation.parquet")
    logits = similarities(each_teacher, task.captions, table.image)
    kept = pd.read_parquet(result.predictions)[[f"logit/{name}" for name in COLOURS]].to_numpy()
    torch.testing.assert_close(torch.tensor(kept), logits, atol=1e-4, rtol=1e-4)
    right = np.array([list(COLOURS).index(name) for name in table.label])
    assert result.scores[0].value == pytest.approx(100 * np.mean(logits.argmax(dim=1).numpy() == right))


@pytest.mark.parametrize("kind", DUAL_TYPES)
def test_what_is_captured_of_both_towers_is_what_the_stock_model_computes(kind, tmp_path):
    place = save_dual_model(tmp_path, DUAL_TYPES[kind])
    stock = AutoModel.from_pretrained(place, attn_implementation="eager").eval()
    ids = torch.tensor(AutoTokenizer.from_pretrained(place)(["stripes, across"] * 2, padding="max_length")["input_ids"])
    mask = torch.ones_like(ids) if kind == "siglip" else (ids != 0).long()
    inputs = {"input_ids": ids, "input_mask": mask, "pixel_values": torch.randn(2, 3, 28, 28)}
    given = {} if kind == "siglip" else {"attention_mask": mask}
    with torch.no_grad():
        towers = (
            stock.text_model(ids, **given, output_attentions=True, output_hidden_states=True),
            stock.vision_model(inputs["pixel_values"], output_attentions=True, output_hidden_states=True),
        )
        model = enable_capture(AutoModel.from_pretrained(place).eval())
        layers = frozenset(Layer(stack, number) for stack in ("text", "vision") for number in range(4))
        found = forward(model, inputs, CaptureSpec(layers, layers, frozenset(("text", "vision"))), None)
    for stack, tower in zip(("text", "vision"), towers, strict=True):
        torch.testing.assert_close(found.embeddings[stack], tower.hidden_states[0], atol=1e-5, rtol=1e-5)
        for number in range(4):
            layer = Layer(stack, number)
            torch.testing.assert_close(found.attention[layer], tower.attentions[number], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.hidden[layer], tower.hidden_states[number + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("student", ["clip", "siglip,positions=12", "clip,positions=12"])
def test_a_student_that_reads_other_padding_than_its_teacher_is_refused(folder, teacher, siglip, tmp_path, student):
    sizes = "layers=1,width=32,heads=2,image=8,patch=4"
    given = recipe(
        folder, tmp_path / "run", "data.max_length=12", teacher=str(siglip), student=f"new:{student},{sizes}"
    )
    with pytest.raises(
        UsageError, match=r"teacher '.*' \(siglip\) are padded to 16 tokens that it reads, and those of"
    ):
        prepare(given)
    given = recipe(folder, tmp_path / "run", teacher=str(teacher), student=f"new:siglip,positions=16,{sizes}")
    with pytest.raises(UsageError, match=r"teacher '.*' \(clip\) are not padded, and those of student .* to 16 tokens"):
        prepare(given)
    assert not (tmp_path / "run").exists()


def test_a_scale_without_rows_is_not_divided_among_ranks(folder, teacher, siglip, tmp_path):
    given = recipe(folder, tmp_path / "run", "train.sharding=fsdp2", teacher=str(teacher), student="layers=1")
    with pytest.raises(UsageError, match="logit_scale of a clip model is a single number"):
        prepare(given)
    prepare(recipe(folder, tmp_path / "run", "train.sharding=fsdp2", teacher=str(siglip), student="layers=1"))


def test_a_siglip_without_embeddings_of_one_width_is_refused(siglip):
    config = find_checkpoint(str(siglip)).config
    for tower, field, value in (("vision_config", "vision_use_head", False), ("text_config", "projection_size", 16)):
        changed = copy.deepcopy(config)
        setattr(getattr(changed, tower), field, value)
        with pytest.raises(UsageError, match=r"not supported \(accepted: with a head, and equal widths\)"):
            layout_of(changed)


def test_captions_whose_end_cannot_be_found_are_refused(folder, teacher):
    """Each would be embedded at its first token: all captions alike, and the first class for every image."""
    reader = load_reader(find_checkpoint(str(teacher)))
    reader.config.text_config.eos_token_id += 1
    with pytest.raises(UsageError, match="takes a text's embedding at its end token"):
        classify_by_captions(None, reader, None, None, None)
