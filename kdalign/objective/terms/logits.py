"""Terms on outputs: labels, the teacher's logits or scores, and a language model's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdalign.data.tokenized_split import IGNORED, MASKED
from kdalign.models.capture import Signal
from kdalign.models.lm_head import LMHead
from kdalign.models.token_targets import DenseTokens, TokenTargets
from kdalign.objective import losses
from kdalign.objective.losses.lm_head import TokenLoss, vocabulary_losses
from kdalign.objective.terms.base import TermInputs, Unit


@dataclass(frozen=True)
class HardLabels:
    """Cross-entropy with the labels, or squared error for a score."""

    regression: bool
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.LABELLED

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over labelled examples, in nats or squared label units."""
        loss = losses.squared_error if self.regression else losses.hard_label_cross_entropy
        return loss(view.student.logits, view.known_labels, view.batch.supervised)


@dataclass(frozen=True)
class SoftTargets:
    """Divergence from the teacher's softened outputs, or squared error for a score (L_soft).

    Attributes:
        divergence: a key of ``losses.DIVERGENCES``.
        standardise: bring logits to mean 0 and spread 1 first.
    """

    temperature: float
    regression: bool
    divergence: str = "forward"
    standardise: bool = False
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over examples, in nats times the squared temperature, or squared label units."""
        student, counted = view.student.logits, view.batch.counted
        if self.regression:
            return losses.squared_error(student, view.teacher.logits.squeeze(-1), counted)
        before = losses.standardise_logits if self.standardise else None
        teacher = view.teacher.logits_at(self.temperature, before)
        student = student if before is None else before(student)
        if self.divergence == "forward":
            return losses.soft_target_kl(student, teacher, counted, self.temperature)
        return losses.divergence(student[counted], teacher[counted], self.divergence, self.temperature)


@dataclass(frozen=True)
class LogitMSE:
    """Squared distance from the teacher's logits."""

    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.EXAMPLE

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over examples of the mean over classes, in squared logit units."""
        return losses.logit_squared_error(view.student.logits, view.teacher.logits, view.batch.counted)


@dataclass(frozen=True)
class DecoupledKD:
    """Decoupled KD: label against all others, and distribution among the others, weighted apart (DKD)."""

    temperature: float
    other: float = 8.0
    needs: frozenset[Signal] = frozenset({Signal.LOGITS})
    unit: Unit = Unit.LABELLED

    def __call__(self, view: TermInputs) -> Tensor:
        """Sum over labelled examples, in nats times the squared temperature."""
        student, teacher = view.student.logits, view.teacher.logits_at(self.temperature)
        labels, mask = view.known_labels, view.batch.supervised
        return losses.decoupled_kl(student, teacher, labels, mask, self.temperature, self.other)


class MaskedTokens(nn.Module):
    """Masked-token prediction by a head of its own over the student's embeddings.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1, with BERT's head: a dense map, GELU and a layer norm, then the
    input embeddings as vocabulary, and a bias. The head is trained with the student and not exported.

    Attributes:
        dtype: precision of the product with the vocabulary.
    """

    needs = frozenset({Signal.FILLED})
    unit = Unit.MASKED

    def __init__(
        self, width: int, vocabulary: tuple[int, int], seed: int, spread: float = 0.02, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        entries, inner = vocabulary
        self.dense, self.norm = nn.Linear(width, inner), nn.LayerNorm(inner, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(entries))
        self.dtype = dtype
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.dense.weight.normal_(0, spread, generator=generator)
            self.dense.bias.zero_()

    def forward(self, view: TermInputs) -> Tensor:
        """Sum over masked tokens, in nats."""
        targets = view.batch.inputs[MASKED + "targets"]
        here = targets != IGNORED
        counted = view.batch.masked[here]
        features = self.norm(F.gelu(self.dense(view.student.filled.to(self.bias.dtype))))
        student = DenseTokens(features[counted], LMHead(view.student.words, self.bias))
        loss = TokenLoss(hard=1.0, soft=0.0, dtype=self.dtype)
        return vocabulary_losses(loss, student, targets[here][counted])[0]


class LMHeadLoss(TokenLoss):
    """A language model's tokens: cross-entropy with the text and divergence from the teacher, in one pass.

    Both need the logits, which exist for a block of rows at a time, so they are one term with two parts, ``hard`` and
    ``soft``, weighted here. The unit is the target token.
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """Distributions over tokens, if it compares any."""
        return frozenset({Signal.TOKENS} if self.soft > 0 else ())

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts with a weight above 0."""
        return tuple(name for name, weight in (("hard", self.hard), ("soft", self.soft)) if weight > 0)

    def __call__(self, view: TermInputs, units: Mapping[Unit, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted share of the step's mean over target tokens, and each part's, in nats.

        With a teacher of another tokenizer, ``soft`` is the mean over the tokens that both models predict.
        """
        batch, positions = view.batch, view.batch.predicted
        assert batch.targets is not None, "a language-modelling task has targets"
        assert view.student.head is not None, "a language model has a vocabulary"
        student = DenseTokens(view.student.features[positions], view.student.head)
        teacher: TokenTargets | None = None
        if self.soft > 0:
            assert view.teacher.tokens is not None, "a language model gives distributions over tokens"
            teacher = view.teacher.tokens.select(positions)
        targets, answered = (units[unit] or 1 for unit in (Unit.TARGET, Unit.ANSWERED))  # without any, the sum is 0
        total, hard, soft = vocabulary_losses(
            replace(self, soft=self.soft * (targets / answered)),
            student,
            batch.targets[positions],
            teacher,
            answered=batch.answered[positions] if batch.partly_answered else None,
        )
        means = {"hard": hard / targets, "soft": soft / answered}
        return total / targets, {name: means[name] for name in self.parts}
