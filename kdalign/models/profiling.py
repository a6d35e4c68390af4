"""Profile a model, as a whole and layer by layer: parameters, FLOPs, memory and time."""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from kdalign.data.media.readers import AudioReader
from kdalign.data.media.rows import Modality
from kdalign.devices import make_accelerator
from kdalign.environment import trim_heap
from kdalign.errors import UsageError
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import (
    Architecture,
    blocks,
    count_parameters,
    describe,
    embedding_parameters,
    layout_of,
    meta_model,
)
from kdalign.models.capture import inference_mode
from kdalign.models.checkpoint_files import Checkpoint, check_length, weights_megabytes
from kdalign.models.flop_count import Flops, count_flops, runnable
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.inputs import probe_inputs
from kdalign.models.layouts import modality_of
from kdalign.models.media_reader import load_media_reader
from kdalign.models.modes import in_mode, keep_statistics
from kdalign.models.transcription_speed import TranscriptionSpeed, measure_transcription

PROFILED_TOKENS = 128
"""Default length."""
WARM_UP = 5
REPEATS = 25
WARM_UP_SECONDS, TURN_SECONDS = 0.5, 2.0
"""Seconds after which slow models are warm, and timed often enough."""
LEAST_TURNS = 5
BYTES = {"fp32": 4, "bf16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SAMPLING_SECONDS = 0.002


@dataclass(frozen=True)
class Timing:
    """Measured times of forwards of one shape, after warm-up.

    Attributes:
        latency_ms: median of one forward at batch 1.
        latency_p95_ms: its 95th percentile.
        throughput: examples a second at ``batch_size``.
        peak_mb: memory of a forward at ``batch_size``, on top of what was in use before it, 10^6 bytes.
        activations_mb: activations that a training forward at ``batch_size`` keeps for its backward, in float32.
    """

    length: int
    batch_size: int
    latency_ms: float
    latency_p95_ms: float
    throughput: float
    peak_mb: float
    activations_mb: float


@dataclass(frozen=True)
class Part:
    """Part of a model: the embeddings, one layer, or the rest (a head, a final norm).

    Attributes:
        name: ``embeddings``, such as ``encoder.3``, or ``rest``.
        parameters: tied and shared ones with the part that has them first.
        flops_per_token: floating-point operations of a forward, by length; those of embeddings are in the rest.
    """

    name: str
    parameters: int
    flops_per_token: dict[int, float]


@dataclass(frozen=True)
class Profile:
    """One model's costs, for each length in tokens; those of an image have the length 1, and a "token" is an image.

    A model of speech reads a sound of the greatest length before its tokens.

    Attributes:
        heads: attention heads of a layer; None for stages of a pyramid, as is ``feed_forward``.
        vocabulary: number of tokens; None for a model without any.
        parameters: tied ones once.
        embedding_parameters: number of parameters in the embeddings.
        parts: embeddings, layers and the rest.
        megabytes: weights on disk, 10^6 bytes; None if only the configuration is known.
        flops_per_token: floating-point operations (2 a multiply-add) of a forward divided by its tokens, by length;
            counted by torch's FlopCounterMode over eager attention, so attention is in it.
        quadratic_share: share of them that grows with the square of the length (scores and their use), by length.
        training_flops_per_token: the same of a forward and its backward, by length.
        weights_mb: weights in memory by precision, 10^6 bytes.
        training_mb: weights, gradients and AdamW's two moments, float32, 10^6 bytes; activations come on top.
        cache_kb_per_token: keys and values that generation keeps for every token, by precision, 10^3 bytes; empty for
            a model without a decoder.
        timings: measured times, by length; empty if weights were not loaded.
        transcription: time of transcribing a sound; None for models that do not transcribe, or without weights.
        precision: precision of the timings.
    """

    name: str
    model_type: str
    modality: Modality
    layers: int
    width: int
    heads: int | None
    feed_forward: int | None
    vocabulary: int | None
    parameters: int
    embedding_parameters: int
    parts: tuple[Part, ...]
    megabytes: float | None
    flops_per_token: dict[int, float]
    quadratic_share: dict[int, float]
    training_flops_per_token: dict[int, float]
    weights_mb: dict[str, float]
    training_mb: float
    cache_kb_per_token: dict[str, float]
    timings: tuple[Timing, ...]
    device: str
    precision: str
    transcription: TranscriptionSpeed | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def profile(
    checkpoint: Checkpoint,
    lengths: tuple[int, ...] | None = None,
    batch_size: int = 32,
    model: PreTrainedModel | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> Profile:
    """Profile a checkpoint by its configuration, and measure its speed if the loaded model is given.

    Args:
        checkpoint: the model.
        lengths: lengths in tokens, 128 if None; images have none.
        batch_size: examples of a batch, for throughput and memory.
        model: the loaded model; None to measure no time.
        device: the model's device.
        precision: of the timings, ``fp32`` or ``bf16``.

    Raises:
        UsageError: a length beyond the model's positions, or of images.
    """
    modality = modality_of(checkpoint.config.model_type)
    if modality == "image" and lengths is not None:
        raise UsageError(f"--seq-len is for models of tokens, and {checkpoint.name!r} reads images of one size")
    lengths = lengths or ((1,) if modality == "image" else (PROFILED_TOKENS,))
    for length in lengths:
        check_length(checkpoint, length, "--seq-len")
    architecture = describe(checkpoint.config)
    stack, staged = architecture.stacks[0], layout_of(checkpoint.config).staged
    shape = runnable(partial(meta_model, checkpoint.config, "eager"), lengths[0])
    megabytes = weights_megabytes(checkpoint) if Path(checkpoint.path).is_dir() or model is not None else 0.0
    parameters = count_parameters(shape)
    counted = {length: count_flops(shape, length) for length in lengths}
    return Profile(
        name=checkpoint.name,
        model_type=architecture.model_type,
        modality=modality,
        layers=stack.layers,
        width=stack.width,
        heads=None if staged else stack.heads,
        feed_forward=None if staged else stack.feed_forward,
        vocabulary=architecture.vocabulary or None,
        parameters=parameters,
        embedding_parameters=embedding_parameters(shape),
        parts=_parts(shape, counted),
        megabytes=megabytes or None,
        flops_per_token={length: found.total / length for length, found in counted.items()},
        quadratic_share={
            length: _quadratic(shape, length, found.total) / found.total for length, found in counted.items()
        },
        training_flops_per_token={length: count_flops(shape, length, True).total / length for length in lengths},
        weights_mb={name: size * parameters / 1e6 for name, size in BYTES.items()},
        training_mb=16 * parameters / 1e6,
        cache_kb_per_token=_cache(architecture),
        timings=tuple(measure(model, length, batch_size, precision) for length in lengths) if model is not None else (),
        device=device,
        precision=precision,
        transcription=_transcription(checkpoint, model, lengths[0], precision),
    )


def _transcription(
    checkpoint: Checkpoint, model: PreTrainedModel | None, tokens: int, precision: str
) -> TranscriptionSpeed | None:
    """Time how a model of speech transcribes; None for others, without weights, and without a feature extractor."""
    if model is None or head_of(checkpoint.config) not in (HeadKind.SEQ2SEQ, HeadKind.CTC):
        return None
    try:
        reader = load_media_reader(checkpoint)
    except UsageError:  # its other costs are known without
        return None
    if not isinstance(reader, AudioReader):
        return None
    with _in_precision(model, precision):
        return measure_transcription(model, reader, tokens)


@contextmanager
def _in_precision(model: PreTrainedModel, precision: str) -> Iterator[None]:
    before = model.dtype
    loading.round_weights(model, DTYPES[precision])
    try:
        yield
    finally:
        loading.round_weights(model, before)


def _quadratic(model: PreTrainedModel, length: int, flops: int) -> float:
    """Return b n^2 of the FLOPs a + b n^2 + c n at a length, fitted to two shorter ones; 0 for lengths below 4."""
    if length < 4:
        return 0.0
    points = {length: flops} | {each: count_flops(model, each).total for each in (length // 2, length // 4)}
    square, _, _ = np.polyfit(list(points), list(points.values()), 2)
    return float(square) * length**2


def _cache(architecture: Architecture) -> dict[str, float]:
    decoders = [stack for stack in architecture.stacks if stack.name == "decoder"]
    kept = sum(2 * stack.layers * stack.kv_heads * stack.head_width for stack in decoders)
    return {name: size * kept / 1e3 for name, size in BYTES.items()} if kept else {}


def _parts(model: PreTrainedModel, counted: dict[int, Flops]) -> tuple[Part, ...]:
    seen: set[int] = set()

    def own(module: nn.Module) -> int:
        fresh = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        seen.update(map(id, fresh))
        return sum(parameter.numel() for parameter in fresh)

    embedded = embedding_parameters(model)
    layers = blocks(model)
    of_layers = {layer: own(block) for layer, block in layers.items()}
    rest = count_parameters(model) - embedded - sum(of_layers.values())
    none = dict.fromkeys(counted, 0.0)
    beside = {length: (found.total - sum(found.layers.values())) / length for length, found in counted.items()}
    return (
        Part("embeddings", embedded, none),
        *(
            Part(str(layer), number, {length: found.layers[layer] / length for length, found in counted.items()})
            for layer, number in of_layers.items()
        ),
        Part("rest", rest, beside),
    )


def measure(
    model: PreTrainedModel, length: int, batch_size: int, precision: str = "fp32", repeats: int = REPEATS
) -> Timing:
    """Time forwards at batch 1 and at ``batch_size``, after warm-up; medians are kept."""
    with _in_precision(model, precision):
        alone = _times(model, 1, length, repeats)
        together = _times(model, batch_size, length, max(3, repeats // 5))
        with _peak(model.device) as peak:
            _times(model, batch_size, length, 1, warm_up=0)
    return Timing(
        length=length,
        batch_size=batch_size,
        latency_ms=1e3 * statistics.median(alone),
        latency_p95_ms=1e3 * statistics.quantiles(alone, n=20)[-1],
        throughput=batch_size / statistics.median(together),
        peak_mb=peak[0] / 1e6,
        activations_mb=activation_bytes(model, batch_size, length) / 1e6,
    )


def activation_bytes(model: PreTrainedModel, batch_size: int, length: int) -> int:
    """Count the bytes that a forward in training mode keeps for its backward, each storage once, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with in_mode(model, training=True), saved_tensors_hooks(keep, lambda tensor: tensor):
        keep_statistics(model)  # one row may have no variance; two numbers a channel fewer are kept
        model(**probe_inputs(model, batch_size, length))
    return sum(kept.values())


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """Measure the most bytes in use inside, on top of those before; the list holds the number afterwards."""
    found = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    trim_heap()  # otherwise memory freed before is reused, uncounted
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while not ended.wait(_SAMPLING_SECONDS):
            found[0] = max(found[0], process.memory_info().rss - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def latencies_ms(models: Sequence[PreTrainedModel], length: int = 128, repeats: int = REPEATS) -> list[float]:
    """Measure each model's median time of one forward at batch 1, in milliseconds.

    The models take turns, so that their ratio holds while the machine's speed drifts: ``repeats`` turns after a warm-up
    of ``WARM_UP``, or fewer of slow models, once ``TURN_SECONDS`` have passed; at least ``LEAST_TURNS``.
    """
    begun = time.perf_counter()
    for number in range(WARM_UP):
        for model in models:
            _times(model, 1, length, 1, warm_up=0)
        if number and time.perf_counter() - begun > WARM_UP_SECONDS:
            break
    turns, begun = list[list[float]](), time.perf_counter()
    while len(turns) < repeats and (len(turns) < LEAST_TURNS or time.perf_counter() - begun < TURN_SECONDS):
        turns.append([_times(model, 1, length, 1, warm_up=0)[0] for model in models])
    return [1e3 * statistics.median(times) for times in zip(*turns, strict=True)]


def _times(model: PreTrainedModel, batch: int, length: int, repeats: int, warm_up: int = WARM_UP) -> list[float]:
    inputs = probe_inputs(model, batch, length)
    times = []
    with inference_mode(model):
        for number in range(warm_up + repeats):
            _wait(model.device)
            begun = time.perf_counter()
            model(**inputs)
            _wait(model.device)
            if number >= warm_up:
                times.append(time.perf_counter() - begun)
    return times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def profile_models(
    names: Sequence[str],
    lengths: tuple[int, ...] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    weights: bool = True,
    revision: str | None = None,
    precision: str = "fp32",
) -> list[Profile]:
    """Profile models one after another, measuring their speed if ``weights`` are loaded.

    Raises:
        UsageError: a missing model, a length beyond its positions, or models that read different things.
    """
    checkpoints = [
        checkpoint_files.find_checkpoint(name, revision if number == 0 else None, weights=weights)
        for number, name in enumerate(names)
    ]
    reads = {modality_of(checkpoint.config.model_type): checkpoint.name for checkpoint in checkpoints}
    if len(reads) > 1:
        named = ", ".join(f"{name!r} reads {modality}" for modality, name in reads.items())
        raise UsageError(f"costs have other units for text, audio and images: {named} (accepted: models of one kind)")
    if weights:
        for checkpoint in checkpoints:
            loading.check_weights(checkpoint, head_of(checkpoint.config))
    place = make_accelerator(device).device
    profiles = []
    for checkpoint in checkpoints:
        model = loading.load_any(checkpoint).to(place) if weights else None
        profiles.append(profile(checkpoint, lengths, batch_size, model, str(place), precision))
    return profiles
