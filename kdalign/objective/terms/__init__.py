"""Loss terms: small objects that call a pure loss and declare their signals and their unit.

A term returns a **sum** over the micro-batch's units; the objective divides once.
"""

from kdalign.models.capture import Signal
from kdalign.objective.terms.base import LayerPairs, LayerTerm, LossTerm, TermInputs, Unit
from kdalign.objective.terms.features import (
    AttentionMaps,
    EmbeddingsCosine,
    HiddenCosine,
    HiddenMSE,
    Relations,
    relation_heads,
)
from kdalign.objective.terms.frames import FrameTargets, TranscriptCTC
from kdalign.objective.terms.layer_weights import LayerWeights
from kdalign.objective.terms.logits import HardLabels, LMHeadLoss, MaskedTokens, SoftTargets
from kdalign.objective.terms.pairs import PairContrast, PairDistance, PairSimilarity
from kdalign.objective.terms.relational import Contrastive, EmbeddingDistance, EmbeddingSimilarity

__all__ = [
    "AttentionMaps",
    "Contrastive",
    "EmbeddingDistance",
    "EmbeddingSimilarity",
    "EmbeddingsCosine",
    "FrameTargets",
    "HardLabels",
    "HiddenCosine",
    "HiddenMSE",
    "LMHeadLoss",
    "LayerPairs",
    "LayerTerm",
    "LayerWeights",
    "LossTerm",
    "MaskedTokens",
    "PairContrast",
    "PairDistance",
    "PairSimilarity",
    "Relations",
    "Signal",
    "SoftTargets",
    "TermInputs",
    "TranscriptCTC",
    "Unit",
    "relation_heads",
]
