"""Every family on two ranks in one launch, and saved and loaded on the way: slow, run by ``make test-all``."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdalign.data.epochs import micro_batches
from kdalign.devices import make_accelerator
from kdalign.objective.units import count_units
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from kdalign.training.diagnostics import StepViewer, freeze_unreached
from kdalign.training.learner import Learner
from kdalign.training.optimizer import make_optimizer
from kdalign.training.step import Stepper
from support import dual_setting, family_setting
from support.ranks import environment

WHOLE = TrainSettings(clip=1e9, lr=1e-3, device="cpu", precision="fp32")
KINDS = [*family_setting.KINDS, *(f"{kind} across" for kind in dual_setting.KINDS)]


def setting_of(kind):
    """Teacher, student and objective of a family, the same in every process."""
    name, _, across = kind.partition(" ")
    return dual_setting.Setting(name) if across else family_setting.Setting(name)


def rows_of(setting):
    return range(min(8, len(setting.data)))


def steps(kind, setting, optimizer, numbers, accelerator, wrapped=None):
    def teach(batch):
        return setting.teacher(batch, setting.learner.wanted_of_teacher)

    for number in numbers:
        share = micro_batches(
            setting.data, rows_of(setting), accelerator.process_index, accelerator.num_processes, 2, (number, 0)
        )
        viewer = StepViewer(wrapped or setting.learner, teach, accelerator, WHOLE.seed)
        yield Stepper(viewer, optimizer, WHOLE.clip).take(setting.objective, share, number).loss


def ready(setting, accelerator):
    def teach(batch):
        return setting.teacher(batch, setting.learner.wanted_of_teacher)

    freeze_unreached(setting.learner, teach, setting.objective, setting.data, accelerator.device)
    return make_optimizer(setting.learner, WHOLE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_saved_and_loaded_goes_on_as_if_nothing_had_happened(kind, tmp_path):
    accelerator = make_accelerator("cpu")
    whole, first, second = setting_of(kind), setting_of(kind), setting_of(kind)
    optimizer = ready(whole, accelerator)
    expected = [loss for loss in steps(kind, whole, optimizer, range(4), accelerator)]
    folder = RunFolder(tmp_path / "run")
    optimizer = ready(first, accelerator)
    found = [loss for loss in steps(kind, first, optimizer, range(2), accelerator)]
    save_checkpoint(folder, first.learner, optimizer, TrainState(step=2), keep=2)
    with torch.no_grad():
        for parameter in second.learner.parameters():
            parameter.add_(1)  # what is not loaded would be seen
    optimizer = ready(second, accelerator)
    assert load_checkpoint(folder, second.learner, optimizer, accelerator).step == 2
    found += [loss for loss in steps(kind, second, optimizer, range(2, 4), accelerator)]
    assert found == expected
    assert isinstance(second.learner, Learner)
    for (name, one), other in zip(whole.learner.named_parameters(), second.learner.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one, other), name


@pytest.mark.slow
def test_two_ranks_in_one_launch_have_every_familys_gradient():
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
              "--rdzv_endpoint", "localhost:0", str(Path(__file__).resolve())]  # fmt: skip
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.endswith("agree")] == [f"{kind}: agree" for kind in KINDS]


def compare_ranks() -> None:
    """On each rank: this rank's share of a step by DDP against the whole step by one process."""
    accelerator = make_accelerator("cpu")
    assert accelerator.num_processes == 2
    for kind in KINDS:
        setting = setting_of(kind)
        optimizer = ready(setting, accelerator)
        batches = micro_batches(setting.data, rows_of(setting), 0, 1, None, (0, 0))
        units = count_units(batches)
        setting.learner.zero_grad()
        loss = 0.0
        for batch in batches:
            total = setting.breakdown(batch, units).total
            total.backward()
            loss += float(total.detach())
        expected = {name: p.grad.clone() for name, p in setting.learner.named_parameters() if p.grad is not None}
        wrapped = accelerator.prepare_model(setting.learner)
        [found] = steps(kind, setting, optimizer, [0], accelerator, wrapped)
        assert abs(found - loss) < 1e-4 * max(1, abs(loss)), f"{kind}: {found} for {loss}"
        for name, parameter in setting.learner.named_parameters():
            if name in expected:
                largest = max(1.0, float(expected[name].abs().max()))
                torch.testing.assert_close(
                    parameter.grad, expected[name], atol=2e-5 * largest, rtol=1e-3, msg=f"{kind}: {name}"
                )
        if accelerator.is_main_process:
            print(f"{kind}: agree", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    compare_ranks()
