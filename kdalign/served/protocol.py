"""Requests to an OpenAI-compatible API, dialects of servers, and what is read from an answer; nothing is sent here."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Endpoint = Literal["completions", "chat"]
Constraint = Literal["json_schema", "json_object", "none"]
Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation, which only a chat endpoint takes."""


@dataclass(frozen=True)
class RequestSampling:
    """Settings by which a server chooses tokens.

    Attributes:
        temperature: 0 for the likeliest token at each position.
        top_p: share of the probability from which samples are drawn, its likeliest tokens.
        seed: seed of samples, which servers may pass over.
    """

    temperature: float = 0
    top_p: float = 1
    seed: int = 0


GREEDY = RequestSampling()


@dataclass(frozen=True)
class Dialect:
    """The form of request that a server answers.

    Attributes:
        endpoint: ``completions`` for raw text, or ``chat``.
        constraint: form in which answers are constrained to labels.
        refused: parameters that the server named when it refused a request.
    """

    endpoint: Endpoint
    constraint: Constraint = "none"
    refused: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of the endpoint."""
        return "/completions" if self.endpoint == "completions" else "/chat/completions"

    @property
    def dropped(self) -> tuple[str, ...]:
        """Those of ``temperature``, ``top_p``, ``seed`` and ``stop`` not sent: without them a server chooses otherwise.

        ``max_tokens`` is sent under another name, and a server that refuses ``repeat_penalty`` has none.
        """
        return tuple(name for name in self.refused if name in ("temperature", "top_p", "seed", "stop"))


class Refused(Exception):
    """The server refused a request, or failed on it.

    Attributes:
        status: HTTP status.
        parameter: part of the request that it names as the reason, or None.
        code: its code for the reason, or None.
        message: its explanation, in one line without the key.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.parameter, self.code = status, message, parameter, code


class Unusable(Exception):
    """An answer that cannot be read, or does not answer the request; the text says why, as a clause about it."""


def request_body(
    model: str,
    dialect: Dialect,
    prompt: Prompt,
    max_tokens: int,
    stop: Sequence[str] = (),
    labels: Sequence[str] = (),
    sampling: RequestSampling = GREEDY,
) -> dict[str, Any]:
    """Build the body of a request, in the server's dialect.

    llama-cpp-python penalises repeated words (``repeat_penalty`` 1.1) by default; servers that do not know the
    parameter ignore or refuse it.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "repeat_penalty": 1,
    }
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if dialect.endpoint == "completions":
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if stop:
        body["stop"] = list(stop)[:4]  # OpenAI takes no more; the answer is cut at all of them afterwards
    if dialect.constraint != "none":
        body["response_format"] = _response_format(dialect.constraint, labels)
    for name in dialect.refused:
        value = body.pop(name, None)
        if name == "max_tokens":
            body["max_completion_tokens"] = value
    return body


def _response_format(constraint: Constraint, labels: Sequence[str]) -> dict[str, Any]:
    """Build the schema of one label under ``answer``, in OpenAI's form or in that of llama.cpp."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(labels)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    if constraint == "json_object":
        return {"type": "json_object", "schema": schema}
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


def next_dialect(dialect: Dialect, refusal: Refused) -> Dialect | None:
    """Return the dialect to try after a refusal; None if the refusal has another reason.

    A server without ``/completions``, or with a model that only chats (OpenAI says so by 404, Azure by a code), gets
    chat requests. A parameter that a 400 or 422 names is no longer sent; the limit of length stays, renamed.
    """
    if dialect.endpoint == "completions" and (refusal.status in (404, 405) or refusal.code == "OperationNotSupported"):
        return replace(dialect, endpoint="chat")
    if refusal.status not in (400, 422) or refusal.code == "context_length_exceeded":
        return None
    for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "repeat_penalty"):
        if name in dialect.refused or (name == "max_tokens" and dialect.endpoint == "completions"):
            continue
        if refusal.parameter == name or re.search(rf"(?<![\w.]){name}(?!\w)", refusal.message):
            return replace(dialect, refused=(*dialect.refused, name))
    return None


