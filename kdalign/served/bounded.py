"""An HTTP client with limits: no redirects, no compression, a largest body, and a time limit for the whole answer.

The client of OpenAI's package limits the wait for each piece of an answer only, so one that drips a letter at a time
takes hours; it follows redirects, with the user's texts; and it accepts a body of any size.
"""

import importlib
import math
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kdalign.served.protocol import Unusable

LARGEST = 16 * 2**20
"""Largest body of an answer, in bytes; the log-probabilities of a text of 8,192 tokens take about a twentieth of it."""


def bounded_client(seconds: float, largest: int = LARGEST) -> Any:
    """Return an HTTP client for OpenAI's package, which must be installed.

    Args:
        seconds: time limit of one answer, from the request to the last byte; ``inf`` for none.
        largest: largest body, in bytes.
    """
    import openai

    plain: Any = openai.DefaultHttpxClient
    library = importlib.import_module(plain.__mro__[1].__module__.partition(".")[0])  # httpx, or its successor

    class Bounded(plain):  # type: ignore[misc]
        """A client that reads every answer to its end."""

        def send(self, request: Any, **options: Any) -> Any:
            """Send one request.

            Raises:
                ReadTimeout: no complete answer in time; OpenAI's client retries.
                Unusable: the answer is too large or compressed.
            """
            request.headers["Accept-Encoding"] = "identity"
            options |= {"follow_redirects": False, "stream": True}
            late = threading.Event()
            try:
                return run_within(seconds, partial(self._read, request, options, late))
            except TimeoutError as error:
                late.set()
                raise library.ReadTimeout(str(error), request=request) from None

        def _read(self, request: Any, options: dict[str, Any], late: threading.Event) -> Any:
            response = super().send(request, **options)
            body = bytearray()
            try:
                form = response.headers.get("content-encoding", "").strip().lower()
                if form not in ("", "identity"):
                    raise Unusable(f"it is compressed ({form[:20]}) though that was not accepted")
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > largest:
                        raise Unusable(f"it has more than {largest:,} bytes")
                    if late.is_set():
                        break
            finally:
                response.close()
            return type(response)(
                response.status_code, headers=response.headers, content=bytes(body), request=response.request
            )

    return Bounded(timeout=None if math.isinf(seconds) else seconds, follow_redirects=False)


def run_within(seconds: float, work: Callable[[], Any]) -> Any:
    """Call a function in a thread and return or raise its outcome; a late one is abandoned, and ends with Python.

    Raises:
        TimeoutError: it has not ended in time.
    """
    ended: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(), None))
        except BaseException as error:  # raised again in the caller's thread
            ended.put((None, error))

    threading.Thread(target=run, daemon=True, name="served-answer").start()
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            value, error = ended.get(timeout=min(left, 0.2))  # a signal just before a wait does not end it
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return value
    raise TimeoutError(f"no complete answer within {seconds:g} seconds")
