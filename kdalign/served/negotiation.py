"""Find out by the first requests how a server answers: endpoint, parameters, constraints, log-probabilities.

What is found is kept with the answers, so that the next command need not try again.
"""

from collections.abc import Callable
from functools import partial

from kdalign.served.cache import AnswerCache
from kdalign.served.protocol import Constraint, Dialect, Refused, answer_key, next_dialect
from kdalign.served.request_queue import Request, RequestQueue

PROBES = ("The first of the", "1 2 3 4 5", "Once upon a time, there")
"""Texts whose echoes show whether a server returns log-probabilities of a prompt, and at which tokens."""

MakeRequest = Callable[[Dialect], Request]
"""Writes a request in a dialect."""


class Negotiator:
    """The dialects in which a server answers one model's requests, each found once for each purpose.

    Purposes are ``complete``, ``choose`` and ``prompt_logprobs``.
    """

    def __init__(self, requests: RequestQueue, cache: AnswerCache, chat: bool, retries: int) -> None:
        """Wrap a queue.

        Args:
            requests: the queue that sends.
            cache: the queue's answers, with which the dialects are kept.
            chat: use ``/chat/completions`` even if the server completes raw text.
            retries: retries of a request; a form that the server may not know is retried once at most.
        """
        self._requests, self._chat, self._cache = requests, chat, cache
        self._few_retries = min(1, retries)

    def known(self, purpose: str) -> Dialect | None:
        """Return the dialect for a purpose; None before it is found."""
        return self._cache.dialects.get(self._key(purpose))

    def completion(self, make: MakeRequest, total: int) -> Dialect:
        """Return the dialect for free text, found by sending the first request.

        Args:
            make: writes the first request.
            total: number of requests, for error messages.
        """
        dialect = self.known("complete")
        if dialect is None:
            try:
                dialect = self._adapt(Dialect("chat" if self._chat else "completions"), make)
            except Exception as error:
                raise self._requests.explain(error, 0, total) from None
            self._keep("complete", dialect)
        return dialect

    def constraint(self, make: MakeRequest, total: int) -> Dialect:
        """Return the dialect for labels: the first form of constraint that the server heeds, or none.

        llama-cpp-python answers a form that it does not know by 500, so such a failure is not retried for long.
        """
        known = self.known("choose")
        if known is not None:
            return known
        forms: tuple[Constraint, ...] = ("json_schema", "json_object")
        for form in forms:
            try:
                dialect = self._adapt(Dialect("chat", form), make, self._few_retries)
            except Refused as refusal:
                if concerns_all(refusal):
                    raise self._requests.explain(refusal, 0, total) from None
                continue
            except Exception as error:
                raise self._requests.explain(error, 0, total) from None
            if self._cache.answers[make(dialect).key].get("label"):
                return self._keep("choose", dialect)
        return self._keep("choose", Dialect("completions"))

    def echo(self, make: Callable[[str, Dialect], Request], total: int) -> Dialect | str:
        """Return the dialect for log-probabilities of prompts, found by ``PROBES``, or the reason why there is none.

        Some servers ignore ``echo``, and some report a token's log-probability at the next token: the token that a
        model writes greedily must be the likeliest one.

        Args:
            make: writes the request for a text in a dialect.
            total: number of texts, for error messages.
        """
        known = self.known("prompt_logprobs")
        if known is not None:
            return known
        server = f"the server at {self._requests.server.url}"
        dialect, in_place = Dialect("completions"), []
        for text in PROBES:
            probe = partial(make, text)
            try:
                dialect = self._adapt(dialect, probe, self._few_retries)
            except Refused as refusal:
                unknown = self._requests.server.unknown_model(self._requests.model, refusal)
                if unknown is not None or concerns_all(refusal):
                    raise unknown or self._requests.explain(refusal, 0, total) from None
                return f"{server} refuses to return log-probabilities of a prompt ({refusal})"
            except Exception as error:
                raise self._requests.explain(error, 0, total) from None
            line = self._cache.answers[probe(dialect).key]
            if "reason" in line:
                return f"{server} {line['reason']}"
            in_place.append(line.get("in_place"))
        if False in in_place:
            return f"{server} returns each log-probability one token late, so they belong to other tokens"
        if True not in in_place:
            return f"it cannot be checked that {server} returns log-probabilities of the right tokens"
        return self._keep("prompt_logprobs", dialect)

    def _adapt(self, dialect: Dialect, make: MakeRequest, retries: int | None = None) -> Dialect:
        """Send a request until the server answers, each time without what it refused; the answer is cached.

        Raises:
            Refused: for a reason that no other dialect avoids, or by ``make``, which has none for an endpoint.
        """
        while True:
            try:
                self._requests.send(make(dialect), retries)
            except Refused as refusal:
                changed = next_dialect(dialect, refusal)
                if changed is None:
                    raise
                dialect = changed
            else:
                return dialect

    def _key(self, purpose: str) -> str:
        """A dialect's key in the cache: it belongs to a model at a URL, and to a purpose."""
        return answer_key(self._requests.server.url, purpose, {"model": self._requests.model, "chat": self._chat})

    def _keep(self, purpose: str, dialect: Dialect) -> Dialect:
        self._cache.keep_dialect(self._key(purpose), dialect)
        return dialect


def concerns_all(refusal: Refused) -> bool:
    """Return whether a refusal concerns every request: no key, too many requests, a redirect."""
    return refusal.status in (401, 403, 429) or 300 <= refusal.status < 400
