"""Check a recipe against models and data before any weights are loaded and before anything is written."""

import hashlib
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.alignment.plan import Plan, ProjectionStyle, read_plan
from kdalign.alignment.propose import PlanOptions, progressive_plans, propose
from kdalign.data.input_reader import InputReader
from kdalign.data.media.grid import Grid
from kdalign.data.media.readers import ImageReader
from kdalign.data.tasks import AnyTask, task_of
from kdalign.distillation.augmentation import substitute_model
from kdalign.distillation.checks import (
    Finding,
    check_configs,
    check_lone_rows,
    check_lora,
    check_models,
    check_on_policy,
    check_streaming,
    check_task,
    check_tokenizers,
    needs_finetuning,
)
from kdalign.distillation.run_folders import default_name
from kdalign.distillation.sequence_level.folder import generation_fingerprint
from kdalign.distillation.served_checks import check_served_teacher, check_served_terms
from kdalign.distillation.several_teachers import (
    check_divided_terms,
    check_rows,
    check_teachers,
    find_readers,
    find_teachers,
    plan_shares,
)
from kdalign.distillation.speech_checks import (
    check_features_alone,
    check_frames,
    check_pooled,
    check_student_of_text,
)
from kdalign.distillation.splits import RunSplits, load_splits
from kdalign.environment import cache_folder, program
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.files import check_writable, is_utf8
from kdalign.models.architecture import Architecture, describe, join_teachers, layout_of, meta_model
from kdalign.models.capture import Signal
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.grids import check_same_grid, common_grid
from kdalign.models.media_reader import check_modality
from kdalign.models.recomputation import check_recomputation
from kdalign.models.student import freeze
from kdalign.models.student_source import (
    CutStudent,
    ScratchStudent,
    StudentOptions,
    StudentSource,
    find_student,
)
from kdalign.models.teaching import reads_transcripts, teaches_features_alone
from kdalign.models.tokenizer import TokenizerPair
from kdalign.objective.build import build_objective
from kdalign.objective.checks import check_terms
from kdalign.recipe import AlignSettings, Recipe
from kdalign.registry import check_trusted, code_named
from kdalign.runs.folder import RunFolder
from kdalign.training.memory import MemoryPrediction


