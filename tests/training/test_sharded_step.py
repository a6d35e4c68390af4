"""Gradients next to a sharded student, by hand, on two processes."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from kdalign.devices import make_accelerator
from kdalign.models.sharding import local, sharded_like
from kdalign.training.sharded_step import clip_gradients
from support.ranks import on_ranks


def clip(largest):
    """On each of two ranks: a norm, and the gradients after it of a student, a projection and a balancer."""
    accelerator = make_accelerator("cpu")
    student = nn.Linear(1, 4, bias=False)
    fully_shard(student, mesh=init_device_mesh("cpu", (2,)))
    assert isinstance(student.weight, DTensor)
    student.weight.grad = sharded_like(student.weight, torch.full((2, 1), 2.0))  # averaged by FSDP; norm 4
    projection, factor = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    projection.grad, factor.grad = (
        torch.tensor([value]) for value in ((2.0, 8.0), (4.0, 0.0))[accelerator.process_index]
    )
    groups = [{"params": [student.weight, projection], "rate": 1.0}, {"params": [factor], "rate": 50.0}]
    norm = clip_gradients(torch.optim.SGD(groups, lr=1.0), largest, accelerator)
    return [float(norm), local(student.weight.grad).flatten().tolist(), float(projection.grad), float(factor.grad)]


def test_what_is_next_to_a_sharded_student_is_averaged_over_ranks_and_clipped_with_it():
    norm, student, projection, factor = on_ranks(2, clip, 1.0)
    assert norm == pytest.approx(5)  # of 4 and the mean 3 of 2 and 4
    assert student == pytest.approx([0.4, 0.4])
    assert projection == pytest.approx(0.6)
    assert factor == pytest.approx(4), "of a group that is not clipped"
