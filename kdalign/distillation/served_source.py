"""A teacher behind an API in a run: its questions, its reading of rows compared with training's, and its answers."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock

from kdalign.data.passages import Passage, split_passages
from kdalign.data.tokenized_split import IGNORED, RETURNED, TokenizedSplit
from kdalign.distillation.checks import UNSHARED
from kdalign.distillation.load import LoadedModels
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.served_checks import open_reader
from kdalign.distillation.tokenize import OpenedRun, TokenizedRun, tokenize_run
from kdalign.errors import UsageError
from kdalign.models.architecture import vocabulary_size
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.loading import load_language_model
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.recipe import Recipe
from kdalign.runs.prediction_table import TokenPredictions
from kdalign.served import Unavailable
from kdalign.served.top_logprobs import PromptForm, TokenPrompt
from kdalign.teachers.served import UNREADABLE_SAMPLES, ReadingFacts, ServedTeacher, ServedTokens, measure_reading
from kdalign.teachers.served_checks import (
    MOST_NATS,
    MOST_NATS_LOCAL,
    NOTABLE_NATS,
    Probe,
    difference_from,
    mean_difference,
    reading_fault,
)

LEAST_RETURNED = 0.3
"""Least share of the student's positions at which a server must divide the text as well."""
PROBES = 3
"""Training rows that are compared before the first step."""


