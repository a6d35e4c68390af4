"""What a run reads: the student's tokenizer, and its texts as tokens, the teacher's beside where it has others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.batches import TokenizedSplit, total_steps
from kdalign.data.tasks import Examples
from kdalign.data.tasks.holdout import normalise_rows
from kdalign.data.token_matching import SharedVocabulary, shared_vocabulary
from kdalign.data.tokenization import special_token_note
from kdalign.data.tokenizer_training import requested_vocabulary_size, train_tokenizer
from kdalign.devices import use_bf16
from kdalign.distillation.augmentation import augment_texts
from kdalign.distillation.preflight import NOTEWORTHY
from kdalign.distillation.prepare import PreparedRun
from kdalign.models import checkpoint_files
from kdalign.models.architecture import layout_of, with_tokenizer
from kdalign.models.from_scratch import scratch_config
from kdalign.models.layouts import LAYOUTS
from kdalign.objective.stages import check_steps
from kdalign.observer import Observer
from kdalign.recipe import Recipe


@dataclass(frozen=True)
class TokenizerOverlap:
    """How far two tokenizers can be brought together on the training text.

    Attributes:
        covered: characters that lie in tokens of both, white space apart.
        characters: all of them.
        shared: entries that stand for the same.
        entries: of the student's vocabulary and of the teacher's.
    """

    covered: int
    characters: int
    shared: SharedVocabulary
    entries: tuple[int, int]

    def __str__(self) -> str:
        share = 100 * self.covered / max(1, self.characters)
        ours, theirs = self.entries
        return (
            f"tokenizers differ: {share:.2f} % of {self.characters:,} characters lie in tokens of both; "
            f"{len(self.shared):,} of the student's {ours:,} entries and the teacher's {theirs:,} stand for the same"
        )

    @property
    def facts(self) -> dict[str, int]:
        """For the record."""
        counts = {"characters": self.characters, "covered": self.covered, "shared_entries": len(self.shared)}
        return counts | dict(zip(("student_entries", "teacher_entries"), self.entries, strict=True))


@dataclass(frozen=True)
class TokenizedRun:
    """A run's texts as tokens.

    Attributes:
        train: to train on, with and without labels; where tokenizers differ, in the tokens of both.
        labelled: those of ``train`` that have labels, or all where none are without.
        unlabelled: the others; None where there are none.
        copies: new texts that a model has made of the labelled ones, a part of ``train`` once they are made.
        watched: the slice of train that is evaluated on the way, by the student.
        reported: the splits that the student is scored on.
        watched_by_teacher: the same slice as the teacher reads it.
        reported_to_teacher: the same splits.
        across: how far tokenizers that differ come together; None for one tokenizer.
    """

    train: TokenizedSplit
    labelled: TokenizedSplit
    unlabelled: TokenizedSplit | None
    watched: TokenizedSplit
    reported: Mapping[str, TokenizedSplit]
    watched_by_teacher: TokenizedSplit
    reported_to_teacher: Mapping[str, TokenizedSplit]
    across: TokenizerOverlap | None
    copies: TokenizedSplit | None = None


def student_tokenizer(run: PreparedRun) -> PreTrainedTokenizerBase:
    """The student's tokenizer, trained on the training text where so asked."""
    if run.tokenizer is not None:
        return run.tokenizer
    asked = run.recipe.tokenizer
    size = requested_vocabulary_size(asked) if asked is not None else None
    assert size is not None, "a tokenizer that is not there is to be trained"
    read = [run.train, *([run.unlabelled.examples] if run.unlabelled is not None else [])]
    texts = (text for examples in read for column in examples.texts for text in column)
    if run.new is not None:
        return train_tokenizer(texts, size, LAYOUTS[run.new.model_type].family, run.new.positions)
    assert run.teacher is not None, "a student is a checkpoint, cut or new"
    return train_tokenizer(
        texts, size, layout_of(run.teacher.config).family, checkpoint_files.max_positions(run.teacher.config)
    )


