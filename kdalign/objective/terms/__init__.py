"""The terms of the objective: each a small object over a pure loss, which says what it looks at and its unit.

A term returns a **sum** over the micro-batch's units; the objective divides once.
"""

from kdalign.objective.terms.base import LossTerm, OverLayers, Place, Signal, Unit, View
from kdalign.objective.terms.features import (
    AttentionMaps,
    EmbeddingsCosine,
    HiddenCosine,
    HiddenEuclid,
    Relations,
    relation_heads,
)
from kdalign.objective.terms.layer_weights import LayerWeights
from kdalign.objective.terms.logits import HardLabels, MaskedTokens, SoftTargets, Vocabulary
from kdalign.objective.terms.relational import Contrastive, Embedding, Similarity

__all__ = [
    "AttentionMaps",
    "Contrastive",
    "Embedding",
    "EmbeddingsCosine",
    "HardLabels",
    "HiddenCosine",
    "HiddenEuclid",
    "LayerWeights",
    "LossTerm",
    "MaskedTokens",
    "OverLayers",
    "Place",
    "Relations",
    "Signal",
    "Similarity",
    "SoftTargets",
    "Unit",
    "View",
    "Vocabulary",
    "relation_heads",
]
