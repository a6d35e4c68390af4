"""Hold out a slice of train by whole texts, so that it measures the same as the reported split.

SST-2's training rows are phrases of one another: a random slice shares text with nearly every other row. Here only
texts that are part of no other text are held out, and every row that is part of a held-out one leaves training.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from kdalign.data.media.rows import MediaRows
from kdalign.data.tasks.examples import Examples
from kdalign.errors import UsageError
from kdalign.result_cache import keep_result

NormalisedRow = tuple[tuple[str, ...], ...]
"""Words of each text of a row, in lower case."""
MOST_HELD_OUT = 1000
_FIRST_WORDS = 4


def hold_out(examples: Examples, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split training rows into those to train on and those held out.

    Texts are compared word for word, in lower case. A row is inside another when its words are a run of the
    other's (for pairs: when any of its texts is the same as, or inside, one of the other's).

    Args:
        examples: the training split.
        share: share of all rows to hold out (at most 1,000 rows).
        seed: seed of the draw.

    Returns:
        Rows to train on, and rows held out; rows inside held-out ones are in neither.
    """
    rows = normalise_rows(examples)
    known = {text for row in rows for text in row if text}
    lengths = _lengths(known)
    inside: dict[int, set[tuple[str, ...]]] = {}
    contained: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows):
        inside[number] = {run for text in row for run in _runs(text, lengths) if run in known}
        contained |= {run for run in inside[number] if run not in row}
    wanted = max(1, min(MOST_HELD_OUT, round(share * len(rows))))
    held: list[int] = []
    texts: set[tuple[str, ...]] = set()
    for number in np.random.default_rng([seed, len(rows)]).permutation(len(rows)).tolist():
        if len(held) == wanted:
            break
        if not any(text in contained or text in texts for text in rows[number]):
            held.append(number)
            texts |= inside[number]
    taken = set(held)
    train = [number for number, row in enumerate(rows) if number not in taken and not any(t in texts for t in row)]
    if not train or not held:
        raise UsageError(f"cannot hold out {share:.0%} of {len(rows)} training rows by whole texts: too few remain")
    return train, sorted(held)


LEAST_WORDS = 4
"""Words of a held-out text from which on texts around it are looked for: shorter ones occur everywhere."""


def rows_inside(examples: Examples, held: Examples) -> list[int]:
    """Find rows with a text that equals, or is part of, a held-out one."""
    rows = normalise_rows(examples)
    known = {text for row in rows for text in row if text}
    lengths = _lengths(known)
    taken = {run for row in normalise_rows(held) for text in row for run in _runs(text, lengths) if run in known}
    return [number for number, row in enumerate(rows) if any(text in taken for text in row)]


def rows_around(examples: Examples, held: Examples) -> list[int]:
    """Find rows with a text that contains a held-out one of ``LEAST_WORDS`` words or more."""
    known = {text for row in normalise_rows(held) for text in row if len(text) >= LEAST_WORDS}
    lengths = _lengths(known)
    return [
        number
        for number, row in enumerate(normalise_rows(examples))
        if any(run in known for text in row for run in _runs(text, lengths))
    ]


def count_leaks(reported: Sequence[Examples], train: Examples) -> list[int]:
    """Count the rows of each reported split that are in the training text, too: equal word for word, in lower case.

    Case and spacing do not tell texts apart, as many tokenizers read neither. All texts of a row must be equal; a text
    inside a longer one is not a leak here (``hold_out`` keeps those apart, too). What was counted in a large split is
    kept.

    Args:
        reported: the splits, which are held in memory; the training rows are read one by one.
        train: the training rows.
    """
    if not train.mapped:
        return _count_leaks(reported, train)
    content = {"reported": [examples.fingerprint() for examples in reported], "train": train.fingerprint()}
    known, _ = keep_result("passes", {"leaks": content}, lambda: {"rows": np.array(_count_leaks(reported, train))})
    counts: list[int] = known["rows"].tolist()
    return counts


def _count_leaks(reported: Sequence[Examples], train: Examples) -> list[int]:
    rows = [normalise_rows(examples) for examples in reported]
    asked = set(chain.from_iterable(rows))
    seen = asked.intersection(_normalised(train))
    return [sum(row in seen for row in of_split) for of_split in rows]


def normalise_rows(examples: Examples) -> list[NormalisedRow]:
    """Normalise each row's texts to words in lower case.

    Sounds and images are compared as bytes. A transcript of fewer than ``LEAST_WORDS`` words is left out: many speakers
    say one word, and none of its sounds tells another.
    """
    return list(_normalised(examples))


def _normalised(examples: Examples) -> Iterator[NormalisedRow]:
    rows = (tuple(tuple(text.lower().split()) for text in row) for row in zip(*examples.texts, strict=True))
    if not isinstance(examples.texts[0], MediaRows):
        return rows
    return ((row[0], *(words if len(words) >= LEAST_WORDS else () for words in row[1:])) for row in rows)


def _lengths(known: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], set[int]]:
    """Lengths of known texts by their first few words."""
    lengths: dict[tuple[str, ...], set[int]] = {}
    for text in known:
        lengths.setdefault(text[:_FIRST_WORDS], set()).add(len(text))
    return lengths


def _runs(text: tuple[str, ...], lengths: Mapping[tuple[str, ...], set[int]]) -> Iterator[tuple[str, ...]]:
    """Runs of words of a text, itself included, with the beginning and the length of a known text."""
    for start in range(len(text)):
        for end in range(start + 1, min(len(text), start + _FIRST_WORDS) + 1):
            for length in lengths.get(text[start:end], ()):
                yield text[start : start + length]
