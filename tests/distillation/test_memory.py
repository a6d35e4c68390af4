"""A run's peak of memory, predicted from configurations."""

import shutil
from pathlib import Path

import pytest
import torch

from kdalign.distillation import memory
from kdalign.distillation.memory import HEAP_BYTES, HEAP_SHARE, micro_batch_rows, predict_memory
from kdalign.distillation.prepare import prepare
from kdalign.environment import cache_folder
from kdalign.models.architecture import count_parameters, describe, meta_model
from kdalign.recipe import build_recipe
from kdalign.registry import allow_code
from kdalign.training.memory import MemoryPart, MemoryPrediction, StepMemory
from support.family_setting import model, tokenizer

pytestmark = pytest.mark.usefixtures("measured")


@pytest.fixture
def run_of(teacher, data, tmp_path):
    """Prepare a run of a student of two layers on the CPU, with these keys in addition."""

    def prepared(*sets, **flags):
        given = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
        common = {"train.device": "cpu", "train.precision": "fp32", "train.batch_size": 16}
        return prepare(build_recipe(None, {**given, **common, "out": str(tmp_path / "run"), **flags}, sets))

    return prepared


def parts(run, monkeypatch, base=0):
    """Bytes by part, with a base of this size."""
    monkeypatch.setattr(memory, "_resident", lambda: base)
    return predict_memory(run).parts


def test_weights_gradients_and_moments_are_counted_by_hand(run_of, monkeypatch):
    run = run_of("train.micro_batch=8")
    found = parts(run, monkeypatch, base=1000)
    ours, theirs = (
        count_parameters(meta_model(each)) for each in (run.student.config(run.tokenizers), run.teacher.config)
    )
    assert found[MemoryPart.BASE] == 1000 + memory.LATER_BYTES
    assert found[MemoryPart.STUDENT] == 4 * ours
    assert found[MemoryPart.TEACHER] == 4 * theirs
    assert found[MemoryPart.MOMENTS] == 8 * ours
    assert found[MemoryPart.GRADIENTS] >= 4 * ours  # of the first micro-batch, while the second one runs
    tensors = sum(size for part, size in found.items() if part not in (MemoryPart.BASE, MemoryPart.HEAP))
    assert found[MemoryPart.HEAP] == pytest.approx(HEAP_BYTES + HEAP_SHARE * tensors, abs=1)


@pytest.mark.parametrize(("kept", "size"), [("fp32", 8), ("bf16", 4)])
def test_moments_take_what_their_format_takes(run_of, monkeypatch, kept, size):
    run = run_of(f"train.optimizer_state={kept}")
    ours = describe(run.student.config(run.tokenizers)).parameters
    assert parts(run, monkeypatch)[MemoryPart.MOMENTS] == size * ours


def test_half_the_rows_of_a_micro_batch_have_half_the_activations(run_of, monkeypatch):
    runs = (run_of("train.batch_size=256", f"train.micro_batch={rows}") for rows in (128, 64))
    whole, half = (parts(run, monkeypatch) for run in runs)
    for part in (MemoryPart.ACTIVATIONS, MemoryPart.TEACHER_ACTIVATIONS):
        assert half[part] == pytest.approx(whole[part] / 2, rel=0.05)


def test_recomputed_layers_and_frozen_ones_need_less(run_of, monkeypatch):
    plain, again, frozen = (
        parts(run_of(*sets), monkeypatch)
        for sets in ([], ["train.gradient_checkpointing=true"], ["train.freeze=[embeddings]"])
    )
    assert again[MemoryPart.ACTIVATIONS] < plain[MemoryPart.ACTIVATIONS] / 2
    assert frozen[MemoryPart.MOMENTS] < plain[MemoryPart.MOMENTS]


@pytest.mark.parametrize(
    "sets",
    [
        ("objective.align_first=0.5", "objective.hard=1", "objective.alpha=0"),
        ("objective.terms={cka: 1, rkd-angle: 1}", "align.heads=mix"),
        ("objective.balance=uncertainty", "train.lora=2", "data.augment={by: cutoff}"),
    ],
    ids=["stages", "terms", "adapters"],
)
def test_other_steps_are_counted_too(run_of, sets):
    assert not predict_memory(run_of(*sets)).missing


def test_the_step_of_a_language_model_is_counted_too(run_of, tmp_path):
    """With fused layers and the losses on its vocabulary."""
    model("llama").save_pretrained(tmp_path / "llama")
    tokenizer("causal").save_pretrained(tmp_path / "llama")
    found = predict_memory(
        run_of("data.max_length=32", **{"teacher": str(tmp_path / "llama"), "data.task": "lm:sentence"})
    )
    assert not found.missing
    assert found.parts[MemoryPart.ACTIVATIONS]


def test_a_teacher_that_is_read_from_a_cache_has_no_weights_in_training(run_of, monkeypatch):
    assert MemoryPart.TEACHER not in parts(run_of(**{"cache.folder": "auto"}), monkeypatch)


@pytest.fixture
def counted(monkeypatch):
    """Steps that were counted."""
    steps, real = [], memory.trace_step
    monkeypatch.setattr(memory, "trace_step", lambda *a, **k: steps.append(1) or real(*a, **k))
    return steps


