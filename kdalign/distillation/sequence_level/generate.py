"""Generate sequence-level distillation data: prepare, answer, filter, write."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdalign.data.tasks import find_task
from kdalign.data.tasks.loading import split_exists
from kdalign.devices import make_accelerator
from kdalign.distillation.sequence_level.filters import LANGUAGE, FilterCandidate, Selection, select_answers
from kdalign.distillation.sequence_level.folder import (
    GeneratedAnswer,
    GenerationFolder,
    other_files,
    prompt_key,
    train_file,
)
from kdalign.distillation.sequence_level.rows import (
    PromptRow,
    TrainRows,
    check_references,
    check_task,
    read_train,
    reported_splits,
    rows_in_split,
    sources_of,
)
from kdalign.distillation.sequence_level.settings import GenerateSettings
from kdalign.distillation.sequence_level.teachers import AnswerWriter, describe_decoding, find_teacher
from kdalign.errors import Interrupted, RunError, UsageError
from kdalign.files import is_utf8
from kdalign.metrics.text import check_words
from kdalign.observer import NullObserver, Observer
from kdalign.ranks import entered_on_first_rank, on_first_rank, rank_and_size
from kdalign.runs.locks import exclusive
from kdalign.version import __version__

SHOWN_PROMPTS = 3
HASHED_PROMPTS = 20
"""Prompts that are hashed as the model sees them, so that another template is another command."""
DECODING = (
    *("beams", "samples", "temperature", "top_p", "seed", "new_tokens", "max_length"),
    *("precision", "batch_size", "chat"),
)
"""Parts of a command that say how tokens are chosen."""


@dataclass(frozen=True)
class PreparedGeneration:
    """Data that can be generated: everything is checked, and nothing is loaded or written.

    Attributes:
        settings: every choice.
        teacher: who answers.
        train: rows to answer.
        reported: fingerprints of the splits that scores are reported on.
        folder: folder of the data.
    """

    settings: GenerateSettings
    teacher: AnswerWriter
    train: TrainRows
    reported: dict[str, str]
    folder: GenerationFolder

    @property
    def language(self) -> str:
        """Language of the answers, for metrics; empty if unknown."""
        return self.settings.language or self.train.task.language

    @property
    def notes(self) -> list[str]:
        """Notes for the user before the answers."""
        named = "by Whisper's basic normaliser, since no language is named; give --language en for the English one"
        normalised = next((name for name in self.settings.measures if name.endswith("_normalized")), None)
        return [
            *self.teacher.notes,
            *([f"{normalised} is counted {named}"] if normalised is not None and not self.language else []),
        ]

    @cached_property
    def prompts(self) -> list[PromptRow]:
        """The first row of each different prompt."""
        first: dict[str, PromptRow] = {}
        for row in self.train.rows:
            first.setdefault(row.prompt, row)
        return list(first.values())

    @cached_property
    def wanted(self) -> list[tuple[PromptRow, int]]:
        """Each different prompt with each number of a sample."""
        return [(row, draw) for row in self.prompts for draw in range(self.settings.samples)]

    @cached_property
    def files(self) -> list[str]:
        """Names of the files of splits, train's first."""
        return [train_file(self.train.task), *(file.name for file in other_files(self.train.task))]

    @cached_property
    def command(self) -> dict[str, Any]:
        """All that decides the folder's content, by name."""
        settings = self.settings
        local = {} if settings.served else {"precision": settings.precision, "batch_size": settings.batch_size}
        return {
            **self.teacher.identity,
            "task": settings.task,
            "data": str(self.train.task.source),
            "train": self.train.fingerprint,
            "reported": self.reported,
            "prompts": prompt_key("\0".join(self.teacher.show_prompts(self.prompts[:HASHED_PROMPTS]))),
            "beams": settings.beams,
            "samples": settings.samples,
            "temperature": settings.heat,
            "top_p": settings.top_p,
            "seed": settings.seed if settings.heat else None,
            "new_tokens": settings.new_tokens,
            "max_length": settings.max_length,
            **local,
            "keep": list(settings.filters),
            "best_of": settings.best_of,
            "language": self.language,
            "files": self.files,
        }

    @property
    def complete(self) -> bool:
        """True if the folder holds all that the command makes."""
        return self.folder.record.is_file()


