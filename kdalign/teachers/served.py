"""Teacher behind an API: its likeliest tokens at each position, and all others as one, from answers that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kdalign.data.batches import Batch
from kdalign.data.passages import Passage, batch_passages
from kdalign.errors import RunError
from kdalign.models.capture import Activations, CaptureSpec, Signal
from kdalign.models.token_targets import ABSENT, TopTokens
from kdalign.served.prompt_reader import PromptReader
from kdalign.served.top_logprobs import Array, TokenPrompt, TopLogprobs
from kdalign.teachers.base import TermRequest
from kdalign.teachers.served_checks import MOST_EXCESS
from kdalign.teachers.text_alignment import EntryTexts, token_starts

LEAST_REST = 1e-8
"""Least probability of all tokens that a server does not name: the sum of the others is only as exact as float32."""


UNREADABLE_SAMPLES = (
    "this server reads prompts as text, which it may divide into other tokens than those that the student sampled: "
    "give the model's weights (--teacher DIR), or a server that reads token numbers"
)
"""Reason for which a server cannot read texts that a student writes."""


@dataclass(frozen=True)
class PassageTargets:
    """A served model's likeliest tokens at the positions of a passage, and all others as one.

    Attributes:
        entries: (n, k), numbers of the likeliest entries in the student's vocabulary; -1 for those that it lacks.
        logs: (n, k + 1), their log-probabilities, then that of all others together.
        own: (n,), log-probabilities of the passage's own next tokens; NaN if the server gives none.
        unmapped: (n,), probability of entries that the student's vocabulary lacks, which is counted with the others.
        returned: (n,), false where the server returned nothing, or divides the text elsewhere.
    """

    entries: Array
    logs: Array
    own: Array
    unmapped: Array
    returned: Array


class ServedTokens:
    """Reads passages of token numbers from a served model, in its student's vocabulary.

    Attributes:
        reader: the model.
        tokenizer: the student's.
        vocabulary: number of the student's entries.
    """

    def __init__(self, reader: PromptReader, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self.reader, self.tokenizer, self.vocabulary = reader, tokenizer, vocabulary
        self._texts = EntryTexts(tokenizer)

    def prompt(self, passage: Passage) -> TokenPrompt:
        """Return the prompt that asks about a passage: its tokens and the one after them."""
        return self._texts.prompt(passage.whole)

    def ask_missing(self, passages: Sequence[Passage]) -> None:
        """Ask about passages without a kept answer, such as texts that the student wrote.

        Raises:
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        prompts = list(map(self.prompt, passages))
        if self.reader.missing(prompts):
            with self.reader:
                self.reader.read_all(prompts)

    def targets(self, passage: Passage) -> PassageTargets:
        """Return the model's likeliest tokens at the positions of a passage.

        Raises:
            RunError: no answer about it is kept.
        """
        prompt = self.prompt(passage)
        top = self.reader.kept(prompt)
        if top is None:
            raise RunError(
                f"{str(self.reader.file)!r} holds no answer about a training row any more: run the same command again"
            )
        return self.read(prompt, top)

    def read(self, prompt: TokenPrompt, top: TopLogprobs) -> PassageTargets:
        """Take an answer in the student's vocabulary, at the student's positions."""
        numbers = None if top.texts is None else np.array([self._texts.numbers.get(text, -1) for text in top.texts])
        rows = self._rows(prompt, top)
        form = self.reader.form
        assert form is not None, "the form of request is found first"
        found = in_vocabulary(top, rows, numbers, self.vocabulary, self.reader.top)
        return replace(found, own=np.full(len(rows), np.nan)) if form.other_tokenizer else found

    def _rows(self, prompt: TokenPrompt, top: TopLogprobs) -> Array:
        """(n,), the row of an answer that says what follows each position of a passage; -1 for none."""
        form, positions = self.reader.form, len(prompt.ids) - 1
        assert form is not None, "the form of request is found first"
        if form.as_ids:
            return np.arange(1, positions + 1)
        if not form.begun and not prompt.begins and not form.other_tokenizer:
            return np.full(positions, -1)  # the server puts a token before what begins in the middle of a text
        assert top.texts is not None, "a prompt as text is read by the texts of its tokens"
        theirs = [top.texts[number] for number in top.tokens.tolist()]
        text = prompt.text if form.begun else prompt.unbegun
        places: dict[int, int] = {}
        for row, start in enumerate(token_starts(theirs, text, prompt.special)):
            if start is not None:
                places[start] = row
        ends = self._texts.ends(prompt, form.begun)[:positions]
        return np.array([-1 if end is None else places.get(end, -1) for end in ends], dtype=np.int64)


