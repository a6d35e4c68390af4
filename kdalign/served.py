"""Models behind an OpenAI-compatible API: they write, choose among labels, and tell the likelihood of a text.

::

    Served ── one model at one URL
      complete          text that goes on from each prompt, greedily
      choose            one of some labels for each prompt, constrained to them where the server can
      prompt_logprobs   the log-probability of each token of a text, or why there is none

Every answer is appended to ``served.jsonl`` at once, under the SHA-256 of all that decides it: what is asked again is
read there. How a server wants to be asked is found out by the first request, and kept in the same file.
"""

import hashlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from kdalign.errors import KdalignError, RunError, UsageError, did_you_mean
from kdalign.files import check_writable

PREFIX = "openai:"
OPENAI_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
FILE = "served.jsonl"

Way = Literal["completions", "chat"]
Constraint = Literal["json_schema", "json_object", "none"]
Progress = Callable[[int, int], None]
"""Told of (prompts answered, prompts) in the caller's thread."""


@dataclass(frozen=True)
class Settings:
    """How a server is asked.

    Attributes:
        concurrency: requests under way at once.
        timeout: seconds to wait for one answer.
        retries: of a request that met no answer, a full server (429) or a server's error (5xx), with growing pauses.
        max_requests: answers to pay for, from the opening of the model; None for any number.
        max_tokens: tokens of prompts and answers to pay for, as the server counts them; None for any number.
        chat: ask through ``/chat/completions`` even where the server completes raw text.
    """

    concurrency: int = 4
    timeout: float = 120.0
    retries: int = 5
    max_requests: int | None = None
    max_tokens: int | None = None
    chat: bool = False


@dataclass(frozen=True)
class Spent:
    """What was paid for: answers, and tokens as the server counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Manner:
    """How a server wants to be asked.

    Attributes:
        way: the endpoint.
        constraint: how answers are held to labels.
        refused: the parameters that it named when it refused a request.
    """

    way: Way
    constraint: Constraint = "none"
    refused: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The endpoint's path."""
        return "/completions" if self.way == "completions" else "/chat/completions"

    @property
    def dropped(self) -> tuple[str, ...]:
        """What of ``temperature``, ``seed`` and ``stop`` is not sent: without them a server need not write greedily.

        A ``max_tokens`` is sent under another name, and a server that refuses ``repeat_penalty`` has none.
        """
        return tuple(name for name in self.refused if name in ("temperature", "seed", "stop"))


@dataclass(frozen=True)
class Choices:
    """What a model chose.

    Attributes:
        texts: for each prompt a label where the answer was constrained, else what the model wrote (``label_said``).
        constraint: how answers were held to the labels.
        way: the endpoint.
    """

    texts: list[str]
    constraint: Constraint
    way: Way


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a text.

    Attributes:
        token: its text, as the server writes it.
        logprob: the natural logarithm of its probability after those before it; None where the server gives none, as
            for the first.
        offset: the text's character that it starts at; None where that is not known.
    """

    token: str
    logprob: float | None
    offset: int | None


@dataclass(frozen=True)
class Unavailable:
    """Why something cannot be had, in a sentence."""

    reason: str


def is_served(name: str) -> bool:
    """Whether a model's name is ``openai:NAME``."""
    return name.startswith(PREFIX)


