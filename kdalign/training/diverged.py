"""Explain a loss or a gradient that is not finite: which term, weight or learning rate is to blame."""

import math
from collections.abc import Mapping

from torch import nn

from kdalign.objective.objective import Objective
from kdalign.training.learner import Learner
from kdalign.training.sharded_step import first_non_finite

_SMALL_TEMPERATURE, _LARGE_WEIGHT = 1e-3, 1e6
"""Temperature below which, and weight above which, it is named as the likely cause."""


def explain_divergence(
    module: nn.Module, objective: Objective, parts: Mapping[str, float], outcome: tuple[float, float], step: int
) -> str:
    """Say which part of a loss, or of its gradient, is not finite, and what can be done about it.

    Args:
        module: all that is trained.
        objective: what is minimised in this step.
        parts: each term before its weight.
        outcome: the loss and the norm of its gradient.
        step: its number, from 0.
    """
    loss, norm = outcome
    bf16 = any(isinstance(part, Learner) and part.bf16 for part in module.modules())
    start = f"the student has diverged: at step {step + 1} the loss is {loss:.4g} and its gradient {norm:.4g}"
    bad = first_non_finite(module)
    if bad:
        return f"{start}, since the step before made the weight {bad!r} NaN or infinite; lower --lr{or_fp32(bf16)}"
    terms = [name for name, value in parts.items() if not math.isfinite(value)]
    if terms:
        values = ", ".join(f"{name} is {parts[name]:.4g}" for name in terms)
        temperature = objective.softened_at
        cold = temperature is not None and temperature < _SMALL_TEMPERATURE
        cause = f"its temperature is {temperature:g}; " if cold else ""
        return f"{start}: of its terms {values} (before its weight); {cause}{_learning_rate(step, bf16)}"
    weights = objective.weights
    largest = max(weights, key=lambda name: abs(weights[name] * parts[name]), default="")
    if largest and abs(weights[largest]) > _LARGE_WEIGHT:
        weight, value = weights[largest], parts[largest]
        return f"{start}: the weight of {largest}, {weight:.4g}, is too large for a value of {value:.4g}"
    values = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
    return f"{start}: its terms are finite ({values}), the gradient is not; {_learning_rate(step, bf16)}"


def or_fp32(bf16: bool) -> str:
    """The alternative to a lower learning rate, if training is in bfloat16."""
    return ", or use --precision fp32" if bf16 else ""


def _learning_rate(step: int, bf16: bool) -> str:
    if step:
        return f"lower --lr{or_fp32(bf16)}"
    return f"before any step, so --lr is not the reason{'; use --precision fp32' if bf16 else ''}"
