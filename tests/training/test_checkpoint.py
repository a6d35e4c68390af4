"""Checkpoints on disk: how many are kept, and which devices they are loaded to."""

from types import SimpleNamespace

import pytest
import torch

from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.checkpoint import TrainState, load_checkpoint, newest_sound, save_checkpoint
from kdalign.training.optimizer import make_optimizer


def taken(module, optimizer):
    """One step."""
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(folder, keep, steps=4):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(module, TrainSettings())
    for step in range(1, steps + 1):
        taken(module, optimizer)
        save_checkpoint(folder, module, optimizer, TrainState(step=step), keep)
    return module, optimizer


@pytest.mark.parametrize(("keep", "steps"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_checkpoints_are_kept_and_the_newest_sound_one_is_found(tmp_path, keep, steps):
    folder = RunFolder(tmp_path)
    saved(folder, keep)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [f"step-{step}" for step in steps]
    while steps:
        assert newest_sound(folder).progress.step == steps.pop()
        if steps:
            (folder.checkpoints / f"step-{steps[-1] + 1}/model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second is that of a rank of several on a CPU
def test_a_checkpoint_goes_on_on_every_name_of_the_cpu(tmp_path, device):
    module, optimizer = saved(RunFolder(tmp_path), 2)
    other = torch.nn.Linear(3, 2)
    moments = make_optimizer(other, TrainSettings())
    rank = SimpleNamespace(device=torch.device(device), wait_for_everyone=lambda: None)
    assert load_checkpoint(RunFolder(tmp_path), other, moments, rank).step == 4
    for learner, steps in ((module, optimizer), (other, moments)):
        taken(learner, steps)
    assert torch.equal(module.weight, other.weight)


def test_progress_tells_which_ranks_took_which_steps():
    progress = TrainState()
    for step, ranks, sharding in ((0, 4, "fsdp2"), (3, 4, "fsdp2"), (5, 2, "fsdp2"), (7, 2, "none"), (7, 1, "none")):
        progress.step = step  # at 7 the first launch took no step
        progress.continue_on(ranks, sharding)
    spans = [(each["step"], each["ranks"], each["sharding"]) for each in progress.parallelism]
    assert spans == [(0, 4, "fsdp2"), (5, 2, "fsdp2"), (7, 1, "none")]
