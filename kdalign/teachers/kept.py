"""Outputs of a teacher that a cache keeps, written as words such as ``tokens:2`` or ``hidden:encoder.3``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from kdalign.errors import UsageError, did_you_mean
from kdalign.models.architecture import Layer
from kdalign.models.capture import CaptureSpec, Signal
from kdalign.teachers.base import TermRequest

_MEANS = ("embedding", "similarity")
"""Terms that read a text's features by their mean alone."""


@dataclass(frozen=True)
class KeptOutputs:
    """Outputs of a teacher: those that a cache keeps, or those that terms compare.

    Attributes:
        classes: a classifier's logits, or a score.
        tokens: temperatures of the likeliest next tokens.
        features: the mean of a text's last features, its embedding.
        hidden: layers whose outputs are kept.
        embeddings: stacks whose first inputs are kept.
        attention: layers whose maps are kept.
        relations: layers whose queries, keys and values are kept.
        values: layers whose values alone are kept.
    """

    classes: bool = False
    tokens: frozenset[float] = frozenset()
    features: bool = False
    hidden: frozenset[Layer] = frozenset()
    embeddings: frozenset[str] = frozenset()
    attention: frozenset[Layer] = frozenset()
    relations: frozenset[Layer] = frozenset()
    values: frozenset[Layer] = frozenset()

    def __or__(self, other: "KeptOutputs") -> "KeptOutputs":
        joined = {field.name: getattr(self, field.name) | getattr(other, field.name) for field in fields(self)}
        # Values are kept with queries and keys, not twice.
        return KeptOutputs(**(joined | {"values": joined["values"] - joined["relations"]}))

    @property
    def words(self) -> tuple[str, ...]:
        """Names of the outputs, sorted."""
        found = [name for name in ("classes", "features") if getattr(self, name)]
        for name in ("tokens", "hidden", "embeddings", "attention", "relations", "values"):
            for place in sorted(getattr(self, name)):
                found.append(f"{name}:{temperature_word(place) if isinstance(place, float) else place}")
        return tuple(found)

    def missing(self, asked: "KeptOutputs") -> tuple[str, ...]:
        """Return the words of the outputs that are asked for and not kept, such as ``tokens:2``."""
        theirs = replace(self, values=self.values | self.relations)
        return tuple(word for word in asked.words if word not in theirs.words)

    @property
    def spec(self) -> CaptureSpec:
        """Activations to capture of the teacher; maps come with the queries and keys that they are made of."""
        relations = self.relations | self.values | {layer for layer in self.attention if layer.stack in _SELF}
        answers = self.classes or self.features or bool(self.tokens)
        return CaptureSpec(self.hidden, self.attention, self.embeddings, relations, answers)


def temperature_word(temperature: float) -> str:
    """Write a temperature in all its digits, since words are read again."""
    return repr(float(temperature)).removesuffix(".0")


_SELF = ("encoder", "decoder")
"""Stacks whose attention is that of a text to itself."""


def parse_kept(words: Iterable[str], option: str = "--keep") -> KeptOutputs:
    """Parse words such as ``classes``, ``tokens``, ``tokens:2`` (a temperature) or ``hidden:encoder.3``.

    Raises:
        UsageError: a word of another form, with what is accepted.
    """
    kept = KeptOutputs()
    for word in words:
        kind, _, place = word.partition(":")
        found: dict[str, Any] = {}
        if kind in ("classes", "features") and not place:
            found[kind] = True
        elif kind == "tokens":
            found[kind] = frozenset({_temperature(place or "1", word, option)})
        elif kind == "embeddings" and re.fullmatch(r"[a-z]+", place):
            found[kind] = frozenset({place})
        elif kind in ("hidden", "attention", "relations", "values") and re.fullmatch(r"[a-z]+\.[0-9]{1,6}", place):
            stack, number = place.split(".")
            found[kind] = frozenset({Layer(stack, int(number))})
        else:
            names = [field.name for field in fields(KeptOutputs)]
            near = did_you_mean(kind, names) if kind not in names else ""
            raise UsageError(
                f"{option} {word!r}: no such output{near} (accepted: classes, tokens, tokens:TEMPERATURE, features, "
                f"embeddings:STACK, and hidden, attention, relations or values with :STACK.NUMBER, such as "
                f"hidden:encoder.3)"
            )
        kept |= KeptOutputs(**found)
    return kept


def _temperature(text: str, word: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} {word!r}: a temperature is a number above 0")
    return value


def outputs_of_term(request: TermRequest, values_only: bool = False) -> KeptOutputs:
    """Return the outputs that a term compares: ``tokens:2`` for soft targets at temperature 2.

    Args:
        request: the term's.
        values_only: True if relations are compared by their values alone.
    """
    wanted, relations = request.wanted, request.wanted.relations
    alone = values_only and request.term.partition(" ")[0] == "relations"
    return KeptOutputs(
        classes=Signal.LOGITS in request.signals,
        tokens=frozenset({request.temperature} if Signal.TOKENS in request.signals and request.temperature else ()),
        features=Signal.FEATURES in request.signals,
        hidden=wanted.hidden,
        embeddings=wanted.embeddings,
        attention=wanted.attention,
        relations=frozenset() if alone else relations,
        values=relations if alone else frozenset(),
    )


def unkeepable(request: TermRequest) -> str | None:
    """Return the reason why no cache can keep the outputs that a term compares; None if one can."""
    if request.samples:
        said = "compares texts that the student has yet to write, which a cache cannot hold"
        return f"{said}: leave out --cache or --on-policy"
    if Signal.TOKENS in request.signals and request.scheduled:
        return (
            "compares tokens at a temperature that changes during training, and a cache keeps them at fixed ones: "
            "give a constant objective.temperature, or leave out --cache"
        )
    if Signal.PAIRS in request.signals:
        return "compares the embeddings of images and texts, which a cache does not keep: leave out --cache"
    if Signal.FEATURES in request.signals and request.term not in _MEANS:
        return "reads the features of each token, and a cache keeps their mean over a text: leave out --cache"
    return None
