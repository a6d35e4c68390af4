"""The likeliest tokens at each position of a prompt: requests for them, and what is read from an answer.

Two protocols give them: ``prompt_logprobs`` of vLLM, by the numbers of tokens, and ``echo`` with ``logprobs`` of
OpenAI's older API, by their texts (or by numbers, where a server knows ``return_tokens_as_token_ids``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load, save

from kdalign.served.protocol import Refused, Unusable

Protocol = Literal["prompt_logprobs", "echo"]

Array = np.ndarray[Any, Any]


class Withheld(Unusable):
    """An answer without log-probabilities of the prompt; the text says what the server does instead."""


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as tokens, and as the text that they spell.

    Attributes:
        ids: numbers of the tokens.
        pieces: the text of each token, with special tokens written out.
        special: the texts of special tokens among them.
        text: the text of all.
        unbegun: the text without the token that begins every text; the same if there is none.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    special: frozenset[str]
    text: str
    unbegun: str

    @property
    def begins(self) -> bool:
        """True if the first token is the one that begins every text."""
        return self.unbegun != self.text


@dataclass(frozen=True)
class PromptForm:
    """A form of request that a server answers with the likeliest tokens of a prompt's positions.

    Attributes:
        protocol: parameter that asks for them.
        as_ids: True if the prompt is sent as numbers of tokens, False for its text.
        begun: True if the token that begins every text is written out in it, False if the server adds its own.
        other_tokenizer: True if the server divides the text into other tokens.
        dropped: parameters that the server refused and that are not sent.
    """

    protocol: Protocol
    as_ids: bool
    begun: bool = True
    other_tokenizer: bool = False
    dropped: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PromptForm":
        """Read what ``to_json`` wrote."""
        tree = json.loads(text)
        return cls(**{**tree, "dropped": tuple(tree["dropped"])})

    def __str__(self) -> str:
        if self.as_ids:
            return f"{self.protocol} of prompts as token numbers"
        start = "" if self.begun else ", begun by the server"
        return f"{self.protocol} of prompts as text{start}{', by another tokenizer' * self.other_tokenizer}"


FORMS = (
    PromptForm("prompt_logprobs", as_ids=True),
    PromptForm("echo", as_ids=True),
    PromptForm("echo", as_ids=False),
    PromptForm("echo", as_ids=False, begun=False),
)
"""Forms in the order in which they are tried: those by numbers of tokens first, which no two tokens share."""
_OPTIONAL = ("seed", "repeat_penalty", "return_tokens_as_token_ids", "add_special_tokens", "temperature")
"""Parameters that a server may refuse without a loss."""


def prompt_body(model: str, form: PromptForm, prompt: TokenPrompt, top: int) -> dict[str, Any]:
    """Build the body of a request for the likeliest tokens of a prompt's positions.

    One new token is requested, as servers refuse or misread a limit of 0. The temperature is 1: a server that softens
    log-probabilities by it then returns those of the model.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": sent(form, prompt),
        "max_tokens": 1,
        "temperature": 1,
        "seed": 0,
        "repeat_penalty": 1,
    }
    if form.protocol == "prompt_logprobs":
        body["prompt_logprobs"] = top
    else:
        body |= {"echo": True, "logprobs": top}
        if form.as_ids:
            body["return_tokens_as_token_ids"] = True
    return {name: value for name, value in body.items() if name not in form.dropped}


def sent(form: PromptForm, prompt: TokenPrompt) -> list[int] | str:
    """Return a prompt as it is sent in a form."""
    return list(prompt.ids) if form.as_ids else prompt.text if form.begun else prompt.unbegun


def refused_parameter(form: PromptForm, refusal: Refused) -> str | None:
    """Return the parameter that a refusal names and that may be left out; None if it has another reason."""
    if refusal.status not in (400, 422):
        return None
    for name in _OPTIONAL:
        named = refusal.parameter == name or re.search(rf"(?<![\w.]){name}(?!\w)", refusal.message)
        if named and name not in form.dropped:
            return name
    return None


@dataclass(frozen=True)
class TopLogprobs:
    """The likeliest tokens at each position of a prompt, each position given the tokens before it.

    Attributes:
        tokens: (n,), the prompt's tokens: numbers of the server's vocabulary, or places in ``texts``.
        own: (n,), log-probabilities of those tokens; NaN where the server gives none, as for the first.
        entries: (n, k), the likeliest tokens, likeliest first; -1 where there are fewer.
        logs: (n, k), their log-probabilities; 0 where there are fewer.
        texts: texts of tokens; None if tokens are numbers.
    """

    tokens: Array
    own: Array
    entries: Array
    logs: Array
    texts: tuple[str, ...] | None = None

    def to_bytes(self) -> bytes:
        """Write as safetensors, texts as JSON in their header."""
        arrays = {"tokens": self.tokens, "own": self.own, "entries": self.entries, "logs": self.logs}
        told = None if self.texts is None else {"texts": json.dumps(self.texts)}
        return save(arrays, metadata=told)

    @classmethod
    def from_bytes(cls, data: bytes) -> "TopLogprobs":
        """Read what ``to_bytes`` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            arrays = load(data)
            size = int.from_bytes(data[:8], "little")
            told = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("texts")
            return cls(**arrays, texts=None if told is None else tuple(json.loads(told)))
        except Exception as error:  # safetensors has errors of its own kind
            raise ValueError(str(error)) from None


Rows = Sequence[tuple[Any, float | None, Mapping[Any, float]]]
"""For each position its token, the token's log-probability, and the likeliest tokens with theirs."""


