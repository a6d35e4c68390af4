"""Check a recipe against models and data before any weights are loaded and before anything is written."""

import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.alignment.plan import Plan, ProjectionStyle, grown, propose, read_plan
from kdalign.data.dual_tokenization import check_spans
from kdalign.data.tasks import AnyTask, Examples, LanguageTask, Task, Unlabelled, find_task
from kdalign.data.tokenization import check_template
from kdalign.distillation.augmentation import substitute_model
from kdalign.distillation.splits import further_texts, reported_splits, training_examples
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import Work, work_on
from kdalign.files import check_links, check_writable, is_utf8
from kdalign.models import loading, student
from kdalign.models.architecture import LAYOUTS, Architecture, HeadKind, describe, layout_of, skeleton, with_tokenizer
from kdalign.models.from_scratch import NewModel, check_size, new_config, parse_new, shape_of
from kdalign.models.loading import Checkpoint
from kdalign.models.student import Cut
from kdalign.objective.checks import check_terms
from kdalign.objective.losses import LEAST_GROUP
from kdalign.recipe import PRETRAINED, Align, Augment, Recipe, load_recipe, missing_keys, recipe_of_task
from kdalign.registry import check_trusted, code_named
from kdalign.runs.integrity import read_checked
from kdalign.runs.record import RunFolder
from kdalign.training.checkpoint import newest_whole


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name, which ``--allow`` takes.
        said: what was found.
        mend: what can be done about it; empty where nothing is wrong.
        allowed: whether the recipe lets it through.
    """

    what: str
    said: str
    mend: str = ""
    allowed: bool = False


@dataclass(frozen=True)
class Prepared:
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
    work: Work
    teacher: Checkpoint | None
    student: Checkpoint | None
    new: NewModel | None
    cut: Cut | None
    cut_from: Mapping[str, tuple[int, ...]] | None
    plan: Plan | None
    tokenizer: PreTrainedTokenizerBase | None
    teacher_tokenizer: PreTrainedTokenizerBase | None
    train: Examples
    watched: Examples
    reported: Mapping[str, Examples]
    folder: RunFolder
    checks: tuple[Finding, ...] = ()
    unlabelled: Unlabelled | None = None
    augmenting: Checkpoint | None = None

    @property
    def task(self) -> AnyTask:
        """The task."""
        return self.work.task

    @property
    def finetunes(self) -> bool:
        """Whether the teacher must first be fine-tuned."""
        return self.teacher is not None and not self.teacher.has_classifier and self.work.head is HeadKind.CLASSIFIER

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
        return self.tokenizer is None or not loading.same_tokenizer(self.tokenizer, self.teacher_tokenizer)

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


def prepare(recipe: Recipe) -> Prepared:
    """Check everything that can be checked without weights.

    Raises:
        UsageError: the first thing that is wrong.
    """
    data = recipe.data
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    teacher = loading.locate(recipe.teacher, recipe.revision) if recipe.has_teacher else None
    cut = cut_from = None
    new = parse_new(recipe.student) if recipe.student.startswith("new:") else None
    if new is None and teacher is not None:
        cut, cut_from = _cut(teacher, recipe.student, recipe.init)
    elif new is None and student.is_cut(recipe.student):
        raise UsageError(f"--student {recipe.student!r} is cut out of a teacher; without one, give a model or new:TYPE")
    made = "cut out of the teacher" if cut is not None else "made from nothing"
    if recipe.student_revision is not None and (cut is not None or new is not None):
        raise UsageError(f"student_revision is of a student on the hub; {recipe.student!r} is {made}")
    own = loading.locate(recipe.student, recipe.student_revision) if new is None and cut is None else None
    first = teacher or own
    family = layout_of(first.config).family if first is not None else LAYOUTS[_type_of(new)].family
    who = first.name if first is not None else recipe.student
    work = work_on(task, family, data.max_length, who, data.order)
    if data.order != "drawn" and family != "permutation":
        raise UsageError(f"data.order={data.order} is for permutation models (XLNet); {who!r} is a {family} one")
    _check_task(recipe, work, teacher)
    tokenizer, theirs_too = _check_models(recipe, work, teacher, own, new, cut)
    # For the shapes of a plan, which has none of the vocabulary, a tokenizer that is to be trained is the teacher's.
    planned = (tokenizer or theirs_too) if new is not None else tokenizer if recipe.tokenizer is not None else None
    _check_augmented(data.augment, tokenizer, theirs_too)
    if recipe.objective.built.masked_lm and tokenizer is not None and tokenizer.mask_token_id is None:
        raise UsageError("objective.masked_lm needs a mask token, which the student's tokenizer lacks")
    train_examples, watched = training_examples(work, recipe)
    plan = _plan(recipe, teacher, own, new, cut, cut_from, planned) if teacher is not None else None
    for _, stage in recipe.objective.stages:
        check_terms(recipe, work.objective(stage, plan, None), plan)
    if plan is not None:
        grown(plan, recipe.align.grow)
    _check_lora(recipe, teacher, own, new, cut)
    if recipe.train.freeze and (new is None or planned is not None):
        config = _student_config(teacher, own, new, cut, planned)
        student.freeze(skeleton(config, head=work.head), recipe.train.freeze)
    folder = RunFolder(Path(recipe.out or f"runs/{default_name(recipe, task)}"))
    check_writable(folder.path)
    if not is_utf8(folder.path):
        raise UsageError(f"--out {str(folder.path)!r} is no UTF-8, as the names of files with weights must be")
    if teacher is not None and work.head is HeadKind.CLASSIFIER and not teacher.has_classifier:
        check_writable(cache_folder() / "teachers")  # where it is kept once it is fine-tuned
    reported = reported_splits(work, data)
    return Prepared(
        recipe=recipe.with_changes(out=str(folder.path)),
        work=work,
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
        unlabelled=further_texts(work, recipe, train_examples, watched, reported),
    )


def trained_size(tokenizer: str) -> int | None:
    """The number of entries that ``train:SIZE`` asks for; None for a tokenizer that is there already.

    Raises:
        UsageError: not a number.
    """
    if not tokenizer.startswith("train:"):
        return None
    size = tokenizer.removeprefix("train:")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", size):
        raise UsageError(f"--tokenizer {tokenizer!r}: accepted is train:SIZE, such as train:8000")
    return int(size)


def _type_of(new: NewModel | None) -> str:
    assert new is not None, "a student is cut, a checkpoint or new"
    return new.model_type


def _check_task(recipe: Recipe, work: Work, teacher: Checkpoint | None) -> None:
    """Refuse what a kind of task cannot be taught with."""
    name, trained = work.task.name, (recipe.tokenizer or "").startswith("train:")
    if recipe.train.lora is not None and importlib.util.find_spec("peft") is None:
        raise UsageError("--lora needs a package: pip install 'kdalign[lora]'")
    if recipe.data.unlabelled is not None and not isinstance(work.task, Task):
        raise UsageError(
            f"--unlabelled is for tasks of classes or scores; task {name!r} needs no labels: "
            f"add the texts to its split {work.task.train!r}"
        )
    if recipe.objective.built.masked_lm and not isinstance(work.task, Task):
        what = "asks for tokens anyway" if work.head is not HeadKind.NONE else "gives embeddings"
        raise UsageError(f"objective.masked_lm is beside classes or scores, and task {name!r} {what}")
    if recipe.data.augment.by != "none" and not isinstance(work.task, Task):
        raise UsageError(f"data.augment is for tasks of classes or scores, not for task {name!r}")
    if isinstance(work.task, LanguageTask) and work.task.kind == "chat" and trained:
        raise UsageError(f"task {name!r} needs a chat template, which a tokenizer trained on the text lacks")
    if work.head is not HeadKind.NONE:
        return
    if teacher is None:
        raise UsageError(f"task {name!r} learns from a teacher's embeddings: give --teacher")
    if recipe.train.batch_tokens is not None:
        raise UsageError(f"task {name!r} compares the texts of a batch with one another: it takes --batch-size")
    if recipe.objective.built.hard > 0:
        raise UsageError(f"task {name!r} has no labels: it takes --hard 0")
    size = recipe.train.micro_batch or -(-recipe.train.batch_size // int(os.environ.get("WORLD_SIZE", "1")))
    if size < LEAST_GROUP:
        raise UsageError(
            f"task {name!r} compares the texts of a micro-batch with one another: {size} are too few "
            f"(accepted: {LEAST_GROUP} or more)"
        )


def _check_models(
    recipe: Recipe,
    work: Work,
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    new: NewModel | None,
    cut: Cut | None,
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """Refuse heads, tokenizers and lengths that do not go together; the student's tokenizer and the teacher's."""
    classifies = work.head is HeadKind.CLASSIFIER
    if teacher is not None:
        work.check(teacher)
        loading.check_length(teacher, recipe.data.max_length)
        loading.check_weights(teacher, work.head, fresh_head=classifies and not teacher.has_classifier)
        if classifies and not teacher.has_classifier and not recipe.finetune_teacher:
            raise UsageError(
                f"teacher {teacher.name!r} has no classification head, so it cannot teach {work.task.name!r}; "
                f"allow fine-tuning it first, or give a fine-tuned one"
            )
    if recipe.narrow_by != "pca" and not (cut is not None and cut.narrows):
        raise UsageError(
            f"narrow_by={recipe.narrow_by} is for a student narrower than its teacher, such as layers=half,width=192"
        )
    if recipe.init == "random" and not student.is_cut(recipe.student):
        raise UsageError("--init random is for a student cut out of the teacher (layers=N)")
    if recipe.init_from == "pretrained":
        if cut is None or recipe.init == "random":
            raise UsageError("init_from=pretrained is for a student that copies layers of its teacher (layers=N)")
        if not classifies or (teacher is not None and teacher.has_classifier):
            raise UsageError(f"init_from=pretrained is for a teacher that is fine-tuned first, not {recipe.teacher!r}")
    if own is not None and teacher is not None and work.head is HeadKind.SEQ2SEQ:
        starts = [int(each.config.decoder_start_token_id) for each in (teacher, own)]
        if starts[0] != starts[1]:
            raise UsageError(
                f"targets of teacher {teacher.name!r} begin with token {starts[0]} and those of student {own.name!r} "
                f"with {starts[1]}: they cannot read the same"
            )
    if own is not None:
        loading.check_length(own, recipe.data.max_length)
        loading.check_weights(own, work.head, fresh_head=not work.keeps_head(own))
    if new is not None:
        _check_new(recipe, work, teacher, new)
    theirs = loading.load_tokenizer(teacher) if teacher is not None else None
    ours = _own_tokenizer(recipe, work, teacher, own, theirs)
    if ours is not None and isinstance(work.task, LanguageTask) and work.task.kind == "chat":
        check_template(ours)
    for checkpoint, tokenizer in ((teacher, theirs), (own, ours if own is not None else None)):
        if checkpoint is not None and tokenizer is not None:
            work.check_tokenizer(tokenizer, checkpoint.name, scored=False)
    if own is None and ours is not None and ours is not theirs:
        work.check_tokenizer(ours, recipe.tokenizer or recipe.student, scored=False)
    across = theirs is not None and (ours is None or not loading.same_tokenizer(ours, theirs))
    if not across:
        for checkpoint in filter(None, (teacher, own)):
            work.check_packing(checkpoint)
    if theirs is not None and teacher is not None and across:
        work.check_across()
        for tokenizer, name in ((theirs, teacher.name), *([(ours, recipe.student)] if ours is not None else [])):
            check_spans(tokenizer, name)
    return ours, theirs


def _check_lora(
    recipe: Recipe, teacher: Checkpoint | None, own: Checkpoint | None, new: NewModel | None, cut: Cut | None
) -> None:
    """Refuse adapters of a higher rank than the weights have that they are beside."""
    rank = recipe.train.lora
    if rank is None:
        return
    if new is not None:
        width = new.width
    else:
        width = max(stack.width for stack in describe(_student_config(teacher, own, new, cut, None)).stacks)
    if rank > width:
        raise UsageError(
            f"--lora {rank} is more than the student's width {width}: no adapter has a higher rank (8 to 64 are usual)"
        )


def _check_augmented(
    augment: Augment,
    ours: PreTrainedTokenizerBase | None,
    theirs: PreTrainedTokenizerBase | None,
) -> None:
    """Refuse other views of rows that cannot be had by these tokenizers."""
    if not augment.corrupts:
        return
    asked = f"data.augment.by={augment.by}"
    if theirs is not None and (ours is None or not loading.same_tokenizer(ours, theirs)):
        raise UsageError(f"{asked} changes tokens, and teacher and student read different ones (accepted: masked-lm)")
    if augment.by == "spans" and ours is not None and ours.mask_token_id is None:
        raise UsageError(f"{asked} needs a mask token, which the tokenizer has not (accepted: cutoff)")


def _check_new(recipe: Recipe, work: Work, teacher: Checkpoint | None, new: NewModel) -> None:
    """Refuse a student from nothing that cannot learn this, or not from this teacher."""
    if work.head in (HeadKind.CLASSIFIER, HeadKind.NONE):
        raise UsageError(f"task {work.task.name!r} is not learnt from nothing; give a checkpoint, or a task such as lm")
    family = LAYOUTS[new.model_type].family
    if teacher is not None and family != layout_of(teacher.config).family:
        theirs = layout_of(teacher.config).family
        raise UsageError(f"--student {recipe.student!r} is a {family} model, teacher {teacher.name!r} a {theirs} one")
    if new.positions < recipe.data.max_length:
        raise UsageError(f"--max-length {recipe.data.max_length} is more than the {new.positions} positions asked for")
    if teacher is None and recipe.tokenizer is None:
        raise UsageError(f"--student {recipe.student!r} needs --tokenizer: a hub id, a folder, or train:8000")


def _own_tokenizer(
    recipe: Recipe,
    work: Work,
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    theirs: PreTrainedTokenizerBase | None,
) -> PreTrainedTokenizerBase | None:
    """The student's tokenizer: its own, one that was asked for, or its teacher's; None where it is to be trained."""
    if own is not None:
        if recipe.tokenizer is not None:
            raise UsageError("--tokenizer is for students that are cut or new; a checkpoint brings its own")
        return loading.load_tokenizer(own)
    if recipe.tokenizer is None:
        return theirs
    if recipe.train.lora is not None and teacher is not None:
        raise UsageError("--lora leaves embeddings as they are, and a vocabulary of its own (--tokenizer) learns them")
    family = _family(recipe, teacher)
    size = trained_size(recipe.tokenizer)
    if size is not None:
        check_size(size, family)
        return None
    found = loading.load_tokenizer_named(recipe.tokenizer, family)
    if teacher is not None and not recipe.student.startswith("new:"):
        with_tokenizer(teacher.config, found)
    return found


def _family(recipe: Recipe, teacher: Checkpoint | None) -> str:
    """Of a student that is cut or new."""
    if teacher is not None:
        return layout_of(teacher.config).family
    return LAYOUTS[parse_new(recipe.student).model_type].family


def _cut(teacher: Checkpoint, name: str, init: str) -> tuple[Cut | None, Mapping[str, tuple[int, ...]] | None]:
    """What a student keeps of its teacher, and the layers that it starts from, checked; None for what is no cut."""
    theirs = describe(teacher.config)
    cut = student.cut_of(name, theirs)
    if cut is None:
        return None, None
    cut.config(teacher.config)
    start = student.starting_layers(init, cut.layers, theirs)
    if start is not None:
        student.check_cut(teacher.config, start)
    return cut, start


def shape_plan(teacher: Checkpoint, student_name: str, choice: str, init: str) -> Plan:
    """The plan between a teacher and a student that is named as in ``--student``."""
    theirs = describe(teacher.config)
    cut, cut_from = _cut(teacher, student_name, init)
    new = parse_new(student_name) if student_name.startswith("new:") else None
    own = loading.locate(student_name, weights=False) if cut is None and new is None else None
    ours = describe(shape_of(new, teacher.config)) if new is not None else _architecture(teacher, own, None, cut, None)
    return propose(theirs, ours, choice, cut_from)


def _architecture(
    teacher: Checkpoint,
    own: Checkpoint | None,
    new: NewModel | None,
    cut: Cut | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Architecture:
    """The student's."""
    return describe(_student_config(teacher, own, new, cut, tokenizer))


