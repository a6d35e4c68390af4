"""A model behind an OpenAI-compatible API: it completes prompts, chooses labels and returns log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdalign.files import check_writable
from kdalign.observer import ProgressCallback
from kdalign.served.budget import ServedSettings
from kdalign.served.cache import AnswerCache
from kdalign.served.connection import Connection
from kdalign.served.negotiation import Negotiator
from kdalign.served.protocol import (
    GREEDY,
    Constraint,
    Dialect,
    Endpoint,
    Prompt,
    Refused,
    RequestSampling,
    answer_key,
    read_echo,
    read_label,
    read_text,
    request_body,
)
from kdalign.served.request_queue import Request

FILE = "served.jsonl"


@dataclass(frozen=True)
class Completion:
    """A model's answer to a prompt.

    Attributes:
        text: the answer.
        ended: True if the model or a stop text ended it, False if its tokens ran out or the server stopped it, None if
            the server does not say.
        prompt_tokens: tokens of the prompt, as the server counts them.
        new_tokens: tokens of the answer, as the server counts them.
    """

    text: str
    ended: bool | None
    prompt_tokens: int
    new_tokens: int

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Completion":
        """Read an answer from its line in the cache."""
        finish = line.get("finish")
        ended = True if line.get("stopped") else None if finish is None else finish in _ENDED
        counts = [line.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
        return cls(line["text"], ended, *counts)


_ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")
"""Reasons by which servers say that a model ended its answer."""


@dataclass(frozen=True)
class Choices:
    """A model's choices among labels.

    Attributes:
        texts: label of each prompt if answers were constrained, else the model's text (``label_in_answer``).
        constraint: form in which answers were constrained to the labels.
        endpoint: endpoint of the API.
    """

    texts: list[str]
    constraint: Constraint
    endpoint: Endpoint


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a text.

    Attributes:
        token: its text, as the server writes it.
        logprob: natural logarithm of its probability given the tokens before it; None if the server gives none, as
            for the first.
        offset: the text's character at which it starts; None if that is unknown.
    """

    token: str
    logprob: float | None
    offset: int | None


@dataclass(frozen=True)
class Unavailable:
    """Why a server cannot do something, in a sentence."""

    reason: str


