"""HTTP to an OpenAI-compatible API: post, retry, time limits, and errors without the user's key in them.

The user's texts and key go to the given URL alone: redirects are refused (``bounded``), and the key is masked in
whatever the server answers.
"""

import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from kdalign.errors import KdalignError, RunError, UsageError, did_you_mean, printable, shorten
from kdalign.served.bounded import bounded_client
from kdalign.served.budget import ServedSettings
from kdalign.served.protocol import Refused, Unusable

OPENAI_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
_UNCONNECTED = ("ConnectError", "ConnectTimeout")  # of httpx, or of its successor
_SHORTEST_KEY = 8
"""Letters of a key that is masked in answers: a shorter one, as of a local server, also occurs in words."""


class NoAnswer(Exception):
    """No server answered; the text says why."""


class Unreachable(NoAnswer):
    """No connection could be opened; the text says why."""


class Server:
    """A connection to the API at one URL; opening it sends nothing.

    Attributes:
        url: URL of the API, without slashes at its end.
    """

    def __init__(self, url: str, settings: ServedSettings) -> None:
        """Open a connection.

        Args:
            url: URL of the API, mostly with ``/v1`` at its end.
            settings: time limit and retries.

        Raises:
            UsageError: OpenAI's package is not installed, or the URL or key is invalid.
        """
        self.url = _check_url(url)
        self._key = _read_key(self.url)
        is_long = self._key is not None and len(self._key) >= _SHORTEST_KEY
        self._key_pattern = re.compile(r"\s*".join(map(re.escape, self._key or ""))) if is_long else None
        self._settings = settings
        self._client = _open_client(self.url, self._key, settings)

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        self._client.close()
        self._client = _open_client(self.url, self._key, self._settings)

    def post(self, path: str, body: dict[str, Any], retries: int | None = None) -> dict[str, Any]:
        """Send a request and return its answer, cleaned of the key and of halves of surrogate pairs.

        Args:
            path: path of the endpoint below the URL.
            body: the request as JSON.
            retries: retries after no answer, 429 or 5xx; None for the number in the settings.

        Raises:
            Refused: the server refused the request, or its answer has no choices.
            Unusable: the answer is too large, compressed or not JSON.
            NoAnswer: the server did not answer in time.
        """
        import openai

        options = {} if retries is None else {"max_retries": retries}
        try:
            answer: Any = self._client.post(path, cast_to=object, body=body, options=options)
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, Unusable):
                raise cause from None
            kind = Unreachable if type(cause).__name__ in _UNCONNECTED else NoAnswer
            raise kind(self._one_line(cause)) from None
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            raise Unusable("it is nested too deeply" if deep else "it is not JSON, though it says so") from None
        match self._clean(answer):
            case {"choices": [dict(), *_]} as cleaned:
                return dict(cleaned)
        raise Refused(200, "its answer is not one of an OpenAI-compatible API")

    def unknown_model(self, model: str, refusal: Refused) -> UsageError | None:
        """Return the error for a model that the server does not have; None if a refusal means something else.

        The server's list alone does not decide: llama-cpp-python answers under any name, and Transformers lists only
        its cache.
        """
        quoted = re.search(rf"(['\"`]){re.escape(model)}\1", refusal.message) is not None
        named = quoted and refusal.status in (400, 404, 422, 500)
        if not named and refusal.status != 404:
            return None
        listed = self._list_models()
        if model in listed if listed is not None else not named:
            return None
        near = "" if listed is None else f"{did_you_mean(model, listed)} (its models: {_first_names(listed)})"
        return UsageError(f"the server at {self.url} says {refusal}: it has no model {model!r}{near}")

    def has_no_api(self, refusal: Refused) -> bool:
        """Return whether a refusal says that no API is at the URL: it has no such page, and lists no models."""
        return refusal.status in (404, 405) and not self._models()

    def explain_refusal(self, refusal: Refused, model: str, answered: int, note: str) -> KdalignError:
        """Return the user's error for a refusal.

        Args:
            refusal: the server's refusal.
            model: the model's name at the server.
            answered: number of earlier answers; with one the model is known to exist.
            note: what is kept of the answers so far.
        """
        if refusal.status in (401, 403):  # whose message may hold parts of the key
            if self._key is None:
                return UsageError(f"the server at {self.url} needs a key ({refusal.status}): set {KEY_VARIABLE}")
            return UsageError(f"the server at {self.url} refuses the key in {KEY_VARIABLE} ({refusal.status})")
        if 300 <= refusal.status < 400:
            return UsageError(
                f"the server at {self.url} redirects requests to {refusal.message!r} ({refusal.status}), which is not "
                "followed, as the texts would go there, too: give that address as --base-url if you trust it"
            )
        unknown = None if answered else self.unknown_model(model, refusal)
        if unknown is not None:
            return unknown
        if refusal.status in (404, 405) or refusal.status == 200:
            return UsageError(
                f"no OpenAI-compatible API at {self.url} (it says {refusal}; accepted: the URL of one, mostly with /v1 "
                "at its end)"
            )
        did = "fails" if refusal.status >= 500 or refusal.status == 429 else "refuses a request"
        return RunError(f"the server at {self.url} {did} ({refusal}); {note}")

    def context(self, model: str) -> int | None:
        """Return the longest prompt and answer of a model together, in tokens, where the server lists it, as vLLM."""
        lengths = [row.get("max_model_len") for row in self._models() if row.get("id") == model]
        return next((length for length in lengths if type(length) is int and length > 0), None)

    def _list_models(self) -> list[str] | None:
        """The models that the server lists; None if it lists none."""
        return [name for row in self._models() if (name := model_name(row.get("id")))] or None

    def _models(self) -> list[dict[str, Any]]:
        """The server's list of its models; empty if it gives none."""
        import openai

        try:
            answer = self._client.get("/models", cast_to=object, options={"max_retries": 0})
        except (openai.APIError, Unusable, ValueError, RecursionError):
            return []
        rows = answer.get("data") if isinstance(answer, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def _refusal(self, error: Any) -> Refused:
        """Read an error's body: OpenAI explains under ``message``, FastAPI under ``detail``."""
        body = error.body
        if 300 <= error.status_code < 400:
            return Refused(error.status_code, self._one_line(error.response.headers.get("location", "nowhere")))
        if not isinstance(body, dict):
            return Refused(error.status_code, self._one_line(body or error.response.reason_phrase))
        message = body.get("message") or body.get("detail") or body
        parameter, code = body.get("param"), body.get("code")
        return Refused(
            error.status_code,
            self._one_line(message),
            parameter if isinstance(parameter, str) else None,
            code if isinstance(code, str) else None,
        )

    def _one_line(self, message: object) -> str:
        """A server's words in one clean line of at most 300 characters, without the key."""
        text = str(message)
        if self._key is not None:
            text = self._mask_key(text).replace(self._key, "***")
        text = " ".join(printable(text).split())
        return text if len(text) <= 300 else f"{text[:300]}…"

    def _mask_key(self, text: str) -> str:
        """Replace the key in a text, also if spaces stand between its letters."""
        if self._key_pattern is None or len(text) < _SHORTEST_KEY:
            return text
        return self._key_pattern.sub("***", text)

    def _clean(self, answer: Any) -> Any:
        """Return an answer whose texts can be written to any file: no key, no halves of surrogate pairs."""
        if isinstance(answer, str):
            return self._mask_key(answer).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(answer, list):
            return [self._clean(value) for value in answer]
        if isinstance(answer, dict):
            return {self._clean(key): self._clean(value) for key, value in answer.items()}
        return answer


def model_name(value: object) -> str | None:
    """Return a server's name for a model, cleaned and at most 100 characters long; None if it is not text."""
    return shorten(printable(value), 100) if isinstance(value, str) else None


def _check_url(url: str) -> str:
    """Return a URL without the slashes at its end.

    Raises:
        UsageError: it is none, or has more than a host, a port and a path; a password in it would end up in records.
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


def _read_key(url: str) -> str | None:
    """Return the user's key, or None.

    Raises:
        UsageError: OpenAI needs one and there is none, or it has letters that no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and url == OPENAI_URL:
        raise UsageError(f"OpenAI needs a key: set {KEY_VARIABLE}, or give another --base-url")
    if not key.isascii() or any(not letter.isprintable() or letter == " " for letter in key):
        raise UsageError(f"{KEY_VARIABLE} holds letters that no key has: spaces, line ends or letters beyond ASCII")
    return key or None


def _open_client(url: str, key: str | None, settings: ServedSettings) -> Any:
    """Return OpenAI's client, which has sent nothing yet.

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


def _first_names(names: Sequence[str], limit: int = 20) -> str:
    """Join names in one line; of a long list, the first."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
