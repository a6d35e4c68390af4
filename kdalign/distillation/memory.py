"""Predict a run's peak memory from configurations, before any weight is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.projections import Projections
from kdalign.data.batches import collate
from kdalign.data.corruption import with_corruption
from kdalign.data.media.rows import NOUNS
from kdalign.data.tasks import ClassificationTask, Examples
from kdalign.data.text_rows import longest_rows
from kdalign.data.token_matching import SharedVocabulary, shared_vocabulary
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.devices import use_bf16
from kdalign.distillation.build import masked_lm_term
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.several_teachers import mixing_of
from kdalign.distillation.tokenize import tokenize_for_training
from kdalign.environment import library_versions, trim_heap, world_size
from kdalign.errors import shorten
from kdalign.evaluation.likelihood import TOKENS_AT_ONCE
from kdalign.evaluation.predictions import ROWS_AT_ONCE
from kdalign.metrics.arrays import Array
from kdalign.models import loading, lora, student
from kdalign.models.architecture import count_parameters, describe, meta_model, with_layers
from kdalign.models.checkpoint_files import describe_config
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.memory_trace import MemoryTrace, shapes_only, without_storage
from kdalign.models.teaching import teaches_features_alone
from kdalign.objective.build import build_objective
from kdalign.objective.objective import Objective
from kdalign.recipe import Recipe
from kdalign.recipe.terms import KEYS_OF_TERMS, TEACHERLESS_KEYS
from kdalign.registry import code_named
from kdalign.result_cache import Arrays, keep_result
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.several import SeveralTeachers
from kdalign.training.learner import Learner
from kdalign.training.memory import (
    GatheredBytes,
    Gathering,
    MemoryPart,
    MemoryPrediction,
    StepKind,
    StepMemory,
    gathered_bytes,
    trace_scoring,
    trace_step,
)
from kdalign.training.optimizer import MOMENT_BYTES

HEAP_SHARE, HEAP_BYTES = 0.15, 2**27
"""What the heap of the C library takes beside tensors: gaps between those of other sizes, as a share of the tensors,
and bytes that loading leaves behind. Measured with glibc on the recipes of docs/performance.md."""
HEAP_OF_SHARDS = 2**25
"""What it takes where models are loaded in shards, each piece of which has memory of its own."""
LATER_BYTES = 50e6
"""Bytes of libraries that are loaded after the checks, and of what they keep."""
_MOST_LETTERS = 100
_LOOKED_AT = 64
"""Texts with most characters, among which the longest in tokens is looked for."""


@dataclass(frozen=True)
class Placement:
    """Where a run trains.

    Attributes:
        device: kind of each rank's device.
        bf16: true for training in bfloat16.
        ranks: processes that train together.
    """

    device: torch.device
    bf16: bool
    ranks: int = 1

    @classmethod
    def here(cls, recipe: Recipe) -> "Placement":
        """Return this process's device, as one of the ranks that a launcher has started."""
        device = training_device(recipe)
        return cls(device, use_bf16(recipe.train.precision, device), world_size())

    def shards(self, recipe: Recipe) -> int:
        """Return the ranks among which weights, gradients and moments are divided; 0 if each rank holds all of them."""
        return self.ranks if recipe.train.sharding != "none" and self.ranks > 1 else 0

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the teachers' weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def counted_on(self) -> torch.device:
        """Device whose operations are counted: the CPU for one that this machine lacks."""
        return self.device if self.device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


