"""Relational terms, which compare the texts or tokens of a micro-batch, over all ranks, with one another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdalign.models.capture import Signal, pooled
from kdalign.objective import losses
from kdalign.objective.terms.base import LayerPairs, TermInputs, Unit
from kdalign.objective.terms.distributed import all_gather_with_grad

Over = Literal["texts", "tokens"]
UNITS: dict[Over, Unit] = {"texts": Unit.GROUP, "tokens": Unit.TOKEN_GROUP}


@dataclass(frozen=True)
class EmbeddingDistance:
    """Cosine distance from the teacher's embeddings, for models of equal width."""

    needs: frozenset[Signal] = frozenset({Signal.FEATURES})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over texts, each in 0..2."""
        student, teachers = _embeddings(view)
        target = teachers[0][1]
        if len(teachers) > 1:  # of vectors of length 1, so that each teacher counts by its weight alone
            target = torch.stack([share * F.normalize(each.float(), dim=1) for share, each in teachers]).sum(dim=0)
        return losses.embedding_distance(student, target, view.batch.counted)


@dataclass(frozen=True)
class EmbeddingSimilarity:
    """Distance from the teacher's similarities of texts; 1 for a student with one constant similarity."""

    needs: frozenset[Signal] = frozenset({Signal.FEATURES})
    unit: Unit = Unit.GROUP

    def __call__(self, view: TermInputs) -> Tensor:
        """The group's distance."""
        ours, teachers = _embeddings(view)
        theirs = teachers[0][1]
        if len(teachers) > 1:
            # Cosines of these are the weighted mean of the teachers' cosines, whatever their widths.
            theirs = torch.cat([share**0.5 * F.normalize(each.float(), dim=1) for share, each in teachers], dim=1)
        student, teacher = (all_gather_with_grad(each[view.batch.counted]) for each in (ours, theirs))
        return losses.similarity_distance(student, teacher)


def _embeddings(view: TermInputs) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """The student's embeddings, and each teacher's with its share."""
    kept = view.teacher.embeddings_of or ((1.0, view.teacher.features),)
    reals = (view.batch.read_by(number).teacher_real for number in range(len(kept)))
    theirs = [(share, pooled(features, real)) for (share, features), real in zip(kept, reals, strict=True)]
    return pooled(view.student.features, view.batch.real), theirs


@dataclass(frozen=True)
class CorrelationDistance:
    """One minus the correlation with the teacher's probabilities, over classes and over a group's texts (DIST)."""

    temperature: float
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.GROUP

    def __call__(self, view: TermInputs) -> Tensor:
        """The group's distance; 0 for fewer than three texts."""
        both = view.student.logits, view.teacher.logits_at(self.temperature)
        student, teacher = (all_gather_with_grad(each[view.batch.counted].float()) for each in both)
        enough = len(student) >= losses.LEAST_GROUP
        return losses.correlation_distance(student, teacher, self.temperature) if enough else 0.0 * student.sum()


@dataclass(frozen=True)
class RowWise:
    """A loss on the rows of a group, weighted over layers by lambda_l; widths may differ.

    Attributes:
        loss: function of the student's rows and the teacher's.
        over: kind of rows: texts (means over their positions) or tokens.
    """

    place: LayerPairs
    loss: Callable[[Tensor, Tensor], Tensor]
    over: Over = "texts"
    needs: frozenset[Signal] = frozenset({Signal.LAYERS})

    @property
    def unit(self) -> Unit:
        """Groups."""
        return UNITS[self.over]

    def __call__(self, view: TermInputs) -> Tensor:
        """The group's distance; 0 for fewer than three rows."""
        mask = self.place.mask(view.batch)
        distances = []
        for ours, theirs, _ in self.place.pairs:
            both = view.student.hidden[ours], view.teacher.hidden[theirs]
            student, teacher = (all_gather_with_grad(_rows(each, mask, self.over)) for each in both)
            enough = len(student) >= losses.LEAST_GROUP
            distances.append(self.loss(student, teacher) if enough else 0.0 * student.sum())
        return self.place.over_layers(distances)


def _rows(features: Tensor, mask: Tensor, over: Over) -> Tensor:
    """(n, width) in float32, counted tokens, or the means of texts with any."""
    if over == "tokens":
        return features[mask].float()
    some = mask.any(dim=1)
    return pooled(features[some], mask[some])


