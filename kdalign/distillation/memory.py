"""Predict a run's peak memory from configurations, before any weight is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.projections import Projections
from kdalign.data.batches import collate
from kdalign.data.corruption import with_corruption
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
from kdalign.evaluation.likelihood import TOKENS_AT_ONCE
from kdalign.evaluation.predictions import ROWS_AT_ONCE
from kdalign.metrics.arrays import Array
from kdalign.models import loading, lora, student
from kdalign.models.architecture import count_parameters, describe, meta_model, with_layers
from kdalign.models.checkpoint_files import describe_config
from kdalign.models.memory_trace import MemoryTrace, shapes_only, without_storage
from kdalign.objective.build import build_objective
from kdalign.objective.objective import Objective
from kdalign.recipe import Recipe
from kdalign.recipe.terms import KEYS_OF_TERMS, TEACHERLESS_KEYS
from kdalign.registry import code_named
from kdalign.result_cache import Arrays, keep_result
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.several import SeveralTeachers
from kdalign.training.learner import Learner
from kdalign.training.memory import MemoryPart, MemoryPrediction, StepMemory, trace_scoring, trace_step
from kdalign.training.optimizer import MOMENT_BYTES

HEAP_SHARE, HEAP_BYTES = 0.15, 2**27
"""What the heap of the C library takes beside tensors: gaps between those of other sizes, as a share of the tensors,
and bytes that loading leaves behind. Measured with glibc on the recipes of docs/performance.md."""
LATER_BYTES = 50e6
"""Bytes of libraries that are loaded after the checks, and of what they keep."""
_MOST_LETTERS = 100
_LOOKED_AT = 64
"""Texts with most characters, among which the longest in tokens is looked for."""


def predict_memory(run: PreparedRun) -> MemoryPrediction:
    """Predict the most memory that a run will have at a time, on a GPU what its tensors take there.

    The phases of a run are compared: loading, training, the optimizer's step, monitoring; the parts of the largest are
    returned. Training is a step on the longest texts, counted on tensors of shapes alone; where that fails, by a
    formula.
    """
    recipe, device = run.recipe, training_device(run.recipe)
    bf16 = use_bf16(recipe.train.precision, device)
    dtype, missing = torch.bfloat16 if bf16 else torch.float32, ""
    teachers = [_teacher(run, each.config, dtype) for each in run.teachers]
    ours = _student(run)
    try:
        step = _trace(run, ours, teachers, bf16, device)
    except Exception as error:  # whatever an operation of torch, a model or a term of the user's own raises here
        cause = str(error).partition("\n")[0][:_MOST_LETTERS]
        step, missing = _rough_step(run, ours, bf16), f"by a formula: {type(error).__name__}, {cause}"
    left_out = [missing] if missing else []
    left_out += ["without the student's own texts"] if recipe.on_policy.share else []
    left_out += ["without the activations of fine-tuning"] if run.finetunes else []
    left_out += ["for one rank"] if world_size() > 1 else []
    weights = {MemoryPart.STUDENT: 4 * count_parameters(ours)}
    copies = max(1, len(recipe.multi_task.tasks))  # teachers, one for each task that is learned together
    sizes = [copies * describe(each.config).parameters for each in run.teachers]
    exact = 4 * sum(sizes)
    rounded = sum(each.model.dtype.itemsize * size for each, size in zip(teachers, sizes, strict=True))
    moments = {MemoryPart.MOMENTS: round(MOMENT_BYTES[recipe.train.optimizer_state] * step.trained / 4)}
    held = weights | {MemoryPart.TEACHER: 0 if recipe.cache.folder is not None else rounded} | moments
    # While a teacher is rounded, its file may still be mapped into memory.
    mapped = rounded if bf16 and device.type == "cpu" else 0
    phases = {
        "loading": weights | {MemoryPart.TEACHER: exact, MemoryPart.MAPPED: mapped},
        "training": held | step.parts,
        "the optimizer's step": held | {MemoryPart.GRADIENTS: step.trained},
        "monitoring": held | {MemoryPart.GRADIENTS: step.trained, MemoryPart.ACTIVATIONS: step.scoring},
    }
    if run.finetunes:
        phases["fine-tuning the teacher"] = {MemoryPart.TEACHER: 4 * exact}
    if device.type == "cpu":
        base = round(_resident() + LATER_BYTES)
        for phase, parts in phases.items():
            gaps = 0 if phase == "loading" else round(HEAP_BYTES + HEAP_SHARE * sum(parts.values()))
            phases[phase] = {MemoryPart.BASE: base, **parts, MemoryPart.HEAP: gaps}
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    largest = {part: size for part, size in phases[phase].items() if size}
    return MemoryPrediction(phase, largest, max(map(_needed, phases.values())), ", ".join(left_out))


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


def _student(run: PreparedRun) -> PreTrainedModel:
    """The student on the meta device, with dropout, frozen parts and adapters as in training."""
    train = run.recipe.train
    config = _headed(run, run.student.config(run.tokenizers))
    model = meta_model(config, head=run.adapter.head).to(dtype=torch.float32)
    model = student.with_dropout(student.freeze(model, train.freeze), train.dropout)
    return model if train.lora is None else lora.add_adapters(model, train.lora, train.seed)


def _teacher(run: PreparedRun, config: PretrainedConfig, dtype: torch.dtype) -> ComputedTeacher:
    """A teacher on the meta device; with two layers of each stack if no layer is compared, as none keeps anything."""
    if not any(weights.built.aligning for _, weights in run.recipe.objective.stages):
        config = with_layers(config, {each.name: range(min(2, each.layers)) for each in describe(config).stacks})
    model = meta_model(_headed(run, config), head=run.adapter.head)
    return ComputedTeacher(model, run.adapter.output_order(model), dtype, torch.device("meta"))


def _headed(run: PreparedRun, config: PretrainedConfig) -> PretrainedConfig:
    """A model's configuration, with the head that it will get if it has none for the task."""
    task = run.task
    if isinstance(task, ClassificationTask) and loading.output_order(config, task) is None:
        return loading.with_task_head(config, task)
    return config


