"""Prepare what comes next, a step or a segment of a stream, in a thread while the current one runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Ahead(Generic[Value]):
    """Values by number; once one is taken, a thread computes the next."""

    def __init__(self, compute: Callable[[int], Value]) -> None:
        """Compute nothing yet.

        Args:
            compute: computes a value by its number, which alone decides it; never run twice at once.
        """
        self._compute, self._thread = compute, ThreadPoolExecutor(1, thread_name_prefix="kdalign-next-step")
        self._next: tuple[int, Future[Value]] | None = None

    def begin(self, number: int) -> None:
        """Begin to compute the first value that will be taken."""
        self._next = number, self._thread.submit(self._compute, number)

    def take(self, number: int) -> Value:
        """Return a value, and begin to compute the one after it.

        Raises:
            Exception: whatever ``compute`` raised for this number.
        """
        known = self._next
        if known is None or known[0] != number:
            self._wait()
            known = number, self._thread.submit(self._compute, number)
        self._next = None
        value = known[1].result()
        self.begin(number + 1)
        return value

    def close(self) -> None:
        """End the thread, once it has computed what it began."""
        self._wait()
        self._thread.shutdown()

    def _wait(self) -> None:
        """Drop the value that is being computed; its error would be one of a step that is not taken."""
        if self._next is not None:
            wait([self._next[1]])
            self._next = None
