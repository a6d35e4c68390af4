r"""Losses: pure functions on tensors that return **sums** over counted units, or one number for a group.

Shapes: ``batch`` examples, ``time`` positions, ``classes`` labels, ``width`` features, ``heads`` attention heads; ``n``
counted rows. A mask is true where a unit counts. Nothing here divides by the number of units: the objective does
that once, by the units of the whole optimizer step. All arithmetic is in float32 or wider, whatever the inputs'
precision.
"""

from kdalign.objective.losses.attention import attention_distance, attention_divergence, relation_divergence
from kdalign.objective.losses.ctc import ctc_loss, sure_blanks
from kdalign.objective.losses.features import (
    PairDistances,
    attended_euclid,
    cosine_distance,
    embedding_distance,
    patient_distance,
    relative_squared_error,
    scaled_euclid,
)
from kdalign.objective.losses.logits import (
    DIVERGENCES,
    correlation_distance,
    decoupled_kl,
    divergence,
    divergence_of_shared,
    divergence_of_top,
    hard_label_cross_entropy,
    logit_squared_error,
    soft_target_kl,
    squared_error,
    standardise_logits,
    universal_logit_distance,
)
from kdalign.objective.losses.pairs import pair_contrast, pair_sigmoid, pair_similarity
from kdalign.objective.losses.relational import (
    LEAST_GROUP,
    info_nce,
    linear_cka_distance,
    memory_nce,
    relational_angle,
    relational_distance,
    similarity_distance,
    similarity_preserving,
)

__all__ = [
    "DIVERGENCES",
    "LEAST_GROUP",
    "PairDistances",
    "attended_euclid",
    "attention_distance",
    "attention_divergence",
    "correlation_distance",
    "cosine_distance",
    "ctc_loss",
    "decoupled_kl",
    "divergence",
    "divergence_of_shared",
    "divergence_of_top",
    "embedding_distance",
    "hard_label_cross_entropy",
    "info_nce",
    "linear_cka_distance",
    "logit_squared_error",
    "memory_nce",
    "pair_contrast",
    "pair_sigmoid",
    "pair_similarity",
    "patient_distance",
    "relation_divergence",
    "relational_angle",
    "relational_distance",
    "relative_squared_error",
    "scaled_euclid",
    "similarity_distance",
    "similarity_preserving",
    "soft_target_kl",
    "squared_error",
    "standardise_logits",
    "sure_blanks",
    "universal_logit_distance",
]
