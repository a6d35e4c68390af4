"""Terms of dual encoders: images and texts of a micro-batch, over all ranks, are compared with each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdalign.models.capture import Activations, Signal
from kdalign.objective import losses
from kdalign.objective.terms.base import TermInputs, Unit
from kdalign.objective.terms.distributed import all_gather_with_grad


@dataclass(frozen=True)
class PairContrast:
    """Cross-entropy of finding the text of an image, and the image of a text, in the group.

    Of a student with a bias (SigLIP), that of telling each pair of the group right or wrong.
    """

    needs: frozenset[Signal] = frozenset({Signal.PAIRS})
    unit: Unit = Unit.GROUP

    def __call__(self, view: TermInputs) -> Tensor:
        """The group's mean; 0 for fewer than three pairs."""
        images, texts, scale = _gathered(view.student, view)
        bias = view.student.bias.float()
        if len(images) < losses.LEAST_GROUP:
            return _nothing(images, texts, scale, bias)
        if bias.numel():
            return losses.pair_sigmoid(images, texts, scale, bias)
        return losses.pair_contrast(images, texts, scale)


@dataclass(frozen=True)
class PairSimilarity:
    """Divergence from the teacher's distributions over the texts and the images of the group."""

    temperature: float
    needs: frozenset[Signal] = frozenset({Signal.PAIRS})
    unit: Unit = Unit.GROUP

    def __call__(self, view: TermInputs) -> Tensor:
        """The group's mean; 0 for fewer than three pairs."""
        student, teacher = _gathered(view.student, view), _gathered(view.teacher, view)
        enough = len(student[0]) >= losses.LEAST_GROUP
        return losses.pair_similarity(student, teacher, self.temperature) if enough else _nothing(*student)


@dataclass(frozen=True)
class PairDistance:
    """Mean cosine distance from the teacher's embeddings of an image and of its text, for spaces of one width."""

    needs: frozenset[Signal] = frozenset({Signal.PAIRS})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over pairs, each in 0..2."""
        counted = view.batch.counted
        images = losses.embedding_distance(view.student.image_features, view.teacher.image_features, counted)
        texts = losses.embedding_distance(view.student.text_features, view.teacher.text_features, counted)
        return (images + texts) / 2


def _nothing(*parts: Tensor) -> Tensor:
    """Zero that reaches whatever the term would, so that no parameter of a small group is taken for unused."""
    return sum((0.0 * part.sum() for part in parts), torch.zeros((), device=parts[0].device))


def _gathered(activations: Activations, view: TermInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the images and texts of all ranks, and the scale."""
    counted = view.batch.counted
    images, texts = (
        all_gather_with_grad(each[counted].float()) for each in (activations.image_features, activations.text_features)
    )
    return images, texts, activations.scale.float()