def predict_memory(run: PreparedRun, placement: Placement | None = None) -> MemoryPrediction:
    """Predict the most memory that one rank of a run will have at a time, on a GPU what its tensors take there.

    The phases of a run are compared: loading, training, the optimizer's step, monitoring; the parts of the largest are
    returned. Training is a step on the longest texts, counted on tensors of shapes alone; where that fails, by a
    formula.

    Args:
        run: the run; of its models only the configurations count.
        placement: device and ranks; None for this process's.
    """
    recipe, placement, missing = run.recipe, placement or Placement.here(run.recipe), ""
    teachers = [_teacher(run, each.config, placement.dtype) for each in run.teachers]
    ours = student_shape(run)
    try:
        step = _trace(run, ours, teachers, placement)
    except Exception as error:  # whatever an operation of torch, a model or a term of the user's own raises here
        step, missing = _rough_step(run, ours, placement), f"by a formula, since {_why_rough(error)}"
    left_out = [missing] if missing else []
    left_out += ["without the student's own texts"] if recipe.on_policy.share else []
    left_out += ["without the activations of fine-tuning"] if run.finetunes else []
    phases = _phases(run, ours, teachers, step, placement)
    if placement.device.type == "cpu":
        base = round(_resident() + LATER_BYTES)
        for phase, parts in phases.items():
            gaps = 0 if phase == "loading" else _gaps(run, ours, placement, sum(parts.values()))
            phases[phase] = {MemoryPart.BASE: base, **parts, MemoryPart.HEAP: gaps}
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    largest = {part: size for part, size in phases[phase].items() if size}
    return MemoryPrediction(phase, largest, max(map(_needed, phases.values())), ", ".join(left_out), phases)


def _why_rough(error: Exception) -> str:
    """Say why a step was not counted."""
    said = shorten(str(error).partition("\n")[0], _MOST_LETTERS)
    return said if type(error) is LookupError else f"counting a step failed ({type(error).__name__}: {said})"


def _gaps(run: PreparedRun, ours: PreTrainedModel, placement: Placement, tensors: int) -> int:
    """Return the bytes of the heap beside so many bytes of tensors, on a CPU.

    Some of them are copies by which ranks communicate, which stay in the heap once they are freed. DDP first sends all
    weights in flat copies of 250 MiB, two at a time. To shard a student that it has loaded whole, a rank has all of it;
    gloo gathers what is in no layer into a tensor of its own, and torch from there into one that it divides among the
    parameters. Models that are loaded in shards leave little.
    """
    weights, shards = 4 * count_parameters(ours), placement.shards(run.recipe)
    if shards and run.loads_in_shards:
        return HEAP_OF_SHARDS
    copies = min(weights, 2 * 250 * 2**20) if placement.ranks > 1 else 0
    if shards:
        copies = weights + 2 * gathered_bytes(ours, 4).outside
    return round(HEAP_BYTES + HEAP_SHARE * tensors) + copies


