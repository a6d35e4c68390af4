"""The rows of each step: of epochs over rows that are all held, or of the segments of a stream, one after the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kdalign.data.epochs import epoch_batches, steps_per_epoch
from kdalign.data.tasks.segments import SegmentPlace
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.recipe import TrainSettings
from kdalign.training.ahead import Ahead

_BEGINS = "begins"


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one step, over all ranks.

    Attributes:
        encoded: the rows that they are of.
        rows: their numbers.
        epoch: number of the epoch, or of the segment, which decides random changes of rows.
    """

    encoded: TokenizedSplit
    rows: list[int]
    epoch: int


class RowOrder(Protocol):
    """Decides the rows of each step by its number."""

    def at(self, number: int) -> GlobalBatch:
        """Return the rows of a step."""

    def state_at(self, number: int) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the number of a step, of whose rows ``at`` was asked."""

    def close(self) -> None:
        """End what runs in the background."""


class EpochOrder:
    """Epochs over rows that are all held."""

    def __init__(self, encoded: TokenizedSplit, settings: TrainSettings) -> None:
        self._encoded, self._settings = encoded, settings
        self.size = steps_per_epoch(encoded.lengths, settings.batch_size, settings.batch_tokens, encoded.mixture)
        self._epoch = -1
        self._batches: Sequence[list[int]] = ()

    def at(self, number: int) -> GlobalBatch:
        """Return the rows of a step."""
        epoch, place = divmod(number, self.size)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, _batches(self._encoded, self._settings, epoch)
        return GlobalBatch(self._encoded, self._batches[place], epoch)

    def state_at(self, number: int) -> dict[str, Any]:
        """Return nothing: the number of the step is all."""
        return {}

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Segment:
    """A segment of a stream as tokens, with at least one row to train on."""

    place: SegmentPlace
    encoded: TokenizedSplit


class SegmentSource(Protocol):
    """Reads and tokenizes the segments of a stream; it may be called in another thread."""

    @property
    def first(self) -> Segment:
        """The first segment, which is held from the beginning."""

    def again(self, place: SegmentPlace) -> Segment:
        """Read a segment whose place is known.

        Raises:
            UsageError: its rows are other ones now.
        """

    def after(self, place: SegmentPlace) -> Segment:
        """Read the segment after a place.

        Raises:
            UsageError: a row that cannot be used.
        """

    def stop(self) -> None:
        """End what another thread reads, which raises there."""


class SegmentOrder:
    """Segments of a stream: each is an epoch of its own rows, and the next one is read while it is trained on.

    How many steps a segment has is known once it is tokenized. So a checkpoint keeps the place of the current segment
    and its first step.
    """

    def __init__(self, source: SegmentSource, settings: TrainSettings, state: dict[str, Any] | None = None) -> None:
        """Begin with the first segment, or where a run stopped.

        Args:
            source: reads segments.
            settings: size of batches, and the seed.
            state: what ``state_at`` returned.

        Raises:
            UsageError: the rows of the segment in which the run stopped are other ones now.
        """
        self._source, self._settings = source, settings
        known = dict(state or {})
        self._begins = known.pop(_BEGINS, 0)
        self._segment = source.again(SegmentPlace(**known)) if known else source.first
        self._batches = self._make_batches()
        self._begun = [(self._begins, self._segment.place)]
        self._last = self._segment.place
        self._ahead = Ahead(self._read)
        self._ahead.begin(self._last.number + 1)

    def at(self, number: int) -> GlobalBatch:
        """Return the rows of a step; steps are asked for in their order.

        Raises:
            UsageError: a row of the next segment that cannot be used.
        """
        assert number >= self._begins, "a stream does not go back"
        while number >= self._begins + len(self._batches):
            self._segment = self._ahead.take(self._segment.place.number + 1)
            self._begins += len(self._batches)
            self._batches = self._make_batches()
            self._begun = [*self._begun[-1:], (self._begins, self._segment.place)]
        return GlobalBatch(self._segment.encoded, self._batches[number - self._begins], self._segment.place.number)

    def state_at(self, number: int) -> dict[str, Any]:
        """Return the place of a step's segment, and the segment's first step."""
        begins, place = next(known for known in reversed(self._begun) if known[0] <= number)
        return {_BEGINS: begins, **asdict(place)}

    def close(self) -> None:
        """End the thread that reads."""
        self._source.stop()
        self._ahead.close()

    def _read(self, number: int) -> Segment:
        segment = self._source.after(self._last)
        assert segment.place.number == number, "segments are read in their order"
        self._last = segment.place
        return segment

    def _make_batches(self) -> Sequence[list[int]]:
        return _batches(self._segment.encoded, self._settings, self._segment.place.number)


def _batches(encoded: TokenizedSplit, settings: TrainSettings, epoch: int) -> Sequence[list[int]]:
    size, tokens, mixture = settings.batch_size, settings.batch_tokens, encoded.mixture
    return epoch_batches(encoded.lengths, size, settings.seed, epoch, tokens, mixture)


def begins_again(before: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether a step is the first one of a stream's second pass, by its state and that of the step before."""
    return bool(before) and before["passes"] == 0 < state["passes"]


def rows_read(state: dict[str, Any]) -> dict[str, int]:
    """Return what a state says of the rows that were read so far, for a record; empty without a stream."""
    if not state:
        return {}
    names = ("read", "examples", "tokens", "truncated", "passed_over", "blank")
    return {"segments": state["number"] + 1, "passes": state["passes"] + 1, **{name: state[name] for name in names}}
