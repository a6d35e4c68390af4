"""Forecast what a run takes, from configurations alone: memory of a rank, tokens a second, hours, communication.

Time is that of a roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): a step takes as long as the slowest of
its operations at an assumed share of the peak, its traffic of weights with the device's memory, and its communication.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.media.rows import Modality
from kdalign.devices import use_bf16
from kdalign.distillation.config_run import ConfiguredRun, prepare_from_configs
from kdalign.distillation.memory import (
    Placement,
    micro_batch_rows,
    predict_memory,
    student_shape,
    teacher_head,
    training_device,
    with_head,
)
from kdalign.distillation.preflight import SMALLER
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.run_folders import split_by_task
from kdalign.distillation.tokenize import tokenize_for_training
from kdalign.errors import UsageError
from kdalign.files import size_text
from kdalign.models.architecture import count_parameters, describe, meta_model
from kdalign.models.flop_count import count_flops, runnable
from kdalign.models.hardware import GPUS, GPUS_A_MACHINE, NETWORK, Hardware, measure_hardware
from kdalign.recipe import Recipe
from kdalign.training.memory import MemoryPart, MemoryPrediction, gathered_bytes
from kdalign.training.optimizer import MOMENT_BYTES

EFFICIENCY = 0.4
"""Share of the peak that is assumed, about what well-tuned training of large language models reaches on GPUs (Llama 3,
arXiv:2407.21783, table 4: 38 to 43 % on up to 16,384 H100)."""
LIBRARIES_ON_GPU = 10**9
"""Bytes that CUDA's context, its libraries and the buffers of communication take on a GPU: assumed, not measured."""
_SAMPLED = 256
"""Rows by which the mean length is estimated."""


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        tokens: mean tokens of a row, of speech those of its transcript; 1 for an image.
        micro_batch: rows of a rank's micro-batch.
        steps_of: micro-batches of a step, on each rank.
        batch: rows of a step, over all ranks.
        epoch: rows of an epoch; None if there are no texts.
        modality: what a row holds.
    """

    tokens: float
    micro_batch: int
    steps_of: int
    batch: float
    epoch: float | None
    modality: Modality = "text"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by the resource that takes them, and what a rank sends.

    Attributes:
        operations: floating-point operations of a rank.
        compute: seconds of these at the assumed share of the peak.
        traffic: bytes of weights, gradients and moments between a device and its memory.
        memory: seconds of these; None without a bandwidth.
        sent: bytes that a rank sends to others.
        communication: seconds of these; None without a link's bandwidth.
    """

    operations: float
    compute: float
    traffic: int
    memory: float | None
    sent: int
    communication: float | None

    @property
    def seconds(self) -> float:
        """Seconds of a step whose computation, traffic and communication overlap."""
        return max(self.compute, self.memory or 0.0, self.communication or 0.0)


