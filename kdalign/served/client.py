"""A model behind an OpenAI-compatible API: asked in threads, every answer kept at once."""

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdalign.errors import KdalignError, RunError, UsageError, did_you_mean, printable, shorten
from kdalign.files import check_writable
from kdalign.served.bounded import bounded_client
from kdalign.served.budget import Budget, OverBudget, ServedSettings, Usage, check_settings
from kdalign.served.cache import AnswerCache
from kdalign.served.protocol import (
    Constraint,
    Dialect,
    Refused,
    Unusable,
    Way,
    answer_key,
    check_length,
    next_dialect,
    read_echo,
    read_label,
    read_text,
    request_body,
    token_usage,
)

PREFIX = "openai:"
OPENAI_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
FILE = "served.jsonl"
_SHORTEST_KEY = 8
"""Letters of a key that is masked in answers: a shorter one, as of a local server, is also found in words."""

Progress = Callable[[int, int], None]
"""Told of (prompts answered, prompts) in the caller's thread."""


def is_served(name: str) -> bool:
    """Whether a model's name is ``openai:NAME``."""
    return name.startswith(PREFIX)


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


class _Gone(Exception):
    """No server answered; the text says why."""


@dataclass(frozen=True)
class _Question:
    """A request, and how its answer is read into what the file keeps."""

    path: str
    body: dict[str, Any]
    key: str
    characters: int
    longest: int
    read: Callable[[dict[str, Any]], dict[str, Any]]


