"""The terms of the objective: each a small object over a pure loss, which says what it looks at and its unit.

A term returns a **sum** over the micro-batch's units; the objective divides once.
"""

from kdalign.terms.answers import HardLabels, MaskedTokens, SoftTargets, Vocabulary
from kdalign.terms.groups import Contrastive, Embedding, Similarity
from kdalign.terms.layers import (
    AttentionMaps,
    EmbeddingsCosine,
    HiddenCosine,
    HiddenEuclid,
    Relations,
    relation_heads,
)
from kdalign.terms.view import LossTerm, OverLayers, Place, Signal, Unit, View
from kdalign.terms.weights import LayerWeights

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