@dataclass(frozen=True)
class Forecast:
    """A run in figures, computed and not run.

    Attributes:
        task: name of the task.
        teachers: names and parameters.
        student: name and parameters.
        hardware: device of each rank.
        ranks: processes that train together.
        sharding: ``train.sharding``.
        precision: of training.
        efficiency: assumed share of the peak.
        memory: the most memory of a rank at a time, by part.
        rows: rows of the run.
        teacher_flops: operations of all teachers' forwards for each token.
        student_flops: operations of the student's forward and backward for each token.
        time: seconds of a step.
        steps: steps of the run; None if neither the recipe nor the texts say how many.
        notes: what stands in for something, and what is left out.
    """

    task: str
    teachers: dict[str, int]
    student: tuple[str, int]
    hardware: Hardware
    ranks: int
    sharding: str
    precision: str
    efficiency: float
    memory: MemoryPrediction
    rows: Rows
    teacher_flops: float
    student_flops: float
    time: StepTime
    steps: float | None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True if a rank's parts are no more than its device's memory."""
        return self.memory.total <= self.hardware.memory

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step over all ranks, without padding."""
        return self.rows.batch * self.rows.tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of all ranks together."""
        return self.tokens_per_step / self.time.seconds

    @property
    def hours(self) -> float | None:
        """Hours of all steps; None if their number is unknown."""
        return None if self.steps is None else self.steps * self.time.seconds / 3600


def forecast(
    recipe: Recipe, ranks: int = 1, hardware: Hardware | None = None, efficiency: float = EFFICIENCY
) -> list[Forecast]:
    """Forecast a recipe's runs, one for each task, without weights; nothing is written.

    Args:
        recipe: all settings; models may be folders with nothing but a config.json.
        ranks: processes that train together.
        hardware: each rank's device; None to measure this machine.
        efficiency: share of the peak that is assumed.

    Raises:
        UsageError: as of ``prepare_from_configs``; or float32 on a GPU whose published peak is of bfloat16.
    """
    device = training_device(recipe)
    if hardware is None:
        bf16 = use_bf16(recipe.train.precision, device)
        hardware = measure_hardware(device, "bf16" if bf16 else "fp32", ranks)
    else:
        bf16, device = recipe.train.precision != "fp32", torch.device("cuda")
        if not bf16 and hardware == GPUS.get(hardware.name):
            raise UsageError(
                f"the published peak of {hardware.name} is of bfloat16, and train.precision is fp32: give "
                f"--peak-tflops of its float32 products"
            )
    placement = Placement(device, bf16, ranks)
    configured = [prepare_from_configs(part) for part in split_by_task(recipe)]
    return [_forecast(each, placement, hardware, efficiency) for each in configured]


def _forecast(configured: ConfiguredRun, placement: Placement, hardware: Hardware, efficiency: float) -> Forecast:
    run, ranks = configured.run, placement.ranks
    train, rows = run.recipe.train, _rows(configured, ranks)
    memory = predict_memory(run, placement)
    if hardware.accelerator:
        libraries = {MemoryPart.BASE: LIBRARIES_ON_GPU}
        phases = {phase: {**libraries, **parts} for phase, parts in memory.phases.items()}
        memory = replace(memory, parts={**libraries, **memory.parts}, phases=phases)
    length, sizes = max(1, round(rows.tokens)), _Sizes.of(run, placement)
    teacher_flops, student_flops = _teacher_flops(run, length), _student_flops(run, length)
    operations = (teacher_flops + student_flops) * -(-round(rows.batch) // ranks) * rows.tokens
    sent, traffic, link = sizes.sent(ranks, rows.steps_of), sizes.traffic(rows.steps_of), _link(hardware, ranks)
    found = Forecast(
        task=run.task.name,
        teachers={each.name: describe(each.config).parameters for each in run.teachers},
        student=(run.student.name, sizes.student),
        hardware=hardware,
        ranks=ranks,
        sharding=train.sharding if ranks > 1 else "none",
        precision="bf16" if placement.bf16 else "fp32",
        efficiency=efficiency,
        memory=memory,
        rows=rows,
        teacher_flops=teacher_flops,
        student_flops=student_flops,
        time=StepTime(
            operations=operations,
            compute=operations / (hardware.flops * efficiency),
            traffic=traffic,
            memory=None if hardware.bandwidth is None else traffic / hardware.bandwidth,
            sent=sent,
            communication=None if link is None else sent / link,
        ),
        steps=_steps(run.recipe, rows),
    )
    return replace(found, notes=tuple(_notes(configured, found)))


def _rows(configured: ConfiguredRun, ranks: int) -> Rows:
    """Measure the rows of a run on a sample of them; without texts all have the full length."""
    run, recipe = configured.run, configured.run.recipe
    modality, train, epoch = run.task.modality, recipe.train, None
    tokens = positions = 1.0 if modality == "image" else float(recipe.data.max_length)
    if configured.has_texts:
        tokenizer, examples = run.tokenizers.student, run.splits.train
        assert tokenizer is not None, "texts are real only with a tokenizer"
        numbers = np.linspace(0, len(examples) - 1, min(_SAMPLED, len(examples))).round().astype(int)
        encoded = tokenize_for_training(run, examples.take(numbers.tolist()), tokenizer, run.student_config(tokenizer))
        tokens = positions = float(encoded.lengths.mean())
        if modality == "audio":
            tokens = float(encoded.token_rows["targets"].lengths.mean())
        epoch = run.an_epoch * len(encoded) / len(numbers)
    batch = float(train.batch_size) if train.batch_tokens is None else max(1.0, train.batch_tokens / positions)
    micro_batch, _ = micro_batch_rows(recipe, max(1, round(positions)), round(batch), ranks)
    return Rows(tokens, micro_batch, -(-round(batch) // (ranks * micro_batch)), batch, epoch, modality)


def _steps(recipe: Recipe, rows: Rows) -> float | None:
    train = recipe.train
    if train.max_steps is not None:
        return float(train.max_steps)
    if train.max_tokens is not None:
        return train.max_tokens / (rows.batch * rows.tokens)
    return None if rows.epoch is None else train.epochs * rows.epoch / rows.batch


def _teacher_flops(run: PreparedRun, length: int) -> float:
    """Count the operations of all teachers' forwards for each token; 0 if none computes in a step."""
    if not _computes(run.recipe):
        return 0.0
    shapes = (runnable(partial(_teacher_shape, run, number), length) for number in range(len(run.teachers)))
    return sum(count_flops(shape, length).total / length for shape in shapes)


def _computes(recipe: Recipe) -> bool:
    """Return whether teachers compute in a step: a term needs them, and their outputs are not kept."""
    return recipe.cache.folder is None and any(stage.needs_teacher for _, stage in recipe.objective.stages)


def _teacher_shape(run: PreparedRun, number: int, device: str) -> PreTrainedModel:
    config = run.teachers[number].config
    return meta_model(with_head(run, config), "eager", device, teacher_head(run, config))


def _student_flops(run: PreparedRun, length: int) -> float:
    """Count the operations of the student's forward and backward for each token, with layers that are recomputed."""
    shape = runnable(partial(student_shape, run, "eager"), length)
    again = sum(count_flops(shape, length).layers.values()) if run.recipe.train.gradient_checkpointing else 0
    return (count_flops(shape, length, backward=True).total + again) / length


