"""Several teachers of one run: their checkpoints, what they must have in common, and the teacher of each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import check_spans
from kdalign.data.media.readers import MediaReader
from kdalign.data.media.readers import fingerprint as media_fingerprint
from kdalign.data.tasks import AnyTask, ClassificationTask, Examples
from kdalign.errors import UsageError, did_you_mean, shorten
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models.checkpoint_files import Checkpoint, find_checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.media_reader import load_media_reader
from kdalign.models.mixtures import Mixing
from kdalign.models.tokenizer import TokenizerPair, load_tokenizer, same_tokenizer
from kdalign.objective.objective import Objective
from kdalign.objective.terms import LayerTerm, Unit
from kdalign.recipe import Recipe

_SHOWN = 8
"""Most values of a column that an error line shows."""


def find_teachers(recipe: Recipe) -> tuple[Checkpoint, ...]:
    """Find the checkpoints of a recipe's teachers; none without a teacher, or for one behind an API.

    Raises:
        UsageError: no such model.
    """
    return tuple(find_checkpoint(name, recipe.revision) for name in recipe.teacher_names if recipe.loads_teacher)


def check_teachers(recipe: Recipe, adapter: TaskAdapter, teachers: Sequence[Checkpoint]) -> None:
    """Refuse teachers that cannot teach together: other starts of targets, or no way to combine their answers.

    Raises:
        UsageError: the teacher, how it differs from the first, and what is accepted.
    """
    if len(teachers) < 2:
        return
    first, *others = teachers
    for other in others:
        if adapter.head is HeadKind.SEQ2SEQ:
            begins = [int(each.config.decoder_start_token_id) for each in (first, other)]
            if begins[0] != begins[1]:
                raise UsageError(
                    f"targets of teacher {first.name!r} begin with token {begins[0]} and those of {other.name!r} with "
                    f"{begins[1]}: they cannot read the same"
                )
    regression = isinstance(adapter.task, ClassificationTask) and adapter.task.regression
    if recipe.teachers.combine == "confidence" and (regression or adapter.head is HeadKind.NONE):
        what = "a score" if regression else "an embedding"
        raise UsageError(
            f"teachers.combine=confidence weighs distributions over classes or tokens, and {what} is none (accepted: "
            f"mean, teachers.weights)"
        )
    if recipe.teachers.by is not None and adapter.head is HeadKind.NONE:
        raise UsageError(
            f"teachers.by is not for task {adapter.task.name!r}: the embeddings of two teachers are in spaces of their "
            f"own, and the texts of a batch are compared with one another (accepted: mean, teachers.weights)"
        )


def find_readers(
    teachers: Sequence[Checkpoint], tokenizers: TokenizerPair, of_tokens: bool
) -> tuple[PreTrainedTokenizerBase | None, ...]:
    """Return each teacher's tokenizer, None for one that reads the student's tokens; nothing if all read alike.

    Args:
        teachers: all of them.
        tokenizers: of student and first teacher.
        of_tokens: true if the teachers predict tokens.

    Raises:
        UsageError: teachers that cannot be combined, or a tokenizer that gives no characters to match tokens by.
    """
    if len(teachers) < 2:
        return ()
    found: list[PreTrainedTokenizerBase] = []
    for teacher in teachers:
        _check_media(tokenizers.teacher_media, teacher, teachers[0])
        own = load_tokenizer(teacher)
        found.append(next((other for other in found if same_tokenizer(other, own)), own))
    if all(each is found[0] for each in found):
        return ()
    if of_tokens:
        raise UsageError(
            f"teachers {' and '.join(repr(each.name) for each in teachers)} have different tokenizers, so their "
            f"distributions of tokens cannot be averaged (accepted: teachers of one tokenizer, the student's or "
            f"another); distill from one after the other, with the first student as --student of the second run"
        )
    ours = tokenizers.student
    named = zip(found, [teacher.name for teacher in teachers], strict=True)
    for tokenizer, name in [*named, *([] if ours is None else [(ours, "the student")])]:
        check_spans(tokenizer, name)
    return tuple(None if ours is not None and same_tokenizer(ours, each) else each for each in found)


def _check_media(first: MediaReader | None, teacher: Checkpoint, first_teacher: Checkpoint) -> None:
    """Refuse a teacher that reads sounds or images otherwise than the first one."""
    own = load_media_reader(teacher)
    if first is not None and own is not None and media_fingerprint(first) != media_fingerprint(own):
        raise UsageError(
            f"teachers {first_teacher.name!r} and {teacher.name!r} have different {first.modality} processors "
            f"(preprocessor_config.json): they cannot read the same {first.modality} (accepted: teachers of one)"
        )


def check_divided_terms(recipe: Recipe, objective: Objective) -> None:
    """Refuse terms that compare the texts of a batch by their layers, where teachers divide the rows among themselves.

    Raises:
        UsageError: the term.
    """
    for name, (_, term) in objective.terms.items() if recipe.teachers.by is not None else ():
        if isinstance(term, LayerTerm) and term.unit in (Unit.GROUP, Unit.TOKEN_GROUP):
            raise UsageError(
                f"term {name!r} compares the rows of a batch with one another, and teachers.by gives them to different "
                f"teachers (accepted: terms on each row by itself)"
            )


def mixing_of(recipe: Recipe) -> Mixing:
    """Return the weights of a recipe's teachers in the mixture of their answers."""
    return Mixing(recipe.teacher_shares, recipe.teachers.combine == "confidence")


def plan_shares(recipe: Recipe) -> tuple[float, ...]:
    """Return each teacher's share in the weights of terms that compare layers; empty for one teacher.

    Where rows are divided among teachers, each term is a sum over its teacher's rows, divided by the units of all.
    """
    return (1.0,) * len(recipe.teacher_names) if recipe.teachers.by is not None else recipe.teacher_shares


def row_teachers(recipe: Recipe, examples: Examples) -> np.ndarray[Any, Any] | None:
    """Return the number of the teacher of each row; None if all teachers read all rows.

    Raises:
        UsageError: a value that no teacher has.
    """
    if recipe.teachers.by is None or not examples.origins:
        return None
    names, sources = recipe.teacher_names, recipe.teachers.sources
    numbers = {name: number for number, name in enumerate(names)}
    numbers |= {str(number + 1): number for number in range(len(names))}
    by_value = {value: numbers[teacher] for value, teacher in sources.items()} or numbers
    for row, value in enumerate(examples.origins):
        if value not in by_value:
            known = list(by_value)
            shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            raise UsageError(
                f"{examples.split}, row {row}: value {shorten(value, 60)!r} in column {recipe.teachers.by!r} has no "
                f"teacher{did_you_mean(value, known)} (known: {shown}); name one in teachers.sources"
            )
    return np.array([by_value[value] for value in examples.origins])


def check_rows(recipe: Recipe, task: AnyTask, train: Examples) -> None:
    """Refuse a teacher without a row to teach.

    Raises:
        UsageError: the teacher.
    """
    taught_by = row_teachers(recipe, train)
    if taught_by is None:
        return
    for number, name in enumerate(recipe.teacher_names):
        if not (taught_by == number).any():
            raise UsageError(
                f"teacher {name!r} would teach no row of {task.train}: no value in column {recipe.teachers.by!r} "
                f"names it"
            )
