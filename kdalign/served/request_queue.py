"""Requests to one served model: sent from threads within a budget, every answer cached as it arrives."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdalign.errors import KdalignError, RunError
from kdalign.observer import ProgressCallback
from kdalign.served.budget import Budget, OverBudget, ServedSettings
from kdalign.served.cache import KeptAnswers
from kdalign.served.protocol import Refused, Unusable, check_length, token_usage
from kdalign.served.transport import NoAnswer, Server, Unreachable, model_name


@dataclass(frozen=True)
class Request:
    """A request, and how its answer is read.

    Attributes:
        path: path of the endpoint.
        body: what is sent, as JSON.
        key: key of the answer in the cache.
        characters: length of the prompt.
        max_tokens: longest answer.
        read: makes the line that the cache keeps from an answer.
    """

    path: str
    body: dict[str, Any]
    key: str
    characters: int
    max_tokens: int
    read: Callable[[dict[str, Any]], dict[str, Any]]


class RequestQueue:
    """Requests to one model at a server; a request whose answer is cached is not sent again.

    Attributes:
        model: the model's name at the server.
        server: the connection.
        cache: answers so far.
        budget: requests and tokens paid for, and their limits.
        answered_by: names under which the server answered; OpenAI names the dated version.
        miscounted: True once the server reported token counts that are not counts (-5, "many").
    """

    def __init__(self, model: str, server: Server, cache: KeptAnswers, settings: ServedSettings) -> None:
        self.model, self.server, self.cache = model, server, cache
        self.budget = Budget(settings)
        self.answered_by: tuple[str, ...] = ()
        self.miscounted = False
        self._settings = settings

    def send_all(self, requests: Sequence[Request], progress: ProgressCallback | None) -> list[Mapping[str, Any]]:
        """Return the cached lines of all answers, in the order of the requests; send those that are not cached yet.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        self.send_missing(requests, progress)
        lines = [self.cache.answers[request.key] for request in requests]
        models = {line["model"] for line in lines if isinstance(line.get("model"), str)}
        self.answered_by = tuple(sorted({*self.answered_by, *models}))
        return lines

    def send_missing(self, requests: Sequence[Request], progress: ProgressCallback | None) -> None:
        """Send the requests whose answers are not cached yet, and cache them.

        The threads are daemons: those of a pool would hold up Ctrl-C until all requests under way are answered.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        times = Counter(request.key for request in requests)
        missing = {request.key: request for request in requests if request.key not in self.cache.answers}
        todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in missing.values():
            todo.put(request)
        answered = len(requests) - sum(times[key] for key in missing)
        if progress is not None and answered:
            progress(answered, len(requests))
        ended: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(todo, ended, stop), daemon=True, name="served")
            for _ in range(min(self._settings.concurrency, len(missing)))
        ]
        try:
            for worker in workers:
                worker.start()
            for _ in missing:
                outcome = _next_outcome(ended)
                if isinstance(outcome, BaseException):
                    stop.set()
                    _join(workers, 10.0)
                    answered = sum(count for key, count in times.items() if key in self.cache.answers)
                    raise self.explain(outcome, answered, len(requests)) from None
                answered += times[outcome]
                if progress is not None:
                    progress(answered, len(requests))
        finally:
            stop.set()

    def _work(
        self,
        todo: "queue.SimpleQueue[Request]",
        ended: "queue.SimpleQueue[str | BaseException]",
        stop: threading.Event,
    ) -> None:
        """Send requests until there are none, one fails or the queue stops."""
        while not stop.is_set():
            try:
                request = todo.get_nowait()
            except queue.Empty:
                return
            try:
                self.send(request)
            except BaseException as error:  # every error is raised again in the caller's thread, which waits for it
                ended.put(error)
                return
            ended.put(request.key)

    def send(self, request: Request, retries: int | None = None) -> None:
        """Send one request and cache its answer, unless it is cached.

        Raises:
            Refused: the server refused it.
            Unusable: the answer cannot be used.
            NoAnswer: the server did not answer.
            OverBudget: not enough of the budget is left.
            RunError: the server counts no tokens though there is a budget of them, or the answer cannot be kept.
        """
        if request.key in self.cache.answers:
            return
        line = self.ask(request, retries)
        self.cache.keep_answer(request.key, line)
        if self._settings.max_tokens is not None and line["prompt_tokens"] == 0:
            raise RunError(
                f"the server at {self.server.url} does not count tokens, so a budget of them cannot be kept: "
                "give one of requests"
            )

    def ask(self, request: Request, retries: int | None = None) -> Mapping[str, Any]:
        """Send one request within the budget and return the line of its answer, which is not cached.

        Raises:
            Refused: the server refused it.
            Unusable: the answer cannot be used.
            NoAnswer: the server did not answer.
            OverBudget: not enough of the budget is left.
        """
        held = self.budget.take(request.characters, request.max_tokens)
        paid: tuple[int, int] | None = None
        try:
            answer = self.server.post(request.path, request.body, retries)
            usage = token_usage(answer)
            paid = (held, 0) if usage is None else usage  # an impossible count must not leave the budget as it was
        finally:
            self.budget.pay(held, request.characters, paid)
        self.miscounted |= usage is None
        tokens = (0, 0) if usage is None else usage
        line = request.read(answer)
        check_length(line, request.characters, request.max_tokens)
        line |= {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        return {"model": model_name(answer.get("model")), **line}

    def explain(self, error: BaseException, answered: int, total: int) -> BaseException:
        """Return the user's error for an error of the server or the budget; any other is returned unchanged."""
        kept = f"{answered} of {total} answers are kept in {self.cache.file}"
        note = f"{kept}: run the same command again to resume" if answered else "nothing was answered"
        match error:
            case OverBudget():
                spent = self.budget.spent
                state = "used up" if self.budget.is_used_up else "too small for the next request"
                return RunError(
                    f"the budget of {self.budget.limits} is {state} ({spent.requests} requests, {spent.tokens} tokens "
                    f"so far); {kept}: run the same command with a larger budget to resume"
                )
            case Unusable():
                return RunError(f"the server at {self.server.url} gives an answer that cannot be used: {error}; {note}")
            case Unreachable():
                said = f"cannot reach the server at {self.server.url} ({error}): is it running?"
                return RunError(f"{said} {note}" if answered else said)
            case NoAnswer():
                return RunError(f"no answer from the server at {self.server.url} ({error}); {note}")
            case Refused():
                return self.server.explain_refusal(error, self.model, answered, note)
            case KdalignError():
                return type(error)(f"{error}; {note}")
        return error


def _next_outcome(ended: "queue.SimpleQueue[str | BaseException]") -> "str | BaseException":
    """Wait for the next outcome, in short waits: a signal that arrives just before a wait does not end it."""
    while True:
        try:
            return ended.get(timeout=0.2)
        except queue.Empty:
            continue


def _join(workers: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for threads that finish their last request, at most so long in all."""
    until = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