@dataclass(frozen=True)
class _Sizes:
    """Bytes of both models as a step moves them.

    Attributes:
        student: parameters.
        trained: parameters that are trained.
        moments: bytes of the optimizer's moments.
        outside: bytes of the student's weights outside its layers.
        teachers: bytes of the teachers' weights; 0 if none computes in a step.
        shards: ranks among which all of these are divided; 1 if each rank has all.
    """

    student: int
    trained: int
    moments: int
    outside: int
    teachers: int
    shards: int

    @classmethod
    def of(cls, run: PreparedRun, placement: Placement) -> "_Sizes":
        shape, recipe = student_shape(run), run.recipe
        trained = sum(parameter.numel() for parameter in shape.parameters() if parameter.requires_grad)
        teachers = sum(describe(each.config).parameters for each in run.teachers) * placement.dtype.itemsize
        return cls(
            student=count_parameters(shape),
            trained=trained,
            moments=MOMENT_BYTES[recipe.train.optimizer_state] * trained,
            outside=gathered_bytes(shape, 4).outside,
            teachers=teachers if _computes(recipe) else 0,
            shards=placement.shards(recipe) or 1,
        )

    def traffic(self, micro_batches: int) -> int:
        """Return the bytes that weights, gradients and moments move between a device and its memory in a step.

        Each pass reads the weights once, and the optimizer reads and writes weights and moments and reads gradients;
        activations are left out.
        """
        passes = self.teachers + 4 * (2 * self.student + self.trained)
        return micro_batches * passes + (2 * (4 * self.trained + self.moments) + 4 * self.trained) // self.shards

    def sent(self, ranks: int, micro_batches: int) -> int:
        """Return the bytes that each of some ranks in a ring sends in a step.

        Whole gradients are averaged once a step, which sends each twice. Sharded weights are gathered and their
        gradients reduced in every micro-batch: the student's layers for each of both passes, all else once.
        """
        if self.shards == 1:
            return 2 * 4 * self.trained * (ranks - 1) // ranks
        gathered = 2 * 4 * self.student - self.outside + self.teachers
        return micro_batches * (gathered + 4 * self.trained) * (ranks - 1) // ranks


def _link(hardware: Hardware, ranks: int) -> float | None:
    """Return the bytes a second that a rank sends: over its link in one machine, over the network to several."""
    if hardware.link is None or ranks <= GPUS_A_MACHINE or hardware != GPUS.get(hardware.name):
        return hardware.link
    return min(hardware.link, NETWORK)


def _what_to_do(forecast: Forecast) -> list[str]:
    """Say what can be done about a run that does not fit."""
    if forecast.fits:
        return []
    shared = forecast.sharding != "none" or forecast.ranks == 1
    first = "" if shared else "share the models (--set train.sharding=fsdp2), or "
    return [f"{forecast.memory.phase} does not fit in a rank's memory: {first}{SMALLER}"]


def _notes(configured: ConfiguredRun, forecast: Forecast) -> list[str]:
    """List what stands in for something, what was assumed, and what is left out."""
    recipe, hardware = configured.run.recipe, forecast.hardware
    notes = [*configured.stand_ins, *_what_to_do(forecast)]
    notes += [f"the memory is rough: {forecast.memory.missing}"] if forecast.memory.missing else []
    if hardware.accelerator:
        notes.append(
            f"libraries on the GPU: {size_text(LIBRARIES_ON_GPU)} are assumed; tensors are counted as on a CPU"
        )
    elif forecast.ranks > 1:
        notes.append(f"this machine's cores and memory are shared by {forecast.ranks} ranks")
    if forecast.time.sent and forecast.time.communication is None:
        notes.append("how long communication takes is unknown: give --bandwidth")
    elif forecast.time.sent and forecast.ranks > GPUS_A_MACHINE and hardware == GPUS.get(hardware.name):
        notes.append(f"{forecast.ranks} ranks are in several machines, each with a network of {NETWORK / 1e9:.0f} GB/s")
    if forecast.sharding != "none" and configured.run.loads_in_shards:
        whole = 4 * (sum(forecast.teachers.values()) + forecast.student[1])
        notes.append(f"while it loads, the machine of the first rank holds each model whole: {size_text(whole)}")
    rows = round(forecast.rows.batch)
    if forecast.ranks > rows:
        notes.append(f"a step has {rows} rows: of {forecast.ranks} ranks, {forecast.ranks - rows} have none")
    if forecast.steps is None:
        notes.append("how many steps the run has is unknown: --set train.max_tokens=N or train.max_steps=N")
    notes += ["the student's own texts are left out"] if recipe.on_policy.share else []
    if recipe.asks_server:
        notes.append(
            f"the time and memory of {recipe.teacher} are not counted: it is asked over its API about each row once, "
            f"before the first step, and computes elsewhere"
        )
    if recipe.train.sharding != "none" and forecast.ranks == 1:
        notes.append(f"train.sharding={recipe.train.sharding} is for several ranks, and this is one: give --ranks N")
    notes += ["fine-tuning the teacher first is left out"] if configured.run.finetunes else []
    notes += ["the second forward on masked rows (masked_lm) is left out"] if recipe.objective.built.masked_lm else []
    return notes
