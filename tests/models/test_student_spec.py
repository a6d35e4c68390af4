"""Students made out of their teacher from the command line: fewer layers, narrower ones, and what is said of them."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kdalign.errors import UsageError
from kdalign.models.architecture import describe
from kdalign.models.pruning_sizes import WidthSpec
from kdalign.models.student import build_student
from kdalign.models.student_spec import CutSpec, is_cut, parse_cut
from support.tiny import one_line, tiny_classifier


def words(teacher, data, student, *more):
    return ("distill", "--teacher", teacher, "--student", student, "--task", "sst2", "--data", data, "--max-steps", "3",
            "--batch-size", "16", "--precision", "fp32", "--device", "cpu", *more)  # fmt: skip


def test_a_cut_is_read_with_its_sizes():
    teacher = describe(tiny_classifier("bert").config)
    assert parse_cut("layers=2,width=16,feed_forward=24", teacher) == CutSpec(
        {"encoder": 2}, WidthSpec(width=16, feed_forward=24)
    )
    assert parse_cut("width=16", teacher) == CutSpec({"encoder": 4}, WidthSpec(width=16))
    assert parse_cut("layers=encoder:3,heads=2", teacher) == CutSpec({"encoder": 3}, WidthSpec(heads=2))
    assert parse_cut("some/model", teacher) is None
    assert not is_cut("new:bert,layers=2")
    assert not is_cut("./width")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers=2,widht=16", "did you mean 'width'"),
        ("layers=2,width=0", "width is a whole number from 1 to"),
        ("layers=2,width=16,width=8", "twice"),
        ("layers=9,width=16", "layers=1 to layers=4"),
        ("layers=decoder:2,width=16", "encoder"),
    ],
)
def test_a_cut_that_cannot_be_read_is_one_line(text, said):
    with pytest.raises(UsageError, match=said):
        parse_cut(text, describe(tiny_classifier("bert").config))


def test_a_student_of_all_layers_and_all_sizes_answers_as_its_teacher_bit_for_bit():
    teacher = tiny_classifier("bert").eval()
    ids = torch.arange(5, 17)[None]
    sizes = WidthSpec(width=32, heads=4, feed_forward=64)
    for narrowing in (WidthSpec(), sizes):
        student = build_student(teacher, CutSpec({"encoder": 4}, narrowing), {"encoder": range(4)}, "pca", [], 0).eval()
        assert torch.equal(student(input_ids=ids).logits, teacher(input_ids=ids).logits)


@pytest.mark.slow
def test_a_narrower_student_is_made_trained_and_exported_and_its_size_is_said(kdalign, teacher, data, tmp_path):
    status, _, err = kdalign(*words(teacher, data, "layers=2,width=16", "--out", "runs/a"))
    assert status == 0, err
    assert "M parameters, " in err
    assert "before training, on the monitored texts: accuracy" in err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    assert record["student"]["source"].endswith("narrowed by pca")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs/a/student")
    (stack,) = describe(small.config).stacks
    assert (stack.layers, stack.width, stack.heads, stack.head_width) == (2, 16, 2, 8)
    assert record["student"]["parameters"] == sum(p.numel() for p in small.parameters())
    assert (tmp_path / "runs/a/projections.safetensors").is_file()


def test_a_student_may_be_narrower_and_have_its_own_vocabulary(kdalign, teacher, data, tmp_path):
    status, _, err = kdalign(
        *words(teacher, data, "layers=2,width=16,feed_forward=32", "--tokenizer", "train:290", "--out", "runs/a")
    )
    assert status == 0, err
    config = json.loads((tmp_path / "runs/a/student/config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"]) == (16, 32)
    assert config["vocab_size"] < 290 + 1


@pytest.mark.parametrize(
    ("student", "more", "said"),
    [
        ("layers=2,width=20", (), "width = 8 x heads"),
        ("layers=2,width=64", (), "1 to 32"),
        ("layers=2", ("--set", "narrow_by=random"), "layers=half,width=192"),
        ("layers=2,width=16", ("--set", "narrow_by=pcaa"), "narrow_by"),
    ],
)
def test_a_student_that_cannot_be_narrowed_so_is_one_line_and_nothing_is_written(
    kdalign, teacher, data, tmp_path, student, more, said
):
    status, _, err = kdalign(*words(teacher, data, student, *more, "--out", "runs/a"))
    assert status == 2
    assert said in one_line(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_weights_at_random_are_said_to_be(kdalign, teacher, data, tmp_path):
    status, _, err = kdalign(
        *words(teacher, data, "layers=2,width=16", "--set", "narrow_by=random", "--map", "cka", "--out", "runs/a")
    )
    assert status == 0, err
    assert "the student is untrained" in err
    assert json.loads((tmp_path / "runs/a/record.json").read_text())["student"]["source"].endswith("at random")


def test_the_layers_of_a_narrower_student_can_be_compared(kdalign, teacher, data):
    status, out, err = kdalign("map-layers", "--teacher", teacher, "--student", "layers=2,width=16", "--map", "cka",
                               "--task", "sst2", "--data", data, "--json")  # fmt: skip
    assert status == 0, err
    plan = json.loads(out)
    assert plan["student"]["stacks"][0]["width"] == 16
    assert len(plan["projections"]) == 2
