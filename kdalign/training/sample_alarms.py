"""Signs that a student's own texts collapse, and the alarms that they raise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain

FIRST = 5
"""On-policy steps whose mean is what later ones are compared with."""
IN_A_ROW = 3
"""On-policy steps in a row with an alarm after which it is announced."""
SHORT = 0.5
"""Share of the length of the first samples and of the data below which samples are too short."""
MOST_REPEATED = 0.5
"""Share of repeated 4-grams above which samples are loops, if the data's is below half of it."""
FALL = 1.5
"""Nats a token by which the teacher's log-likelihood of samples may fall below that of the first ones."""
APART = 3.0
"""Nats a token by which it may be below that of the data: a twentieth of the probability of each token."""
GAIN = 0.5
"""Nats a token by which it must be above that of the first samples if it is below that of the data even so."""
MOST_OUTSIDE = 0.5
"""Share of sampled tokens that may be outside of the teacher's kept entries."""
_LONG, _SHORT = 4, 2
_COUNT = "count of "


@dataclass(frozen=True)
class TextMeasures:
    """Measures of texts as tokens.

    Attributes:
        length: mean number of tokens, the end token included.
        ended: share that ends by an end token.
        repeated: share of 4-grams that were in the same text before.
        distinct: share of 2-grams of all texts together that are different.
        likelihood: the teacher's mean log-likelihood, in nats a token; None if it gives no tokens. A token outside of
            the entries that it keeps has the likelihood of all those others together.
        outside: share of tokens outside of the entries that the teacher keeps; None if it keeps all.
    """

    length: float
    ended: float
    repeated: float
    distinct: float
    likelihood: float | None = None
    outside: float | None = None

    def known(self) -> dict[str, float]:
        """Return the measures that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure_texts(texts: Sequence[Sequence[int]], ended: Sequence[bool]) -> TextMeasures:
    """Measure the length, ends and repetition of texts, one at least.

    Args:
        texts: tokens of each text.
        ended: true for a text that has its end.
    """
    grams = [_grams(text, _LONG) for text in texts]
    count = sum(map(len, grams))
    repeated = sum(len(one) - len(set(one)) for one in grams)
    pairs = list(chain.from_iterable(_grams(text, _SHORT) for text in texts))
    return TextMeasures(
        length=sum(map(len, texts)) / len(texts),
        ended=sum(ended) / len(texts),
        repeated=repeated / count if count else 0.0,
        distinct=len(set(pairs)) / len(pairs) if pairs else 1.0,
    )


def _grams(text: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[start:] for start in range(size)), strict=False))


@dataclass(frozen=True)
class Alarm:
    """A sign of collapse.

    Attributes:
        name: its name in the history.
        said: what is seen.
        mend: what can be done.
    """

    name: str
    said: str
    mend: str


def find_alarms(now: TextMeasures, data: TextMeasures, first: Mapping[str, float]) -> list[Alarm]:
    """Find the signs of collapse in the samples of a step.

    Args:
        now: measures of the samples.
        data: measures of what follows the same prompts in the data, with the teacher's likelihood of the data.
        first: means of the first samples by the names of measures; empty until there are enough.
    """
    found = []
    if now.ended == 0 and data.ended >= 0.5:
        found.append(
            Alarm(
                "endless",
                f"no sample ends within its {now.length:.0f} tokens, and {data.ended:.0%} of the data's texts do",
                "check that the student's end tokens are those of the data, learn from the data first "
                "(on_policy.after), or raise on_policy.max_new_tokens",
            )
        )
    if now.length < SHORT * min(data.length, first.get("length", 0.0)):
        found.append(
            Alarm(
                "short",
                f"samples have {now.length:.1f} tokens, the first ones had {first['length']:.1f} and the data has "
                f"{data.length:.1f}",
                "lower --lr or --on-policy",
            )
        )
    if now.repeated > MOST_REPEATED and data.repeated < now.repeated / 2:
        found.append(
            Alarm(
                "repeated",
                f"samples are loops: {now.repeated:.0%} of their 4-grams were there before, {data.repeated:.0%} in "
                f"the data",
                "lower --lr or --on-policy, or give the labels more weight (--hard)",
            )
        )
    found += _unlikely(now, data, first)
    if now.outside is not None and now.outside > MOST_OUTSIDE:
        found.append(
            Alarm(
                "outside",
                f"{now.outside:.0%} of the sampled tokens are outside of what the teacher keeps",
                "keep more entries, or learn from the data first (on_policy.after)",
            )
        )
    return found


def _unlikely(now: TextMeasures, data: TextMeasures, first: Mapping[str, float]) -> list[Alarm]:
    """Compare the teacher's likelihood of the samples with that of the data and of the first samples."""
    if now.likelihood is None:
        return []
    said = f"the teacher gives the samples {now.likelihood:.2f} nats a token"
    began = first.get("likelihood")
    if began is not None and now.likelihood < began - FALL:
        return [Alarm("fallen", f"{said}, and gave the first ones {began:.2f}", "lower --lr or --on-policy")]
    improving = began is not None and now.likelihood >= began + GAIN
    if data.likelihood is not None and now.likelihood < data.likelihood - APART and not improving:
        mend = "learn from the data first (on_policy.after), or lower --lr or on_policy.temperature"
        return [Alarm("unlikely", f"{said}, and the data {data.likelihood:.2f}", mend)]
    return []