def label_said(text: str, labels: Sequence[str]) -> int | None:
    """The number of the label that an answer names first, or None.

    Case does not count; a label is a whole word or several, with blanks, hyphens and underscores alike between them.
    Where several labels start at one place the longest is meant. So "Not entailment." names ``not_entailment``, and not
    ``entailment``.
    """
    numbers = sorted((n for n, label in enumerate(labels) if label.strip()), key=lambda n: -len(labels[n].strip()))
    words = [r"[\s_-]+".join(map(re.escape, re.split(r"(?<=\w)[\s_-]+(?=\w)", labels[n].strip()))) for n in numbers]
    if not words:
        return None
    found = re.search("|".join(rf"(?<!\w)(?<!\w-)({word})(?!\w)(?!-\w)" for word in words), text, re.IGNORECASE)
    return None if found is None or found.lastindex is None else numbers[found.lastindex - 1]


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of some stop texts: some servers leave the stop text in."""
    return text[: min((place for word in stop if (place := text.find(word)) >= 0), default=len(text))]


def answer_key(url: str, path: str, body: Mapping[str, Any], stop: Sequence[str] = ()) -> str:
    """The SHA-256 of all that decides an answer: where it was asked, with what, and where it is cut."""
    asked = {"url": url, "path": path, "body": body, "stop": list(stop)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("ascii")).hexdigest()


def request_body(
    model: str,
    manner: Manner,
    prompt: str,
    max_tokens: int,
    stop: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """What is sent for a prompt: greedy, in the server's manner.

    llama-cpp-python makes words that were there less likely (``repeat_penalty`` 1.1) unless it is told not to; servers
    that do not know the word pass over it or refuse it.
    """
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0, "seed": 0, "repeat_penalty": 1}
    if manner.way == "completions":
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    if stop:
        body["stop"] = list(stop)[:4]  # OpenAI takes no more; the answer is cut at all of them
    if manner.constraint != "none":
        body["response_format"] = _response_format(manner.constraint, labels)
    for name in manner.refused:
        value = body.pop(name, None)
        if name == "max_tokens":
            body["max_completion_tokens"] = value
    return body


def _response_format(constraint: Constraint, labels: Sequence[str]) -> dict[str, Any]:
    """One of the labels under ``answer``: in OpenAI's words, or in those of llama.cpp."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(labels)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    if constraint == "json_object":
        return {"type": "json_object", "schema": schema}
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


class Refused(Exception):
    """The server refused a request, or failed on it.

    Attributes:
        status: of HTTP.
        parameter: the request's part that it names as the reason, or None.
        code: its word for the reason, or None.
        message: what it says, in one line without the key.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.parameter, self.code = status, message, parameter, code


class _Gone(Exception):
    """No server answered; the text says why."""


class _OverBudget(Exception):
    """The next request could take more than is left."""


def adapted(manner: Manner, refusal: Refused) -> Manner | None:
    """The manner to try after a refusal; None where the refusal is about something else.

    A server without ``/completions``, or with a model that only chats (OpenAI says so by 404, Azure by a code), is
    asked through chat. A parameter that a 400 or 422 names is no longer sent; the limit of length stays, renamed.
    """
    if manner.way == "completions" and (refusal.status in (404, 405) or refusal.code == "OperationNotSupported"):
        return replace(manner, way="chat")
    if refusal.status not in (400, 422) or refusal.code == "context_length_exceeded":
        return None
    for name in ("max_tokens", "temperature", "seed", "stop", "repeat_penalty"):
        if name in manner.refused or (name == "max_tokens" and manner.way == "completions"):
            continue
        if refusal.parameter == name or re.search(rf"(?<![\w.]){name}(?!\w)", refusal.message):
            return replace(manner, refused=(*manner.refused, name))
    return None


@dataclass(frozen=True)
class _Question:
    """A request, and how its answer is read into what the file keeps."""

    path: str
    body: dict[str, Any]
    key: str
    characters: int
    longest: int
    read: Callable[[dict[str, Any]], dict[str, Any]]


class _Purse:
    """What may be spent: a request takes its share before it is sent, and pays what the server counts."""

    def __init__(self, settings: Settings) -> None:
        self._most_requests = settings.max_requests
        self._most_tokens = settings.max_tokens
        self._changed = threading.Condition()
        self._held_requests = 0
        self._held_tokens = 0
        self._characters = 0
        self.spent = Spent()

    def take(self, characters: int, longest: int) -> int:
        """Hold a request's share, and wait while requests under way may leave enough of theirs.

        Args:
            characters: of its prompt; its tokens are guessed by those of the prompts before, and half as many more.
            longest: its answer, in tokens.

        Returns:
            The tokens held.

        Raises:
            _OverBudget: not enough is left.
        """
        with self._changed:
            while True:
                ratio = self.spent.prompt_tokens / self._characters if self._characters else 0.3
                tokens = math.ceil(1.5 * ratio * characters) + longest
                fits = _within(self.spent.requests + self._held_requests + 1, self._most_requests)
                fits &= _within(self.spent.tokens + self._held_tokens + tokens, self._most_tokens)
                if fits:
                    self._held_requests += 1
                    self._held_tokens += tokens
                    return tokens
                if self._held_requests == 0:
                    raise _OverBudget
                self._changed.wait()

    def pay(self, held: int, characters: int, used: tuple[int, int] | None) -> None:
        """Give back what was held, and pay for the answer's tokens (of prompt and answer), if one came."""
        with self._changed:
            self._held_requests -= 1
            self._held_tokens -= held
            if used is not None:
                self._characters += characters
                self.spent = Spent(
                    self.spent.requests + 1, self.spent.prompt_tokens + used[0], self.spent.completion_tokens + used[1]
                )
            self._changed.notify_all()


