"""Training text that is read as a stream: its segments as tokens, made while the run trains on the one before."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.segments import SegmentPlace, SegmentReader, first_place
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.tokenize import OpenedRun, tokenize_for_training
from kdalign.errors import NoAnswers, UsageError
from kdalign.training.row_order import Segment


class StreamedTexts:
    """Reads the segments of a run's training split and tokenizes them.

    Attributes:
        first: the first segment, as it was prepared.
    """

    def __init__(self, opened: OpenedRun, corrupted: Callable[[TokenizedSplit], TokenizedSplit]) -> None:
        """Copy the tokenizers: others use theirs while a thread uses these.

        Args:
            opened: the run, with its first segment as tokens.
            corrupted: adds random changes to rows, as they were added to the first segment's.
        """
        run, train = opened.run, opened.texts.train
        place = first_place(run.task, run.splits.train)
        self.first = Segment(_counted(place, train), corrupted(train))
        self._corrupted, self._config = corrupted, run.student_config(opened.tokenizer)
        # At once, so that tokenizers that are one stay one.
        self._tokenizer, pair, readers = deepcopy((opened.tokenizer, run.tokenizers, run.readers))
        self._run = replace(run, tokenizers=pair, readers=readers)
        self._reader: SegmentReader | None = None

    def again(self, place: SegmentPlace) -> Segment:
        """Read a segment whose place is known.

        Raises:
            UsageError: its rows are other ones now.
        """
        return Segment(place, self._corrupted(self._tokenize(self._read().again(place))))

    def after(self, place: SegmentPlace) -> Segment:
        """Read the next segment with something to train on.

        Raises:
            UsageError: a row that cannot be used, or a whole pass without anything to train on.
        """
        passes = place.passes
        while place.passes <= passes + 1:
            place, examples = self._read().after(place)
            if not len(examples):
                continue
            try:
                encoded = self._tokenize(examples)
            except NoAnswers:
                place = place.counting(passed_over=len(examples))
                continue
            return Segment(_counted(replace(place, number=place.number + 1), encoded), self._corrupted(encoded))
        raise UsageError(f"{self._run.task.source}, split {self._run.task.train!r}: no row is left to train on")

    def stop(self) -> None:
        """End what another thread reads, which raises there."""
        if self._reader is not None:
            self._reader.stop()

    def _read(self) -> SegmentReader:
        if self._reader is None:
            self._reader = SegmentReader(self._run.task, self.first.place)
        return self._reader

    def _tokenize(self, examples: Examples) -> TokenizedSplit:
        return tokenize_for_training(self._run, examples, self._tokenizer, self._config)


def _counted(place: SegmentPlace, encoded: TokenizedSplit) -> SegmentPlace:
    """Count the tokens of a segment, and what was cut or left out for them."""
    tokens = int(encoded.lengths.sum())
    return place.counting(tokens=tokens, truncated=encoded.truncated, passed_over=encoded.passed_over)