def prepare_generation(settings: GenerateSettings, *, overwrite: bool = False) -> PreparedGeneration:
    """Check everything that can be checked without weights and without asking a server.

    Raises:
        UsageError: the first thing that is wrong.
    """
    task = check_task(find_task(settings.task, settings.folder, settings.dataset, settings.config), settings.task)
    _check_out(settings, task.source.folder)
    if settings.max_wer is not None and task.modality != "audio":
        raise UsageError(
            f"--max-wer is for transcripts of sounds, and task {settings.task!r} has texts (accepted for it: --keep "
            f"'wer<={settings.max_wer:g}')"
        )
    if not split_exists(task.source, task.train):
        raise UsageError(f"{task.source} has no split {task.train!r}, whose prompts are answered")
    teacher = find_teacher(settings, task)
    check_words(settings.measures, settings.language or task.language)
    train, reported = read_train(task, settings.limit), {}
    for split in reported_splits(task):
        sources = sources_of(task, split)
        reported[split] = prompt_key("\0".join(sources))
        train = train.without(f"also in {split}", rows_in_split(train, sources))
    if settings.served and task.kind == "chat" and any(row.conversation.tools for row in train.rows):
        raise UsageError(f"{task.source}: conversations with tools are answered by local teachers alone")
    check_references(train, settings.measures)
    if not train.rows:
        raise UsageError(f"{task.source}: every row of {task.train!r} is also in a reported split")
    prepared = PreparedGeneration(settings, teacher, train, reported, GenerationFolder(Path(settings.out)))
    prepared.folder.claim(prepared.command, overwrite, settings.command)
    return prepared


def _check_out(settings: GenerateSettings, source: Path | None) -> None:
    """Refuse to write into the data that are read, or over the teacher.

    Raises:
        UsageError: --out is such a folder.
    """
    out = Path(settings.out)
    if not is_utf8(out):
        raise UsageError(f"--out {settings.out!r} is not UTF-8, as names in records must be")
    for option, given in (("--data", source), ("--teacher", None if settings.served else Path(settings.teacher))):
        if given is not None and given.exists():
            places = [(out.resolve(), given.resolve()), (out.absolute(), given.absolute())]
            if any(here.is_relative_to(there) or there.is_relative_to(here) for here, there in places):
                raise UsageError(
                    f"--out {settings.out!r} and {option} {str(given)!r} are inside each other: give another --out"
                )