@dataclass(frozen=True)
class Questions:
    """Passages of a run's rows that a served teacher reads: it returns the likeliest tokens at their positions.

    Attributes:
        rows: number of training rows.
        passages: passages of these rows, equal ones once.
        scored: passages of the watched and the reported rows that are not among them.
    """

    rows: int
    passages: tuple[Passage, ...]
    scored: tuple[Passage, ...] = ()

    @classmethod
    def of(cls, texts: TokenizedRun, score: bool) -> "Questions":
        """Collect the passages of a run's rows, with those that are scored if that is wanted."""
        train, others = (
            dict.fromkeys(replace(each, start=0) for encoded in splits for _, each in split_passages(encoded))
            for splits in ([texts.train], [texts.watched, *texts.reported.values()] if score else [])
        )
        return cls(len(texts.train), tuple(train), tuple(each for each in others if each not in train))

    @property
    def all(self) -> tuple[Passage, ...]:
        """All passages."""
        return self.passages + self.scored

    @property
    def tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(len(passage.whole) for passage in self.all)

    @property
    def longest(self) -> Passage:
        """The longest passage."""
        return max(self.all, key=lambda passage: len(passage.ids))

    def probes(self) -> list[Passage]:
        """Choose the passages that are compared first: the longest, which shows a server's limit, and longer ones."""
        ordered = sorted(self.passages, key=lambda passage: -len(passage.ids))
        return [ordered[number * len(ordered) // (2 * PROBES)] for number in range(min(PROBES, len(ordered)))]


@dataclass(frozen=True)
class ServedSource:
    """A served teacher whose reading was compared with training's, and its questions.

    Attributes:
        tokens: reads passages.
        questions: the passages of the run's rows.
        facts: what the comparison found, for the record.
        notes: the same in words.
    """

    tokens: ServedTokens
    questions: Questions
    facts: dict[str, object]
    notes: tuple[str, ...]

    @property
    def prompts(self) -> list[TokenPrompt]:
        """The prompts of all passages."""
        return list(map(self.tokens.prompt, self.questions.all))


def describe_questions(run: PreparedRun) -> str:
    """Describe what a run would ask its served teacher, without asking: rows, tokens, requests and budget."""
    served = run.recipe.served
    said = f"{run.recipe.teacher} at {served.base_url}, the {served.top_k} likeliest tokens of each position"
    if not run.recipe.asks_server:
        return f"{said}; not asked, as no term compares with it"
    if run.tokenizers.student is None:
        return f"{said}; {len(run.splits.train):,} training rows, whose tokens are not known yet"
    questions = Questions.of(tokenize_run(run, run.tokenizers.student), served.score)
    limits = [f"{most:,} {unit}" for most, unit in _limits(run.recipe) if most is not None]
    return (
        f"{said}; {len(questions.all) + 2 * PROBES + 1:,} requests at most: {len(questions.passages):,} passages "
        f"of {questions.rows:,} training rows and {len(questions.scored):,} of rows that are scored, "
        f"{questions.tokens:,} tokens, the longest {len(questions.longest.whole):,}; "
        f"budget: {' and '.join(limits) or 'none'}"
    )


def _limits(recipe: Recipe) -> tuple[tuple[int | None, str], ...]:
    return (recipe.served.max_requests, "requests"), (recipe.served.max_tokens, "tokens")


def compare_first(opened: OpenedRun) -> ServedSource:
    """Compare the server's reading of three rows with training's; where every answer is kept, it is not asked.

    The first rank does so, and all have its result.

    Raises:
        UsageError: the server returns no log-probabilities of prompts, or reads the rows otherwise than training does.
        RunError: the server is gone or fails, or the budget is spent.
    """
    recipe, tokenizer = opened.recipe, opened.tokenizer
    reader = open_reader(recipe)
    source = ServedTokens(reader, tokenizer, _entries(opened))
    questions = Questions.of(opened.texts, recipe.served.score)

    def compare_here() -> tuple[PromptForm | None, dict[str, object], tuple[str, ...]]:
        with ExitStack() as opened_here:
            opened_here.enter_context(reader)
            facts, notes = _compare(source, questions, recipe)
            if recipe.on_policy.share > 0 and reader.form is not None and not reader.form.as_ids:
                raise UsageError(f"--on-policy: {UNREADABLE_SAMPLES}; nothing was trained")
            opened_here.pop_all()  # without an error it stays open, for the other rows
        return reader.form, facts, notes

    reader.form, facts, notes = on_first_rank(compare_here)
    if reader.form is not None and not reader.form.as_ids:
        questions = replace(questions, scored=())  # a prompt as text tells the likelihood of the server's own tokens
    return ServedSource(source, questions, facts, notes)


def _compare(source: ServedTokens, questions: Questions, recipe: Recipe) -> tuple[dict[str, object], tuple[str, ...]]:
    reader = source.reader
    if reader.remember_form() and not reader.missing(list(map(source.prompt, questions.all))):
        return {}, (f"every answer is kept in {reader.file}: the server is not asked",)
    _check_context(reader.context(), questions)
    prompts = [source.prompt(passage) for passage in questions.probes()]
    form = reader.negotiate(prompts[0])
    if isinstance(form, Unavailable):
        raise UsageError(
            f"{form.reason}; texts that it writes can be learned from: `kdalign generate --teacher {recipe.teacher} "
            f"--base-url {reader.url} --task ... --data ... --out DIR`, then distill --teacher none --data DIR"
        )
    before = [reader.kept(prompt) for prompt in prompts]
    probes = [Probe(prompt, reader.ask(prompt)) for prompt in prompts]
    fault = reading_fault(probes, source.vocabulary, form.as_ids) or _elsewhere(source, probes)
    if fault is not None:
        raise UsageError(f"the server at {reader.url} {fault}; nothing was trained")
    reader.read_all(prompts)
    notes = [f"{reader.model} at {reader.url}: {form}"]
    again = [reader.kept(prompt) for prompt in prompts]
    apart = max(mean_difference(probe.top, kept) for probe, kept in zip(probes, again, strict=True) if kept is not None)
    if apart > MOST_NATS:
        kept_already = any(kept is not None for kept in before)
        mend = (
            f"it answers otherwise than when {str(reader.file)!r} was written, as another model would: remove that file"
            if kept_already
            else "its answers to one prompt differ: let it compute without noise, or one prompt at a time "
            "(--set served.concurrency=1)"
        )
        raise UsageError(f"the server at {reader.url}: two answers differ by {apart:.4f} nats a token; {mend}")
    if apart > NOTABLE_NATS:
        notes.append(f"asked twice, its log-probabilities differ by {apart:.4f} nats a token")
    facts: dict[str, object] = {"repeated_nats": apart}
    if recipe.served.check_teacher is not None:
        facts["local_nats"] = _compare_with_local(recipe.served.check_teacher, probes)
        notes.append(f"{recipe.served.check_teacher} differs by {facts['local_nats']:.4f} nats a token on three rows")
    return facts, tuple(notes)


def _elsewhere(source: ServedTokens, probes: Sequence[Probe]) -> str | None:
    """Find that a server divides rows at few of the student's positions; None if it does not."""
    returned = np.concatenate([source.read(probe.prompt, probe.top).returned for probe in probes])
    if returned.mean() >= LEAST_RETURNED:
        return None
    return f"divides the text at {100 * returned.mean():.0f} % of the student's positions alone, so most teach nothing"


def _check_context(context: int | None, questions: Questions) -> None:
    """Refuse rows that a server says are too long for it."""
    if context is None:
        return
    long = sum(len(passage.whole) + 1 > context for passage in questions.all)
    if long:
        raise UsageError(
            f"{long:,} of {len(questions.all):,} passages of the run's rows are longer than the {context:,} "
            f"tokens that the server reads (the longest has {len(questions.longest.whole):,}, and one new token is "
            f"asked for): give --max-length {context - 2} or less"
        )


def _compare_with_local(name: str, probes: Sequence[Probe]) -> float:
    """Return the mean difference in nats a token between a server and a local checkpoint.

    Raises:
        UsageError: it is that of two models, or of two readings.
    """
    model = load_language_model(find_checkpoint(name)).float().eval()
    differences = []
    for probe in probes:
        ids = torch.tensor([probe.prompt.ids])
        with torch.no_grad():
            signals = forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, CaptureSpec(), None)
            assert signals.head is not None, "a causal model has a vocabulary"
            logs = signals.head.logits(signals.features[0]).float().log_softmax(dim=-1)
        differences.append(difference_from(probe.top, logs.numpy()))
    difference = sum(differences) / len(differences)
    if difference > MOST_NATS_LOCAL:
        raise UsageError(
            f"the server's log-probabilities differ from those of {name!r} by {difference:.3f} nats a token on three "
            f"training rows (accepted: {MOST_NATS_LOCAL}): it has another model, temperature or template"
        )
    return difference


@dataclass(frozen=True)
class AskedTeacher:
    """A served teacher whose answers about all training rows are kept, and the facts of it for the record."""

    teacher: ServedTeacher
    facts: dict[str, object]

    def all_facts(self) -> dict[str, object]:
        """Return the facts, with what was paid for since then: questions about texts that the student wrote."""
        return {**self.facts, **self.teacher.source.reader.record()}


def ask_all(source: ServedSource, accelerator: Accelerator, observer: Observer) -> AskedTeacher:
    """Ask about all training rows that no answer is kept of, once for all epochs, seeds and arms.

    Raises:
        UsageError: the server does not know the model or the key.
        RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
    """
    reader, questions = source.tokens.reader, source.questions
    other = reader.form is not None and reader.form.other_tokenizer
    unshared = {"unshared_tokens": UNSHARED} if other else {}

    def ask() -> None:
        for note in (*source.notes, *unshared.values()):
            observer.announce(note)
        with reader, FileLock(f"{reader.file}.lock"):  # other runs wait, and then find its answers
            missing = reader.missing(source.prompts)
            observer.announce(
                f"asking {reader.model} about {missing:,} of {len(questions.all):,} passages, of {questions.rows:,} "
                f"training rows and those that are scored ({questions.tokens:,} tokens); answers are kept in "
                f"{reader.file}"
            )
            reader.read_all(source.prompts, observer.progress(f"asking {reader.model}"))

    on_first_rank(ask)
    teacher = ServedTeacher(source.tokens, accelerator.device)
    if not accelerator.is_main_process:
        return AskedTeacher(teacher, {})
    found = measure_reading(source.tokens, questions.passages)
    observer.announce(_reading(found, reader.top))
    facts = {**reader.record(), "passages": len(questions.all), "tokens": questions.tokens, **source.facts, **unshared}
    return AskedTeacher(teacher, facts | asdict(found))


def add_scores(loaded: LoadedModels, source: ServedSource, observer: Observer) -> None:
    """Add a served teacher's answers on the watched and the reported rows, from which it is scored."""
    texts, tokens, model = loaded.opened.texts, source.tokens, source.tokens.reader.model
    if not source.questions.scored:
        observer.announce(f"{model} is not scored: served.score is false, or the server reads prompts as text")
        return
    watched = _predictions(tokens, texts.watched)
    answers = {split: _predictions(tokens, encoded) for split, encoded in texts.reported.items()}
    told = {split: answer for split, answer in answers.items() if answer is not None}
    if watched is None or len(told) < len(answers):
        observer.announce(f"{model} is not scored: its server leaves out tokens of the text")
        return
    loaded.answers, loaded.watched_answers = told, watched


def _predictions(source: ServedTokens, encoded: TokenizedSplit) -> TokenPredictions | None:
    """Take a served model's likelihoods and likeliest tokens of a split's targets; None if it leaves out any."""
    nll, tokens = np.zeros(len(encoded)), np.zeros(len(encoded), dtype=np.int64)
    best: list[list[int]] = [[] for _ in range(len(encoded))]
    for row, passage in split_passages(encoded):
        found = source.targets(passage)
        targets = encoded.columns["targets"][row][passage.start : passage.start + len(passage.ids)]
        asked = np.array(targets) != IGNORED
        if np.isnan(found.own[asked]).any():
            return None
        nll[row] -= float(found.own[asked].sum())
        tokens[row] += int(asked.sum())
        best[row] += found.entries[asked, 0].tolist()
    return TokenPredictions(nll, tokens, np.array([entry for row in best for entry in row], dtype=np.int64))


def with_returned(opened: OpenedRun, source: ServedSource) -> OpenedRun:
    """Mark the positions of the training rows at which the server returned nothing; they are not compared."""
    encoded, everywhere = opened.texts.train, True
    returned = [[0] * len(ids) for ids in encoded.columns["input_ids"]]
    for row, passage in split_passages(encoded):
        said = source.tokens.targets(passage).returned
        returned[row][passage.start : passage.start + len(said)] = said.astype(int).tolist()
        everywhere = everywhere and bool(said.all())
    if everywhere:
        return opened
    train = replace(encoded, columns={**encoded.columns, RETURNED: returned}, pad=encoded.pad | {RETURNED: 0})
    return replace(opened, texts=replace(opened.texts, train=train))


def _reading(found: ReadingFacts, top: int) -> str:
    """Describe what a server named: how much is in the rest, and how likely it finds the rows."""
    parts = [f"the likeliest {top} tokens of {found.returned:,} positions hold {100 * (1 - found.rest):.2f} %"]
    if found.returned < found.positions:
        silent = found.positions - found.returned
        parts.append(f"{silent:,} more are left out, where the server says nothing or divides the text elsewhere")
    if found.unmapped:
        parts.append(f"{100 * found.unmapped:.2f} % more are of entries that the student lacks")
    if found.nll is not None:
        parts.append(f"{found.nll:.3f} nats a token of the training text")
    return "; ".join(parts)


def _entries(opened: OpenedRun) -> int:
    """Number of entries of the student's vocabulary."""
    return vocabulary_size(opened.run.student_config(opened.tokenizer))