class Queue(nn.Module):
    """First-in, first-out queue of rows, one list per width, with the number of each row's input.

    Attributes:
        numbers: (size,), input of each row; -1 for an empty slot.
    """

    numbers: Tensor
    place: Tensor

    def __init__(self, size: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("numbers", torch.full((size,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        for number, width in enumerate(widths):
            self.register_buffer(f"rows{number}", torch.zeros(size, width))

    def rows(self, number: int) -> Tensor:
        """Return the rows of one width, (size, width)."""
        return self.get_buffer(f"rows{number}")

    def put(self, rows: Sequence[Tensor], numbers: Tensor) -> None:
        """Replace the oldest rows; of more rows than the size, keep the last ones."""
        numbers, rows = numbers[-self.size :], [each[-self.size :] for each in rows]
        where = (self.place + torch.arange(len(numbers), device=numbers.device)) % self.size
        self.numbers[where] = numbers
        for number, each in enumerate(rows):
            self.rows(number)[where] = each.float()
        self.place.copy_((self.place + len(numbers)) % self.size)


@dataclass(frozen=True)
class ContrastiveOptions:
    """Options of a contrastive term.

    Attributes:
        temperature: temperature of cosines.
        over: rows that are compared: texts or tokens.
        supervised: count rows of the same label as positives, too.
        queue: number of the teacher's rows of earlier steps that are kept as negatives.
        negatives: number of negatives drawn for each row and judged one by one (CRD); all of them at once if None
            (InfoNCE).
        again: count the student's rows of a second forward as positives, too, among that forward's rows.
    """

    temperature: float = 0.07
    over: Over = "texts"
    supervised: bool = False
    queue: int = 0
    negatives: int | None = None
    again: bool = False


class Contrastive(nn.Module):
    """Tell each row of the student from other inputs' rows by the teacher's row, weighted over layers by lambda_l.

    Attributes:
        place: layers that are compared.
        options: options of the term.
        queue: the teacher's rows of earlier steps; None if only the group's own rows are negatives.
        levels: (pairs,), log of the mean exponential score of negatives in the first group, the normaliser of
            ``negatives``; NaN before it.
    """

    levels: Tensor

    def __init__(self, place: LayerPairs, widths: Sequence[int], options: ContrastiveOptions) -> None:
        super().__init__()
        self.place, self.options = place, options
        self.needs = frozenset({Signal.HIDDEN, Signal.AGAIN} if options.again else {Signal.HIDDEN})
        self.unit = UNITS[options.over]
        self.queue = Queue(options.queue, widths) if options.queue else None
        self.register_buffer("levels", torch.full((len(widths),), math.nan))
        self._seen: list[tuple[list[Tensor], Tensor]] = []

    def forward(self, view: TermInputs) -> Tensor:
        """Mean over the group's rows, in nats; 0 for fewer than three."""
        batch, mask = view.batch, self.place.mask(view.batch)
        texts = mask.any(dim=1)
        of_rows = mask.nonzero()[:, 0] if self.options.over == "tokens" else texts.nonzero()[:, 0]
        assert batch.rows is not None, "training examples are numbered"
        numbers = all_gather_with_grad(batch.rows[of_rows])
        alike = self._positives(view, of_rows) if self.options.supervised else None
        distances, kept = [], []
        for index, (ours, theirs, _) in enumerate(self.place.pairs):
            both = view.student.projected[ours, theirs], view.student.targets[ours, theirs]
            student, teacher = (all_gather_with_grad(_rows(each, mask, self.options.over)) for each in both)
            kept.append(teacher.detach())
            enough = len(student) >= losses.LEAST_GROUP
            distance = self._pair_loss(index, student, teacher, numbers, alike) if enough else 0.0 * student.sum()
            if self.options.again and enough:
                other = all_gather_with_grad(_rows(view.student.again[ours, theirs], mask, self.options.over))
                distance = (distance + losses.info_nce(student, other, self.options.temperature, alike=alike)) / 2
            distances.append(distance)
        if self.queue is not None:
            self._seen.append((kept, numbers))
        return self.place.over_layers(distances)

    @staticmethod
    def _positives(view: TermInputs, of_rows: Tensor) -> Tensor:
        """(n, n), positives of each row: those of its label, or itself if its label is unknown."""
        labels, known = (
            all_gather_with_grad(view.known_labels[of_rows]),
            all_gather_with_grad(view.batch.supervised[of_rows]),
        )
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        return itself | ((labels[:, None] == labels[None]) & known[:, None] & known[None])

    def _pair_loss(self, index: int, student: Tensor, teacher: Tensor, numbers: Tensor, alike: Tensor | None) -> Tensor:
        others, known = teacher[:0].detach(), numbers[:0]
        if self.queue is not None:
            filled = self.queue.numbers >= 0
            others, known = self.queue.rows(index)[filled], self.queue.numbers[filled]
        own_before = numbers[:, None] == known[None]  # an input's own row of an earlier step is not a negative
        if self.options.negatives is None:
            return losses.info_nce(student, teacher, self.options.temperature, others, alike, own_before)
        candidates = torch.cat([teacher.detach(), others])
        itself = torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
        wrong = ~torch.cat([itself, own_before], dim=1)
        if self.levels[index].isnan():
            with torch.no_grad():
                scores = F.normalize(student, dim=-1) @ F.normalize(candidates, dim=-1).T / self.options.temperature
                self.levels[index] = scores[wrong].logsumexp(dim=0) - math.log(int(wrong.sum()))
        drawn = candidates[torch.multinomial(wrong.float(), self.options.negatives, replacement=True)]
        return losses.memory_nce(student, teacher, drawn, self.options.temperature, self.levels[index].clone())

    def remember(self, kept: bool = True) -> None:
        """Put the teacher's rows since the last call into the queue, or forget them.

        In an order by their inputs' numbers, so that ranks and micro-batches do not affect which rows leave first.
        """
        if kept and self.queue is not None and self._seen:
            numbers = torch.cat([each for _, each in self._seen])
            # Shuffled deterministically, so that eviction order is independent of data order.
            order = (numbers * 2654435761 % 2**32).argsort(stable=True)
            rows = [torch.cat(each)[order] for each in zip(*(rows for rows, _ in self._seen), strict=True)]
            self.queue.put(rows, numbers[order])
        self._seen.clear()
