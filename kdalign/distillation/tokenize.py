"""Tokenize the texts of a run, by the student's tokenizer and by the teacher's if it is another."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import tokenize_labelled_several
from kdalign.data.epochs import total_steps
from kdalign.data.input_reader import InputReader
from kdalign.data.media.rows import MediaRows
from kdalign.data.tasks import Examples
from kdalign.data.tasks.holdout import normalise_rows
from kdalign.data.token_matching import SharedVocabulary, shared_vocabulary
from kdalign.data.tokenization import special_token_note
from kdalign.data.tokenized_split import TokenizedSplit, concatenate_splits
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.devices import use_bf16
from kdalign.distillation.augmentation import augment_texts
from kdalign.distillation.checks import NOTEWORTHY
from kdalign.distillation.prepare import PreparedRun, teacher_role
from kdalign.distillation.several_teachers import row_teachers
from kdalign.distillation.token_cache import keep_tokens
from kdalign.errors import UsageError
from kdalign.models.heads import HeadKind
from kdalign.models.inputs import padded_length
from kdalign.objective.stages import check_steps
from kdalign.observer import Observer
from kdalign.recipe import Recipe


@dataclass(frozen=True)
class TokenizerOverlap:
    """Overlap of two tokenizers on the training text.

    Attributes:
        covered: characters in tokens of both, without white space.
        characters: all characters.
        shared: entries with the same meaning.
        entries: sizes of the student's vocabulary and of the teacher's.
    """

    covered: int
    characters: int
    shared: SharedVocabulary
    entries: tuple[int, int]

    def __str__(self) -> str:
        share = 100 * self.covered / max(1, self.characters)
        ours, theirs = self.entries
        return (
            f"tokenizers differ: {share:.2f} % of {self.characters:,} characters are in tokens of both; "
            f"{len(self.shared):,} of the student's {ours:,} entries and the teacher's {theirs:,} stand for the same"
        )

    @property
    def facts(self) -> dict[str, int]:
        """Return the numbers for the record."""
        counts = {"characters": self.characters, "covered": self.covered, "shared_entries": len(self.shared)}
        return counts | dict(zip(("student_entries", "teacher_entries"), self.entries, strict=True))


@dataclass(frozen=True)
class TokenizedRun:
    """A run's texts as tokens.

    Attributes:
        train: rows to train on, with and without labels; if tokenizers differ, in the tokens of both.
        labelled: rows of ``train`` with labels, or all if none are without.
        unlabelled: rows without labels; None without any.
        watched: monitored slice of train, in the student's tokens.
        reported: splits that are scored, in the student's tokens.
        read_by: for each teacher the same slice and splits in its tokens; the student's without a teacher.
        across: overlap of the student's tokenizer and that of all teachers, if they differ.
        overlaps: overlap with each teacher's, if those of several differ from one another; None for one that reads the
            student's tokens.
        copies: new texts that a model wrote of the labelled ones, then a part of ``train``.
    """

    train: TokenizedSplit
    labelled: TokenizedSplit
    unlabelled: TokenizedSplit | None
    watched: TokenizedSplit
    reported: Mapping[str, TokenizedSplit]
    read_by: "tuple[ScoredTexts, ...]"
    across: TokenizerOverlap | None
    overlaps: tuple[TokenizerOverlap | None, ...] = ()
    copies: TokenizedSplit | None = None

    @property
    def watched_by_teacher(self) -> TokenizedSplit:
        """The monitored slice in the tokens of the teacher, of several the first."""
        return self.read_by[0].watched

    @property
    def reported_to_teacher(self) -> Mapping[str, TokenizedSplit]:
        """The reported splits in the tokens of the teacher, of several the first."""
        return self.read_by[0].reported


@dataclass(frozen=True)
class ScoredTexts:
    """The monitored slice of train and the reported splits in a model's tokens."""

    watched: TokenizedSplit
    reported: Mapping[str, TokenizedSplit]


def student_tokenizer(run: PreparedRun) -> PreTrainedTokenizerBase:
    """Return the student's tokenizer, trained on the training text if it is not there yet."""
    if run.tokenizers.student is not None:
        return run.tokenizers.student
    splits = run.splits
    read = [splits.train, *([splits.unlabelled.examples] if splits.unlabelled is not None else [])]
    columns = (column for examples in read for column in examples.texts if not isinstance(column, MediaRows))
    texts = (text for column in columns for text in column)
    masks = not padded_length(run.student.config(run.tokenizers))
    return train_tokenizer(texts, run.tokenizers.size, run.student.family, run.student.positions, masks=masks)


