"""Two processes that share a tiny student and its teacher, forked, so that nothing is imported again."""

import copy
from functools import partial

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.devices import make_accelerator
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import AttentionLayout
from kdalign.models.loading import load_any, round_weights
from kdalign.models.sharding import (
    gathered_whole,
    has_shards,
    load_on_first_rank,
    local,
    make_whole,
    shapes_of,
    shard,
    shard_as,
    shard_from_first_rank,
)
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.checkpoint import TrainState, load_checkpoint, newest_sound, save_checkpoint
from kdalign.training.diagnostics import StepViewer
from kdalign.training.optimizer import make_optimizer
from kdalign.training.step import Stepper
from support.family_setting import KINDS, Setting, encoded, model
from support.ranks import on_ranks

SETTINGS = TrainSettings(clip=0.5, lr=1e-2, device="cpu", precision="fp32")


def take_steps(setting, optimizer, accelerator, numbers):
    def teach(batch):
        return setting.teacher(batch, setting.learner.wanted_of_teacher)

    viewer = StepViewer(setting.learner, teach, accelerator, 0)
    for number in numbers:
        rank, ranks = accelerator.process_index, accelerator.num_processes
        batches = micro_batches(setting.data, range(6), rank, ranks, 2, (number, 0))
        result = Stepper(viewer, optimizer, SETTINGS.clip).take(setting.objective, batches, number)
        yield result.loss, result.gradient_norm


def train_shared(kind, folder):
    """On each of two ranks: two steps, a checkpoint, and the student made whole again."""
    accelerator = make_accelerator("cpu")
    setting = Setting(kind)
    student = shard(setting.learner.student, accelerator.device)
    setting.teacher = ComputedTeacher(setting.teacher.model, None, torch.float32, accelerator.device, sharded=True)
    optimizer = make_optimizer(setting.learner, SETTINGS)
    found = list(take_steps(setting, optimizer, accelerator, range(2)))
    assert has_shards(student)
    save_checkpoint(folder, setting.learner, optimizer, TrainState(step=2), keep=2, in_parts=True)
    ids = torch.arange(5, 12)[None]
    decoded = {"decoder_input_ids": ids} if student.config.is_encoder_decoder else {}
    with gathered_whole(student), torch.no_grad():
        if accelerator.is_main_process:  # alone: the other rank has nothing to say
            logits = student(input_ids=ids, **decoded)[0]
    assert has_shards(student)
    make_whole(student, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        return found, logits.numpy(), {name: value.numpy() for name, value in student.state_dict().items()}
    return None


@pytest.mark.parametrize("kind", ["llama"])
def test_two_ranks_take_the_steps_of_one_and_one_goes_on_from_their_checkpoint(kind, tmp_path):
    folder = RunFolder(tmp_path / "run")
    found, logits, weights = on_ranks(2, train_shared, kind, folder)
    accelerator = make_accelerator("cpu")
    alone = Setting(kind)
    optimizer = make_optimizer(alone.learner, SETTINGS)
    for ours, theirs in zip(found, take_steps(alone, optimizer, accelerator, range(2)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in alone.learner.student.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(weights[name]), value, atol=2e-5, rtol=1e-4, msg=name)
    with torch.no_grad():
        expected = copy.deepcopy(alone.learner.student)(input_ids=torch.arange(5, 12)[None]).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-3, rtol=1e-3)
    names = [f"{what}-{rank:05d}-of-00002.safetensors" for what in ("model", "optimizer") for rank in range(2)]
    assert list(newest_sound(folder).files) == names
    resumed = Setting(kind)
    fresh = make_optimizer(resumed.learner, SETTINGS)
    assert load_checkpoint(folder, resumed.learner, fresh, accelerator).step == 2
    [third], [expected_third] = (
        list(take_steps(setting, own, accelerator, [2])) for setting, own in ((resumed, fresh), (alone, optimizer))
    )
    assert third == pytest.approx(expected_third, rel=1e-5)


def load_shared(folder, kinds):
    """On each of two ranks: families whose weights the first one loads, at two precisions, against whole models."""
    accelerator = make_accelerator("cpu")
    for kind in kinds:
        checkpoint = find_checkpoint(str(folder / kind))
        loaded = load_on_first_rank(partial(load_any, checkpoint))
        if not accelerator.is_main_process:
            assert all(each.is_meta for each in (*loaded.parameters(), *loaded.buffers()))
        shapes = shapes_of(loaded.eval())
        sharded = shard_from_first_rank(loaded, accelerator.device)
        own_attention = layout_of(loaded.config).attention is not AttentionLayout.INTERFACE
        dtype = torch.float32 if own_attention else torch.bfloat16  # as a teacher is rounded
        rounded = shard_as(round_weights(shapes, dtype), sharded, accelerator.device)
        expected = load_any(checkpoint).eval()
        inputs = accepted_inputs(expected, collate(encoded(kind), range(4)).inputs)
        for made in (sharded, rounded):
            rows = [local(each).numel() for each in made.parameters()]
            assert sum(rows) < 0.6 * sum(each.numel() for each in expected.parameters()), "each rank has its own"
            tied = made.get_output_embeddings().weight is made.get_input_embeddings().weight
            assert tied == (expected.get_output_embeddings().weight is expected.get_input_embeddings().weight)
            assert {str(each.device) for each in made.buffers()} <= {"cpu"}
            with torch.no_grad():
                torch.testing.assert_close(made(**inputs).logits, expected(**inputs).logits, rtol=0, atol=0, msg=kind)
            round_weights(expected, dtype)
    return True


FIRST = ["llama", "t5"]
OTHERS = [kind for kind in KINDS if kind not in FIRST]


@pytest.mark.parametrize("kinds", [FIRST, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_a_model_that_one_rank_loads_is_shared_out_and_rounded_bit_for_bit(kinds, tmp_path):
    for kind in kinds:
        model(kind).save_pretrained(tmp_path / kind)
    assert on_ranks(2, load_shared, tmp_path, kinds)
