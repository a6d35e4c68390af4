"""Terms on the frames of a sound that a model labels: the transcript by CTC, and a teacher's distributions."""

from dataclasses import dataclass

from torch import Tensor

from kdalign.models.capture import Signal
from kdalign.objective import losses
from kdalign.objective.terms.base import TermInputs, Unit

SURE_BLANK = 0.95
"""Probability of the blank above which a frame is one that the teacher surely leaves without a label."""


@dataclass(frozen=True)
class TranscriptCTC:
    """CTC loss of the transcript."""

    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.TARGET

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over rows, in nats; the objective divides by their labels, so that a long transcript weighs more."""
        batch, student = view.batch, view.student
        assert batch.targets is not None, "a task of speech has transcripts"
        frames = batch.real.sum(dim=1)
        return losses.ctc_loss(student.logits, batch.targets, frames, batch.counted, student.blank)


@dataclass(frozen=True)
class FrameTargets:
    """Divergence from a teacher's softened distribution over entries, the blank among them, frame by frame.

    Frames that the teacher surely leaves blank are most of all, and may weigh less. Leaving them out ("blank
    elimination") does not always help: Hilmes et al. 2025, arXiv:2506.01503. They count as frames all the same.

    Attributes:
        divergence: a key of ``losses.DIVERGENCES``.
        blank_weight: weight of frames whose blank has a probability above ``SURE_BLANK`` by the teacher.
    """

    temperature: float
    divergence: str = "forward"
    blank_weight: float = 1.0
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.COMPARED

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over real frames, in nats times the squared temperature."""
        entries = min(view.student.logits.size(-1), view.teacher.logits.size(-1))
        student, teacher = view.student.logits[..., :entries], view.teacher.logits[..., :entries]
        compared = view.batch.compared
        if self.blank_weight == 1:
            return self._sum(student, teacher, compared)
        blank = losses.sure_blanks(teacher, view.teacher.blank, SURE_BLANK)
        labelled = self._sum(student, teacher, compared & ~blank)
        return labelled + self.blank_weight * self._sum(student, teacher, compared & blank)

    def _sum(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        if self.divergence == "forward":
            return losses.soft_target_kl(student, teacher, mask, self.temperature)
        return losses.divergence(student[mask], teacher[mask], self.divergence, self.temperature)