class ApiModel:
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
        without_text: answers of the last call whose text is null for another reason; they count as empty.
        miscounted: whether the server said of tokens what are no counts of them (-5, "many").
    """

    def __init__(self, name: str, base_url: str, folder: Path, settings: ServedSettings | None = None) -> None:
        """Open a model.

        Args:
            name: ``openai:NAME``.
            base_url: of the API, mostly with ``/v1`` at its end.
            folder: where answers are kept; it is made with the first.
            settings: how it is asked.

        Raises:
            UsageError: the extra is not installed, or a name, URL, setting, folder or key that cannot be.
        """
        self.settings = settings or ServedSettings()
        check_settings(self.settings)
        self.model = name.removeprefix(PREFIX)
        if not is_served(name) or not self.model:
            raise UsageError(f"model {name!r} is not one behind an API (accepted: openai:NAME)")
        self.url = _checked_url(base_url)
        check_writable(folder)
        self.file = folder / FILE
        self._key = _key(self.url)
        long = self._key is not None and len(self._key) >= _SHORTEST_KEY
        self._key_pattern = re.compile(r"\s*".join(map(re.escape, self._key or ""))) if long else None
        self._client = _client(self.url, self._key, self.settings)
        self._purse = Budget(self.settings)
        self._kept = AnswerCache(self.file)
        self.answered_by: tuple[str, ...] = ()
        self.cut_empty = self.without_text = 0
        self.miscounted = False

    def __enter__(self) -> "ApiModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a request under way still keeps its answer."""
        self._client.close()

    @property
    def way(self) -> Way | None:
        """Through which endpoint ``complete`` asks; None before the first answer."""
        dialect = self._kept.dialects.get(self._dialect_key("complete"))
        return None if dialect is None else dialect.way

    @property
    def dropped(self) -> tuple[str, ...]:
        """The parameters that the server refused and ``complete`` leaves out, as ``temperature``."""
        dialect = self._kept.dialects.get(self._dialect_key("complete"))
        return () if dialect is None else dialect.dropped

    @property
    def spent(self) -> Usage:
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

        def question(dialect: Dialect, prompt: str, longest: int) -> _Question:
            body = request_body(self.model, dialect, prompt, longest, ends)
            key = answer_key(self.url, dialect.path, body, ends)
            return _Question(dialect.path, body, key, len(prompt), longest, lambda answer: read_text(answer, ends))

        rows = list(zip(prompts, max_tokens, strict=True))
        if not rows:
            return []
        dialect = self._manner("complete", lambda dialect: question(dialect, *rows[0]), len(rows))
        lines = self._ask([question(dialect, *row) for row in rows], progress)
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

        def question(dialect: Dialect, prompt: str) -> _Question:
            body = request_body(self.model, dialect, prompt, longest, (), labels)
            key = answer_key(self.url, dialect.path, body)
            return _Question(dialect.path, body, key, len(prompt), longest, lambda answer: read_label(answer, labels))

        if not prompts:
            return Choices([], "none", self.way or "completions")
        key = self._dialect_key("choose")
        if key not in self._kept.dialects:
            self._find_constraint(key, lambda dialect: question(dialect, prompts[0]), len(prompts))
        dialect = self._kept.dialects[key]
        if dialect.constraint == "none":
            texts = self.complete(prompts, [max_tokens] * len(prompts), stop, progress)
            assert self.way is not None
            return Choices(texts, "none", self.way)
        lines = self._ask([question(dialect, prompt) for prompt in prompts], progress)
        return Choices(self._texts(lines), dialect.constraint, dialect.way)

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

        def question(dialect: Dialect, text: str) -> _Question:
            if dialect.way == "chat":
                raise Refused(404, "it has no /completions for this model")
            body = request_body(self.model, dialect, text, 1) | {"echo": True, "logprobs": 1}
            key = answer_key(self.url, dialect.path, body)
            return _Question(dialect.path, body, key, len(text), 1, lambda answer: read_echo(answer, text))

        asked = [text for text in texts if text]  # an empty prompt is refused by some servers
        key = self._dialect_key("prompt_logprobs")
        if asked and key not in self._kept.dialects:
            reason = self._check_echo(key, question, len(asked))
            if reason is not None:
                return Unavailable(reason)
        lines = self._ask([question(self._kept.dialects[key], text) for text in asked], progress)
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

    def _texts(self, lines: Sequence[Mapping[str, Any]]) -> list[str]:
        self.cut_empty = sum(line["text"] == "" and line.get("finish") == "length" for line in lines)
        self.without_text = sum(bool(line.get("null")) and line.get("finish") != "length" for line in lines)
        return [line["text"] for line in lines]

    def _dialect_key(self, purpose: str) -> str:
        """What a dialect is kept under: it belongs to a model at a URL, and to what is asked of it."""
        return answer_key(self.url, purpose, {"model": self.model, "chat": self.settings.chat})

    def _manner(self, purpose: str, question: Callable[[Dialect], _Question], total: int) -> Dialect:
        """The dialect in which the server answers, found by asking the first question where it is not kept."""
        key = self._dialect_key(purpose)
        if key not in self._kept.dialects:
            start = Dialect("chat" if self.settings.chat else "completions")
            try:
                dialect = self._adapt(start, question)
            except Exception as error:
                raise self._explained(error, 0, total) from None
            self._kept.keep_dialect(key, dialect)
        return self._kept.dialects[key]

    def _adapt(self, dialect: Dialect, question: Callable[[Dialect], _Question], retries: int | None = None) -> Dialect:
        """Ask until the server answers, each time without what it refused; the answer is kept.

        Raises:
            Refused: for a reason that no other dialect avoids, or ``question`` has none for the other endpoint.
        """
        while True:
            try:
                self._answer(question(dialect), retries)
            except Refused as refusal:
                changed = next_dialect(dialect, refusal)
                if changed is None:
                    raise
                dialect = changed
            else:
                return dialect

    def _find_constraint(self, key: str, question: Callable[[Dialect], _Question], total: int) -> None:
        """Keep the first form of constraint that the server heeds.

        llama-cpp-python answers a form that it does not know by 500, so that is no reason to try long.
        """
        forms: tuple[Constraint, ...] = ("json_schema", "json_object")
        for form in forms:
            try:
                dialect = self._adapt(Dialect("chat", form), question, min(1, self.settings.retries))
            except Refused as refusal:
                if _ends_all(refusal):
                    raise self._explained(refusal, 0, total) from None
                continue
            except Exception as error:
                raise self._explained(error, 0, total) from None
            if self._kept.answers[question(dialect).key].get("label"):
                self._kept.keep_dialect(key, dialect)
                return
        self._kept.keep_dialect(key, Dialect("completions"))

    def _check_echo(self, key: str, question: Callable[..., _Question], total: int) -> str | None:
        """Keep the dialect in which the server tells log-probabilities of prompts; else say why it does not."""
        dialect, verdicts = Dialect("completions"), []
        for text in ("The first of the", "1 2 3 4 5", "Once upon a time, there"):
            asked = partial(question, text=text)
            try:
                dialect = self._adapt(dialect, asked, min(1, self.settings.retries))
            except Refused as refusal:
                unknown = self._unknown_model(refusal)
                if unknown is not None or _ends_all(refusal):
                    raise unknown or self._explained(refusal, 0, total) from None
                return f"the server at {self.url} refuses to tell log-probabilities of a prompt ({refusal})"
            except Exception as error:
                raise self._explained(error, 0, total) from None
            line = self._kept.answers[asked(dialect).key]
            if "reason" in line:
                return f"the server at {self.url} {line['reason']}"
            verdicts.append(line.get("in_place"))
        if False in verdicts:
            return (
                f"the server at {self.url} gives each token's log-probability at the place of the next one, "
                "so they are those of other tokens"
            )
        if True not in verdicts:
            return f"whether the server at {self.url} tells log-probabilities of the right tokens cannot be checked"
        self._kept.keep_dialect(key, dialect)
        return None

    def _ask(self, questions: Sequence[_Question], progress: Progress | None) -> list[Mapping[str, Any]]:
        """The kept lines of all answers, in the order of the questions; what is not kept yet is asked.

        The threads end with the process: a pool's would hold up Ctrl-C until all requests under way are answered.
        """
        often: dict[str, int] = {}
        todo: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        for question in questions:
            if question.key not in self._kept.answers and question.key not in often:
                todo.put(question)
            often[question.key] = often.get(question.key, 0) + 1
        answered = sum(times for key, times in often.items() if key in self._kept.answers)
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
                outcome = _next(ended)
                if isinstance(outcome, BaseException):
                    stop.set()
                    _wait_for(workers, 10.0)
                    answered = sum(times for key, times in often.items() if key in self._kept.answers)
                    raise self._explained(outcome, answered, len(questions)) from None
                answered += often[outcome]
                if progress is not None:
                    progress(answered, len(questions))
        finally:
            stop.set()
        lines = [self._kept.answers[question.key] for question in questions]
        models = {line["model"] for line in lines if isinstance(line.get("model"), str)}
        self.answered_by = tuple(sorted({*self.answered_by, *models}))
        return lines

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
            Unusable: the answer is none.
            _Gone: no server.
            OverBudget: not enough is left.
            RunError: the answer's tokens are not counted though there is a budget of them, or it cannot be kept.
        """
        if question.key in self._kept.answers:
            return
        held = self._purse.take(question.characters, question.longest)
        paid: tuple[int, int] | None = None
        try:
            answer = self._post(question.path, question.body, retries)
            used = token_usage(answer)
            paid = (held, 0) if used is None else used  # what is no count must not leave the budget as it was
        finally:
            self._purse.pay(held, question.characters, paid)
        self.miscounted |= used is None
        tokens = (0, 0) if used is None else used
        line = question.read(answer)
        check_length(line, question.characters, question.longest)
        line |= {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        self._kept.keep_answer(question.key, {"model": _model_name(answer.get("model")), **line})
        if self.settings.max_tokens is not None and tokens[0] == 0:
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
            cause = error.__cause__ or error
            raise cause if isinstance(cause, Unusable) else _Gone(self._safe(cause)) from None
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            raise Unusable("it is nested too deeply" if deep else "it is not JSON, though it says so") from None
        match self._clean(answer):
            case {"choices": [dict(), *_]} as found:
                return dict(found)
        raise Refused(200, "its answer is not one of an OpenAI-compatible API")

    def _refused(self, error: Any) -> Refused:
        """What a server says in an error's body: OpenAI under ``message``, FastAPI under ``detail``."""
        body = error.body
        if 300 <= error.status_code < 400:
            return Refused(error.status_code, self._safe(error.response.headers.get("location", "nowhere")))
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
        """Someone else's words in one clean line of at most 300 characters, without the key."""
        text = str(said)
        if self._key is not None:
            text = self._masked(text).replace(self._key, "***")
        text = " ".join(printable(text).split())
        return text if len(text) <= 300 else f"{text[:300]}…"

    def _masked(self, text: str) -> str:
        """A text without the key, also where blanks stand between its letters."""
        if self._key_pattern is None or len(text) < _SHORTEST_KEY:
            return text
        return self._key_pattern.sub("***", text)

    def _clean(self, answer: Any) -> Any:
        """An answer whose texts can be written into any file: without the key and without halves of letters."""
        if isinstance(answer, str):
            return self._masked(answer).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(answer, list):
            return [self._clean(value) for value in answer]
        if isinstance(answer, dict):
            return {self._clean(key): self._clean(value) for key, value in answer.items()}
        return answer

    def _listed(self) -> list[str] | None:
        """The models that the server lists; None where it lists none."""
        import openai

        try:
            answer = self._client.get("/models", cast_to=object, options={"max_retries": 0})
        except (openai.APIError, Unusable, ValueError, RecursionError):
            return None
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            return None
        names = [name for row in rows if isinstance(row, dict) and (name := _model_name(row.get("id")))]
        return names or None

    def _explained(self, error: BaseException, answered: int, total: int) -> BaseException:
        """The line for the user that an error stands for; what is none of them stays as it is."""
        kept = f"{answered} of {total} answers are kept in {self.file}"
        on = f"{kept}: the same command goes on" if answered else "nothing was answered"
        if isinstance(error, OverBudget):
            spent = self.spent
            paid = f"{spent.requests} requests, {spent.tokens} tokens"
            return RunError(
                f"the budget ({self._budget()}) does not reach for the next request after {paid}; "
                f"{kept}: the same command with a larger budget goes on"
            )
        if isinstance(error, Unusable):
            return RunError(f"the server at {self.url} gives an answer that cannot be used: {error}; {on}")
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
        if 300 <= refusal.status < 400:
            return UsageError(
                f"the server at {self.url} sends requests on to {refusal.message!r} ({refusal.status}), which is not "
                "followed, as the texts would go there, too: give that place as --base-url if you trust it"
            )
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


def _client(url: str, key: str | None, settings: ServedSettings) -> Any:
    """OpenAI's client, which has not asked anything yet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import openai
    except ImportError:
        raise UsageError("models behind an API need OpenAI's client: pip install 'kdalign[served]'") from None
    return openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        timeout=settings.timeout,
        max_retries=settings.retries,
        http_client=bounded_client(settings.timeout),
    )


def _ends_all(refusal: Refused) -> bool:
    """Whether a refusal is of all that could be asked: no key, too many requests, another place."""
    return refusal.status in (401, 403, 429) or 300 <= refusal.status < 400


def _model_name(given: object) -> str | None:
    """What a server calls a model, as a clean name of a readable length; None for what is no text."""
    return shorten(printable(given), 100) if isinstance(given, str) else None


def _next(ended: "queue.SimpleQueue[str | BaseException]") -> "str | BaseException":
    """What ends next. A signal that comes just before a wait does not end it, so that no wait may be long."""
    while True:
        try:
            return ended.get(timeout=0.2)
        except queue.Empty:
            continue


def _wait_for(workers: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for threads that end their last request, but not for long."""
    until = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))


def _some(names: Sequence[str], most: int = 20) -> str:
    """Names in a line; of very many, the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