def read_prompt(answer: Mapping[str, Any], form: PromptForm, prompt: TokenPrompt, top: int) -> dict[str, Any]:
    """Read an answer: ``top``, the likeliest tokens, and ``spelled``, the text of the prompt or of its tokens.

    Raises:
        Withheld: it has no log-probabilities of the prompt.
        Unusable: they have the wrong types or lengths.
    """
    choice = answer["choices"][0]
    if form.protocol == "prompt_logprobs":
        given = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
        if not isinstance(given, list):
            raise Withheld("ignores prompt_logprobs")
        rows, spelled = _rows_of_numbers(given, prompt)
        return {"top": _collect(rows, top), "spelled": spelled}
    returned = choice.get("logprobs")
    if not isinstance(returned, dict) or not returned.get("token_logprobs"):
        raise Withheld("ignores echo and logprobs")
    echoed = choice.get("text") or ""
    if not isinstance(echoed, str):
        raise Unusable("its text is no text")
    tokens, logprobs = returned.get("tokens"), returned["token_logprobs"]
    tops = returned.get("top_logprobs")
    if not isinstance(tops, list) or len(tops) < 2:
        raise Withheld("gives no likeliest tokens (top_logprobs) of a prompt")
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len({*map(len, (tokens, logprobs, tops))}) > 1:
        raise Unusable("its tokens, log-probabilities and likeliest tokens are not lists of one length")
    text = sent(form, prompt)
    if isinstance(text, str) and not echoed.startswith(text):
        raise Withheld("ignores echo: it returns log-probabilities of its answer, not of the prompt")
    count = len(tokens) - _new_tokens(answer, echoed, text) if isinstance(text, str) else len(text)
    if len(tokens) < count:
        raise Withheld(f"returns {len(tokens):,} tokens for a prompt of {count:,}")
    rows = [
        (_token(token), _logprob(own), _likeliest(likely))
        for token, own, likely in zip(tokens[:count], logprobs[:count], tops[:count], strict=True)
    ]
    return {"top": _collect(rows, top), "spelled": echoed or None}


def _rows_of_numbers(given: Sequence[Any], prompt: TokenPrompt) -> tuple[Rows, list[str | None]]:
    """Read vLLM's list: for each position a mapping of numbers to log-probabilities, the prompt's token among them."""
    if len(given) != len(prompt.ids):
        raise Unusable(f"it has log-probabilities for {len(given):,} of the prompt's {len(prompt.ids):,} tokens")
    rows: list[tuple[Any, float | None, Mapping[Any, float]]] = []
    spelled: list[str | None] = []
    for token, each in zip(prompt.ids, given, strict=True):
        if each is not None and not isinstance(each, dict):
            raise Unusable("its likeliest tokens are not a list of objects")
        facts = {} if each is None else {_number(key): value for key, value in each.items()}
        if not all(isinstance(value, dict) for value in facts.values()):
            raise Unusable("its likeliest tokens are not objects with a logprob")
        logs = {key: _logprob(value.get("logprob")) for key, value in facts.items()}
        known = {key: value for key, value in logs.items() if value is not None}
        text = facts[token].get("decoded_token") if token in facts else None
        rows.append((token, known.get(token), known))
        spelled.append(text if isinstance(text, str) else None)
    return rows, spelled


def _new_tokens(answer: Mapping[str, Any], echoed: str, text: str) -> int:
    """Count the tokens of an echo that are the model's own, not the prompt's."""
    usage = answer.get("usage")
    told = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return told if isinstance(told, int) and told in (0, 1) else int(len(echoed) > len(text))


def _number(key: Any) -> int:
    if not (isinstance(key, str) and re.fullmatch(r"[0-9]{1,9}", key)):
        raise Unusable(f"it names a token by {str(key)[:40]!r}, which is no number")
    return int(key)


def _token(token: Any) -> Any:
    """Return a token's number, if it is written as ``token_id:7``, else its text."""
    if not isinstance(token, str):
        raise Unusable("its tokens are not a list of texts")
    match = re.fullmatch(r"token_id:([0-9]{1,9})", token)
    return int(match.group(1)) if match else token


def _likeliest(given: Any) -> dict[Any, float]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Unusable("its likeliest tokens are not a list of objects")
    logs = {_token(token): _logprob(value) for token, value in given.items()}
    return {token: value for token, value in logs.items() if value is not None}


def _logprob(value: Any) -> float | None:
    """Return a log-probability; rounding may lift one above 0, and servers write -9999 or less for what is impossible.

    Raises:
        Unusable: it is not the logarithm of a probability.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value or value > 1e-3:
        raise Unusable("a log-probability in it is not a number of at most 0")
    return float(max(value, -1e4))  # in this order: an integer may be larger than a float can be


def _collect(rows: Rows, top: int) -> TopLogprobs:
    """Collect positions in arrays, each with its likeliest tokens in order; texts are numbered as they come."""
    n, k = len(rows), max([1, *(min(top, len(likely)) for _, _, likely in rows)])
    by_text = any(isinstance(name, str) for token, _, likely in rows for name in (token, *likely))
    places: dict[Any, int] = {}

    def place(name: Any) -> int:
        return places.setdefault(name if isinstance(name, str) else str(name), len(places)) if by_text else int(name)

    tokens = np.zeros(n, dtype=np.int32)
    own = np.full(n, np.nan, dtype=np.float32)
    entries, logs = np.full((n, k), -1, dtype=np.int32), np.zeros((n, k), dtype=np.float32)
    for row, (token, value, likely) in enumerate(rows):
        tokens[row] = place(token)
        own[row] = np.nan if value is None else value
        ordered = sorted(likely.items(), key=lambda pair: -pair[1])[:k]
        for column, (name, log) in enumerate(ordered):
            entries[row, column], logs[row, column] = place(name), log
    return TopLogprobs(tokens, own, entries, logs, tuple(places) if by_text else None)
