"""The optimizer of a run: parameter groups, learning rate, schedule."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from kdalign.errors import UsageError
from kdalign.objective.balancing import LossBalancer
from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place
from kdalign.training.rounded_adamw import RoundedAdamW

FACTOR_RATE = 50.0
"""Learning rate of a balancer's parameters, relative to that of the weights: a logarithm moves further."""

MOMENT_BYTES: Mapping[str, int] = {"fp32": 8, "bf16": 4, "8bit": 2}
"""Bytes of a weight's two moments, by ``train.optimizer_state``; at 8 bits, without their scales (3 % more)."""


def check_optimizer(settings: TrainSettings) -> None:
    """Refuse a format of moments whose package is not installed.

    Raises:
        UsageError: how to install it.
    """
    if settings.optimizer_state == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "train.optimizer_state=8bit needs a package: pip install 'kdalign[8bit]' (without it: fp32, bf16)"
        )


def learning_rate(settings: TrainSettings, place: Place) -> float:
    """Learning rate of a step at a place: linear warm-up, then decay to 0 at the end, or constant."""
    warmup = round(settings.warmup * place.total)
    if place.done < warmup:
        return settings.lr * min(place.done + place.step_size, warmup) / warmup
    done = (place.done - warmup) / max(1, place.total - warmup)
    match settings.scheduler:
        case "constant":
            return settings.lr
        case "linear":
            return settings.lr * (1 - done)
        case "cosine":
            return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, place: Place) -> float:
    """Set the learning rate of a step at a place, and return it; groups have theirs relative to it."""
    lr = learning_rate(settings, place)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    return lr


def _split_by_sharding(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Divide a group into sharded parameters and others: an operation on a list takes tensors of one kind."""
    kinds = [[p for p in group["params"] if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    return [{**group, "params": kind} for kind in kinds]


def make_optimizer(learner: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over every trainable parameter once; no weight decay for biases, norms and a balancer's parameters."""
    factors = [p for module in learner.modules() if isinstance(module, LossBalancer) for p in module.parameters()]
    own = {id(p) for p in factors}
    trained = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
        {"params": factors, "weight_decay": 0.0, "rate": FACTOR_RATE},
    ]
    groups = [part for group in groups for part in _split_by_sharding(group) if part["params"]]
    match settings.optimizer_state:
        case "fp32":
            return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        case "bf16":
            return RoundedAdamW(groups, settings.lr, seed=settings.seed)
        case "8bit":
            # Dettmers et al. 2022, arXiv:2110.02861; parameters of less than 4,096 weights keep float32.
            from bitsandbytes.optim import AdamW8bit

            optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=settings.lr)
            return optimizer