@dataclass(frozen=True)
class PreparedRun:
    """A run that was checked: configurations and data are read, weights are not.

    Attributes:
        recipe: the run's recipe, with its folder.
        adapter: the task's adapter.
        student: source of the student, which knows its teacher.
        tokenizers: tokenizers of student and teacher.
        splits: rows to train on, to monitor and to report.
        plan: layer pairs, chosen by shape; None without a teacher.
        folder: the run's.
        augmenting: masked language model that writes new texts like those of train; None without one.
        findings: results of the checks by ``preflight``.
        memory: the predicted peak of memory; None before it is predicted.
        teachers: checkpoints of all teachers, the student's own first; none for a student that is trained alone.
        readers: tokenizers of several teachers, if they differ from one another; None for one that reads the student's
            tokens.
        grid: positions of images, on which features are compared; None for other inputs.
    """

    recipe: Recipe
    adapter: TaskAdapter
    student: StudentSource
    tokenizers: TokenizerPair
    splits: RunSplits
    plan: Plan | None
    folder: RunFolder
    augmenting: Checkpoint | None
    findings: tuple[Finding, ...] = ()
    memory: MemoryPrediction | None = None
    teachers: tuple[Checkpoint, ...] = ()
    readers: tuple[PreTrainedTokenizerBase | None, ...] = ()
    grid: Grid | None = None

    @property
    def task(self) -> AnyTask:
        """The task."""
        return self.adapter.task

    @property
    def teacher(self) -> Checkpoint | None:
        """The teacher, of several the first; None for a student that is trained alone."""
        return self.student.teacher

    @property
    def finetunes(self) -> bool:
        """True if a teacher must first be fine-tuned."""
        return any(needs_finetuning(self.adapter, teacher) for teacher in self.teachers)

    @property
    def loads_in_shards(self) -> bool:
        """True if, with several ranks, each loads only its share of both models.

        Each rank loads all of them where a teacher runs on its own before they are shared: it is fine-tuned first,
        fills a cache, or has its parts measured for a narrower student.
        """
        narrows = isinstance(self.student, CutStudent) and self.student.runs_teacher
        alone = self.finetunes or narrows or self.recipe.cache.folder is not None
        return self.recipe.train.sharding != "none" and not alone

    @property
    def an_epoch(self) -> int:
        """Rows of an epoch, with all new texts that a model may write."""
        splits = self.splits
        copies = self.recipe.data.augment.copies if self.augmenting is not None else 0
        return len(splits.train) * (1 + copies) + (splits.unlabelled.an_epoch if splits.unlabelled is not None else 0)

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if tokens decide."""
        train = self.recipe.train
        if train.max_steps is not None:
            return train.max_steps
        if train.max_tokens is not None or train.batch_tokens is not None:
            return None
        return max(1, round(train.epochs * -(-self.an_epoch // train.batch_size)))

    @property
    def shares_encoder(self) -> bool:
        """True if the student's encoder of sounds is its teacher's, and is not trained."""
        return shares_encoder(self.recipe, self.student, self.teachers)

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the models and splits that the run reads, by role."""
        splits = {"train": self.splits.train, **self.splits.reported}
        if self.splits.unlabelled is not None:
            splits["unlabelled"] = self.splits.unlabelled.examples
        models: dict[str, Checkpoint | None] = {
            teacher_role(number): teacher for number, teacher in enumerate(self.teachers)
        }
        models |= {"student": self.student.checkpoint, "augmenting": self.augmenting}
        divided = "\n".join(origin for examples in splits.values() for origin in examples.origins)
        origins = {"origins": hashlib.sha256(divided.encode()).hexdigest()[:16]} if divided else {}
        generated = generation_fingerprint(self.task.source.folder)
        return {
            **{name: examples.fingerprint() for name, examples in splits.items()},
            **origins,
            **{role: checkpoint.hash for role, checkpoint in models.items() if checkpoint is not None},
            **({} if generated is None else {"generation": generated}),
        }

    def tokenizer_of(self, teacher: int) -> PreTrainedTokenizerBase:
        """Return a teacher's tokenizer, by the teacher's number from 0."""
        own = self.readers[teacher] or self.tokenizers.student if self.readers else self.tokenizers.teacher
        assert own is not None, "a teacher has a tokenizer"
        return own

    def reader_of(self, teacher: int) -> InputReader:
        """Return how a teacher reads its inputs, by the teacher's number from 0."""
        return InputReader(self.tokenizer_of(teacher), self.teachers[teacher].config, self.tokenizers.teacher_media)

    def student_config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        """Return the student's configuration for its tokenizer, once that is trained."""
        return self.student.config(self.tokenizers.with_student(tokenizer))

    @property
    def watched_word(self) -> str:
        """Description of the monitored slice of train."""
        return "held out of train" if self.recipe.train.holds_out else "part of train"


def teacher_role(number: int) -> str:
    """Name the role of a teacher by its number, from 0: ``teacher``, ``teacher 2``, ..."""
    return f"teacher {number + 1}" if number else "teacher"


def shares_encoder(recipe: Recipe, student: StudentSource, teachers: Sequence[Checkpoint]) -> bool:
    """Return whether a student keeps its only teacher's whole encoder of sounds, and does not train it."""
    if "encoder" not in recipe.train.freeze or len(teachers) != 1 or not isinstance(student, CutStudent):
        return False
    copied, narrows = student.copied or {}, student.spec.narrows or student.pretrained
    layers = {stack.name: stack.layers for stack in describe(student.teacher.config).stacks}
    speech = layout_of(student.teacher.config).modality == "audio"
    return speech and not narrows and copied.get("encoder") == tuple(range(layers["encoder"]))


