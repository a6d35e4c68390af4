"""Check a recipe against models and data before any weights are loaded and before anything is written."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kdalign.alignment.plan import Plan, ProjectionStyle, read_plan
from kdalign.alignment.propose import PlanOptions, progressive_plans, propose
from kdalign.data.tasks import AnyTask, Examples, UnlabelledSource, find_task
from kdalign.distillation.augmentation import substitute_model
from kdalign.distillation.checks import Finding, check_augmentation, check_lora, check_models, check_task
from kdalign.distillation.run_folders import default_name
from kdalign.distillation.splits import load_unlabelled_texts, splits_to_report, training_examples
from kdalign.distillation.student_source import cut_spec, student_architecture, student_config, type_of
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.files import check_writable, is_utf8
from kdalign.models import checkpoint_files, student, student_spec
from kdalign.models.architecture import describe, layout_of, meta_model
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.from_scratch import ScratchSpec, parse_scratch_spec, shape_config
from kdalign.models.heads import HeadKind
from kdalign.models.layouts import LAYOUTS
from kdalign.models.student_spec import CutSpec
from kdalign.models.tokenizer import same_tokenizer
from kdalign.objective.build import build_objective
from kdalign.objective.checks import check_terms
from kdalign.recipe import AlignSettings, Recipe
from kdalign.registry import check_trusted, code_named
from kdalign.runs.folder import RunFolder


@dataclass(frozen=True)
class PreparedRun:
    """A run that was checked: configurations and data are read, weights are not.

    Attributes:
        teacher: None where the student is trained alone.
        student: a checkpoint of its own; None for a student that is cut or new.
        new: what a student from nothing is; None for others.
        cut: what a student keeps that is cut out of the teacher; None for others.
        cut_from: for each stack, the teacher layers it starts from; None for others, and for a random start.
        plan: the shape plan; None without a teacher.
        tokenizer: the student's; None where it is trained on the text.
        teacher_tokenizer: the teacher's; None without a teacher.
        checks: what was found that a run would meet, once it was looked for.
        unlabelled: text without labels that is learnt from beside ``train``; None where there is none.
        augmenting: the masked language model that makes new texts of ``train``; None where none does.
    """

    recipe: Recipe
    adapter: TaskAdapter
    teacher: Checkpoint | None
    student: Checkpoint | None
    new: ScratchSpec | None
    cut: CutSpec | None
    cut_from: Mapping[str, tuple[int, ...]] | None
    plan: Plan | None
    tokenizer: PreTrainedTokenizerBase | None
    teacher_tokenizer: PreTrainedTokenizerBase | None
    train: Examples
    watched: Examples
    reported: Mapping[str, Examples]
    folder: RunFolder
    checks: tuple[Finding, ...] = ()
    unlabelled: UnlabelledSource | None = None
    augmenting: Checkpoint | None = None

    @property
    def task(self) -> AnyTask:
        """The task."""
        return self.adapter.task

    @property
    def finetunes(self) -> bool:
        """Whether the teacher must first be fine-tuned."""
        return self.teacher is not None and not self.teacher.has_classifier and self.adapter.head is HeadKind.CLASSIFIER

    @property
    def an_epoch(self) -> int:
        """Rows of an epoch, with all new texts that a model may make of them."""
        copies = self.recipe.data.augment.copies if self.augmenting is not None else 0
        return len(self.train) * (1 + copies) + (self.unlabelled.an_epoch if self.unlabelled is not None else 0)

    @property
    def steps(self) -> int | None:
        """Of the run; None where tokens decide."""
        train = self.recipe.train
        if train.max_steps is not None:
            return train.max_steps
        if train.max_tokens is not None or train.batch_tokens is not None:
            return None
        return max(1, round(train.epochs * -(-self.an_epoch // train.batch_size)))

    @property
    def across(self) -> bool:
        """Whether teacher and student have different tokenizers."""
        if self.teacher_tokenizer is None:
            return False
        return self.tokenizer is None or not same_tokenizer(self.tokenizer, self.teacher_tokenizer)

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the models and splits that the run reads."""
        found = {"train": self.train.fingerprint()}
        found |= {split: examples.fingerprint() for split, examples in self.reported.items()}
        if self.unlabelled is not None:
            found["unlabelled"] = self.unlabelled.examples.fingerprint()
        models_read = {"teacher": self.teacher, "student": self.student, "augmenting": self.augmenting}
        return found | {word: model.hash for word, model in models_read.items() if model is not None}

    @property
    def watched_word(self) -> str:
        """What the slice of train that is watched is called."""
        return "held out of train" if self.recipe.train.holds_out else "part of train"


