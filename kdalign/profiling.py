"""What a model costs: parameters, size, arithmetic, memory and time."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdalign.architecture import accepted_inputs, count_parameters, describe, embedding_parameters, skeleton
from kdalign.capture import answering
from kdalign.models import Checkpoint, check_length, weights_megabytes

WARM_UP = 5
REPEATS = 25


@dataclass(frozen=True)
class Timing:
    """Measured forwards of one shape, after warm-up.

    Attributes:
        latency_ms: median of one forward at batch 1.
        latency_p95_ms: its 95th percentile.
        throughput: examples a second at ``batch_size``.
    """

    length: int
    batch_size: int
    latency_ms: float
    latency_p95_ms: float
    throughput: float


@dataclass(frozen=True)
class Profile:
    """One model's costs.

    Attributes:
        parameters: tied ones once.
        embedding_parameters: of them, in the embeddings.
        megabytes: weights on disk, 10^6 bytes; None where only the configuration is known.
        flops_per_token: by length, floating-point operations (2 a multiply-add) of a forward divided by its tokens;
            counted by torch's FlopCounterMode over eager attention, so attention is in it.
        weights_mb: weights in memory, float32, 10^6 bytes.
        training_mb: weights, gradients and AdamW's two moments, float32, 10^6 bytes; activations come on top.
        timings: by length; empty where weights were not loaded.
    """

    name: str
    model_type: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    parameters: int
    embedding_parameters: int
    megabytes: float | None
    flops_per_token: dict[int, float]
    weights_mb: float
    training_mb: float
    timings: tuple[Timing, ...]
    device: str

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def profile(
    checkpoint: Checkpoint,
    lengths: tuple[int, ...],
    batch_size: int = 32,
    model: PreTrainedModel | None = None,
    device: str = "cpu",
) -> Profile:
    """Profile a checkpoint from its configuration, and measure its speed where the loaded model is given.

    Raises:
        UsageError: a length beyond the model's positions.
    """
    for length in lengths:
        check_length(checkpoint, length, "--seq-len")
    architecture = describe(checkpoint.config)
    stack = architecture.stacks[0]
    shape = skeleton(checkpoint.config, attention="eager")
    has_weights = Path(checkpoint.path).is_dir() or model is not None
    parameters = count_parameters(shape)
    return Profile(
        name=checkpoint.name,
        model_type=architecture.model_type,
        layers=stack.layers,
        width=stack.width,
        heads=stack.heads,
        feed_forward=stack.feed_forward,
        vocabulary=architecture.vocabulary,
        parameters=parameters,
        embedding_parameters=embedding_parameters(shape),
        megabytes=weights_megabytes(checkpoint) if has_weights else None,
        flops_per_token={length: count_flops(shape, length) / length for length in lengths},
        weights_mb=4 * parameters / 1e6,
        training_mb=16 * parameters / 1e6,
        timings=tuple(measure(model, length, batch_size) for length in lengths) if model is not None else (),
        device=device,
    )


def count_flops(model: PreTrainedModel, length: int) -> int:
    """Floating-point operations of one forward at batch 1, counted by torch as it runs (2 a multiply-add).

    The model may be on the meta device. Its attention must be eager: torch counts nothing for SDPA on CPU.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        inputs = _inputs(model, 1, length)
        del inputs["attention_mask"]
        model(**inputs)
    return int(counter.get_total_flops())


def measure(model: PreTrainedModel, length: int, batch_size: int, repeats: int = REPEATS) -> Timing:
    """Time forwards at batch 1 and at ``batch_size``, after warm-up; the median stands."""
    alone = _times(model, 1, length, repeats)
    together = _times(model, batch_size, length, max(3, repeats // 5))
    return Timing(
        length=length,
        batch_size=batch_size,
        latency_ms=1e3 * statistics.median(alone),
        latency_p95_ms=1e3 * statistics.quantiles(alone, n=20)[-1],
        throughput=batch_size / statistics.median(together),
    )


def latencies_ms(models: Sequence[PreTrainedModel], length: int = 128, repeats: int = REPEATS) -> list[float]:
    """Each model's median time of one forward at batch 1, in milliseconds.

    The models take turns, so that their ratio holds while the machine's speed drifts.
    """
    turns = [
        [_times(model, 1, length, 1, warm_up=0 if turn else WARM_UP)[0] for model in models] for turn in range(repeats)
    ]
    return [1e3 * statistics.median(times) for times in zip(*turns, strict=True)]


def _times(model: PreTrainedModel, batch: int, length: int, repeats: int, warm_up: int = WARM_UP) -> list[float]:
    inputs = _inputs(model, batch, length)
    times = []
    with answering(model):
        for number in range(warm_up + repeats):
            _wait(model.device)
            begun = time.perf_counter()
            model(**inputs)
            _wait(model.device)
            if number >= warm_up:
                times.append(time.perf_counter() - begun)
    return times


def _inputs(model: PreTrainedModel, batch: int, length: int) -> dict[str, Any]:
    ids = torch.full((batch, length), model.config.vocab_size // 2, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return accepted_inputs(model, inputs)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