def _trace(
    run: PreparedRun, ours: PreTrainedModel, teachers: Sequence[ComputedTeacher], bf16: bool, device: torch.device
) -> StepMemory:
    """Count a step on the longest texts, or read what a run of the same shapes has counted.

    With code of the user's own, which no key describes, it is counted each time.
    """
    recipe, tokenizer = run.recipe, run.tokenizers.student
    if tokenizer is None:
        raise LookupError("the tokenizer is still to be trained")
    encoded = _longest_texts(run, tokenizer)
    encoded = with_corruption(encoded, recipe.data.augment, tokenizer, bool(recipe.objective.built.masked_lm))
    shape = micro_batch_rows(recipe, int(encoded.lengths.max()), run.an_epoch)
    shared = _shared(run, tokenizer)

    def count() -> dict[str, Array]:
        found = _count(run, ours, teachers, (encoded, shared), shape, bf16, device)
        return {"step": np.frombuffer(json.dumps(asdict(found)).encode(), dtype=np.uint8)}

    if code_named([recipe.objective.terms, recipe.align.map]):
        kept: Arrays = count()
    else:
        content = _content(run, ours, teachers, encoded, shape)
        content |= {"shared": None if shared is None else len(shared), "bf16": bf16, "device": device.type}
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
    bf16: bool,
    device: torch.device,
) -> StepMemory:
    """Take a step of each stage's objective on the longest text, and return the one that needs most."""
    recipe, (encoded, shared), (rows, accumulates) = run.recipe, texts, shape
    longest = int(encoded.lengths.argmax())
    batch = collate(encoded, [longest] * rows)
    mode, dtype, found = shapes_only(), torch.bfloat16 if bf16 else None, list[StepMemory]()
    for model in (ours, *(teacher.model for teacher in teachers)):
        without_storage(model, mode, device)
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
        found.append(trace_step(trace, learner, teach, objective, batch, accumulates=accumulates, computes=computes))
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


def micro_batch_rows(recipe: Recipe, length: int, n: int) -> tuple[int, bool]:
    """Return the most rows of a micro-batch, and whether a step has several.

    Args:
        recipe: batch size, or tokens of a batch, and rows of a micro-batch.
        length: tokens of the longest row.
        n: rows of an epoch.
    """
    train = recipe.train
    batch = train.batch_size if train.batch_tokens is None else max(1, round(train.batch_tokens / length))
    share = -(-min(batch, max(1, n)) // world_size())
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


def _rough_step(run: PreparedRun, ours: PreTrainedModel, bf16: bool) -> StepMemory:
    r"""Estimate a step without running it.

    .. math:: s b h (34 + 5 a s / h)

    bytes for each layer in 16 bits, with s tokens of b rows, width h and a heads (Korthikanti et al. 2022,
    arXiv:2205.05198, equation 2), twice as many in float32, and four blocks of logits.
    """
    recipe, length, size = run.recipe, run.adapter.max_length, 1 if bf16 else 2
    rows, _ = micro_batch_rows(recipe, length, run.an_epoch)
    stacks = describe(ours.config).stacks
    kept = sum(
        each.layers * length * rows * each.width * (34 + 5 * each.heads * length / each.width) for each in stacks
    )
    trained = sum(4 * parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    return StepMemory({MemoryPart.ACTIVATIONS: round(size * kept), MemoryPart.LOSS: 4 * 2**24 + 2**28 * bf16}, trained)