def answer_key(url: str, path: str, body: Mapping[str, Any], stop: Sequence[str] = (), draw: int = 0) -> str:
    """Return the SHA-256 of all that determines an answer: URL, path, body, and the texts at which it is cut.

    ``draw`` tells samples of one prompt apart where the server takes no seed.
    """
    parts = {"url": url, "path": path, "body": body, "stop": list(stop)} | ({"draw": draw} if draw else {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of some stop texts: some servers leave the stop text in."""
    return text[: min((start for word in stop if (start := text.find(word)) >= 0), default=len(text))]


def label_in_answer(text: str, labels: Sequence[str]) -> int | None:
    """Return the index of the label that an answer names first, or None.

    Case does not count; a label is one or more whole words, with spaces, hyphens or underscores between them. Where
    several labels start at one character the longest is meant. So "Not entailment." names ``not_entailment``, not
    ``entailment``.
    """
    numbers = sorted((n for n, label in enumerate(labels) if label.strip()), key=lambda n: -len(labels[n].strip()))
    words = [r"[\s_-]+".join(map(re.escape, re.split(r"(?<=\w)[\s_-]+(?=\w)", labels[n].strip()))) for n in numbers]
    if not words:
        return None
    match = re.search("|".join(rf"(?<!\w)(?<!\w-)({word})(?!\w)(?!-\w)" for word in words), text, re.IGNORECASE)
    return None if match is None or match.lastindex is None else numbers[match.lastindex - 1]


MOST_TOKENS = 10**8
"""Largest count of tokens that is believed: no context is so long."""
_LONGEST_TOKEN = 256
"""Characters of a token, such as spaces or dots in a row, in known vocabularies."""


def token_usage(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the tokens of prompt and answer as the server counts them; 0 if it gives none, None for no counts."""
    usage = answer.get("usage")
    if usage is None:
        return 0, 0
    if not isinstance(usage, dict):
        return None
    counts = [0 if (count := usage.get(key)) is None else count for key in ("prompt_tokens", "completion_tokens")]
    fits = all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts)
    return (counts[0], counts[1]) if fits else None


def check_length(line: Mapping[str, Any], characters: int, longest: int) -> None:
    """Refuse an answer that is longer than requested.

    Args:
        line: the line of the answer for the cache.
        characters: length of the prompt.
        longest: longest answer, in tokens.

    Raises:
        Unusable: a text or a list of tokens is too long.
    """
    size = len(line.get("text") or "")
    if size > _LONGEST_TOKEN * (longest + 16):
        raise Unusable(f"it has {size:,} characters where at most {longest:,} tokens were requested")
    tokens = len(line.get("tokens") or ())
    if tokens > 4 * characters + longest + 16:  # a token has a byte at least
        raise Unusable(f"it lists {tokens:,} tokens in a text of {characters:,} characters")


def read_text(answer: dict[str, Any], stop: Sequence[str]) -> dict[str, Any]:
    """Make the line of a free answer for the cache: its text, and why it ended.

    Servers send a message without text (null) where a reasoning model's tokens ran out: it is empty, and marked.

    Raises:
        Unusable: its text is not a string.
    """
    choice = answer["choices"][0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    finish = choice.get("finish_reason")
    line = {"finish": finish if isinstance(finish, str) and len(finish) < 100 else None}
    if text is None and isinstance(message, dict):
        return {"text": "", **line, "null": True}
    if not isinstance(text, str):
        raise Unusable(f"its text is {_kind(text)}")
    short = cut_at_stop(text, stop)
    return {"text": short, **line} | ({"stopped": True} if len(short) < len(text) else {})


def _kind(value: object) -> str:
    """Describe a value of JSON in words."""
    names = {type(None): "missing or null", list: "a list", dict: "an object", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a text")


def read_label(answer: dict[str, Any], labels: Collection[str]) -> dict[str, Any]:
    """Make the line of a constrained answer for the cache: the label, or the text if it is none of them."""
    line = read_text(answer, ())
    try:
        tree = json.loads(line["text"])
    except (ValueError, RecursionError):
        tree = None
    label = tree.get("answer") if isinstance(tree, dict) else None
    is_label = isinstance(label, str) and label in labels
    return line | {"label": is_label} | ({"text": label} if is_label else {})


def read_echo(answer: dict[str, Any], text: str) -> dict[str, Any]:
    """Make the line of an echoed text for the cache: its tokens, or the reason why there are none.

    ``in_place`` is True if log-probabilities stand at their own tokens: the new token, chosen greedily, must be the
    likeliest at its position. llama-cpp-python's stand one token late where a model's texts start without BOS; then the
    last position shows the new token, which itself is not listed. None: this answer does not show it.

    Raises:
        Unusable: its log-probabilities have the wrong types or lengths.
    """
    choice = answer["choices"][0]
    returned = choice.get("logprobs")
    if not isinstance(returned, dict) or not returned.get("token_logprobs"):
        return {"reason": "ignores echo and logprobs: it returns no log-probabilities of a prompt"}
    echoed = choice.get("text") or ""
    if not isinstance(echoed, str):
        raise Unusable(f"its text is {_kind(echoed)}")
    if not echoed.startswith(text):
        return {"reason": "ignores echo: it returns log-probabilities of its answer, not of the prompt"}
    tokens, logprobs, tops, offsets = _check_logprobs(returned)
    written, joined = echoed[len(text) :], "".join(tokens)
    in_place = None
    if written and joined.endswith(text + written):
        top, last = tops[-1], logprobs[-1]
        in_place = None if not top or last is None else last >= max(top.values()) - 1e-3
    elif written and joined.endswith(text) and (top := tops[-1]):
        in_place = False if max(top, key=lambda token: top[token]) == written else None
    used = token_usage(answer)
    known = used is not None and isinstance(answer.get("usage"), dict) and "completion_tokens" in answer["usage"]
    extra = used[1] if known and used is not None else 1 if written else 0
    count = len(tokens) - (extra if in_place is not False else 0)
    return {"in_place": in_place, **_within_text(tokens[:count], logprobs[:count], offsets, text)}


def _check_logprobs(
    returned: Mapping[str, Any],
) -> tuple[list[str], list[float | None], list[dict[str, float] | None], list[int] | None]:
    """Return tokens, their log-probabilities, the likeliest tokens and offsets, each a list as long as the tokens.

    Raises:
        Unusable: one has the wrong type or length, or a log-probability is above 0 or no number.
    """
    tokens, logprobs, offsets = returned.get("tokens"), returned["token_logprobs"], returned.get("text_offset")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise Unusable("its tokens are not a list of texts")
    if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
        raise Unusable("it has no log-probability for each token")
    if not all(value is None or _is_logprob(value) for value in logprobs):
        raise Unusable("a log-probability in it is not a number of at most 0")
    tops = returned.get("top_logprobs") or [None] * len(tokens)
    complete = isinstance(tops, list) and len(tops) == len(tokens)
    if not complete or not all(
        top is None or (isinstance(top, dict) and all(map(_is_logprob, top.values()))) for top in tops
    ):
        raise Unusable("its likeliest tokens are not a list of objects")
    if offsets and not (isinstance(offsets, list) and all(type(offset) is int for offset in offsets)):
        raise Unusable("its offsets are not a list of numbers")
    return tokens, logprobs, tops, offsets or None


def _is_logprob(value: object) -> bool:
    """True for the logarithm of a probability; rounding may lift one above 0, and servers write -9999 or less."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value) and value <= 1e-3


def _within_text(
    tokens: list[str], logprobs: list[float | None], server_offsets: list[int] | None, text: str
) -> dict[str, list[Any]]:
    """Return the tokens of the text with their offsets, without a BOS written out before the text.

    Where the tokens spell the text their lengths give the offsets, as those of servers are off by a BOS or by the
    space that a SentencePiece model puts first. Otherwise (a character in several tokens) the server's are used.
    """
    joined = "".join(tokens)
    if not joined.endswith(text):
        offsets: list[int | None] = list(server_offsets[: len(tokens)]) if server_offsets else []
        offsets += [None] * (len(tokens) - len(offsets))
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
