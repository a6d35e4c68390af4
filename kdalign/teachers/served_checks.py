"""Compare a served model's reading of a few training rows with training's own, before the first step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdalign.served.top_logprobs import Array, TokenPrompt, TopLogprobs

MOST_EXCESS = 1e-3
"""Most by which probabilities of a position may exceed 1: servers round."""
SHIFT_NATS = 0.5
"""Gain in nats a token at another position from which log-probabilities are taken to belong there."""
CHANCE_NATS = 0.1
"""Nats a token below chance that a model of the text reaches at least."""
NOTABLE_NATS, MOST_NATS = 1e-3, 1e-2
"""Mean difference of two answers, in nats a token, from which it is announced, and from which it is refused."""
MOST_NATS_LOCAL = 0.05
"""Mean difference from a local copy of the model that is accepted: servers compute in other precisions."""


@dataclass(frozen=True)
class Probe:
    """A training row, and a server's answer about it.

    Attributes:
        prompt: the row's tokens.
        top: the answer.
    """

    prompt: TokenPrompt
    top: TopLogprobs


def reading_fault(probes: Sequence[Probe], vocabulary: int, as_ids: bool) -> str | None:
    """Find a difference between a server's reading of rows and training's; None if there is none.

    Tokens must be the rows' own; the probabilities of a position must not exceed 1; log-probabilities must stand at
    their own tokens, where the text is likelier than at the next ones; and the text must be likelier than by
    chance, which it is not where a server ignores the prompt.

    Args:
        probes: rows with answers.
        vocabulary: number of entries, among which chance draws.
        as_ids: True if the rows were sent as token numbers.

    Returns:
        A clause about the server.
    """
    for probe in probes:
        fault = (_other_tokens(probe) if as_ids else None) or _impossible(probe.top)
        if fault is not None:
            return fault
    likelihoods = {shift: _mean(probes, vocabulary, shift) for shift in (-1, 0, 1)}
    best = max(likelihoods, key=lambda shift: likelihoods[shift])
    if best and likelihoods[best] > likelihoods[0] + SHIFT_NATS:
        where = "late" if best > 0 else "early"
        return (
            f"returns log-probabilities one token {where}: the text is likelier there, {-likelihoods[best]:.2f} nats a "
            f"token against {-likelihoods[0]:.2f}"
        )
    own = [float(value) for probe in probes for value in probe.top.own[1:]]
    nll = -likelihoods[0] if any(map(math.isnan, own)) else -sum(own) / max(1, len(own))
    if nll > math.log(vocabulary) - CHANCE_NATS:
        return (
            f"gives the training text {nll:.2f} nats a token, chance among {vocabulary:,} entries: it "
            "ignores the prompt, or reads other tokens"
        )
    return None


def mean_difference(first: TopLogprobs, second: TopLogprobs) -> float:
    """Mean over positions of the expected difference of log-probabilities that both name, in nats a token."""
    total = 0.0
    for row in range(1, len(first.entries)):
        ours, theirs = (_named(top, row) for top in (first, second))
        total += sum(math.exp(ours[name]) * abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys())
    return total / max(1, len(first.entries) - 1)


def difference_from(top: TopLogprobs, logs: Array) -> float:
    """Mean over positions of the expected difference from log-probabilities of all entries, in nats a token.

    Args:
        top: an answer by token numbers.
        logs: (n, entries), what another model says of the prompt's next token at each of its positions.
    """
    total = 0.0
    for row in range(1, len(top.entries)):
        named = {entry: log for entry, log in _named(top, row).items() if int(entry) < logs.shape[1]}
        total += sum(math.exp(log) * abs(log - float(logs[row - 1, int(entry)])) for entry, log in named.items())
    return total / max(1, len(top.entries) - 1)


def _other_tokens(probe: Probe) -> str | None:
    """Find a token that is another at the server than in training."""
    ours, theirs = probe.prompt.ids, _names(probe.top, probe.top.tokens)
    if len(ours) != len(theirs):
        return f"reads {len(theirs):,} tokens where training reads {len(ours):,}"
    for number, (our, piece, their) in enumerate(zip(ours, probe.prompt.pieces, theirs, strict=True)):
        same = (
            int(their) == our if probe.top.texts is None else their.strip() in ("", piece.strip()) or "\ufffd" in piece
        )
        if not same:
            return f"reads other tokens than training: token {number} is {their!r} there and {our} ({piece!r}) here"
    return None


def _impossible(top: TopLogprobs) -> str | None:
    """Find positions whose probabilities exceed 1, or whose own token has two log-probabilities."""
    named = np.where(top.entries >= 0, np.exp(top.logs.astype(np.float64)), 0).sum(axis=1)
    if named.max() > 1 + MOST_EXCESS:
        return f"returns probabilities of {named.max():.3f} together at a position: they are not those of temperature 1"
    for row in range(1, len(top.tokens)):
        here = np.flatnonzero(top.entries[row] == top.tokens[row])
        if len(here) and abs(float(top.logs[row, here[0]]) - float(top.own[row])) > MOST_NATS:
            return f"gives a token two log-probabilities, {top.own[row]:.3f} and {top.logs[row, here[0]]:.3f}"
    return None


def _mean(probes: Sequence[Probe], vocabulary: int, shift: int) -> float:
    """Mean log-probability of the rows' tokens, taken from the likeliest tokens ``shift`` positions later."""
    values: list[float] = []
    for top in (probe.top for probe in probes):
        for row in range(2, len(top.tokens) - 1):
            named = _named(top, row + shift)
            rest = math.log(max(1 - sum(map(math.exp, named.values())), 1e-8) / max(1, vocabulary - len(named)))
            values.append(named.get(_names(top, top.tokens[row : row + 1])[0], rest))
    return float(np.mean(values)) if values else -math.inf


def _named(top: TopLogprobs, row: int) -> dict[str, float]:
    """The likeliest tokens of a position with their log-probabilities."""
    there = top.entries[row] >= 0
    return dict(zip(_names(top, top.entries[row][there]), map(float, top.logs[row][there]), strict=True))


def _names(top: TopLogprobs, numbers: Array) -> list[str]:
    return [str(number) if top.texts is None else top.texts[number] for number in numbers.tolist()]