def test_another_seed_counts_alike_and_is_not_counted_again(run_of, monkeypatch, counted):
    first = parts(run_of(), monkeypatch)
    assert parts(run_of("train.seed=1", "train.lr=0.1"), monkeypatch) == first
    assert len(counted) == 1
    assert parts(run_of("train.precision=bf16"), monkeypatch) != first
    assert len(counted) == 2


def test_whatever_decides_a_step_is_counted_again(run_of, monkeypatch, counted, tmp_path):
    parts(run_of(), monkeypatch)
    changes = ["train.batch_size=8", "data.max_length=9", "objective.delta=0", "train.optimizer_state=bf16"]
    changes += ["align.map=first", "train.freeze=[embeddings]", "train.gradient_checkpointing=true"]
    for number, change in enumerate(changes):
        parts(run_of(change), monkeypatch)
        assert len(counted) == 2 + number, change
    monkeypatch.setattr(memory, "library_versions", lambda: {"torch": "0"})
    parts(run_of(), monkeypatch)
    assert len(counted) == 2 + len(changes)


def test_a_step_with_code_of_the_users_own_is_counted_each_time(run_of, monkeypatch, counted):
    own = Path(__file__).parents[2] / "examples" / "own_loss" / "gap.py"
    with allow_code():
        for _ in range(2):
            parts(run_of(f"objective.terms={{'{own}:ConfidenceGap': 0.5}}"), monkeypatch)
    assert len(counted) == 2


def test_the_prediction_changes_no_random_number(run_of):
    run = run_of()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    predict_memory(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_that_cannot_be_counted_is_estimated_and_the_line_says_so(run_of, monkeypatch):
    def fail(*_args, **_kwargs):
        raise NotImplementedError("aten::unheard")

    run = run_of("data.max_length=16")  # about as long as the texts: the formula knows no others
    counted = predict_memory(run)
    shutil.rmtree(cache_folder() / "memory")
    monkeypatch.setattr(memory, "trace_step", fail)
    rough = predict_memory(run)
    assert str(rough).startswith("about ")
    assert "(by a formula, since counting a step failed (NotImplementedError: aten::unheard))" in str(rough)
    assert not counted.missing
    assert rough.parts[MemoryPart.STUDENT] == counted.parts[MemoryPart.STUDENT]
    assert rough.parts[MemoryPart.ACTIVATIONS] == pytest.approx(counted.parts[MemoryPart.ACTIVATIONS], rel=1)


def test_the_rows_of_the_largest_micro_batch():
    def rows(length=10, n=1000, **train):
        flags = {f"train.{key}": value for key, value in train.items()}
        return micro_batch_rows(
            build_recipe(None, {"teacher": "a", "student": "b", "data.task": "sst2", **flags}), length, n
        )

    assert rows(batch_size=32) == (32, False)
    assert rows(batch_size=32, micro_batch=8) == (8, True)
    assert rows(batch_size=32, micro_batch=64) == (32, False)
    assert rows(batch_size=32, n=20) == (20, False)
    assert rows(batch_tokens=400) == (40, False)


def test_the_line_names_the_total_and_its_two_largest_parts():
    found = {MemoryPart.BASE: 600_000_000, MemoryPart.STUDENT: 100_000_000, MemoryPart.ACTIVATIONS: 1_300_000_000}
    said = "2.0 GB at most, in training: student's activations 1.3 GB, Python and libraries 0.6 GB"
    assert str(MemoryPrediction("training", found, 0)) == said
    assert str(MemoryPrediction("training", found, 0, "without samples")).startswith(
        "about 2.0 GB (without samples) at"
    )


def test_the_file_of_a_teacher_counts_as_resident_and_not_as_needed(run_of, monkeypatch):
    monkeypatch.setattr(memory, "_trace", lambda *_: StepMemory({}, 0))
    monkeypatch.setattr(memory, "HEAP_BYTES", 0)
    monkeypatch.setattr(memory, "_resident", lambda: 1000)
    run = run_of(**{"train.precision": "bf16"})
    ours, theirs = (
        count_parameters(meta_model(each)) for each in (run.student.config(run.tokenizers), run.teacher.config)
    )
    found = predict_memory(run)
    assert found.phase == "loading"
    assert found.parts[MemoryPart.MAPPED] == 2 * theirs
    assert found.total == 1000 + memory.LATER_BYTES + 4 * ours + 6 * theirs
    assert found.needed == 4 * ours + 4 * theirs


def test_two_ranks_share_the_rows_and_each_has_a_copy_of_its_gradients(run_of, monkeypatch):
    run = run_of("train.batch_size=256")
    ours = count_parameters(meta_model(run.student.config(run.tokenizers)))
    alone = parts(run, monkeypatch)
    assert MemoryPart.BUCKETS not in alone
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    both = parts(run, monkeypatch)
    assert both[MemoryPart.BUCKETS] == 4 * ours
    for part in (MemoryPart.ACTIVATIONS, MemoryPart.TEACHER_ACTIVATIONS):
        assert both[part] == pytest.approx(alone[part] / 2, rel=0.05)


def test_a_tiny_micro_batch_is_outweighed_by_the_batches_that_are_scored(run_of):
    found = predict_memory(run_of("train.micro_batch=1", "train.gradient_checkpointing=true"))
    assert found.phase == "monitoring"
    assert found.parts[MemoryPart.ACTIVATIONS] > 0