class SampleWatch:
    """Follows the samples of a run, and finds its alarms.

    Attributes:
        state: numbers that a checkpoint keeps.
    """

    def __init__(self, state: dict[str, float], patience: int | None) -> None:
        self.state, self._patience = state, patience

    @property
    def needs_data_likelihood(self) -> bool:
        """True while the teacher's likelihood of the data is measured."""
        return self.state.get("steps", 0) < FIRST

    def add(self, now: TextMeasures, data: TextMeasures) -> tuple[list[Alarm], list[Alarm]]:
        """Take the measures of a step.

        Args:
            now: measures of its samples.
            data: measures of the data's texts in their place; with the teacher's likelihood if that is needed.

        Returns:
            The step's alarms, and those of them that are to be announced now: once each.
        """
        seen = self.state.get("steps", 0)
        full = seen >= FIRST
        first: dict[str, float] = {
            name: self._mean(name) for name in ("length", "likelihood") if name in self.state and full
        }
        if not full:
            self._collect("length", now.length)
            self._collect("likelihood", now.likelihood)
            self._collect("data likelihood", data.likelihood)
            self.state["steps"] = seen + 1
        known = self._mean("data likelihood") if "data likelihood" in self.state else None
        alarms = find_alarms(now, replace(data, likelihood=known), first)
        names = {alarm.name for alarm in alarms}
        for key in [
            key for key in self.state if key.startswith("row of ") and key.removeprefix("row of ") not in names
        ]:
            del self.state[key]
        for name in names:
            self.state[f"row of {name}"] = self.state.get(f"row of {name}", 0) + 1
        self.state["alarmed"] = self.state.get("alarmed", 0) + 1 if alarms else 0
        self._count(names)
        new = [
            one
            for one in alarms
            if self.state[f"row of {one.name}"] >= IN_A_ROW and f"told {one.name}" not in self.state
        ]
        for alarm in new:
            self.state[f"told {alarm.name}"] = 1
        return alarms, new

    @property
    def is_patience_exhausted(self) -> bool:
        """True if the last steps had alarms, as many in a row as the patience."""
        return self._patience is not None and self.state.get("alarmed", 0) >= self._patience

    @property
    def counts(self) -> dict[str, int]:
        """Steps with each alarm, among the last steps in a row with any; the most frequent first."""
        found = {key.removeprefix(_COUNT): int(n) for key, n in self.state.items() if key.startswith(_COUNT)}
        return dict(sorted(found.items(), key=lambda count: (-count[1], count[0])))

    def _count(self, names: Iterable[str]) -> None:
        """Count a step's alarms; a step without one begins again."""
        if not names:
            for key in [key for key in self.state if key.startswith(_COUNT)]:
                del self.state[key]
        for name in names:
            self.state[_COUNT + name] = self.state.get(_COUNT + name, 0) + 1

    def _collect(self, name: str, value: float | None) -> None:
        if value is not None:
            self.state[name] = self.state.get(name, 0.0) + value
            self.state[f"n {name}"] = self.state.get(f"n {name}", 0) + 1

    def _mean(self, name: str) -> float:
        return self.state[name] / self.state[f"n {name}"]