def tokenize_run(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> TokenizedRun:
    """Tokenize all that a run reads.

    Raises:
        UsageError: a text that cannot be tokenized.
    """
    theirs, config = run.tokenizers.teacher, run.student_config(tokenizer)
    train = labelled = tokenize_for_training(run, run.splits.train, tokenizer, config)
    unlabelled = None
    if run.splits.unlabelled is not None:
        unlabelled = tokenize_for_training(run, run.splits.unlabelled.examples, tokenizer, config)
        train = labelled.with_unlabelled(unlabelled, run.splits.unlabelled.an_epoch)
    to_learn = train, labelled, unlabelled
    own = _encode_scored(run, InputReader(tokenizer, config, run.tokenizers.media))
    if run.readers:
        return _read_apart(run, tokenizer, TokenizedRun(*to_learn, own.watched, own.reported, (own,), None))
    if run.tokenizers.media_differ and theirs is not None:
        read = _encode_scored(run, run.reader_of(0))
        return TokenizedRun(*to_learn, own.watched, own.reported, (read,) * len(run.teachers), None)
    if run.teacher is None or theirs is None or not run.tokenizers.differ:
        return TokenizedRun(*to_learn, own.watched, own.reported, (own,) * max(1, len(run.teachers)), None)
    assert train.covered is not None, "two tokenizations are compared"
    shared = shared_vocabulary(tokenizer, theirs)
    shared = shared if train.ends is None else shared.with_pair(*train.ends)
    covered, characters = train.covered
    together = TokenizerOverlap(covered, characters, shared, (len(tokenizer), len(theirs)))
    read = _encode_scored(run, run.reader_of(0))
    return TokenizedRun(*to_learn, own.watched, own.reported, (read,) * len(run.teachers), together)


def _read_apart(run: PreparedRun, tokenizer: PreTrainedTokenizerBase, texts: TokenizedRun) -> TokenizedRun:
    """Add what teachers with tokenizers of their own read, and how their tokenizers overlap with the student's."""
    assert texts.train.covered is not None, "several tokenizations are compared"
    *covered, characters = texts.train.covered
    counts = dict(zip(dict.fromkeys(filter(None, texts.train.readers)), covered, strict=True))
    read_by, overlaps = list[ScoredTexts](), list[TokenizerOverlap | None]()
    for teacher, reader, prefix in zip(run.teachers, run.readers, texts.train.readers, strict=True):
        if reader is None or prefix is None:
            read_by.append(texts.read_by[0])
            overlaps.append(None)
        else:
            read_by.append(_encode_scored(run, InputReader(reader, teacher.config)))
            entries, shared = (len(tokenizer), len(reader)), shared_vocabulary(tokenizer, reader)
            overlaps.append(TokenizerOverlap(counts[prefix], characters, shared, entries))
    return replace(texts, read_by=tuple(read_by), overlaps=tuple(overlaps))


def with_augmentation(
    run: PreparedRun,
    texts: TokenizedRun,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    observer: Observer,
) -> TokenizedRun:
    """Add new texts that a model writes of the labelled rows, none of them scored or in the training text already."""
    assert run.augmenting is not None, "a model writes them"
    augment, splits = run.recipe.data.augment, run.splits
    made = augment_texts(splits.train, run.augmenting, augment, run.adapter.max_length, accelerator, observer)
    labels = splits.train.labels if augment.keep_labels else None
    new = Examples(
        "new texts",
        tuple(zip(*made.texts, strict=True)),
        None if labels is None else labels[list(made.rows)],
        origins=splits.train.take(list(made.rows)).origins,
    )
    others = [splits.watched] if run.recipe.train.holds_out else []
    others += [splits.unlabelled.examples] if splits.unlabelled is not None else []
    known = {row for examples in (splits.train, *splits.reported.values(), *others) for row in normalise_rows(examples)}
    first = {row: number for number, row in reversed(list(enumerate(normalise_rows(new)))) if row not in known}
    kept = sorted(first.values())
    observer.announce(
        f"augmented: {len(kept):,} new texts (left out: {len(new) - len(kept):,} made twice, or known already)"
    )
    if not kept:
        return texts
    copies = tokenize_for_training(run, new.take(kept), tokenizer, run.student_config(tokenizer))
    return replace(texts, train=texts.train.joined(copies), copies=copies)


def tokenize_for_training(
    run: PreparedRun, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> TokenizedSplit:
    """Tokenize rows to train on; those of each of several teachers by themselves, so that no row is of two.

    Tokens of a stream are not kept for other runs: it may be larger than the disk.
    """
    streamed = run.recipe.data.streaming

    def tokenize(rows: Examples) -> TokenizedSplit:
        if run.readers:
            return tokenize_labelled_several(rows, tokenizer, run.readers, run.adapter.max_length)
        if run.teacher is not None and run.tokenizers.teacher is not None and run.tokenizers.differ:
            both, configs = (tokenizer, run.tokenizers.teacher), (config, run.teacher.config)
            dual = partial(run.adapter.tokenize_dual, tokenizers=both, configs=configs)
            if streamed:
                return dual(rows)
            return keep_tokens(run.adapter, rows, list(zip(both, configs, strict=True)), False, dual)
        reader = InputReader(tokenizer, config, run.tokenizers.media, run.tokenizers.transcripts)
        single = partial(run.adapter.tokenize, reader=reader, scored=False)
        if streamed:
            return single(rows)
        return keep_tokens(run.adapter, rows, [(tokenizer, config)], False, single)

    taught_by = row_teachers(run.recipe, examples)
    if run.tokenizers.media is not None:
        read = _to_train_on(run, tokenize(examples))
        if taught_by is not None and len(read) < len(examples):
            raise UsageError("teachers.by divides rows among teachers, and some of them cannot be trained on")
        return replace(read, taught_by=taught_by)
    if taught_by is None:
        return tokenize(examples)
    parts = [(number, examples.take(np.flatnonzero(taught_by == number).tolist())) for number in np.unique(taught_by)]
    encoded = [(number, tokenize(rows)) for number, rows in parts]
    return concatenate_splits([replace(part, taught_by=np.full(len(part), number)) for number, part in encoded])


def _to_train_on(run: PreparedRun, encoded: TokenizedSplit) -> TokenizedSplit:
    """Let both models read the sounds or images, and compare their features on one grid."""
    assert encoded.media is not None, "the task has sounds or images"
    theirs = run.tokenizers.reads_apart
    if theirs is not None and theirs.most is not None and (encoded.lengths > theirs.most).any():
        raise UsageError(
            f"{int((encoded.lengths > theirs.most).sum()):,} sounds of train are longer than the teacher reads "
            f"({theirs.most:,} positions): cut them into shorter ones"
        )
    return replace(encoded, media=encoded.media.for_both(theirs, run.grid))


def _encode_scored(run: PreparedRun, reader: InputReader) -> ScoredTexts:
    def encode(examples: Examples) -> TokenizedSplit:
        tokenize = partial(run.adapter.tokenize, reader=reader, scored=True)
        encoded = keep_tokens(run.adapter, examples, [(reader.tokenizer, reader.config)], True, tokenize)
        one_a_row = run.adapter.head is HeadKind.CLASSIFIER
        return replace(encoded, taught_by=row_teachers(run.recipe, examples)) if one_a_row else encoded

    reported = {split: encode(examples) for split, examples in run.splits.reported.items()}
    return ScoredTexts(encode(run.splits.watched), reported)


def announce_texts(
    run: PreparedRun, texts: TokenizedRun, tokenizer: PreTrainedTokenizerBase, observer: Observer
) -> None:
    """Announce tokenizers and texts: truncated and skipped rows, special tokens, text without labels."""
    recipe, splits = run.recipe, run.splits
    if run.tokenizers.student is None:
        observer.announce(f"tokenizer: {len(tokenizer):,} entries, trained on the training text")
    _announce_cuts(splits.train, texts.labelled, recipe.data.max_length, observer)
    if splits.unlabelled is not None and texts.unlabelled is not None:
        observer.announce(
            f"text without labels, in addition to {len(splits.train):,} labelled rows: {splits.unlabelled}"
        )
        _announce_cuts(splits.unlabelled.examples, texts.unlabelled, recipe.data.max_length, observer)
    for examples in (splits.train, *splits.reported.values()):
        note = special_token_note(examples, tokenizer)
        if note:
            observer.announce(note)
    if recipe.data.augment.corrupts:
        observer.announce(f"augmented: {recipe.data.augment}")
    for split, encoded in texts.reported.items():
        _announce_cuts(splits.reported[split], encoded, recipe.data.max_length, observer)
    if texts.across is not None:
        observer.announce(str(texts.across))
    for number, overlap in enumerate(texts.overlaps):
        if overlap is not None:
            observer.announce(f"{teacher_role(number)}: {overlap}")


def _announce_cuts(examples: Examples, encoded: TokenizedSplit, max_length: int, observer: Observer) -> None:
    if encoded.truncated:
        most = f"{max_length} tokens" + (
            ", or their sounds than the model reads," if examples.media is not None else ""
        )
        observer.announce(
            f"{examples.split}: {encoded.truncated:,} of {len(encoded):,} examples are longer than {most} and were cut "
            "(--max-length)"
        )
    if encoded.remarks:
        observer.announce(f"{examples.split}: {encoded.remarks}")
    if encoded.passed_over and encoded.transcripts is not None:
        observer.announce(
            f"{examples.split}: {encoded.passed_over:,} of {len(examples):,} sounds were left out: they have fewer "
            f"frames than their transcripts need, or transcripts without a label"
        )
    elif encoded.passed_over and encoded.media is not None:
        observer.announce(
            f"{examples.split}: {encoded.passed_over:,} sounds are longer than the model reads and were left out"
        )
    elif encoded.passed_over:
        observer.announce(
            f"{examples.split}: {encoded.passed_over:,} conversations, each up to an answer, were left out: no part of "
            f"it is within the first {max_length} tokens (--max-length)"
        )
    if examples.blank:
        observer.announce(
            f"{examples.split}: {examples.blank:,} of {len(examples):,} rows have a text without a character to read"
        )
    if examples.passed_over:
        observer.announce(f"{examples.split}: {examples.passed_over:,} documents without a word were left out")


@dataclass(frozen=True)
class OpenedRun:
    """A run whose texts are tokenized.

    Attributes:
        run: the run as it was prepared.
        recipe: the run's recipe, with the precision of training.
        tokenizer: the student's.
        texts: all texts as tokens.
    """

    run: PreparedRun
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    texts: TokenizedRun

    @property
    def reader(self) -> InputReader:
        """How the student reads its inputs."""
        config = self.run.student_config(self.tokenizer)
        return InputReader(self.tokenizer, config, self.run.tokenizers.media)

    @property
    def bf16(self) -> bool:
        """True if training is in bfloat16."""
        return self.recipe.train.precision == "bf16"


def open_run(run: PreparedRun, accelerator: Accelerator) -> OpenedRun:
    """Tokenize a run's texts, before anything is written.

    Raises:
        UsageError: a text that cannot be tokenized, or fewer steps than stages.
    """
    precision = "bf16" if use_bf16(run.recipe.train.precision, accelerator.device) else "fp32"
    recipe = run.recipe.with_changes(train={**run.recipe.train.model_dump(), "precision": precision})
    tokenizer = student_tokenizer(run)
    texts = tokenize_run(run, tokenizer)
    if not recipe.multi_task.together:
        check_steps(total_steps(recipe.train, texts.train), recipe, run.plan)
    return OpenedRun(run, recipe, tokenizer, texts)


def begin_folder(opened: OpenedRun, accelerator: Accelerator, observer: Observer, resume: bool) -> Observer:
    """Begin the run's folder and announce the run; return an observer that also writes into the folder's log."""
    run, recipe, folder = opened.run, opened.recipe, opened.run.folder
    if accelerator.is_main_process:
        folder.begin(recipe.dump(), run.inputs, keep=resume)
    accelerator.wait_for_everyone()
    observer = observer.into(folder.log) if accelerator.is_main_process else observer
    names = recipe.teacher_names
    teach = "teach" if len(names) > 1 else "teaches"
    who = f"{' and '.join(names)} {teach} {recipe.student}" if names else f"{recipe.student} learns alone"
    observer.announce(f"{who} on {run.task.name}; run folder {folder.path}")
    if run.task.found:
        observer.announce(f"inferred from the data: {run.task.found}")
    announce_texts(run, opened.texts, opened.tokenizer, observer)
    for finding in run.findings:
        if finding.allowed or finding.what in NOTEWORTHY:
            observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")
    return observer
