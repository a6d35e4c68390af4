"""Costs of a run's models: floating-point operations and time of one forward, measured once a machine."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from kdalign.distillation.teacher_cache import config_fingerprint
from kdalign.environment import machine
from kdalign.metrics.arrays import Array
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.profiling import flops_of, latencies_ms
from kdalign.result_cache import keep_result

LATENCY_TOKENS = 128


@dataclass(frozen=True)
class ForwardCosts:
    """Costs of a forward of each model, batch 1, float32: the teachers' first, then the student's.

    Attributes:
        tokens: tokens of the text.
        latencies: medians in milliseconds; None if they were not measured.
        flops: floating-point operations, 2 a multiply-add; None if they were not counted.
        known: true if another run measured them, on this machine.
    """

    tokens: int
    latencies: Sequence[float | None]
    flops: Sequence[int | None]
    known: bool = False


def measure_costs(models: Sequence[PreTrainedModel], *, wanted: bool = True) -> ForwardCosts:
    """Count the operations of models of these shapes and time them in turns, or read what another run measured.

    Args:
        models: models on one device; their weights do not matter.
        wanted: False to measure nothing.
    """
    tokens = min(LATENCY_TOKENS, *(max_positions(model.config) for model in models))
    if not wanted:
        return ForwardCosts(tokens, [None] * len(models), [None] * len(models))

    def measure() -> dict[str, Array]:
        flops = np.array([flops_of(model, tokens) for model in models], dtype=np.int64)
        return {"flops": flops, "latencies": np.array(latencies_ms(models, tokens))}

    shapes = [
        (config_fingerprint(model.config), count_parameters(model), str(model.dtype), model.config._attn_implementation)
        for model in models
    ]
    content = {"machine": machine(models[0].device), "node": platform.node(), "models": shapes, "tokens": tokens}
    measured, known = keep_result("costs", content, measure)
    return ForwardCosts(tokens, measured["latencies"].tolist(), measured["flops"].tolist(), known)