def _phases(
    run: PreparedRun,
    ours: PreTrainedModel,
    teachers: Sequence[ComputedTeacher],
    step: StepMemory,
    placement: Placement,
) -> dict[str, dict[MemoryPart, int]]:
    """Add up what a rank holds in each phase of a run: beside a step's own tensors, weights, moments and gradients."""
    recipe = run.recipe
    weights, shards = 4 * count_parameters(ours), placement.shards(recipe) or 1
    copies = max(1, len(recipe.multi_task.tasks))  # teachers, one for each task that is learned together
    sizes = [copies * describe(each.config).parameters for each in run.teachers]
    exact = 4 * sum(sizes)
    rounded = sum(each.model.dtype.itemsize * size for each, size in zip(teachers, sizes, strict=True))
    held = {
        MemoryPart.STUDENT: weights // shards,
        MemoryPart.TEACHER: 0 if recipe.cache.folder is not None else rounded // shards,
        MemoryPart.MOMENTS: round(MOMENT_BYTES[recipe.train.optimizer_state] * step.trained / 4 / shards),
        MemoryPart.BUCKETS: step.trained if placement.ranks > 1 and shards == 1 else 0,
    }
    gradients = {MemoryPart.GRADIENTS: step.trained // shards}
    # While a teacher is rounded, its file may still be mapped into memory.
    mapped = rounded if placement.bf16 and placement.device.type == "cpu" else 0
    gathered = {MemoryPart.GATHERED: gathered_bytes(ours, 4).in_forward if shards > 1 else 0}
    loading = {MemoryPart.STUDENT: weights, MemoryPart.TEACHER: exact, MemoryPart.MAPPED: mapped}
    if shards > 1 and run.loads_in_shards and placement.device.type != "cpu":  # the first rank's CPU has both whole
        largest = max((each.in_forward for each in _gathered_of(teachers, 4)), default=0)  # while it is scored
        loading = {MemoryPart.TEACHER: (exact + rounded) // shards, MemoryPart.GATHERED: largest}
    phases = {
        "loading": loading,
        "training": held | step.parts,
        "the optimizer's step": held | gradients,
        "monitoring": held | gradients | gathered | {MemoryPart.ACTIVATIONS: step.scoring},
    }
    if run.finetunes:
        phases["fine-tuning the teacher"] = {MemoryPart.TEACHER: 4 * exact}
    return phases


def _needed(parts: Mapping[MemoryPart, int]) -> int:
    return sum(size for part, size in parts.items() if part not in (MemoryPart.BASE, MemoryPart.MAPPED))


def training_device(recipe: Recipe) -> torch.device:
    """Return the kind of device that a recipe trains on."""
    here = torch.accelerator.current_accelerator(check_available=True)
    if recipe.train.device == "cpu" or here is None:
        return torch.device("cpu")
    return torch.device(here.type)


def _resident() -> int:
    """Return the memory that this process has, without what its C library could give back."""
    trim_heap()
    return int(psutil.Process().memory_info().rss)


def student_shape(run: PreparedRun, attention: str | None = None, device: str = "meta") -> PreTrainedModel:
    """Build the student without storage, with dropout, frozen parts and adapters as in training.

    Args:
        run: the run.
        attention: implementation; that of training if None.
        device: the meta device, or one on which its weights are random.
    """
    train = run.recipe.train
    config = with_head(run, run.student.config(run.tokenizers))
    model = meta_model(config, attention, device, run.adapter.head).to(dtype=torch.float32)
    model = student.with_dropout(student.freeze(model, train.freeze), train.dropout)
    return model if train.lora is None else lora.add_adapters(model, train.lora, train.seed)


def _teacher(run: PreparedRun, config: PretrainedConfig, dtype: torch.dtype) -> ComputedTeacher:
    """A teacher on the meta device; with two layers of each stack if no layer is compared, as none keeps anything."""
    if not any(weights.built.aligning for _, weights in run.recipe.objective.stages):
        config = with_layers(config, {each.name: range(min(2, each.layers)) for each in describe(config).stacks})
    model = meta_model(with_head(run, config), head=teacher_head(run, config))
    return ComputedTeacher(model, run.adapter.output_order(model), dtype, torch.device("meta"))


def teacher_head(run: PreparedRun, config: PretrainedConfig) -> HeadKind:
    """A teacher's head: the task's, or its own if it teaches features alone."""
    alone = teaches_features_alone(config, run.student.family, run.student.modality)
    return head_of(config) if alone else run.adapter.head


def with_head(run: PreparedRun, config: PretrainedConfig) -> PretrainedConfig:
    """A model's configuration, with the head that it will get if it has none for the task."""
    task = run.task
    if isinstance(task, ClassificationTask) and loading.output_order(config, task) is None:
        return loading.with_task_head(config, task)
    return config


def _trace(
    run: PreparedRun, ours: PreTrainedModel, teachers: Sequence[ComputedTeacher], placement: Placement
) -> StepMemory:
    """Count a step on the longest texts, or read what a run of the same shapes has counted.

    With code of the user's own, which no key describes, it is counted each time.
    """
    recipe, tokenizer = run.recipe, run.tokenizers.student
    if tokenizer is None:
        raise LookupError("the tokenizer is still to be trained")
    if run.task.modality != "text" and run.splits.train.media is None:
        raise LookupError(f"the data have no {NOUNS[run.task.modality]}s")
    encoded = _longest_texts(run, tokenizer)
    encoded = with_corruption(encoded, recipe.data.augment, tokenizer, bool(recipe.objective.built.masked_lm))
    shape = micro_batch_rows(recipe, int(encoded.lengths.max()), run.an_epoch, placement.ranks)
    shared = _shared(run, tokenizer)

    def count() -> dict[str, Array]:
        found = _count(run, ours, teachers, (encoded, shared), shape, placement)
        return {"step": np.frombuffer(json.dumps(asdict(found)).encode(), dtype=np.uint8)}

    if code_named([recipe.objective.terms, recipe.align.map]):
        kept: Arrays = count()
    else:
        content = _content(run, ours, teachers, encoded, shape)
        content |= {"shared": None if shared is None else len(shared), "bf16": placement.bf16}
        content |= {"device": placement.counted_on.type, "shards": placement.shards(recipe)}
        kept, _ = keep_result("memory", content, count)
    facts = json.loads(kept["step"].tobytes())
    parts = {MemoryPart(part): size for part, size in facts["parts"].items()}
    return StepMemory(parts, facts["trained"], facts["scoring"])


def _count(
    run: PreparedRun,
    ours: PreTrainedModel,
    teachers: Sequence[ComputedTeacher],
    texts: tuple[TokenizedSplit, SharedVocabulary | None],
    shape: tuple[int, bool],
    placement: Placement,
) -> StepMemory:
    """Take a step of each stage's objective on the longest text, and return the one that needs most."""
    recipe, (encoded, shared), (rows, accumulates) = run.recipe, texts, shape
    longest = int(encoded.lengths.argmax())
    batch = collate(encoded, [longest] * rows)
    bf16, mode, found = placement.bf16, shapes_only(), list[StepMemory]()
    dtype, gathering = torch.bfloat16 if bf16 else None, _gathering(recipe, ours, teachers, placement)
    for model in (ours, *(teacher.model for teacher in teachers)):
        without_storage(model, mode, placement.counted_on)
    teacher = SeveralTeachers(tuple(teachers), mixing_of(recipe)) if len(teachers) > 1 else next(iter(teachers), None)
    plan = run.plan
    if plan is not None:
        plan = plan.with_statistics({f"variance/{layer}": 1.0 for layer in plan.teaching})
    for _, weights in recipe.objective.stages:
        with mode:
            objective = build_objective(run.task, weights, plan, dtype, shared)
            masked_lm = masked_lm_term(ours, recipe.train.seed, dtype) if weights.built.masked_lm else None
            objective = objective.with_masked_lm(weights.built.masked_lm, masked_lm)
            objective = _of_labels(objective) if teacher is None else objective
            shapes = plan.projections if plan is not None and objective.uses_hidden else ()
            mixes = plan.mixes if plan is not None and objective.compared_maps else ()
            projections, order = Projections(shapes, recipe.train.seed, mixes), run.adapter.output_order(ours)
            learner = Learner(ours, projections, plan, [objective], order, bf16).train()
            learner.recomputes = recipe.train.gradient_checkpointing
            teach, computes = teacher if objective.needs_teacher else None, recipe.cache.folder is None
        trace = MemoryTrace(mode)
        for each in teachers:
            trace.skip(*each.model.parameters(), *each.model.buffers())
        how = StepKind(accumulates, computes, gathering)
        found.append(trace_step(trace, learner, teach, objective, batch, how))
        learner.zero_grad(set_to_none=True)
    length = int(encoded.lengths.max())
    rows = max(1, TOKENS_AT_ONCE // length) if run.adapter.predicts_tokens else ROWS_AT_ONCE
    scored = collate(encoded, [longest] * min(rows, len(run.splits.watched)))
    most = max(found, key=lambda step: sum(step.parts.values()))
    return replace(most, scoring=trace_scoring(MemoryTrace(mode), learner.eval(), scored))


def _content(
    run: PreparedRun,
    ours: PreTrainedModel,
    teachers: Sequence[ComputedTeacher],
    encoded: TokenizedSplit,
    shape: tuple[int, bool],
) -> dict[str, object]:
    """Everything that decides a step's memory, beside precision, device, shared vocabulary and kdalign's code."""
    configs = [
        describe_config(ours.config),
        *(f"{each.model.dtype} {describe_config(each.model.config)}" for each in teachers),
    ]
    longest = int(encoded.lengths.argmax())
    return {
        "models": configs,
        "settings": run.recipe.model_dump(exclude={"out": True, "train": {"seed", "lr", "epochs", "max_steps"}}),
        "task": repr(run.task),
        "plan": repr(run.plan),
        "row": {name: list(column[longest]) for name, column in encoded.columns.items()},
        "media": None if encoded.media is None else encoded.media.take(np.array([longest])).fingerprint(),
        "shape": shape,
        "watched": len(run.splits.watched),
        "libraries": library_versions(),
    }


def _longest_texts(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> TokenizedSplit:
    """Tokenize the training texts with most characters, with labels and without, as training does."""
    splits = [run.splits.train, *([run.splits.unlabelled.examples] if run.splits.unlabelled is not None else [])]

    def longest(examples: Examples) -> tuple[int, Examples]:
        found = examples.take(longest_rows(examples.texts, _LOOKED_AT))
        return max(sum(map(len, row)) for row in zip(*found.texts, strict=True)), found

    _, examples = max((longest(split) for split in splits), key=lambda pair: pair[0])
    return tokenize_for_training(run, examples, tokenizer, run.student_config(tokenizer))


def _gathering(
    recipe: Recipe, ours: PreTrainedModel, teachers: Sequence[ComputedTeacher], placement: Placement
) -> Gathering | None:
    """Count the sharded weights that a step gathers; None if each rank holds them all."""
    if not placement.shards(recipe):
        return None
    theirs = _gathered_of(teachers)
    of_teachers = GatheredBytes(sum(each.outside for each in theirs), max((each.layer for each in theirs), default=0))
    outputs = [each.model.get_output_embeddings() for each in teachers]
    heads = sum(output.weight.nbytes for output in outputs if output is not None)
    return Gathering(placement.ranks, gathered_bytes(ours, 4), of_teachers, heads)


def _gathered_of(teachers: Sequence[ComputedTeacher], size: int | None = None) -> list[GatheredBytes]:
    """Count what is gathered of each teacher, at its own precision or with ``size`` bytes a weight."""
    return [gathered_bytes(each.model, size or each.model.dtype.itemsize) for each in teachers]


def micro_batch_rows(recipe: Recipe, length: int, n: int, ranks: int = 1) -> tuple[int, bool]:
    """Return the most rows of a rank's micro-batch, and whether a step has several.

    Args:
        recipe: batch size, or tokens of a batch, and rows of a micro-batch.
        length: tokens of the longest row.
        n: rows of an epoch.
        ranks: processes that share a batch.
    """
    train = recipe.train
    batch = train.batch_size if train.batch_tokens is None else max(1, round(train.batch_tokens / length))
    share = -(-min(batch, max(1, n)) // ranks)
    rows = min(share, train.micro_batch or share)
    return rows, rows < share


def _shared(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> SharedVocabulary | None:
    theirs = run.tokenizers.teacher
    return shared_vocabulary(tokenizer, theirs) if run.tokenizers.differ and theirs is not None else None


def _of_labels(objective: Objective) -> Objective:
    """The part of an objective that needs no teacher; a language model's tokens anyway, whoever teaches them."""
    alone = {
        name: term
        for name, term in objective.terms.items()
        if KEYS_OF_TERMS.get(name.partition(" ")[0]) in TEACHERLESS_KEYS
    }
    words = objective.vocabulary
    return replace(objective, terms=alone, vocabulary=words if words is None else replace(words, hard=1.0, soft=0.0))


def _rough_step(run: PreparedRun, ours: PreTrainedModel, placement: Placement) -> StepMemory:
    r"""Estimate a step without running it.

    .. math:: s b h (34 + 5 a s / h)

    bytes for each layer in 16 bits, with s tokens of b rows, width h and a heads (Korthikanti et al. 2022,
    arXiv:2205.05198, equation 2), twice as many in float32, and four blocks of logits. With activation checkpointing
    that many for one layer, and of each layer its input in float32 (section 5, full recomputation).
    """
    recipe, length, size = run.recipe, run.adapter.max_length, 1 if placement.bf16 else 2
    rows, _ = micro_batch_rows(recipe, length, run.an_epoch, placement.ranks)
    stacks, tokens = describe(ours.config).stacks, length * rows
    layers = [size * tokens * each.width * (34 + 5 * each.heads * length / each.width) for each in stacks]
    kept = sum(each.layers * layer for each, layer in zip(stacks, layers, strict=True))
    if recipe.train.gradient_checkpointing:
        kept = max(layers) + sum(each.layers * 4 * tokens * each.width for each in stacks)
    trained = sum(4 * parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    return StepMemory(
        {MemoryPart.ACTIVATIONS: round(kept), MemoryPart.LOSS: 4 * 2**24 + 2**28 * placement.bf16}, trained
    )