def _within(wanted: int, most: int | None) -> bool:
    return most is None or wanted <= most


class Served:
    """A model behind an OpenAI-compatible API, opened at a URL.

    Opening it reads the answers that the folder keeps; nothing is asked or written. Close it, or use it in ``with``.

    Attributes:
        model: its name at the server.
        url: of the API.
        file: where the answers are kept.
        settings: how it is asked.
        answered_by: what the server called the model in its answers; OpenAI names the dated version.
        cut_empty: answers of the last call that are empty because their tokens ran out, as those of a reasoning model
            that may not write long enough to end its thoughts.
    """

    def __init__(self, name: str, base_url: str, folder: Path, settings: Settings | None = None) -> None:
        """Open a model.

        Args:
            name: ``openai:NAME``.
            base_url: of the API, mostly with ``/v1`` at its end.
            folder: where answers are kept; it is made with the first.
            settings: how it is asked.

        Raises:
            UsageError: the extra is not installed, or a name, URL, setting, folder or key that cannot be.
        """
        self.settings = settings or Settings()
        _check_settings(self.settings)
        self.model = name.removeprefix(PREFIX)
        if not is_served(name) or not self.model:
            raise UsageError(f"model {name!r} is not one behind an API (accepted: openai:NAME)")
        self.url = _checked_url(base_url)
        check_writable(folder)
        self.file = folder / FILE
        self._key = _key(self.url)
        self._client = _client(self.url, self._key, self.settings)
        self._purse = _Purse(self.settings)
        self._writing = threading.Lock()
        self._answers, self._manners = _kept(self.file)
        self.answered_by: tuple[str, ...] = ()
        self.cut_empty = 0

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a request under way still keeps its answer."""
        self._client.close()

    @property
    def way(self) -> Way | None:
        """Through which endpoint ``complete`` asks; None before the first answer."""
        manner = self._manners.get(self._manner_key("complete"))
        return None if manner is None else manner.way

    @property
    def dropped(self) -> tuple[str, ...]:
        """The parameters that the server refused and ``complete`` leaves out, as ``temperature``."""
        manner = self._manners.get(self._manner_key("complete"))
        return () if manner is None else manner.dropped

    @property
    def spent(self) -> Spent:
        """What was paid for since the model was opened."""
        return self._purse.spent

    def complete(
        self,
        prompts: Sequence[str],
        max_tokens: Sequence[int],
        stop: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """What the model writes after each prompt, greedily (temperature 0, seed 0).

        Through ``/completions`` where the server has it, for the raw prompt; else through ``/chat/completions``, where
        the prompt is one message of the user.

        Args:
            prompts: each is asked once, however often it stands there.
            max_tokens: for each prompt, the longest answer.
            stop: texts before which an answer ends.
            progress: told of each answer.

        Returns:
            The answers in the order of the prompts.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        ends = tuple(stop or ())

        def question(manner: Manner, prompt: str, longest: int) -> _Question:
            body = request_body(self.model, manner, prompt, longest, ends)
            key = answer_key(self.url, manner.path, body, ends)
            return _Question(manner.path, body, key, len(prompt), longest, lambda answer: _read_text(answer, ends))

        rows = list(zip(prompts, max_tokens, strict=True))
        if not rows:
            return []
        manner = self._manner("complete", lambda manner: question(manner, *rows[0]), len(rows))
        lines = self._ask([question(manner, *row) for row in rows], progress)
        return self._texts(lines)

    def choose(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],
        max_tokens: int = 32,
        stop: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Choices:
        """Which of some labels the model names for each prompt.

        Held to the labels by ``response_format`` of ``/chat/completions``, where the server heeds it: the first answer
        tells. Elsewhere the model writes freely, as by ``complete``.

        Args:
            prompts: each is asked once, however often it stands there.
            labels: what may be answered.
            max_tokens: the longest free answer; a reasoning model needs room for its thoughts in either case.
            stop: texts before which a free answer ends.
            progress: told of each answer.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        longest = max(max_tokens, 64, 32 + 2 * max((len(label.encode()) for label in labels), default=0))

        def question(manner: Manner, prompt: str) -> _Question:
            body = request_body(self.model, manner, prompt, longest, (), labels)
            key = answer_key(self.url, manner.path, body)
            return _Question(manner.path, body, key, len(prompt), longest, lambda answer: _read_label(answer, labels))

        if not prompts:
            return Choices([], "none", self.way or "completions")
        key = self._manner_key("choose")
        if key not in self._manners:
            self._find_constraint(key, lambda manner: question(manner, prompts[0]), len(prompts))
        manner = self._manners[key]
        if manner.constraint == "none":
            texts = self.complete(prompts, [max_tokens] * len(prompts), stop, progress)
            assert self.way is not None
            return Choices(texts, "none", self.way)
        lines = self._ask([question(manner, prompt) for prompt in prompts], progress)
        return Choices(self._texts(lines), manner.constraint, manner.way)

    def prompt_logprobs(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> list[list[TokenLogprob]] | Unavailable:
        """The log-probability of each token of each text, or why this server gives none.

        By ``/completions`` with ``echo`` and one token more than the text: asked for none, llama-cpp-python writes
        until its context is full. Three short texts are asked first, for some servers pass over ``echo``, and some tell
        a token's log-probability at the next place: the token that a model writes greedily must be the likeliest one.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """

        def question(manner: Manner, text: str) -> _Question:
            if manner.way == "chat":
                raise Refused(404, "it has no /completions for this model")
            body = request_body(self.model, manner, text, 1) | {"echo": True, "logprobs": 1}
            key = answer_key(self.url, manner.path, body)
            return _Question(manner.path, body, key, len(text), 1, lambda answer: _read_echo(answer, text))

        asked = [text for text in texts if text]  # an empty prompt is refused by some servers
        key = self._manner_key("prompt_logprobs")
        if asked and key not in self._manners:
            reason = self._check_echo(key, question, len(asked))
            if reason is not None:
                return Unavailable(reason)
        lines = self._ask([question(self._manners[key], text) for text in asked], progress)
        for line in lines:
            if "reason" in line:
                return Unavailable(f"the server at {self.url} {line['reason']}")
        found = [
            [TokenLogprob(*row) for row in zip(line["tokens"], line["logprobs"], line["offsets"], strict=True)]
            for line in lines
        ]
        told = iter(found)
        return [next(told) if text else [] for text in texts]

    def record(self) -> dict[str, Any]:
        """How the model was asked and what was paid for, for a run's record."""
        spent = self.spent
        return {
            "url": self.url,
            "model": self.model,
            "answered_by": list(self.answered_by),
            "way": self.way,
            "dropped": list(self.dropped),
            "requests": spent.requests,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
        }

    def _texts(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        self.cut_empty = sum(line["text"] == "" and line["finish"] == "length" for line in lines)
        return [line["text"] for line in lines]

    def _manner_key(self, purpose: str) -> str:
        """What a manner is kept under: it belongs to a model at a URL, and to what is asked of it."""
        return answer_key(self.url, purpose, {"model": self.model, "chat": self.settings.chat})

    def _keep_manner(self, key: str, manner: Manner) -> None:
        kept = {"manner": key, "way": manner.way, "constraint": manner.constraint, "refused": list(manner.refused)}
        self._append(kept)
        self._manners[key] = manner

    def _manner(self, purpose: str, question: Callable[[Manner], _Question], total: int) -> Manner:
        """The manner in which the server answers, found by asking the first question where it is not kept."""
        key = self._manner_key(purpose)
        if key not in self._manners:
            start = Manner("chat" if self.settings.chat else "completions")
            try:
                manner = self._adapt(start, question)
            except Exception as error:
                raise self._explained(error, 0, total) from None
            self._keep_manner(key, manner)
        return self._manners[key]

    def _adapt(self, manner: Manner, question: Callable[[Manner], _Question], retries: int | None = None) -> Manner:
        """Ask until the server answers, each time without what it refused; the answer is kept.

        Raises:
            Refused: for a reason that no other manner avoids, or ``question`` has none for the other endpoint.
        """
        while True:
            try:
                self._answer(question(manner), retries)
            except Refused as refusal:
                changed = adapted(manner, refusal)
                if changed is None:
                    raise
                manner = changed
            else:
                return manner

    def _find_constraint(self, key: str, question: Callable[[Manner], _Question], total: int) -> None:
        """Keep the first form of constraint that the server heeds.

        llama-cpp-python answers a form that it does not know by 500, so that is no reason to try long.
        """
        forms: tuple[Constraint, ...] = ("json_schema", "json_object")
        for form in forms:
            try:
                manner = self._adapt(Manner("chat", form), question, min(1, self.settings.retries))
            except Refused as refusal:
                if refusal.status in (401, 403, 429):
                    raise self._explained(refusal, 0, total) from None
                continue
            except Exception as error:
                raise self._explained(error, 0, total) from None
            if self._answers[question(manner).key]["label"]:
                self._keep_manner(key, manner)
                return
        self._keep_manner(key, Manner("completions"))

    def _check_echo(self, key: str, question: Callable[..., _Question], total: int) -> str | None:
        """Keep the manner in which the server tells log-probabilities of prompts; else say why it does not."""
        manner, verdicts = Manner("completions"), []
        for text in ("The first of the", "1 2 3 4 5", "Once upon a time, there"):
            asked = partial(question, text=text)
            try:
                manner = self._adapt(manner, asked, min(1, self.settings.retries))
            except Refused as refusal:
                unknown = self._unknown_model(refusal)
                if unknown is not None or refusal.status in (401, 403, 429):
                    raise unknown or self._explained(refusal, 0, total) from None
                return f"the server at {self.url} refuses to tell log-probabilities of a prompt ({refusal})"
            except Exception as error:
                raise self._explained(error, 0, total) from None
            line = self._answers[asked(manner).key]
            if "reason" in line:
                return f"the server at {self.url} {line['reason']}"
            verdicts.append(line["in_place"])
        if False in verdicts:
            return (
                f"the server at {self.url} gives each token's log-probability at the place of the next one, "
                "so they are those of other tokens"
            )
        if True not in verdicts:
            return f"whether the server at {self.url} tells log-probabilities of the right tokens cannot be checked"
        self._keep_manner(key, manner)
        return None

    def _ask(self, questions: Sequence[_Question], progress: Progress | None) -> list[dict[str, Any]]:
        """The kept lines of all answers, in the order of the questions; what is not kept yet is asked.

        The threads end with the process: a pool's would hold up Ctrl-C until all requests under way are answered.
        """
        often: dict[str, int] = {}
        todo: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        for question in questions:
            if question.key not in self._answers and question.key not in often:
                todo.put(question)
            often[question.key] = often.get(question.key, 0) + 1
        answered = sum(times for key, times in often.items() if key in self._answers)
        if progress is not None and answered:
            progress(answered, len(questions))
        waiting = todo.qsize()
        ended: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(todo, ended, stop), daemon=True, name="served")
            for _ in range(min(self.settings.concurrency, waiting))
        ]
        try:
            for worker in workers:
                worker.start()
            for _ in range(waiting):
                outcome = ended.get()
                if isinstance(outcome, BaseException):
                    stop.set()
                    _wait_for(workers, 10.0)
                    answered = sum(times for key, times in often.items() if key in self._answers)
                    raise self._explained(outcome, answered, len(questions)) from None
                answered += often[outcome]
                if progress is not None:
                    progress(answered, len(questions))
        finally:
            stop.set()
        return [self._answers[question.key] for question in questions]

    def _work(
        self,
        todo: "queue.SimpleQueue[_Question]",
        ended: "queue.SimpleQueue[str | BaseException]",
        stop: threading.Event,
    ) -> None:
        while not stop.is_set():
            try:
                question = todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._answer(question)
            except BaseException as error:  # every error is raised again in the caller's thread, which waits for it
                ended.put(error)
                return
            ended.put(question.key)

    def _answer(self, question: _Question, retries: int | None = None) -> None:
        """Ask one question and keep its answer.

        Raises:
            Refused: by the server.
            _Gone: no server.
            _OverBudget: not enough is left.
            RunError: the answer's tokens are not counted though there is a budget of them, or it cannot be kept.
        """
        if question.key in self._answers:
            return
        held = self._purse.take(question.characters, question.longest)
        used: tuple[int, int] | None = None
        try:
            answer = self._post(question.path, question.body, retries)
            usage = answer.get("usage") or {}
            used = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        finally:
            self._purse.pay(held, question.characters, used)
        line = question.read(answer) | {"prompt_tokens": used[0], "completion_tokens": used[1]}
        self._append({"key": question.key, "model": answer.get("model"), **line})
        self._answers[question.key] = line
        if isinstance(answer.get("model"), str):
            self.answered_by = tuple(sorted({*self.answered_by, answer["model"]}))
        if self.settings.max_tokens is not None and used[0] == 0:
            raise RunError(
                f"the server at {self.url} does not count tokens, so a budget of them cannot be kept: "
                "give one of requests"
            )

    def _post(self, path: str, body: dict[str, Any], retries: int | None) -> dict[str, Any]:
        import openai

        options = {} if retries is None else {"max_retries": retries}
        try:
            answer: Any = self._client.post(path, cast_to=object, body=body, options=options)
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            raise _Gone(self._safe(error.__cause__ or error)) from None
        match answer:
            case {"choices": [dict(), *_]}:
                return dict(answer)
        raise Refused(200, "its answer is not one of an OpenAI-compatible API")

    def _refused(self, error: Any) -> Refused:
        """What a server says in an error's body: OpenAI under ``message``, FastAPI under ``detail``."""
        body = error.body
        if not isinstance(body, dict):
            return Refused(error.status_code, self._safe(body or error.response.reason_phrase))
        said = body.get("message") or body.get("detail") or body
        parameter, code = body.get("param"), body.get("code")
        return Refused(
            error.status_code,
            self._safe(said),
            parameter if isinstance(parameter, str) else None,
            code if isinstance(code, str) else None,
        )

    def _safe(self, said: object) -> str:
        """Someone else's words in one line of at most 300 characters, without the key."""
        text = str(said)
        if self._key is not None:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:300]}…"

    def _listed(self) -> list[str] | None:
        """The models that the server lists; None where it lists none."""
        import openai

        try:
            answer = self._client.get("/models", cast_to=object, options={"max_retries": 0})
        except openai.APIError:
            return None
        rows = answer.get("data") if isinstance(answer, dict) else None
        names = [row["id"] for row in rows or [] if isinstance(row, dict) and isinstance(row.get("id"), str)]
        return names or None

    def _explained(self, error: BaseException, answered: int, total: int) -> BaseException:
        """The line for the user that an error stands for; what is none of them stays as it is."""
        kept = f"{answered} of {total} answers are kept in {self.file}"
        on = f"{kept}: the same command goes on" if answered else "nothing was answered"
        if isinstance(error, _OverBudget):
            spent = self.spent
            paid = f"{spent.requests} requests, {spent.tokens} tokens"
            return RunError(
                f"the budget ({self._budget()}) does not reach for the next request after {paid}; "
                f"{kept}: the same command with a larger budget goes on"
            )
        if isinstance(error, _Gone):
            return RunError(f"no answer from the server at {self.url} ({error}); {on}")
        if isinstance(error, Refused):
            return self._explained_refusal(error, answered, on)
        if isinstance(error, KdalignError):
            return type(error)(f"{error}; {on}")
        return error

    def _explained_refusal(self, refusal: Refused, answered: int, on: str) -> KdalignError:
        if refusal.status in (401, 403):  # whose message may hold parts of the key
            which = "the key in" if self._key else "no key, and there is none in"
            return UsageError(f"the server at {self.url} refuses {which} {KEY_VARIABLE} ({refusal.status})")
        unknown = None if answered else self._unknown_model(refusal)
        if unknown is not None:
            return unknown
        if refusal.status in (404, 405) or refusal.status == 200:
            return UsageError(
                f"no OpenAI-compatible API at {self.url} (it says {refusal}; accepted: the URL of one, mostly with /v1 "
                "at its end)"
            )
        did = "fails" if refusal.status >= 500 or refusal.status == 429 else "refuses a request"
        return RunError(f"the server at {self.url} {did} ({refusal}); {on}")

    def _unknown_model(self, refusal: Refused) -> UsageError | None:
        """The error of a model that the server does not know, where a refusal means that.

        The list alone does not say: llama-cpp-python answers under any name, and Transformers lists only its cache.
        """
        quoted = re.search(rf"(['\"`]){re.escape(self.model)}\1", refusal.message) is not None
        named = quoted and refusal.status in (400, 404, 422, 500)
        if not named and refusal.status != 404:
            return None
        listed = self._listed()
        if self.model in listed if listed is not None else not named:
            return None
        near = "" if listed is None else f"{did_you_mean(self.model, listed)} (its models: {_some(listed)})"
        return UsageError(f"the server at {self.url} says {refusal}: it has no model {self.model!r}{near}")

    def _budget(self) -> str:
        limits = ((self.settings.max_requests, "requests"), (self.settings.max_tokens, "tokens"))
        return " and ".join(f"{most} {what}" for most, what in limits if most is not None)

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line to the file in one write, after ending a half-written one.

        Raises:
            RunError: the disk does not take it.
        """
        text = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            with self._writing:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a+b", buffering=0) as file:
                    size = file.seek(0, os.SEEK_END)
                    if size:
                        file.seek(size - 1)
                        text = text if file.read(1) == b"\n" else b"\n" + text
                    file.write(text)
        except OSError as error:
            raise RunError(f"cannot keep an answer in {self.file}: {error.strerror}") from None


def _kept(file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Manner]]:
    """The answers by their keys, and the manners, of a file that need not be there.

    A line that is not whole was being written when a run was killed: it is passed over, and asked again.
    """
    answers: dict[str, dict[str, Any]] = {}
    manners: dict[str, Manner] = {}
    for raw in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and "key" in line:
            answers[line["key"]] = line
        elif isinstance(line, dict) and "manner" in line:
            manners[line["manner"]] = Manner(line["way"], line["constraint"], tuple(line["refused"]))
    return answers, manners


def _read_text(answer: dict[str, Any], stop: Sequence[str]) -> dict[str, Any]:
    """What the file keeps of a written answer: its text, and why it ended."""
    choice = answer["choices"][0]
    text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
    return {"text": cut_at(text, stop) if isinstance(text, str) else "", "finish": choice.get("finish_reason")}


def _read_label(answer: dict[str, Any], labels: Collection[str]) -> dict[str, Any]:
    """What the file keeps of a constrained answer: the label, or the text where it is none of them."""
    line = _read_text(answer, ())
    try:
        said = json.loads(line["text"])
    except ValueError:
        said = None
    label = said.get("answer") if isinstance(said, dict) else None
    found = isinstance(label, str) and label in labels
    return line | {"label": found} | ({"text": label} if found else {})


def _read_echo(answer: dict[str, Any], text: str) -> dict[str, Any]:
    """What the file keeps of an echoed text: its tokens, or the reason why there are none.

    ``in_place`` says whether log-probabilities stand at their own tokens: the written token, chosen greedily, must be
    the likeliest at its place. llama-cpp-python's are those of the next place where a model's texts start without BOS;
    then the last place tells the written token, which itself is not listed. None: that cannot be seen here.
    """
    choice = answer["choices"][0]
    told = choice.get("logprobs")
    if not isinstance(told, dict) or not told.get("token_logprobs"):
        return {"reason": "passes over echo and logprobs: it returns no log-probabilities of a prompt"}
    echoed = choice.get("text") or ""
    if not echoed.startswith(text):
        return {"reason": "passes over echo: it returns log-probabilities of its answer, not of the prompt"}
    tokens, logprobs = list(told["tokens"]), list(told["token_logprobs"])
    tops = told.get("top_logprobs") or [None] * len(tokens)
    written, joined = echoed[len(text) :], "".join(tokens)
    in_place = None
    if written and joined.endswith(text + written):
        top = tops[-1]
        in_place = None if not top else bool(logprobs[-1] >= max(top.values()) - 1e-3)
    elif written and joined.endswith(text) and tops[-1]:
        in_place = False if max(tops[-1], key=tops[-1].get) == written else None
    usage = answer.get("usage") or {}
    extra = int(usage.get("completion_tokens", 1 if written else 0)) if in_place is not False else 0
    count = len(tokens) - extra
    return {"in_place": in_place, **_within_text(tokens[:count], logprobs[:count], told.get("text_offset"), text)}


def _within_text(
    tokens: list[str], logprobs: list[float | None], given: list[int] | None, text: str
) -> dict[str, list[Any]]:
    """Tokens with their offsets, without a BOS written out before the text.

    Where the tokens spell the text their lengths give the offsets, for those of servers are off by a BOS or by the
    blank that a SentencePiece model puts first. Elsewhere (a character in several tokens) the server's own are taken.
    """
    joined = "".join(tokens)
    if not joined.endswith(text):
        offsets: list[int | None] = list(given[: len(tokens)]) if given else [None] * len(tokens)
        return {"tokens": tokens, "logprobs": logprobs, "offsets": offsets}
    start = len(text) - len(joined)
    kept: dict[str, list[Any]] = {"tokens": [], "logprobs": [], "offsets": []}
    for token, logprob in zip(tokens, logprobs, strict=True):
        if start + len(token) > 0:
            kept["tokens"].append(token)
            kept["logprobs"].append(logprob)
            kept["offsets"].append(max(start, 0))
        start += len(token)
    return kept


def _check_settings(settings: Settings) -> None:
    least = {"concurrency": 1, "retries": 0, "max_requests": 0, "max_tokens": 0}
    for name, bound in least.items():
        given = getattr(settings, name)
        if given is not None and given < bound:
            raise UsageError(f"{name} {given} of a served model is too small (accepted: {bound} or more)")
    if not settings.timeout > 0:
        raise UsageError(f"timeout {settings.timeout} of a served model is too small (accepted: seconds above 0)")


def _checked_url(url: str) -> str:
    """A URL without the slashes at its end.

    Raises:
        UsageError: it is none, or holds more than a host, a port and a path; a password in it would end up in records.
    """
    accepted = "(accepted: http:// or https://, host, port and path, as http://127.0.0.1:8000/v1)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(f"{url!r} is not the URL of an API {accepted}") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"the URL of an API takes no name or password: give a key in {KEY_VARIABLE} {accepted}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not the URL of an API {accepted}")
    return url.rstrip("/")


def _key(url: str) -> str | None:
    """The user's key, or None.

    Raises:
        UsageError: OpenAI wants one and there is none, or it is one that no server can be told.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and url == OPENAI_URL:
        raise UsageError(f"OpenAI answers with a key only: put yours into {KEY_VARIABLE}, or give another --base-url")
    if not key.isascii() or any(not letter.isprintable() or letter == " " for letter in key):
        raise UsageError(f"{KEY_VARIABLE} holds letters that no key has: blanks, line ends or letters beyond ASCII")
    return key or None


def _client(url: str, key: str | None, settings: Settings) -> Any:
    """OpenAI's client, which has not asked anything yet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise UsageError("models behind an API need OpenAI's client: pip install 'kdalign[served]'") from None
    return openai.OpenAI(api_key=key or "none", base_url=url, timeout=settings.timeout, max_retries=settings.retries)


def _wait_for(workers: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for threads that end their last request, but not for long."""
    until = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))


def _some(names: Sequence[str], most: int = 20) -> str:
    """Names in a line; of very many, the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