def whose(word: str) -> str:
    """Return a model's word in the possessive: ``the student's``, ``teacher 2's``."""
    return f"{word}'s" if word[-1].isdigit() else f"the {word}'s"


def prepare(recipe: Recipe) -> PreparedRun:
    """Check everything that can be checked without weights.

    Raises:
        UsageError: the first thing that is wrong.
    """
    data = recipe.data
    task = task_of(data)
    if recipe.has_served_teacher:
        check_served_teacher(recipe, task)
    if recipe.teachers.by is not None:
        task = replace(task, source=replace(task.source, by=recipe.teachers.by))
    teachers = find_teachers(recipe)
    teacher = teachers[0] if teachers else None
    check_student_of_text(recipe, task, teachers)
    student = find_student(StudentOptions.of(recipe), teacher)
    adapter = find_task_adapter(recipe, task, student)
    check_task(recipe, adapter, teacher)
    check_models(recipe, adapter, student, teachers)
    check_streaming(recipe, adapter, teachers)
    tokenizers = student.tokenizers()
    check_frames(tokenizers)
    check_teachers(recipe, adapter, teachers)
    readers = find_readers(teachers, tokenizers, adapter.predicts_tokens)
    check_tokenizers(recipe, adapter, student, tokenizers, any(readers))
    for other in teachers[1:] if not tokenizers.differ else ():
        adapter.check_packing(other)
    splits = load_splits(adapter, recipe)
    check_rows(recipe, task, splits.train)
    config = student.config(tokenizers)
    check_configs(recipe, student, config, teachers)
    plan = find_plan(recipe, teachers, student, describe(config)) if teachers else None
    if plan is not None and shares_encoder(recipe, student, teachers):
        plan = plan.without("encoder")
    needs = set[Signal]()
    for _, stage in recipe.objective.stages:
        objective = build_objective(adapter.task, stage, plan)
        needs |= objective.needs
        check_features_alone(adapter, teachers, objective)
        check_terms(recipe, objective, plan)
        if recipe.has_served_teacher:
            check_served_terms(recipe, objective, student)
        check_divided_terms(recipe, objective)
    _check_kept_maps(recipe, task, needs)
    check_lora(recipe, student, config)
    check_lone_rows(recipe, student, config, tokenizers, len(splits.train))
    if recipe.train.gradient_checkpointing:
        check_recomputation(config)
    check_on_policy(recipe, adapter, tokenizers, [config, *(each.config for each in teachers)])
    if recipe.train.freeze:
        freeze(meta_model(config, head=adapter.head), recipe.train.freeze)
    folder = _find_folder(recipe, task)
    if any(needs_finetuning(adapter, each) for each in teachers):
        check_writable(cache_folder() / "teachers")  # the fine-tuned teacher will be cached there
    return PreparedRun(
        recipe=recipe.with_changes(out=str(folder.path)),
        adapter=adapter,
        student=student,
        tokenizers=tokenizers,
        splits=splits,
        plan=plan,
        folder=folder,
        augmenting=substitute_model(data.augment) if data.augment.by == "masked-lm" else None,
        teachers=teachers,
        readers=readers,
        grid=find_grid(config, teachers, tokenizers, needs),
    )


_MAPS = {Signal.ATTENTION, Signal.TEACHER_ATTENTION, Signal.RELATIONS}


def _check_kept_maps(recipe: Recipe, task: AnyTask, needs: Collection[Signal]) -> None:
    """Refuse to keep attention of speech: Whisper attends to the silence after a sound, which is no kept position.

    Raises:
        UsageError: what is accepted.
    """
    if recipe.cache.folder is not None and task.modality == "audio" and {*_MAPS, Signal.CROSS} & set(needs):
        raise UsageError(
            "--cache keeps attention at positions with sound alone, and a model of speech attends beyond them "
            "(accepted: --delta 0 --set objective.relations=0)"
        )


