"""Costs of a run's models: floating-point operations and time of one forward, measured once a machine."""

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from kdalign.distillation.teacher_cache import config_fingerprint
from kdalign.environment import busy_seconds, machine
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.flop_count import flops_of
from kdalign.models.layouts import modality_of
from kdalign.models.profiling import latencies_ms
from kdalign.result_cache import find_result

LATENCY_TOKENS = 128
MOST_OTHERS = 0.25
"""Cores that other processes may keep busy while latencies are measured that are kept."""


@dataclass(frozen=True)
class ForwardCosts:
    """Costs of a forward of each model, batch 1, float32: the teachers' first, then the student's.

    Attributes:
        tokens: tokens of the text; 1 for an image.
        latencies: medians in milliseconds; None if they were not measured.
        flops: floating-point operations, 2 a multiply-add; None if they were not counted.
        known: true if another run measured them, on this machine.
        busy: true if other processes were at work while latencies were measured; they are then not kept.
    """

    tokens: int
    latencies: Sequence[float | None]
    flops: Sequence[int | None]
    known: bool = False
    busy: bool = False


def measure_costs(models: Sequence[PreTrainedModel], *, wanted: bool = True) -> ForwardCosts:
    """Count the operations of models of these shapes and time them in turns, or read what another run measured.

    Args:
        models: models on one device; their weights do not matter.
        wanted: False to measure nothing.
    """
    tokens = min(LATENCY_TOKENS, *(max_positions(model.config) for model in models))
    if modality_of(models[0].config.model_type) == "image":
        tokens = 1
    if not wanted:
        return ForwardCosts(tokens, [None] * len(models), [None] * len(models))

    shapes = [
        (config_fingerprint(model.config), count_parameters(model), str(model.dtype), model.config._attn_implementation)
        for model in models
    ]
    content = {"machine": machine(models[0].device), "node": platform.node(), "models": shapes, "tokens": tokens}
    kept = find_result("costs", content)
    measured = kept.read()
    if measured is not None:
        return ForwardCosts(tokens, measured["latencies"].tolist(), measured["flops"].tolist(), known=True)
    flops = [flops_of(model, tokens) for model in models]
    with _others() as others:
        latencies = latencies_ms(models, tokens)
    busy = others[0] > MOST_OTHERS
    if not busy:
        kept.write({"flops": np.array(flops, dtype=np.int64), "latencies": np.array(latencies)})
    return ForwardCosts(tokens, latencies, flops, busy=busy)


@contextmanager
def _others() -> Iterator[list[float]]:
    """Measure how many cores other processes keep busy inside; the list holds the number afterwards."""
    found = [0.0]
    begun, own, every = time.perf_counter(), time.process_time(), busy_seconds()
    yield found
    others = busy_seconds() - every - (time.process_time() - own)
    found[0] = others / max(time.perf_counter() - begun, 1e-9)
