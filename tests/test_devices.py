"""Devices that a run is refused."""

import pytest
import torch
import torch.distributed as dist

from kdalign.devices import LONGEST_WAIT, check_device, make_accelerator
from kdalign.errors import UsageError
from support.ranks import on_ranks


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_a_launcher_that_would_wrap_models_in_its_own_way_is_refused(monkeypatch, variable, name):
    monkeypatch.setenv(variable, "false")
    check_device("cpu")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"asks for {name}, which kdalign does not train with: .*train.sharding=fsdp2"):
        check_device("cpu")


def longest_wait():
    make_accelerator("cpu")
    return dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout


def test_ranks_wait_a_day_for_the_first_one():
    assert on_ranks(2, longest_wait) == LONGEST_WAIT
