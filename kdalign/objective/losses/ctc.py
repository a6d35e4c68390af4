"""Losses of a model that labels the frames of a sound: connectionist temporal classification (CTC)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdalign.objective.losses.precision import to_float32


def ctc_loss(
    student: Float[Tensor, "batch frames entries"],
    labels: Int[Tensor, "batch labels"],
    frames: Int[Tensor, "batch"],
    mask: Bool[Tensor, "batch"],
    blank: int,
) -> Float[Tensor, ""]:
    r"""Negative log-likelihood of the labels over all their alignments with frames, summed over counted rows, in nats.

    .. math:: -\sum_b m_b \log \sum_{\pi \in B^{-1}(y_b)} \prod_{t} \sigma(z^s_{bt})_{\pi_t}

    where B merges equal neighbours and drops blanks: Graves et al. 2006, "Connectionist temporal classification",
    ICML, doi:10.1145/1143844.1143891. It is infinite for a row with fewer frames than its labels need, and nothing
    hides that.

    Args:
        student: logits.
        labels: entries, none of them the blank; padding is negative.
        frames: number of frames of each row.
        mask: false for rows that do not count.
        blank: entry of a frame without a label.
    """
    log_probabilities = F.log_softmax(to_float32(student), dim=-1).transpose(0, 1)
    lengths = (labels >= 0).sum(dim=1)
    each = F.ctc_loss(log_probabilities, labels.clamp(min=0), frames, lengths, blank=blank, reduction="none")
    return torch.where(mask, each, 0).sum()


def sure_blanks(
    teacher: Float[Tensor, "batch frames entries"], blank: int, least: float
) -> Bool[Tensor, "batch frames"]:
    """Return the frames that a teacher leaves without a label with a probability above ``least``."""
    return to_float32(teacher).softmax(dim=-1)[..., blank] > least