def _student_config(
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    new: NewModel | None,
    cut: Cut | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PretrainedConfig:
    """The student's configuration: cut out of the teacher's, new, or a checkpoint's own.

    ``tokenizer`` is a new student's, or one that a cut student gets in place of its teacher's.
    """
    if cut is not None:
        assert teacher is not None, "a student is cut out of a teacher"
        config = cut.config(teacher.config)
        return config if tokenizer is None else with_tokenizer(config, tokenizer)
    if new is not None:
        assert tokenizer is not None, "a new student has a tokenizer, or stands in with its teacher's"
        return new_config(new, tokenizer)
    assert own is not None, "a student is cut, a checkpoint or new"
    return own.config


def split_by_task(recipe: Recipe) -> list[Recipe]:
    """One recipe per task; several get a folder each below ``out``.

    Raises:
        UsageError: one task is to be learnt together with none, or something that differs for a task is wrong.
    """
    tasks = recipe.data.task
    if len(tasks) == 1:
        others = [name for name in recipe.multi_task.tasks if name != tasks[0]]
        if recipe.multi_task.together and others:  # what a task's own folder holds
            raise UsageError(
                f"task {tasks[0]!r} is learnt together with {', '.join(others)}: give the folder above this task's"
            )
        if recipe.multi_task.together:
            raise UsageError(f"--multi-task takes two tasks or more: given {tasks[0]!r} alone")
        return [recipe]
    parent = Path(recipe.out or f"runs/{default_name(recipe, None)}")
    starts = _starts(recipe)
    return [
        recipe_of_task(recipe, task, out=str(parent / _folder_name(task)), init_from=starts[task]) for task in tasks
    ]


def _starts(recipe: Recipe) -> dict[str, str]:
    """For each task, whether its student is cut out of the teacher as it was before it was fine-tuned or after that.

    With several tasks in one student it is before that, unless the recipe names the task whose teacher is taken.
    """
    starts: dict[str, str] = dict.fromkeys(recipe.data.task, recipe.init_from)
    if not recipe.multi_task.together:
        return starts
    named = recipe.multi_task.body_from
    copies = student.is_cut(recipe.student) and recipe.init != "random" and recipe.has_teacher
    if copies and not loading.locate(recipe.teacher, recipe.revision).has_classifier:
        return {task: "fine-tuned" if task == named else PRETRAINED for task in starts}
    if named != PRETRAINED:
        raise UsageError(
            f"multi_task.body_from={named} is for a student that copies layers of a teacher that is fine-tuned first"
        )
    return starts


def _folder_name(task: str) -> str:
    """A task's word as a folder's name."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else re.sub(r"[^\w.]+", "-", task)


def default_name(recipe: Recipe, task: AnyTask | None) -> str:
    """The run folder's name where none is given: task, teacher, student and seed."""
    words = [task.name if task else "-".join(map(_folder_name, recipe.data.task))]
    words += ["together"] if recipe.multi_task.together else []
    words += [Path(recipe.teacher).name] if recipe.has_teacher else ["alone"]
    words += [Path(recipe.student).name.replace("=", ""), f"seed{recipe.train.seed}"]
    return "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)


def _plan(
    recipe: Recipe,
    teacher: Checkpoint,
    own: Checkpoint | None,
    new: NewModel | None,
    cut: Cut | None,
    cut_from: Mapping[str, tuple[int, ...]] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Plan:
    theirs = describe(teacher.config)
    ours = _architecture(teacher, own, new, cut, tokenizer)
    if recipe.align.plan is not None:
        if recipe.align.model_copy(update={"plan": None, "remap_every": None, "grow": 0.0}) != Align():
            raise UsageError(
                "a plan holds its own map, weights and heads: give --plan, or --map and align.KEY, not both"
            )
        plan = read_plan(Path(recipe.align.plan)).with_statistics({})  # another teacher of this shape has others
        check_trusted(plan.choice, f"plan {recipe.align.plan!r}: map")
        plan.fits(theirs, ours)
    else:
        how = recipe.align
        style = ProjectionStyle(how.projection, how.side, how.shared, how.start)
        plan = propose(
            theirs, ours, how.map, cut_from, how.weights, how.heads, how.relations, how.relation_heads, style
        )
    return plan


def go_on_with(runs: Sequence[Prepared], folder: RunFolder) -> str:
    """The command that goes on with runs in a folder, which may run the code that they name."""
    named = [[run.recipe.objective.terms, run.recipe.align.map, list(run.task.metrics)] for run in runs]
    code = " --allow code" if any(code_named(each) for each in named) else ""
    return f"kdalign distill --out {shlex.quote(str(folder.path))} --resume{code}"


def claim(
    folder: RunFolder,
    recipe: Recipe,
    resume: bool,
    overwrite: bool,
    inputs: Mapping[str, str] | None = None,
    parts: Sequence[RunFolder] = (),
) -> None:
    """Refuse a folder that holds something, unless it is a run to resume or to overwrite; nothing is changed yet.

    A run to resume must be as it was left: a finished one by its record, another by the hashes that it began with and
    those of its newest whole checkpoint.

    Args:
        folder: of the run, or of several.
        recipe: what is to be done there.
        resume: go on.
        overwrite: put the new run in its place.
        inputs: fingerprints of what the run reads; None for a folder above several runs.
        parts: the folders with the histories of its checkpoints, where it is not its own.

    Raises:
        UsageError: what lies there, and what can be done.
    """
    if not folder.started:
        return
    if overwrite:
        _check_inputs_stay(folder, recipe)
    if resume or overwrite:
        check_links(folder.path)
    if not folder.recipe.is_file():
        raise UsageError(f"{str(folder.path)!r} is not empty and holds no run; choose another --out")
    if not (resume or overwrite):
        tasks = recipe.data.task
        parts = [folder] if len(tasks) == 1 else [RunFolder(folder.path / _folder_name(task)) for task in tasks]
        state = "a finished run" if all(part.complete for part in parts) else "an unfinished run"
        raise UsageError(f"{str(folder.path)!r} holds {state}: give --resume, --overwrite or another --out")
    if resume:
        if folder.complete:
            read_checked(folder.path)
        else:
            _check_unfinished(folder, parts)
        changed = _difference(load_recipe(folder.recipe), recipe)
        if changed:
            raise UsageError(f"{str(folder.path)!r} holds a run of another recipe ({changed}); give another --out")
        before = folder.read_inputs()
        for name, value in (inputs or {}).items():
            if before.get(name, value) != value:
                raise UsageError(
                    f"{str(folder.path)!r} holds a run on another {name} ({before[name]} then, {value} now); "
                    f"give --overwrite or another --out"
                )


def _check_inputs_stay(folder: RunFolder, recipe: Recipe) -> None:
    """Refuse to remove a folder that holds what the run is to read.

    Raises:
        UsageError: which of it.
    """
    data = recipe.data
    named = [
        *(("teacher", recipe.teacher), ("student", recipe.student), ("tokenizer", recipe.tokenizer)),
        *(
            ("data.folder", data.folder),
            ("data.unlabelled", data.unlabelled),
            ("data.augment.model", data.augment.model),
        ),
        *(("align.plan", recipe.align.plan), *(("data.task", task) for task in data.task)),
    ]
    for key, name in named:
        if name is not None and Path(name).expanduser().exists():
            if Path(name).expanduser().resolve().is_relative_to(folder.path.resolve()):
                raise UsageError(f"{key} {name!r} lies in {str(folder.path)!r}, which --overwrite would remove first")


def _check_unfinished(folder: RunFolder, parts: Sequence[RunFolder]) -> None:
    """Refuse an unfinished run that is not as it was left.

    Raises:
        UsageError: which file was changed, and what can be done.
    """
    found = newest_whole(folder, parts)
    if folder.check_begun(found.progress.plan):
        return
    lacking = missing_keys(folder.recipe)  # an older version began it, and wrote no hashes
    if lacking:
        raise UsageError(
            f"run {str(folder.path)!r}: recipe.yaml lacks {lacking[0]!r}, which a run's own recipe has: put it back as "
            f"it was, or start again with --overwrite"
        )


def _difference(saved: Recipe, given: Recipe) -> str:
    """The first key on which two recipes differ, beside the folder and a precision that was left to kdalign."""
    ours, theirs = given.flat(), saved.flat()
    for key, value in ours.items():
        if key == "out" or (key == "train.precision" and "auto" in (value, theirs[key])):
            continue
        if theirs[key] != value:
            return f"{key} is {theirs[key]} there, {value} here"
    return ""