def prepare(recipe: Recipe) -> PreparedRun:
    """Check everything that can be checked without weights.

    Raises:
        UsageError: the first thing that is wrong.
    """
    data = recipe.data
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    teacher = checkpoint_files.find_checkpoint(recipe.teacher, recipe.revision) if recipe.has_teacher else None
    cut = cut_from = None
    new = parse_scratch_spec(recipe.student) if recipe.student.startswith("new:") else None
    if new is None and teacher is not None:
        cut, cut_from = cut_spec(teacher, recipe.student, recipe.init)
    elif new is None and student_spec.is_cut(recipe.student):
        raise UsageError(f"--student {recipe.student!r} is cut out of a teacher; without one, give a model or new:TYPE")
    made = "cut out of the teacher" if cut is not None else "made from nothing"
    if recipe.student_revision is not None and (cut is not None or new is not None):
        raise UsageError(f"student_revision is of a student on the hub; {recipe.student!r} is {made}")
    own = (
        checkpoint_files.find_checkpoint(recipe.student, recipe.student_revision)
        if new is None and cut is None
        else None
    )
    first = teacher or own
    family = layout_of(first.config).family if first is not None else LAYOUTS[type_of(new)].family
    who = first.name if first is not None else recipe.student
    adapter = adapter_for(task, family, data.max_length, who, data.order)
    if data.order != "drawn" and family != "permutation":
        raise UsageError(f"data.order={data.order} is for permutation models (XLNet); {who!r} is a {family} one")
    check_task(recipe, adapter, teacher)
    tokenizer, theirs_too = check_models(recipe, adapter, teacher, own, new, cut)
    # For the shapes of a plan, which has none of the vocabulary, a tokenizer that is to be trained is the teacher's.
    planned = (tokenizer or theirs_too) if new is not None else tokenizer if recipe.tokenizer is not None else None
    check_augmentation(data.augment, tokenizer, theirs_too)
    if recipe.objective.built.masked_lm and tokenizer is not None and tokenizer.mask_token_id is None:
        raise UsageError("objective.masked_lm needs a mask token, which the student's tokenizer lacks")
    train_examples, watched = training_examples(adapter, recipe)
    plan = _plan(recipe, teacher, own, new, cut, cut_from, planned) if teacher is not None else None
    for _, stage in recipe.objective.stages:
        check_terms(recipe, build_objective(adapter.task, stage, plan), plan)
    if plan is not None:
        progressive_plans(plan, recipe.align.grow)
    check_lora(recipe, teacher, own, new, cut)
    if recipe.train.freeze and (new is None or planned is not None):
        config = student_config(teacher, own, new, cut, planned)
        student.freeze(meta_model(config, head=adapter.head), recipe.train.freeze)
    folder = RunFolder(Path(recipe.out or f"runs/{default_name(recipe, task)}"))
    check_writable(folder.path)
    if not is_utf8(folder.path):
        raise UsageError(f"--out {str(folder.path)!r} is no UTF-8, as the names of files with weights must be")
    if teacher is not None and adapter.head is HeadKind.CLASSIFIER and not teacher.has_classifier:
        check_writable(cache_folder() / "teachers")  # where it is kept once it is fine-tuned
    reported = splits_to_report(adapter, data)
    return PreparedRun(
        recipe=recipe.with_changes(out=str(folder.path)),
        adapter=adapter,
        teacher=teacher,
        student=own,
        new=new,
        cut=cut,
        cut_from=cut_from,
        plan=plan,
        tokenizer=tokenizer,
        teacher_tokenizer=theirs_too,
        train=train_examples,
        watched=watched,
        reported=reported,
        folder=folder,
        augmenting=substitute_model(data.augment) if data.augment.by == "masked-lm" else None,
        unlabelled=load_unlabelled_texts(adapter, recipe, train_examples, watched, reported),
    )


def shape_plan(teacher: Checkpoint, student_name: str, choice: str, init: str) -> Plan:
    """The plan between a teacher and a student that is named as in ``--student``."""
    theirs = describe(teacher.config)
    cut, cut_from = cut_spec(teacher, student_name, init)
    new = parse_scratch_spec(student_name) if student_name.startswith("new:") else None
    own = checkpoint_files.find_checkpoint(student_name, weights=False) if cut is None and new is None else None
    ours = (
        describe(shape_config(new, teacher.config))
        if new is not None
        else student_architecture(teacher, own, None, cut, None)
    )
    return propose(theirs, ours, choice, cut_from)


def _plan(
    recipe: Recipe,
    teacher: Checkpoint,
    own: Checkpoint | None,
    new: ScratchSpec | None,
    cut: CutSpec | None,
    cut_from: Mapping[str, tuple[int, ...]] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Plan:
    theirs = describe(teacher.config)
    ours = student_architecture(teacher, own, new, cut, tokenizer)
    if recipe.align.plan is not None:
        if recipe.align.model_copy(update={"plan": None, "remap_every": None, "grow": 0.0}) != AlignSettings():
            raise UsageError(
                "a plan holds its own map, weights and heads: give --plan, or --map and align.KEY, not both"
            )
        plan = read_plan(Path(recipe.align.plan)).with_statistics({})  # another teacher of this shape has others
        check_trusted(plan.choice, f"plan {recipe.align.plan!r}: map")
        plan.fits(theirs, ours)
    else:
        how = recipe.align
        style = ProjectionStyle(how.projection, how.side, how.shared, how.start)
        options = PlanOptions(how.weights, how.heads, how.relations, how.relation_heads, style)
        plan = propose(theirs, ours, how.map, cut_from, options)
    return plan


def resume_command(runs: Sequence[PreparedRun], folder: RunFolder) -> str:
    """The command that goes on with runs in a folder, which may run the code that they name."""
    named = [[run.recipe.objective.terms, run.recipe.align.map, list(run.task.metrics)] for run in runs]
    code = " --allow code" if any(code_named(each) for each in named) else ""
    return f"kdalign distill --out {shlex.quote(str(folder.path))} --resume{code}"
