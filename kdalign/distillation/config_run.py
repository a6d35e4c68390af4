"""Prepare a run from configurations alone, with stand-ins for a tokenizer or for texts that are not there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdalign.data.tasks import AnyTask, ClassificationTask, Examples, task_of
from kdalign.data.tasks.language import language_task
from kdalign.data.tokenizer_training import CHARACTERS, MOST_CHARACTERS, requested_vocabulary_size
from kdalign.distillation.checks import check_task
from kdalign.distillation.prepare import PreparedRun, find_grid, find_plan, find_task_adapter
from kdalign.distillation.several_teachers import find_readers
from kdalign.distillation.speech_checks import check_features_alone, check_text_teacher, features_alone
from kdalign.distillation.splits import MONITORED, MONITORED_CHARACTERS, RunSplits, load_splits
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models.architecture import describe, vocabulary_size
from kdalign.models.checkpoint_files import check_length, find_checkpoint
from kdalign.models.student_source import StudentOptions, StudentSource, find_student
from kdalign.models.teaching import teaches_features_alone
from kdalign.models.tokenizer import TokenizerPair, load_tokenizer_named, pair_tokenizers
from kdalign.objective.build import build_objective
from kdalign.objective.checks import check_terms
from kdalign.recipe import Recipe
from kdalign.runs.folder import RunFolder

WORD = "a"
"""The one word of texts that stand in for others."""
_LETTERS_A_TOKEN = 4
"""Letters of a token, about, by which the monitored slice is as long as one of real texts."""
_MOST_ROWS = 100_000
"""Most rows that stand in for others: more than a micro-batch has."""


@dataclass(frozen=True)
class ConfiguredRun:
    """Run whose configurations alone were read.

    Attributes:
        run: the run; none of its models needs weights.
        stand_ins: what stands in for something that is not there, and why; empty if all is.
        has_texts: true if its rows are real.
    """

    run: PreparedRun
    stand_ins: tuple[str, ...]
    has_texts: bool


def prepare_from_configs(recipe: Recipe) -> ConfiguredRun:
    """Prepare a run from its models' configurations; nothing is written, and no weights are needed.

    Without a tokenizer or texts, rows of ``data.max_length`` tokens stand in for those of the run.

    Raises:
        UsageError: a model without a configuration, or one that cannot do what the recipe asks.
    """
    teachers = tuple(
        find_checkpoint(name, recipe.revision, weights=False) for name in recipe.teacher_names if recipe.loads_teacher
    )
    student = find_student(StudentOptions.of(recipe), teachers[0] if teachers else None, weights=False)
    task, no_task = _find_task(recipe)
    adapter = find_task_adapter(recipe, task, student)
    check_task(recipe, adapter, student.teacher)
    check_text_teacher(recipe, adapter, teachers)
    for checkpoint in (*teachers, *([student.checkpoint] if student.checkpoint is not None else [])):
        if not features_alone(adapter, checkpoint):
            adapter.check(checkpoint)
        check_length(checkpoint, recipe.data.max_length)
    pair, no_tokenizer = _find_tokenizers(recipe, student)
    readers = () if no_tokenizer else find_readers(teachers, pair, adapter.predicts_tokens)
    why = "; ".join(filter(None, (no_tokenizer, no_task)))
    splits, no_texts = (_stand_in_splits(recipe, adapter), why) if why else _find_splits(recipe, adapter)
    plan = find_plan(recipe, teachers, student, describe(student.config(pair))) if teachers else None
    for _, stage in recipe.objective.stages:
        objective = build_objective(adapter.task, stage, plan)
        check_features_alone(adapter, teachers, objective)
        check_terms(recipe, objective, plan)
    run = PreparedRun(
        recipe=recipe,
        adapter=adapter,
        student=student,
        tokenizers=pair,
        splits=splits,
        plan=plan,
        folder=RunFolder(Path(recipe.out or "runs/plan")),
        augmenting=None,
        teachers=teachers,
        readers=readers,
        grid=find_grid(student.config(pair), teachers, pair),
    )
    said = f"every row is taken to have {recipe.data.max_length} tokens: {no_texts}"
    return ConfiguredRun(run, tuple([said, *_vocabularies(pair)] if no_texts else ()), not no_texts)


def _find_task(recipe: Recipe) -> tuple[AnyTask, str]:
    """Return the task, and why its data are not there; a language task needs none to be known."""
    try:
        return task_of(recipe.data), ""
    except UsageError as error:
        task = language_task(recipe.data.task[0])
        if task is None or task.kind == "embedding":
            raise
        return replace(task, columns=task.columns or ("text",)), str(error)


def _find_tokenizers(recipe: Recipe, student: StudentSource) -> tuple[TokenizerPair, str]:
    """Load both tokenizers, or make stand-ins with as many entries, and say why."""
    try:
        pair, why = student.tokenizers(), ""
    except UsageError as error:
        pair, why = None, str(error)
    if pair is not None and pair.student is not None:
        return pair, ""
    teacher, entries = student.teacher, _own_entries(recipe, student)
    alone = teacher is None or teaches_features_alone(teacher.config, student.family, student.modality)
    theirs = None if teacher is None or alone else _stand_in_tokenizer(vocabulary_size(teacher.config))
    if entries is None and theirs is None:
        raise UsageError(why)
    ours = theirs if entries is None or (theirs and len(theirs) == entries) else _stand_in_tokenizer(entries)
    assert ours is not None, "one of both models has a vocabulary"
    return pair_tokenizers(ours, theirs), why or "the tokenizer is still to be trained"


def _own_entries(recipe: Recipe, student: StudentSource) -> int | None:
    """Return the entries of the student's own vocabulary; None if it has the teacher's."""
    if student.checkpoint is not None:
        return vocabulary_size(student.checkpoint.config)
    if recipe.tokenizer is None:
        return None
    if recipe.tokenizer == CHARACTERS and student.family == "ctc":
        return MOST_CHARACTERS
    return requested_vocabulary_size(recipe.tokenizer) or len(load_tokenizer_named(recipe.tokenizer, student.family))


def _vocabularies(pair: TokenizerPair) -> list[str]:
    """Say that vocabularies of different sizes are taken for different tokenizers."""
    if pair.teacher is None or not pair.differ:
        return []
    return [f"the tokenizers are taken to differ, as the vocabularies do ({pair.size:,} and {len(pair.teacher):,})"]


def _stand_in_tokenizer(entries: int) -> PreTrainedTokenizerBase:
    """Make a tokenizer with this many entries, which reads ``WORD`` as one token."""
    special = ("<pad>", "<unk>", "<mask>", "<s>", "</s>")
    words = [*special, WORD, *(f"<{number}>" for number in range(entries))][:entries]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    pad, unknown, mask, start, end = special
    roles = {"pad_token": pad, "unk_token": unknown, "mask_token": mask, "bos_token": start, "eos_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=start, sep_token=end, **roles)


def _find_splits(recipe: Recipe, adapter: TaskAdapter) -> tuple[RunSplits, str]:
    """Read the rows of a run, or make stand-ins, and say why."""
    try:
        return load_splits(adapter, recipe), ""
    except UsageError as error:
        return _stand_in_splits(recipe, adapter), str(error)


def _stand_in_splits(recipe: Recipe, adapter: TaskAdapter) -> RunSplits:
    """Make as many rows as a batch has, one of them of full length, which decides the memory of a step."""
    length, train = recipe.data.max_length, recipe.train
    rows = train.batch_size if train.batch_tokens is None else -(-train.batch_tokens // length)
    monitored = min(MONITORED[1], max(1, MONITORED_CHARACTERS // (_LETTERS_A_TOKEN * length)))
    return RunSplits(
        _stand_in_rows(adapter.task, min(rows, _MOST_ROWS), length),
        _stand_in_rows(adapter.task, monitored, length),
        {},
        None,
        (),
    )


def _stand_in_rows(task: AnyTask, rows: int, length: int) -> Examples:
    """Make rows of a task, one with texts of this many words each."""
    columns: Sequence[str] = task.columns if isinstance(task, ClassificationTask) or task.pairs else ("text",)
    column = (" ".join([WORD] * length), *(WORD,) * (rows - 1))
    labels = None
    if isinstance(task, ClassificationTask):
        labels = np.zeros(rows, dtype=np.float64 if task.regression else np.int64)
    return Examples("train", (column,) * len(columns), labels)
