"""Longest common subsequences and translation edits of long texts, exact and in bounded memory and time.

The libraries build a table of all pairs of words: 8,000 against 8,000 words take half a gigabyte and many seconds.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from operator import add

MOST_SHIFTED, FARTHEST_SHIFT, BEAM, MOST_CANDIDATES = 10, 50, 25, 1000
"""Bounds of TER, from Tercom as in sacreBLEU: words shifted at once, distance of a shift, half the width of the band in
the table of edits, and shifts tried for one text."""


class CommonSubsequence:
    """Longest common subsequences with one text, by bits (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").

    A row of the table is a whole number: bit j is 0 where the length grows from the text's first j words to j + 1.
    """

    def __init__(self, text: Sequence[Hashable]) -> None:
        """Prepare one text to be compared with others."""
        self._size, self._all = len(text), (1 << len(text)) - 1
        self._places: dict[Hashable, int] = {}
        for place, word in enumerate(text):
            self._places[word] = self._places.get(word, 0) | 1 << place
        self._text = text

    def _next(self, row: int, word: Hashable) -> int:
        hits = row & self._places.get(word, 0)
        return ((row + hits) | (row - hits)) & self._all

    def length(self, other: Sequence[Hashable]) -> int:
        """Return the length of the longest common subsequence, in words."""
        row = self._all
        for word in other:
            row = self._next(row, word)
        return self._size - row.bit_count()

    def places(self, other: Sequence[Hashable]) -> list[int]:
        """Return the positions in ``other`` of the longest common subsequence that rouge-score finds.

        It is traced from the end. About sqrt(n) of n rows are stored and those between are computed again: memory
        grows with the product of the text's length and the square root of the other's.
        """
        step = math.isqrt(len(other)) + 1
        row, kept = self._all, [self._all]
        for place, word in enumerate(other, 1):
            row = self._next(row, word)
            if place % step == 0:
                kept.append(row)
        found: list[int] = []
        i, j, block = len(other), self._size, -1
        rows: list[int] = []
        length = self._size - row.bit_count()
        while i > 0 and j > 0:
            if (i - 1) // step != block:
                block = (i - 1) // step
                rows = [kept[block]]
                for word in other[block * step : i]:
                    rows.append(self._next(rows[-1], word))
            if other[i - 1] == self._text[j - 1]:
                found.append(i - 1)
                i, j, length = i - 1, j - 1, length - 1
                continue
            above = j - (rows[i - 1 - block * step] & (1 << j) - 1).bit_count()
            i, j = (i, j - 1) if length > above else (i - 1, j)
        return found[::-1]


_SAME, _REPLACED, _INSERTED, _DELETED, _UNKNOWN = range(5)
_NEVER = 10**16
_Row = tuple[int, list[int], list[int]]
"""A row of the table of edits within its band: the band's first column, the costs, and the last edit of each cell."""


def translation_edits(words: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Count TER's edits from a text to a reference (Snover et al. 2006, section 3, as in sacreBLEU).

    Insertions, deletions, replacements and shifts of up to 10 words by up to 50 places cost 1 each. Shifts are taken
    greedily, the one that saves most first, until none saves any or 1,000 have been tried.
    """
    if not right or not words:
        return len(words) + len(right)
    table = _Table(list(words), list(right))
    shifts = tried = 0
    while True:
        candidates = list(islice(_candidates(table), MOST_CANDIDATES - tried))
        tried += len(candidates)
        if tried >= MOST_CANDIDATES or not candidates:  # the round that reaches the bound is not applied
            return shifts + table.edits
        saved = [(table.saved_by(*one), one[1], -one[0], -one[2]) for one in candidates]
        best = max(saved)
        if best[0] <= 0:
            return shifts + table.edits
        table.shift(-best[2], best[1], -best[3])
        shifts += 1


class _Table:
    """Costs of edits between a text and a reference in a band around the diagonal, from the start and to the end.

    A shift changes only the words between its source and its target. Its cost is the least, over the cells of the row
    after them, of the path to the cell, which is computed again, plus the path from it, which is unchanged.
    """

    def __init__(self, words: list[Hashable], right: list[Hashable]) -> None:
        self.words, self.right = words, right
        self._ratio = len(right) / len(words)
        self._beam = math.ceil(self._ratio / 2 + BEAM) if self._ratio / 2 > BEAM else BEAM
        columns = len(right) + 1
        self._rows: list[_Row] = [(0, list(range(columns)), [_INSERTED] * columns)]
        self._rests: list[list[int]] = [[]] * len(words)
        low, _ = self._band(len(words))
        self._rests.append([len(right) - column for column in range(low, columns)])
        self._known = len(words)  # first row whose paths to the end are known
        self._fill()

    def _fill(self) -> None:
        """Compute the missing rows."""
        for place in range(len(self._rows), len(self.words) + 1):
            self._rows.append(self._row(self._rows[-1], place, self.words[place - 1]))

    @property
    def edits(self) -> int:
        """Edits between the complete texts."""
        return self._rows[-1][1][-1]

    def _band(self, place: int) -> tuple[int, int]:
        """Range of a row's columns in the band."""
        centre, columns = math.floor(place * self._ratio), len(self.right) + 1
        high = columns if place == len(self.words) else min(columns, centre + self._beam)
        return max(0, centre - self._beam), high

    def _row(self, before: _Row, place: int, word: Hashable) -> _Row:
        low, high = self._band(place)
        start, above, _ = before
        ups = above[low - start : high - start]
        ups += [_NEVER] * (high - low - len(ups))
        costs: list[int] = []
        edits: list[int] = []
        left = _NEVER
        if low == 0:
            left, diagonals = ups[0] + 1, ups[:-1]
            costs.append(left)
            edits.append(_DELETED)
            ups = ups[1:]
        else:
            diagonals = [above[low - 1 - start] if low > start else _NEVER, *ups[:-1]]
        for known, diagonal, up in zip(self.right[max(low - 1, 0) : high - 1], diagonals, ups, strict=True):
            # Of equal costs the first wins: no edit or a replacement, a deletion, an insertion.
            best, edit = (diagonal, _SAME) if word == known else (diagonal + 1, _REPLACED)
            if best >= _NEVER:
                best, edit = _NEVER, _UNKNOWN
            if up + 1 < best:
                best, edit = up + 1, _DELETED
            if left + 1 < best:
                best, edit = left + 1, _INSERTED
            costs.append(best)
            edits.append(edit)
            left = best
        return low, costs, edits

    def _rest(self, place: int) -> list[int]:
        """Costs from each cell of a row to the end."""
        while self._known > place:
            self._known -= 1
            self._rests[self._known] = self._rest_before(self._known)
        return self._rests[place]

    def _rest_before(self, place: int) -> list[int]:
        (low, high), (start, end) = self._band(place), self._band(place + 1)
        below, word = self._rests[place + 1], self.words[place]
        costs: list[int] = []
        right = _NEVER
        for column in range(high - 1, low - 1, -1):
            best = right + 1
            if start <= column < end:
                best = min(best, below[column - start] + 1)
            if start <= column + 1 < end:
                best = min(best, below[column + 1 - start] + (word != self.right[column]))
            right = best
            costs.append(best)
        return costs[::-1]

    def saved_by(self, start: int, size: int, target: int) -> int:
        """Return the edits that a shift saves."""
        first, last = self._changed(start, size, target)
        row = self._rows[first]
        moved = shift_words(self.words[first:last], start - first, size, target - first)
        for place, word in enumerate(moved, first + 1):
            row = self._row(row, place, word)
        through = map(add, row[1], self._rest(last))
        return self.edits - int(min(through))

    def shift(self, start: int, size: int, target: int) -> None:
        """Shift ``size`` words from ``start`` to ``target``."""
        first, last = self._changed(start, size, target)
        self.words = shift_words(self.words, start, size, target)
        self._known = max(self._known, last)
        del self._rows[first + 1 :]
        self._fill()

    def _changed(self, start: int, size: int, target: int) -> tuple[int, int]:
        return min(start, target), min(max(start, target) + size, len(self.words))

    def alignment(self) -> tuple[list[int], list[bool], list[bool]]:
        """Align the text with the reference.

        Returns:
            For each reference word the position of its last word in the text (-1 before the first); whether each
            word of the reference is wrong; whether each word of the text is.
        """
        i, j = len(self.words), len(self.right)
        wrong, ours, places = [False] * j, [False] * i, [0] * j
        while i > 0 or j > 0:
            low, _, edits = self._rows[i]
            edit = edits[j - low]
            assert edit != _UNKNOWN, "the path stays in the band"
            if edit == _DELETED:
                i -= 1
                ours[i] = True
                continue
            j -= 1
            if edit == _INSERTED:
                wrong[j], places[j] = True, i - 1
                continue
            i -= 1
            wrong[j] = ours[i] = edit == _REPLACED
            places[j] = i
        return places, wrong, ours


def shift_words(words: list[Hashable], start: int, size: int, target: int) -> list[Hashable]:
    """Move ``size`` words from ``start`` to before the word at ``target``, or on within their own range."""
    taken = words[start : start + size]
    if target < start:
        return words[:target] + taken + words[target:start] + words[start + size :]
    end = target if target > start + size else target + size
    return words[:start] + words[start + size : end] + taken + words[end:]


def _candidates(table: _Table) -> Iterator[tuple[int, int, int]]:
    """Yield shifts to try as (start, words, target): words that are wrong here and missing elsewhere."""
    places, wrong, ours = table.alignment()
    missed, bad = _distances(wrong), _distances(ours)
    known: dict[Hashable, list[int]] = {}
    for place, word in enumerate(table.right):
        if missed[place] < MOST_SHIFTED:
            known.setdefault(word, []).append(place)
    words, right = table.words, table.right
    for start, word in enumerate(words):
        near = known.get(word, ()) if bad[start] < MOST_SHIFTED else ()
        for place in islice(near, bisect_left(near, start - FARTHEST_SHIFT), None):
            if place > start + FARTHEST_SHIFT:
                break
            for size in range(1, min(MOST_SHIFTED, len(words) - start, len(right) - place) + 1):
                if words[start + size - 1] != right[place + size - 1]:
                    break
                if size <= bad[start] or size <= missed[place] or start <= places[place] < start + size:
                    continue
                yield from _targets(places, start, place, size)


def _targets(places: list[int], start: int, place: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the targets of words that stand at ``place`` in the reference."""
    last = -1
    for offset in range(place - 1, place + size):
        target = 0 if offset == -1 else places[offset] + 1
        if target != last:
            yield start, size, target
        last = target


def _distances(wrong: list[bool]) -> list[int]:
    """Distance in words from each to the next wrong one; ``MOST_SHIFTED`` if there is none."""
    found, far = [MOST_SHIFTED] * len(wrong), MOST_SHIFTED
    for place in range(len(wrong) - 1, -1, -1):
        far = 0 if wrong[place] else min(far + 1, MOST_SHIFTED)
        found[place] = far
    return found
