"""A server's answer within bounds: no redirect, nothing compressed, so many bytes, so many seconds in all.

The client of OpenAI's package waits for each piece of an answer, so one that drips a letter at a time is waited for
for hours; it follows redirects, with the user's texts; and it takes a body of any size.
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
"""Bytes of an answer's body; the log-probabilities of a text of 8,192 tokens are about a twentieth of it."""


def bounded_client(seconds: float, largest: int = LARGEST) -> Any:
    """An HTTP client for OpenAI's package, which must be installed.

    Args:
        seconds: for one whole answer, from the request to the last byte; ``inf`` for no end.
        largest: bytes of a body.
    """
    import openai

    plain: Any = openai.DefaultHttpxClient
    library = importlib.import_module(plain.__mro__[1].__module__.partition(".")[0])  # httpx, or what came after it

    class Bounded(plain):  # type: ignore[misc]
        """Every answer is read here, whole."""

        def send(self, request: Any, **options: Any) -> Any:
            """Send one request.

            Raises:
                ReadTimeout: no whole answer in time; OpenAI's client asks again.
                Unusable: an answer that is too large or compressed.
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
    """What a function returns or raises, if it ends in time; else it is left alone, in a thread that ends with Python.

    Raises:
        TimeoutError: it has not ended.
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
            found, error = ended.get(timeout=min(left, 0.2))  # a signal just before a wait does not end it
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return found
    raise TimeoutError(f"no whole answer within {seconds:g} seconds")
