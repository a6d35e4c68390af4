"""Interface of teachers: activations on a batch, computed, read from a cache, or returned by a server."""

from dataclasses import dataclass
from typing import Protocol

from kdalign.data.batches import Batch
from kdalign.models.capture import Activations, CaptureSpec, Signal


@dataclass(frozen=True)
class TermRequest:
    """Request of one term of the objective: the teacher's activations that it compares.

    Attributes:
        term: the term's name.
        signals: kinds of activations that it compares.
        wanted: layers that it compares.
        temperature: temperature of its distributions; None if it compares none.
        scheduled: True if this temperature changes during training.
        samples: true if it also compares texts that the student writes during training, which no cache holds.
    """

    term: str
    signals: frozenset[Signal]
    wanted: CaptureSpec
    temperature: float | None = None
    scheduled: bool = False
    samples: bool = False


class Teacher(Protocol):
    """A source of a teacher's activations; its callers do not know whether it computes, reads or asks."""

    def __call__(self, batch: Batch, wanted: CaptureSpec) -> Activations:
        """Give the teacher's answers on a batch, and the activations of the layers that are wanted.

        Args:
            batch: on the device of training.
            wanted: layers whose activations the terms compare.

        Returns:
            Activations at the student's positions, or features averaged over a transcript that it reads: a classifier's
            ``logits`` in the order of the task's labels, a language model's ``tokens``, or an embedding model's
            ``features``; none of them is sure to be there if ``wanted`` has no answers.
        """

    def refusal(self, request: TermRequest) -> str | None:
        """Return why it cannot give what a term asks for, and who could; None if it can."""