def in_vocabulary(top: TopLogprobs, rows: Array, numbers: Array | None, vocabulary: int, k: int) -> PassageTargets:
    r"""Take the likeliest tokens as entries of a vocabulary, and all others as one more.

    .. math:: \log \Big( 1 - \sum_{j \le k} p_j \Big)

    in float64 and at least ``LEAST_REST``, so that it is finite where the named tokens reach 1.

    Args:
        top: what a server says of a prompt.
        rows: (n,), the row of the answer for each position; -1 for none.
        numbers: entry of each of the answer's texts, -1 for none; None if the answer has entries already.
        vocabulary: number of entries; tokens beyond are counted with the others.
        k: number of entries of each position; fewer are filled up with ones that are not there.
    """
    given = min(k, top.entries.shape[1])
    named = np.zeros((len(rows), k), dtype=bool)
    named[:, :given] = (top.entries[rows, :given] >= 0) & (rows >= 0)[:, None]
    entries, logs = np.full(named.shape, -1, dtype=np.int64), np.full(named.shape, -np.inf)
    entries[:, :given] = top.entries[rows, :given] if numbers is None else numbers[top.entries[rows, :given]]
    logs[:, :given] = np.where(named[:, :given], top.logs[rows, :given], -np.inf)
    known = named & (entries >= 0) & (entries < vocabulary)
    probabilities = np.exp(logs)
    rest = np.log(np.maximum(1 - np.where(known, probabilities, 0).sum(axis=1), LEAST_REST))
    return PassageTargets(
        entries=np.where(known, entries, -1),
        logs=np.concatenate([np.where(known, logs, ABSENT), rest[:, None]], axis=1),
        own=np.where(rows >= 0, top.own[rows].astype(np.float64), np.nan),
        unmapped=np.where(named & ~known, probabilities, 0).sum(axis=1),
        returned=np.asarray(named.any(axis=1)),
    )


class ServedTeacher:
    """Teacher behind an API, whose answers about all training rows are kept already; it is asked about others.

    Answers are found by a passage's tokens, never by a row's number.
    """

    def __init__(self, source: ServedTokens, device: torch.device) -> None:
        self.source, self._device = source, device

    def __call__(self, batch: Batch, wanted: CaptureSpec) -> Activations:
        """Give the likeliest tokens and the others as one at each position that is predicted."""
        k = self.source.reader.top
        entries = np.full((*batch.real.shape, k), -1, dtype=np.int64)
        logs = np.full((*batch.real.shape, k + 1), ABSENT, dtype=np.float32)
        logs[..., -1] = 0
        passages = list(batch_passages(batch))
        self.source.ask_missing([passage for _, passage in passages])
        for row, passage in passages:
            here, found = slice(passage.start, passage.start + len(passage.ids)), self.source.targets(passage)
            entries[row, here], logs[row, here] = found.entries, found.logs
        kept = {1.0: torch.from_numpy(logs).to(self._device)}
        return Activations(tokens=TopTokens(torch.from_numpy(entries).to(self._device), kept, self.source.vocabulary))

    def mark_returned(self, batch: Batch) -> Batch:
        """Mark the positions of a batch at which the server returned nothing; they are not compared.

        Raises:
            RunError: as for ``ask_missing``, for texts that the student wrote.
        """
        passages, everywhere = list(batch_passages(batch)), True
        self.source.ask_missing([passage for _, passage in passages])
        returned = torch.zeros_like(batch.real)
        for row, passage in passages:
            said = self.source.targets(passage).returned
            returned[row, passage.start : passage.start + len(said)] = torch.from_numpy(said).to(returned.device)
            everywhere = everywhere and bool(said.all())
        return batch if everywhere else replace(batch, returned=returned)

    def refusal(self, request: TermRequest) -> str | None:
        """Return the reason why a server cannot serve a term, and the remedy; None if it can."""
        form = self.source.reader.form
        if request.samples and form is not None and not form.as_ids:
            return f"compares texts that the student writes: {UNREADABLE_SAMPLES}"
        return served_refusal(request)


def served_refusal(request: TermRequest) -> str | None:
    """Return the reason why a served model cannot serve a term; None for tokens at temperature 1."""
    others = sorted(signal.value for signal in request.signals - {Signal.TOKENS})
    mend = "give the model's weights (--teacher DIR)"
    if others:
        return f"compares {' and '.join(others)}, which a served teacher does not return: leave it out, or {mend}"
    if request.temperature not in (None, 1):
        return (
            f"is at temperature {request.temperature:g}, and the log-probabilities of a served teacher are those of "
            f"temperature 1: give --temperature 1, or {mend}"
        )
    return None


@dataclass(frozen=True)
class ReadingFacts:
    """Counts and means of a served teacher's answers about the training rows.

    Attributes:
        positions: number of positions.
        returned: number of those with tokens from the server, which divides the text there as the student does.
        rest: mean probability of all tokens that are not named.
        unmapped: mean probability of named tokens that the student's vocabulary lacks, a part of ``rest``.
        nll: mean negative log-likelihood of the rows' own tokens, in nats; None if the server gives none.
    """

    positions: int
    returned: int
    rest: float
    unmapped: float
    nll: float | None


def measure_reading(source: ServedTokens, passages: Sequence[Passage]) -> ReadingFacts:
    """Average a served model's answers over all positions of passages.

    Raises:
        RunError: probabilities at a position exceed 1, or nothing is said at all.
    """
    rest = unmapped = nll = 0.0
    positions = returned = known = 0
    for found in map(source.targets, passages):
        there = found.returned
        named = np.exp(found.logs[:, :-1]).sum(axis=1) + found.unmapped
        if named.max() > 1 + MOST_EXCESS:
            raise RunError(
                f"the likeliest tokens of {source.reader.model!r} have probabilities of {named.max():.4f} together at "
                "a position of a training row: its log-probabilities are not those of a distribution"
            )
        rest, unmapped = rest + float(np.exp(found.logs[there, -1]).sum()), unmapped + float(found.unmapped.sum())
        own = found.own[there & ~np.isnan(found.own)]
        nll, known = nll - float(own.sum()), known + len(own)
        positions, returned = positions + len(there), returned + int(there.sum())
    if not returned:
        raise RunError(f"{source.reader.model!r} divides the training text nowhere as the student does")
    return ReadingFacts(positions, returned, rest / returned, unmapped / returned, nll / known if known else None)
