"""Checks of a recipe against its models and task, before weights load."""

import importlib.util
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import check_spans
from kdalign.data.tasks import ClassificationTask, LanguageTask
from kdalign.data.tokenization import check_template
from kdalign.devices import world_size
from kdalign.distillation.student_source import own_tokenizer, student_config
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models import checkpoint_files, loading, student_spec
from kdalign.models.architecture import describe, layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.from_scratch import ScratchSpec
from kdalign.models.heads import HeadKind
from kdalign.models.layouts import LAYOUTS
from kdalign.models.student_spec import CutSpec
from kdalign.models.tokenizer import load_tokenizer, same_tokenizer
from kdalign.objective.losses import LEAST_GROUP
from kdalign.recipe import AugmentSettings, Recipe


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


def check_task(recipe: Recipe, adapter: TaskAdapter, teacher: Checkpoint | None) -> None:
    """Refuse what a kind of task cannot be taught with."""
    name, trained = adapter.task.name, (recipe.tokenizer or "").startswith("train:")
    if recipe.train.lora is not None and importlib.util.find_spec("peft") is None:
        raise UsageError("--lora needs a package: pip install 'kdalign[lora]'")
    if recipe.data.unlabelled is not None and not isinstance(adapter.task, ClassificationTask):
        raise UsageError(
            f"--unlabelled is for tasks of classes or scores; task {name!r} needs no labels: "
            f"add the texts to its split {adapter.task.train!r}"
        )
    if recipe.objective.built.masked_lm and not isinstance(adapter.task, ClassificationTask):
        what = "asks for tokens anyway" if adapter.head is not HeadKind.NONE else "gives embeddings"
        raise UsageError(f"objective.masked_lm is beside classes or scores, and task {name!r} {what}")
    if recipe.data.augment.by != "none" and not isinstance(adapter.task, ClassificationTask):
        raise UsageError(f"data.augment is for tasks of classes or scores, not for task {name!r}")
    if isinstance(adapter.task, LanguageTask) and adapter.task.kind == "chat" and trained:
        raise UsageError(f"task {name!r} needs a chat template, which a tokenizer trained on the text lacks")
    if adapter.head is not HeadKind.NONE:
        return
    if teacher is None:
        raise UsageError(f"task {name!r} learns from a teacher's embeddings: give --teacher")
    if recipe.train.batch_tokens is not None:
        raise UsageError(f"task {name!r} compares the texts of a batch with one another: it takes --batch-size")
    if recipe.objective.built.hard > 0:
        raise UsageError(f"task {name!r} has no labels: it takes --hard 0")
    size = recipe.train.micro_batch or -(-recipe.train.batch_size // world_size())
    if size < LEAST_GROUP:
        raise UsageError(
            f"task {name!r} compares the texts of a micro-batch with one another: {size} are too few "
            f"(accepted: {LEAST_GROUP} or more)"
        )


def check_models(
    recipe: Recipe,
    adapter: TaskAdapter,
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    new: ScratchSpec | None,
    cut: CutSpec | None,
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """Refuse heads, tokenizers and lengths that do not go together; the student's tokenizer and the teacher's."""
    classifies = adapter.head is HeadKind.CLASSIFIER
    if teacher is not None:
        adapter.check(teacher)
        checkpoint_files.check_length(teacher, recipe.data.max_length)
        loading.check_weights(teacher, adapter.head, fresh_head=classifies and not teacher.has_classifier)
        if classifies and not teacher.has_classifier and not recipe.finetune_teacher:
            raise UsageError(
                f"teacher {teacher.name!r} has no classification head, so it cannot teach {adapter.task.name!r}; "
                f"allow fine-tuning it first, or give a fine-tuned one"
            )
    if recipe.narrow_by != "pca" and not (cut is not None and cut.narrows):
        raise UsageError(
            f"narrow_by={recipe.narrow_by} is for a student narrower than its teacher, such as layers=half,width=192"
        )
    if recipe.init == "random" and not student_spec.is_cut(recipe.student):
        raise UsageError("--init random is for a student cut out of the teacher (layers=N)")
    if recipe.init_from == "pretrained":
        if cut is None or recipe.init == "random":
            raise UsageError("init_from=pretrained is for a student that copies layers of its teacher (layers=N)")
        if not classifies or (teacher is not None and teacher.has_classifier):
            raise UsageError(f"init_from=pretrained is for a teacher that is fine-tuned first, not {recipe.teacher!r}")
    if own is not None and teacher is not None and adapter.head is HeadKind.SEQ2SEQ:
        starts = [int(each.config.decoder_start_token_id) for each in (teacher, own)]
        if starts[0] != starts[1]:
            raise UsageError(
                f"targets of teacher {teacher.name!r} begin with token {starts[0]} and those of student {own.name!r} "
                f"with {starts[1]}: they cannot read the same"
            )
    if own is not None:
        checkpoint_files.check_length(own, recipe.data.max_length)
        loading.check_weights(own, adapter.head, fresh_head=not adapter.has_head(own))
    if new is not None:
        _check_new(recipe, adapter, teacher, new)
    theirs = load_tokenizer(teacher) if teacher is not None else None
    ours = own_tokenizer(recipe, adapter, teacher, own, theirs)
    if ours is not None and isinstance(adapter.task, LanguageTask) and adapter.task.kind == "chat":
        check_template(ours)
    for checkpoint, tokenizer in ((teacher, theirs), (own, ours if own is not None else None)):
        if checkpoint is not None and tokenizer is not None:
            adapter.check_tokenizer(tokenizer, checkpoint.name, scored=False)
    if own is None and ours is not None and ours is not theirs:
        adapter.check_tokenizer(ours, recipe.tokenizer or recipe.student, scored=False)
    across = theirs is not None and (ours is None or not same_tokenizer(ours, theirs))
    if not across:
        for checkpoint in filter(None, (teacher, own)):
            adapter.check_packing(checkpoint)
    if theirs is not None and teacher is not None and across:
        adapter.check_dual()
        for tokenizer, name in ((theirs, teacher.name), *([(ours, recipe.student)] if ours is not None else [])):
            check_spans(tokenizer, name)
    return ours, theirs


def check_lora(
    recipe: Recipe, teacher: Checkpoint | None, own: Checkpoint | None, new: ScratchSpec | None, cut: CutSpec | None
) -> None:
    """Refuse adapters of a higher rank than the weights have that they are beside."""
    rank = recipe.train.lora
    if rank is None:
        return
    if new is not None:
        width = new.width
    else:
        width = max(stack.width for stack in describe(student_config(teacher, own, new, cut, None)).stacks)
    if rank > width:
        raise UsageError(
            f"--lora {rank} is more than the student's width {width}: no adapter has a higher rank (8 to 64 are usual)"
        )


def check_augmentation(
    augment: AugmentSettings,
    ours: PreTrainedTokenizerBase | None,
    theirs: PreTrainedTokenizerBase | None,
) -> None:
    """Refuse other views of rows that cannot be had by these tokenizers."""
    if not augment.corrupts:
        return
    asked = f"data.augment.by={augment.by}"
    if theirs is not None and (ours is None or not same_tokenizer(ours, theirs)):
        raise UsageError(f"{asked} changes tokens, and teacher and student read different ones (accepted: masked-lm)")
    if augment.by == "spans" and ours is not None and ours.mask_token_id is None:
        raise UsageError(f"{asked} needs a mask token, which the tokenizer has not (accepted: cutoff)")


def _check_new(recipe: Recipe, adapter: TaskAdapter, teacher: Checkpoint | None, new: ScratchSpec) -> None:
    """Refuse a student from nothing that cannot learn this, or not from this teacher."""
    if adapter.head in (HeadKind.CLASSIFIER, HeadKind.NONE):
        raise UsageError(
            f"task {adapter.task.name!r} is not learnt from nothing; give a checkpoint, or a task such as lm"
        )
    family = LAYOUTS[new.model_type].family
    if teacher is not None and family != layout_of(teacher.config).family:
        theirs = layout_of(teacher.config).family
        raise UsageError(f"--student {recipe.student!r} is a {family} model, teacher {teacher.name!r} a {theirs} one")
    if new.positions < recipe.data.max_length:
        raise UsageError(f"--max-length {recipe.data.max_length} is more than the {new.positions} positions asked for")
    if teacher is None and recipe.tokenizer is None:
        raise UsageError(f"--student {recipe.student!r} needs --tokenizer: a hub id, a folder, or train:8000")