def generate(
    settings: GenerateSettings, observer: Observer | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Let a teacher answer the prompts of a task's training split, and write a data folder to distill from.

    The folder has the splits of the data, with the teacher's answers in place of train's. The same command
    resumes one that was stopped; a folder that is complete is left as it is. Several processes, as ``torchrun`` starts
    them, share the batches of a local teacher; the first one asks a server, and writes the folder.

    Args:
        settings: every choice (``GenerateSettings``).
        observer: receives progress.
        overwrite: replace what another command generated in the folder; its answers are used again where only their
            selection differs.

    Returns:
        The record in ``generation.json``: teacher, data, decoding, filters with their counts, tokens and cost.

    Raises:
        UsageError: the settings cannot be carried out; nothing was written.
        RunError: the teacher failed, or no answer is left.
        Interrupted: Ctrl-C; the same command resumes.
    """
    observer, begun = observer or NullObserver(), time.perf_counter()
    prepared = prepare_generation(settings, overwrite=overwrite)
    accelerator = make_accelerator("cpu" if settings.served else settings.device)
    accelerator.wait_for_everyone()  # all have checked the folder, which the first rank now writes
    with entered_on_first_rank(exclusive(prepared.folder.path)) as warning:
        if warning:
            observer.announce(warning)
        known = on_first_rank(partial(_begin, prepared, overwrite, observer))
        if known is None:
            observer.announce(f"{settings.out} is complete already")
            return prepared.folder.read_record()
        with _withdrawn_if_refused(prepared.folder):
            answers = _answer(prepared, known, observer)
        return on_first_rank(partial(_finish, prepared, answers, len(known), begun, observer))


@contextmanager
def _withdrawn_if_refused(folder: GenerationFolder) -> Iterator[None]:
    """Remove what was written if the first request is refused, as by a server without such a model."""
    try:
        yield
    except UsageError:
        if rank_and_size()[0] == 0 and not folder.has_answers:
            folder.withdraw()
        raise


def _begin(prepared: PreparedGeneration, overwrite: bool, observer: Observer) -> list[GeneratedAnswer] | None:
    """Begin the folder, and return the answers that it holds; None if it is complete."""
    prepared.folder.claim(prepared.command, overwrite, prepared.settings.command)
    if prepared.complete and not overwrite:
        return None
    for note in prepared.notes:
        observer.announce(note)
    prepared.folder.begin(prepared.command)
    return prepared.folder.read_answers()


def _finish(
    prepared: PreparedGeneration, answers: Sequence[GeneratedAnswer], known: int, begun: float, observer: Observer
) -> dict[str, Any]:
    """Select answers and write the data; return their record.

    Args:
        prepared: data and settings.
        answers: all answers.
        known: number of answers that the folder held before.
        begun: reading of ``time.perf_counter`` as the command began.
        observer: receives notes.
    """
    selection = _select(prepared, answers)
    for note in _notes(selection, answers, prepared.train.task.pairs):
        observer.announce(note)
    _write(prepared, selection)
    record = _record(prepared, answers, selection)
    record |= {"known_before": known, "seconds": round(time.perf_counter() - begun, 1)}
    return prepared.folder.finish(record, prepared.files)


def _answer(
    prepared: PreparedGeneration, known: Sequence[GeneratedAnswer], observer: Observer
) -> list[GeneratedAnswer]:
    """Return the answers to all prompts, in their order; those that come are kept one by one.

    Raises:
        Interrupted: Ctrl-C.
    """
    folder, wanted = prepared.folder, prepared.wanted
    found = {answer.key: answer for answer in known}
    try:
        for batch in prepared.teacher.answer(wanted, set(found), observer):
            if not prepared.settings.served:  # whose answers are kept as they arrive
                on_first_rank(partial(folder.append, batch))
            found |= {answer.key: answer for answer in batch}
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped: the answers so far are kept in {folder.work}; to resume: {prepared.settings.command}", 2
        ) from None
    return [found[prompt_key(row.prompt), draw] for row, draw in wanted]


def _select(prepared: PreparedGeneration, answers: Sequence[GeneratedAnswer]) -> Selection:
    """Select the answers of each row.

    Raises:
        RunError: none is left.
    """
    by_key = {answer.key: answer for answer in answers}
    task = prepared.train.task
    candidates = [
        FilterCandidate(
            row.number,
            one.draw,
            row.prompt,
            row.source if task.kind == "chat" else row.prompt,
            row.references,
            one.text,
            one.ended,
            one.cut and not task.pairs,  # a source loses its end in training, too
        )
        for row in prepared.train.rows
        for one in (by_key[prompt_key(row.prompt), draw] for draw in range(prepared.settings.samples))
    ]
    settings = prepared.settings
    selection = select_answers(candidates, settings.filters, settings.best_of, prepared.language)
    if not selection.kept:
        why = ", ".join(f"{count:,} {reason}" for reason, count in selection.dropped if count)
        raise RunError(
            f"none of {len(candidates):,} answers is left ({why}); they are kept in {prepared.folder.work}: the same "
            f"command with {'another --max-wer' if settings.max_wer is not None else 'other --keep'} and --overwrite "
            "selects from them"
        )
    return selection


def _notes(selection: Selection, answers: Sequence[GeneratedAnswer], is_paired: bool) -> list[str]:
    """Say what the counts of dropped answers do not show."""
    notes = []
    if selection.unknown_ends:
        notes.append(f"the server does not say of {selection.unknown_ends:,} answers whether they ended: they are kept")
    cut, prompts = {answer.prompt for answer in answers if answer.cut}, {answer.prompt for answer in answers}
    if cut:
        fate = "each is answered without its end" if is_paired else "their answers are dropped"
        notes.append(f"{len(cut):,} of {len(prompts):,} prompts are too long: {fate}")
    return notes


def _write(prepared: PreparedGeneration, selection: Selection) -> None:
    """Write the splits."""
    train, (name, *others) = prepared.train, prepared.files
    rows = {row.number: row for row in train.rows}
    prepared.folder.write_train(name, train, [(rows[one.row], one.text) for one in selection.kept])
    prepared.folder.copy_splits(train.task, others)


def _record(prepared: PreparedGeneration, answers: Sequence[GeneratedAnswer], selection: Selection) -> dict[str, Any]:
    """Return the record of the data, without hashes and times."""
    settings, train, command = prepared.settings, prepared.train, prepared.command
    return {
        "kind": "generation",
        "kdalign": __version__,
        "teacher": {**prepared.teacher.identity, **prepared.teacher.record()},
        "task": settings.task,
        "data": {name: command[name] for name in ("data", "train", "reported", "prompts")},
        "decoding": {name: command[name] for name in DECODING if name in command}
        | {"described": describe_decoding(settings)},
        "selection": {
            **{name: command[name] for name in ("keep", "best_of", "language")},
            "measures": selection.measures,
        }
        | ({"languages_by": f"py3langid {version('py3langid')}"} if LANGUAGE in settings.measures else {}),
        "rows": {
            "train": len(train.rows) + sum(count for _, count in train.left_out),
            "left_out": dict(train.left_out),
            "answered": len(train.rows),
            "kept": len({one.row for one in selection.kept}),
        },
        "answers": {
            "all": len(train.rows) * settings.samples,
            "dropped": dict(selection.dropped),
            "kept": len(selection.kept),
            "unknown_ends": selection.unknown_ends,
        },
        "prompts": {
            "different": len(prepared.prompts),
            "cut": len({answer.prompt for answer in answers if answer.cut}),
        },
        "tokens": {
            "prompts": sum(answer.prompt_tokens for answer in answers),
            "answers": sum(answer.new_tokens for answer in answers),
        },
    }
