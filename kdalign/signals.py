"""Stop in order on the first signal, at once on the second."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_signal(*numbers: int) -> Iterator[list[int]]:
    """Collect the first of these signals, for the caller to stop in order; a second one acts as usual.

    Outside the main thread, where Python sets no handlers, signals act as usual.

    Args:
        numbers: signals to collect, such as ``signal.SIGTERM``.

    Yields:
        A list that is empty until a signal arrives, then holds its number.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