def config_of(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of the student, or of the teacher that it is cut from.

    Raises:
        UsageError: it is not for this tokenizer.
    """
    if run.new is not None:
        config = scratch_config(run.new, tokenizer)
        if run.teacher is not None and config.is_encoder_decoder:  # both read the same targets
            config.decoder_start_token_id = run.teacher.config.decoder_start_token_id
        return config
    first = run.student or run.teacher
    assert first is not None, "a student is new, a checkpoint, or cut out of a teacher"
    return with_tokenizer(first.config, tokenizer) if run.cut is not None and run.across else first.config


def tokenize_run(run: PreparedRun, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> TokenizedRun:
    """Tokenize all that a run reads.

    Raises:
        UsageError: a text that cannot be encoded.
    """
    theirs = run.teacher_tokenizer
    train = labelled = _learnt(run, run.train, tokenizer, config)
    unlabelled = None
    if run.unlabelled is not None:
        unlabelled = _learnt(run, run.unlabelled.examples, tokenizer, config)
        train = labelled.with_unlabelled(unlabelled, run.unlabelled.an_epoch)
    learnt = train, labelled, unlabelled
    watched, reported = _scored(run, tokenizer, config)
    if run.teacher is None or theirs is None or not run.across:
        return TokenizedRun(*learnt, watched, reported, watched, reported, None)
    assert train.covered is not None, "two tokenizations are compared"
    together = TokenizerOverlap(*train.covered, shared_vocabulary(tokenizer, theirs), (len(tokenizer), len(theirs)))
    return TokenizedRun(*learnt, watched, reported, *_scored(run, theirs, run.teacher.config), together)


def with_augmentation(
    run: PreparedRun,
    texts: TokenizedRun,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    accelerator: Accelerator,
    observer: Observer,
) -> TokenizedRun:
    """The texts with new ones that a model makes of the labelled rows; none that are scored, or learnt already."""
    assert run.augmenting is not None, "a model makes them"
    augment = run.recipe.data.augment
    made = augment_texts(run.train, run.augmenting, augment, run.adapter.max_length, accelerator, observer)
    labels = run.train.labels if augment.keep_labels else None
    others = [run.watched] if run.recipe.train.holds_out else []
    others += [run.unlabelled.examples] if run.unlabelled is not None else []
    known = {row for examples in (run.train, *run.reported.values(), *others) for row in normalise_rows(examples)}
    new = Examples(
        "new texts", tuple(zip(*made.texts, strict=True)), None if labels is None else labels[list(made.rows)]
    )
    first = {row: number for number, row in reversed(list(enumerate(normalise_rows(new)))) if row not in known}
    kept = sorted(first.values())
    observer.announce(
        f"augmented: {len(kept):,} new texts (left out: {len(new) - len(kept):,} made twice, or known already)"
    )
    if not kept:
        return texts
    copies = _learnt(run, new.take(kept), tokenizer, config)
    return replace(texts, train=texts.train.joined(copies), copies=copies)


def _learnt(
    run: PreparedRun, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> TokenizedSplit:
    if run.teacher_tokenizer is not None and run.across:
        return run.adapter.tokenize_dual(examples, (tokenizer, run.teacher_tokenizer))
    return run.adapter.tokenize(examples, tokenizer, config, scored=False)


def _scored(
    run: PreparedRun, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> tuple[TokenizedSplit, dict[str, TokenizedSplit]]:
    def encoded(examples: Examples) -> TokenizedSplit:
        return run.adapter.tokenize(examples, tokenizer, config, scored=True)

    return encoded(run.watched), {split: encoded(examples) for split, examples in run.reported.items()}


def announce_texts(
    run: PreparedRun, texts: TokenizedRun, tokenizer: PreTrainedTokenizerBase, observer: Observer
) -> None:
    """Say what became of the texts."""
    recipe = run.recipe
    if recipe.tokenizer is not None and requested_vocabulary_size(recipe.tokenizer) is not None:
        observer.announce(f"tokenizer: {len(tokenizer):,} entries, trained on the training text")
    _announce_cuts(run.train, texts.labelled, recipe.data.max_length, observer)
    if run.unlabelled is not None and texts.unlabelled is not None:
        observer.announce(f"text without labels, beside {len(run.train):,} labelled rows: {run.unlabelled}")
        _announce_cuts(run.unlabelled.examples, texts.unlabelled, recipe.data.max_length, observer)
    for examples in (run.train, *run.reported.values()):
        said = special_token_note(examples, tokenizer)
        if said:
            observer.announce(said)
    if recipe.data.augment.corrupts:
        observer.announce(f"augmented: {recipe.data.augment}")
    for split, encoded in texts.reported.items():
        _announce_cuts(run.reported[split], encoded, recipe.data.max_length, observer)
    if texts.across is not None:
        observer.announce(str(texts.across))


def _announce_cuts(examples: Examples, encoded: TokenizedSplit, max_length: int, observer: Observer) -> None:
    if encoded.truncated:
        observer.announce(
            f"{examples.split}: {encoded.truncated:,} of {len(encoded):,} examples are longer than "
            f"{max_length} tokens and were cut (--max-length)"
        )
    if encoded.passed_over:
        observer.announce(
            f"{examples.split}: {encoded.passed_over:,} conversations were passed over: no answer lies within "
            f"the first {max_length} tokens (--max-length)"
        )
    if examples.blank:
        observer.announce(
            f"{examples.split}: {examples.blank:,} of {len(examples):,} rows have a text without a character to read"
        )
    if examples.passed_over:
        observer.announce(f"{examples.split}: {examples.passed_over:,} documents without a word were passed over")


@dataclass(frozen=True)
class OpenedRun:
    """A run whose texts are read.

    Attributes:
        recipe: with the precision that is trained in.
        config: of the student, or of the teacher that it is cut from.
    """

    run: PreparedRun
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    texts: TokenizedRun

    @property
    def bf16(self) -> bool:
        """Whether it is trained in bfloat16."""
        return self.recipe.train.precision == "bf16"


def open_run(run: PreparedRun, accelerator: Accelerator) -> OpenedRun:
    """Texts to tokens; what cannot be encoded is refused before anything is written.

    Raises:
        UsageError: a text that cannot be encoded, or fewer steps than stages.
    """
    precision = "bf16" if use_bf16(run.recipe.train.precision, accelerator.device) else "fp32"
    recipe = run.recipe.with_changes(train={**run.recipe.train.model_dump(), "precision": precision})
    tokenizer = student_tokenizer(run)
    config = config_of(run, tokenizer)
    texts = tokenize_run(run, tokenizer, config)
    if not recipe.multi_task.together:
        check_steps(total_steps(recipe.train, texts.train), recipe, run.plan)
    return OpenedRun(run, recipe, tokenizer, config, texts)


def begin_folder(opened: OpenedRun, accelerator: Accelerator, observer: Observer, resume: bool) -> Observer:
    """Begin the run's folder and say what will be done; the observer, who writes into its log from now on."""
    run, recipe, folder = opened.run, opened.recipe, opened.run.folder
    if accelerator.is_main_process:
        folder.begin(recipe.dump(), run.inputs, keep=resume)
    accelerator.wait_for_everyone()
    observer = observer.into(folder.log) if accelerator.is_main_process else observer
    who = (
        f"{run.teacher.name} teaches {recipe.student}" if run.teacher is not None else f"{recipe.student} learns alone"
    )
    observer.announce(f"{who} on {run.task.name}; run folder {folder.path}")
    if run.task.found:
        observer.announce(f"worked out from the data: {run.task.found}")
    announce_texts(run, opened.texts, opened.tokenizer, observer)
    for finding in run.checks:
        if finding.allowed or finding.what in NOTEWORTHY:
            observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")
    return observer
