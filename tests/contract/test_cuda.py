"""On a GPU: the same losses, gradients and runs as on the CPU, and few waits for the device in a step."""

import warnings

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.objective.units import count_units
from support.commands import command, steps_of
from support.family_setting import EVERY, Setting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
DEVICE = torch.device("cuda")


def moved(setting):
    setting.teacher.model.to(DEVICE)
    setting.learner.to(DEVICE)
    return setting


@EVERY
def test_losses_and_gradients_are_those_of_the_cpu(kind):
    setting = Setting(kind)
    batch = collate(setting.data, range(6))
    units = count_units([batch])
    before = {name: float(value) for name, value in setting.breakdown(batch, units).parts.items()}
    slopes = setting.gradient([batch], units)
    moved(setting)
    after = {name: float(value) for name, value in setting.breakdown(batch.to(DEVICE), units).parts.items()}
    assert after == pytest.approx(before, rel=1e-4)
    for name, slope in setting.gradient([batch.to(DEVICE)], units).items():
        largest = max(1e-3, float(slopes[name].abs().max()))
        torch.testing.assert_close(slope.cpu(), slopes[name], atol=1e-3 * largest, rtol=1e-3, msg=name)


@EVERY
def test_bfloat16_is_close_to_float32(kind):
    plain, rounded = (moved(Setting(kind, bf16=bf16)) for bf16 in (False, True))
    batch = collate(plain.data, range(6)).to(DEVICE)
    units = count_units([batch])
    total, near = (float(each.breakdown(batch, units).total.detach()) for each in (plain, rounded))
    assert near == pytest.approx(total, rel=0.05)


def test_a_run_takes_the_steps_of_the_cpus(teacher, data, tmp_path, kdalign):
    for device in ("cpu", "cuda"):
        status, _, err = kdalign(*command(teacher, data, tmp_path / device, "--device", device)[2:])
        assert status == 0, err
    cpu, cuda = ([step["loss"] for step in steps_of(tmp_path / name)] for name in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=1e-3)


def test_a_micro_batch_of_a_causal_model_waits_for_the_device_a_handful_of_times():
    setting = moved(Setting("llama"))
    batch = collate(setting.data, range(6)).to(DEVICE)
    units = count_units([collate(setting.data, range(6))])
    setting.gradient([batch], units)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            setting.breakdown(batch, units).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) < 10, [str(wait.message) for wait in waits]
