"""Two processes that share a tiny student and its teacher, forked, so that nothing is imported again."""

import copy

import pytest
import torch

from kdalign.data.epochs import micro_batches
from kdalign.devices import make_accelerator
from kdalign.models.sharding import gathered_whole, has_shards, make_whole, shard
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.checkpoint import TrainState, load_checkpoint, newest_sound, save_checkpoint
from kdalign.training.diagnostics import StepViewer
from kdalign.training.optimizer import make_optimizer
from kdalign.training.step import Stepper
from support.family_setting import Setting
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
