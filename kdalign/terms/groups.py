"""Terms that compare the texts or tokens of a micro-batch with one another."""

from dataclasses import dataclass

from torch import Tensor

from kdalign import losses
from kdalign.capture import pooled
from kdalign.terms.view import Signal, Unit, View


@dataclass(frozen=True)
class Embedding:
    """The teacher's embeddings as targets, by direction; both models have the same width."""

    needs: frozenset[Signal] = frozenset()
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: View) -> Tensor:
        """The sum over texts; each lies in 0..2."""
        return losses.embedding_distance(*_embeddings(view), view.batch.counted)


@dataclass(frozen=True)
class Similarity:
    """How alike the teacher finds the texts of a micro-batch; 1 where all are alike to the student."""

    needs: frozenset[Signal] = frozenset()
    unit: Unit = Unit.GROUP

    def __call__(self, view: View) -> Tensor:
        """The micro-batch's distance."""
        return losses.similarity_distance(*_embeddings(view), view.batch.counted)


def _embeddings(view: View) -> tuple[Tensor, Tensor]:
    return pooled(view.student.features, view.batch.real), pooled(view.taught.features, view.batch.taught_real)