def find_grid(
    config: PretrainedConfig, teachers: Sequence[Checkpoint], tokenizers: TokenizerPair, needs: Collection[Signal] = ()
) -> Grid | None:
    """Return the positions of images, on which features are compared; None for other inputs.

    Args:
        config: the student's.
        teachers: all teachers.
        tokenizers: with what prepares images for both models.
        needs: signals of the models that the objective compares.

    Raises:
        UsageError: attention is compared, and the models divide images differently.
    """
    ours, theirs = tokenizers.media, tokenizers.teacher_media
    if not isinstance(ours, ImageReader):
        return None
    models = [(config, ours.size)]
    if isinstance(theirs, ImageReader):
        models += [(teacher.config, theirs.size) for teacher in teachers]
    grid = common_grid(models)
    if set(needs) & _MAPS:
        check_same_grid(models, grid)
    return grid


def find_task_adapter(recipe: Recipe, task: AnyTask, student: StudentSource) -> TaskAdapter:
    """Return the adapter of a task for the family of the models, the teacher's if there is one."""
    teacher, data = student.teacher, recipe.data
    family, name = student.family, student.name
    hears = teacher is not None and reads_transcripts(teacher.config, student.modality)
    for checkpoint in filter(None, (None if hears else teacher, student.checkpoint)):
        check_modality(checkpoint.name, checkpoint.config.model_type, task)
    if isinstance(student, ScratchStudent):
        check_modality(name, student.spec.model_type, task)
    if teacher is not None and not teaches_features_alone(teacher.config, family, student.modality):
        family, name = layout_of(teacher.config).family, teacher.name
    adapter = adapter_for(task, family, data.max_length, name, data.order)
    if data.order != "drawn" and family != "permutation":
        raise UsageError(f"data.order={data.order} is for permutation models (XLNet); {name!r} is a {family} one")
    return adapter


def _find_folder(recipe: Recipe, task: AnyTask) -> RunFolder:
    """Return the run's folder, if it can be written."""
    folder = RunFolder(Path(recipe.out or f"runs/{default_name(recipe, task)}"))
    check_writable(folder.path)
    if not is_utf8(folder.path):
        raise UsageError(f"--out {str(folder.path)!r} is not UTF-8, as the names of files with weights must be")
    return folder


def find_plan(recipe: Recipe, teachers: Sequence[Checkpoint], student: StudentSource, ours: Architecture) -> Plan:
    """Read the plan that the recipe names, or propose one by the shapes of all models."""
    theirs, align = join_teachers([describe(teacher.config) for teacher in teachers]), recipe.align
    pooled = reads_transcripts(teachers[0].config, student.modality)
    if align.plan is None:
        style = ProjectionStyle(align.projection, align.side, align.shared, align.start)
        options = PlanOptions(align.weights, align.heads, align.relations, align.relation_heads, style, pooled)
        plan = propose(theirs, ours, align.map, student.copied, options)
    else:
        if align.model_copy(update={"plan": None, "remap_every": None, "grow": 0.0}) != AlignSettings():
            raise UsageError(
                "a plan holds its own map, weights and heads: give --plan, or --map and align.KEY, not both"
            )
        plan = read_plan(Path(align.plan)).with_statistics({})  # another teacher of this shape has others
        check_trusted(plan.choice, f"plan {align.plan!r}: map")
        plan.fits(theirs, ours, pooled)
    check_pooled(plan)
    progressive_plans(plan, align.grow)
    return replace(plan, shares=plan_shares(recipe))


def resume_command(runs: Sequence[PreparedRun], folder: RunFolder) -> str:
    """Return the command that resumes runs in a folder, on as many ranks, and allows the code that they name."""
    named = [[run.recipe.objective.terms, run.recipe.align.map, list(run.task.metrics)] for run in runs]
    code = " --allow code" if any(code_named(names) for names in named) else ""
    return f"{program()} distill --out {shlex.quote(str(folder.path))} --resume{code}"
