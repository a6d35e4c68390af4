"""Settings of served models, and the budget of requests and tokens to pay for."""

import math
import threading
from dataclasses import dataclass

from kdalign.errors import UsageError


@dataclass(frozen=True)
class ServedSettings:
    """Concurrency, time limits, retries and budget of a served model.

    Attributes:
        concurrency: requests under way at once.
        timeout: seconds to wait for one answer.
        retries: retries of a request after no answer, a full server (429) or a server error (5xx), with growing pauses.
        max_requests: answers to pay for, from the opening of the model; None for no limit.
        max_tokens: tokens of prompts and answers to pay for, as the server counts them; None for no limit.
        chat: use ``/chat/completions`` even if the server completes raw text.
    """

    concurrency: int = 4
    timeout: float = 120.0
    retries: int = 5
    max_requests: int | None = None
    max_tokens: int | None = None
    chat: bool = False


@dataclass(frozen=True)
class Usage:
    """Answers and tokens paid for, as the server counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens


class OverBudget(Exception):
    """The next request could take more than is left."""


class Budget:
    """A budget of requests and tokens: a request reserves its share before it is sent, then pays the server's count."""

    def __init__(self, settings: ServedSettings) -> None:
        self._most_requests = settings.max_requests
        self._most_tokens = settings.max_tokens
        self._changed = threading.Condition()
        self._held_requests = 0
        self._held_tokens = 0
        self._characters = 0
        self.spent = Usage()

    @property
    def limits(self) -> str:
        """The limits in words, as ``4 requests and 100 tokens``."""
        limits = ((self._most_requests, "requests"), (self._most_tokens, "tokens"))
        return " and ".join(f"{most} {unit}" for most, unit in limits if most is not None)

    @property
    def is_used_up(self) -> bool:
        """True if a limit was reached."""
        return not (
            _within(self.spent.requests + 1, self._most_requests) and _within(self.spent.tokens + 1, self._most_tokens)
        )

    def take(self, characters: int, longest: int) -> int:
        """Reserve a request's share, and wait while requests under way may leave enough of theirs.

        Args:
            characters: length of its prompt; its tokens are estimated from earlier prompts, and half as many more.
            longest: longest answer, in tokens.

        Returns:
            The tokens reserved.

        Raises:
            OverBudget: not enough is left.
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
                    raise OverBudget
                self._changed.wait()

    def pay(self, held: int, characters: int, used: tuple[int, int] | None) -> None:
        """Release a reservation, and pay for the answer's tokens (of prompt and answer), if one came."""
        with self._changed:
            self._held_requests -= 1
            self._held_tokens -= held
            if used is not None:
                self._characters += characters
                self.spent = Usage(
                    self.spent.requests + 1, self.spent.prompt_tokens + used[0], self.spent.completion_tokens + used[1]
                )
            self._changed.notify_all()


def _within(wanted: int, most: int | None) -> bool:
    return most is None or wanted <= most


def check_settings(settings: ServedSettings) -> None:
    """Refuse invalid settings.

    Raises:
        UsageError: one is too small.
    """
    least = {"concurrency": 1, "retries": 0, "max_requests": 0, "max_tokens": 0}
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise UsageError(f"{name} {value} of a served model is too small (accepted: {bound} or more)")
    if not settings.timeout > 0:
        raise UsageError(f"timeout {settings.timeout} of a served model is too small (accepted: seconds above 0)")
