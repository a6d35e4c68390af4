"""The optimizer of a run: parameter groups, learning rate, schedule."""

import math

import torch
from torch import nn

from kdalign.objective.balancing import LossBalancer
from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place

FACTOR_RATE = 50.0
"""Learning rate of a balancer's parameters, relative to that of the weights: a logarithm moves further."""


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


def make_optimizer(learner: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over every trainable parameter once; no weight decay for biases, norms and a balancer's parameters."""
    factors = [p for module in learner.modules() if isinstance(module, LossBalancer) for p in module.parameters()]
    own = {id(p) for p in factors}
    trained = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
        {"params": factors, "weight_decay": 0.0, "rate": FACTOR_RATE},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, fused=True)