class ApiModel(Connection):
    """A model behind an OpenAI-compatible API, opened at a URL.

    Opening it reads the answers in the folder; nothing is sent or written. Close it, or use it in ``with``.

    Attributes:
        model: the model's name at the server.
        url: URL of the API.
        file: file of the answers.
        cut_empty: answers of the last call that are empty because their tokens ran out, as those of a reasoning model
            that may not write long enough to end its thoughts.
        without_text: answers of the last call whose text is null for another reason; they count as empty.
    """

    def __init__(self, name: str, base_url: str, folder: Path, settings: ServedSettings | None = None) -> None:
        """Open a model.

        Args:
            name: ``openai:NAME``.
            base_url: URL of the API, mostly with ``/v1`` at its end.
            folder: folder of the answers, made with the first one.
            settings: concurrency, retries and budget.

        Raises:
            UsageError: OpenAI's package is not installed, or the name, URL, a setting, the folder or key is invalid.
        """
        settings = settings or ServedSettings()
        check_writable(folder)
        self.file = folder / FILE
        cache = AnswerCache(self.file)
        super().__init__(name, base_url, cache, settings)
        self._dialects = Negotiator(self._requests, cache, settings.chat, settings.retries)
        self.cut_empty = self.without_text = 0

    @property
    def endpoint(self) -> Endpoint | None:
        """Endpoint of ``complete``; None before the first answer."""
        dialect = self._dialects.known("complete")
        return None if dialect is None else dialect.endpoint

    @property
    def dropped(self) -> tuple[str, ...]:
        """Parameters that the server refused and ``complete`` leaves out, such as ``temperature``."""
        dialect = self._dialects.known("complete")
        return () if dialect is None else dialect.dropped

    @property
    def answered_by(self) -> tuple[str, ...]:
        """Names under which the server answered; OpenAI names the dated version."""
        return self._requests.answered_by

    @property
    def miscounted(self) -> bool:
        """True once the server reported token counts that are not counts (-5, "many")."""
        return self._requests.miscounted

    def complete(
        self,
        prompts: Sequence[str],
        max_tokens: Sequence[int],
        stop: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[str]:
        """Complete each prompt greedily (temperature 0, seed 0): the texts of ``answer``."""
        return [answer.text for answer in self.answer(prompts, max_tokens, stop, progress)]

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        stop: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
        sampling: Sequence[RequestSampling] | None = None,
    ) -> list[Completion]:
        """Complete each prompt.

        Through ``/completions`` where the server has it, for the raw prompt; else through ``/chat/completions``, where
        the prompt is one message of the user.

        Args:
            prompts: texts; equal ones are sent once. Conversations, for a model that was opened with ``chat``.
            max_tokens: longest answer to each prompt, in tokens.
            stop: texts before which an answer ends.
            progress: called after each answer, in the caller's thread.
            sampling: how the tokens of each answer are chosen; greedily if left out. A prompt with several is answered
                several times.

        Returns:
            The answers in the order of the prompts.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        ends = tuple(stop or ())

        def request(prompt: Prompt, limit: int, chosen: RequestSampling, dialect: Dialect) -> Request:
            body = request_body(self.model, dialect, prompt, limit, ends, sampling=chosen)
            draw = chosen.seed if chosen.temperature > 0 and "seed" in dialect.refused else 0
            key = answer_key(self.url, dialect.path, body, ends, draw)
            size = len(prompt) if isinstance(prompt, str) else sum(len(str(turn.get("content"))) for turn in prompt)
            return Request(dialect.path, body, key, size, limit, lambda answer: read_text(answer, ends))

        rows = list(zip(prompts, max_tokens, sampling or [GREEDY] * len(prompts), strict=True))
        if not rows:
            return []
        dialect = self._dialects.completion(partial(request, *rows[0]), len(rows))
        lines = self._requests.send_all([request(*row, dialect) for row in rows], progress)
        self._texts(lines)
        return [Completion.of(line) for line in lines]

    def choose(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],
        max_tokens: int = 32,
        stop: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Choices:
        """Choose one of some labels for each prompt.

        Constrained to the labels by ``response_format`` of ``/chat/completions``, where the server heeds it, which the
        first answer shows. Elsewhere the model writes freely, as by ``complete``.

        Args:
            prompts: texts; equal ones are sent once.
            labels: the possible answers.
            max_tokens: longest free answer; a reasoning model needs room for its thoughts in either case.
            stop: texts before which a free answer ends.
            progress: called after each answer, in the caller's thread.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        limit = max(max_tokens, 64, 32 + 2 * max((len(label.encode()) for label in labels), default=0))

        def request(prompt: str, dialect: Dialect) -> Request:
            body = request_body(self.model, dialect, prompt, limit, (), labels)
            key = answer_key(self.url, dialect.path, body)
            return Request(dialect.path, body, key, len(prompt), limit, lambda answer: read_label(answer, labels))

        if not prompts:
            return Choices([], "none", self.endpoint or "completions")
        dialect = self._dialects.constraint(partial(request, prompts[0]), len(prompts))
        if dialect.constraint == "none":
            texts = self.complete(prompts, [max_tokens] * len(prompts), stop, progress)
            assert self.endpoint is not None, "complete found it"
            return Choices(texts, "none", self.endpoint)
        lines = self._requests.send_all([request(prompt, dialect) for prompt in prompts], progress)
        return Choices(self._texts(lines), dialect.constraint, dialect.endpoint)

    def prompt_logprobs(
        self, texts: Sequence[str], progress: ProgressCallback | None = None
    ) -> list[list[TokenLogprob]] | Unavailable:
        """Return the log-probability of each token of each text, or why the server gives none.

        By ``/completions`` with ``echo`` and one new token: with a limit of none, llama-cpp-python writes until its
        context is full. Three short texts are sent first (``Negotiator.echo``).

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """

        def request(text: str, dialect: Dialect) -> Request:
            if dialect.endpoint == "chat":
                raise Refused(404, "it has no /completions for this model")
            body = request_body(self.model, dialect, text, 1) | {"echo": True, "logprobs": 1}
            key = answer_key(self.url, dialect.path, body)
            return Request(dialect.path, body, key, len(text), 1, lambda answer: read_echo(answer, text))

        sent = [text for text in texts if text]  # an empty prompt is refused by some servers
        if not sent:
            return [[] for _ in texts]
        dialect = self._dialects.echo(request, len(sent))
        if isinstance(dialect, str):
            return Unavailable(dialect)
        lines = self._requests.send_all([request(text, dialect) for text in sent], progress)
        for line in lines:
            if "reason" in line:
                return Unavailable(f"the server at {self.url} {line['reason']}")
        rows = iter(
            [TokenLogprob(*row) for row in zip(line["tokens"], line["logprobs"], line["offsets"], strict=True)]
            for line in lines
        )
        return [next(rows) if text else [] for text in texts]

    def record(self) -> dict[str, Any]:
        """Return how the model answered and what was paid for, for a run's record."""
        spent = self.spent
        return {
            "url": self.url,
            "model": self.model,
            "answered_by": list(self.answered_by),
            "way": self.endpoint,
            "dropped": list(self.dropped),
            "requests": spent.requests,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
        }

    def _texts(self, lines: Sequence[Mapping[str, Any]]) -> list[str]:
        self.cut_empty = sum(line["text"] == "" and line.get("finish") == "length" for line in lines)
        self.without_text = sum(bool(line.get("null")) and line.get("finish") != "length" for line in lines)
        return [line["text"] for line in lines]
