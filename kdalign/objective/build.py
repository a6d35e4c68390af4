"""Build the objective of a task from a recipe's weights and a plan."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from kdalign.alignment.plan import Plan, cross_attention_layer
from kdalign.data.tasks import AnyTask, ClassificationTask
from kdalign.data.token_matching import SharedVocabulary
from kdalign.errors import UsageError
from kdalign.models.architecture import split_stack
from kdalign.objective.objective import Objective
from kdalign.objective.terms import (
    AttentionMaps,
    EmbeddingDistance,
    EmbeddingsCosine,
    EmbeddingSimilarity,
    FrameTargets,
    HardLabels,
    HiddenCosine,
    HiddenMSE,
    LayerPairs,
    LayerTerm,
    LMHeadLoss,
    LossTerm,
    PairContrast,
    PairDistance,
    PairSimilarity,
    Relations,
    Signal,
    SoftTargets,
    TranscriptCTC,
)
from kdalign.objective.terms.registry import TermContext, build_terms
from kdalign.recipe import ObjectiveWeights as Weights


def build_objective(
    task: AnyTask,
    weights: Weights,
    plan: Plan | None,
    dtype: torch.dtype | None = None,
    shared: SharedVocabulary | None = None,
) -> Objective:
    """Build the objective of a task of any kind.

    Args:
        task: task to train on.
        weights: of its terms.
        plan: alignment of layers; None without a teacher.
        dtype: precision of the largest matrix products.
        shared: common entries of the vocabularies, if the teacher has another tokenizer.

    Raises:
        UsageError: a term that does not fit, with the reason.
    """
    if isinstance(task, ClassificationTask):
        return build_classification_objective(weights, plan, task.regression, len(task.labels))
    if task.kind == "image-text":
        return build_pair_objective(weights, plan)
    if task.by_frames:
        return build_frame_objective(weights, plan)
    if task.scored is None:
        return build_language_objective(weights, plan, dtype, shared)
    assert plan is not None, "embeddings are learned from a teacher"
    return build_embedding_objective(weights, plan)


def build_classification_objective(
    weights: Weights, plan: Plan | None, regression: bool, classes: int = 2
) -> Objective:
    """Build the objective of a classification or regression task.

    Raises:
        UsageError: a term that does not fit, with the reason.
    """
    given, weights = weights, weights.built
    if weights.standardise and (regression or classes < 3):
        why = "a score has one number" if regression else "of two standardised logits only the order is left"
        raise UsageError(f"objective.standardise needs three classes or more: {why}")
    soft = SoftTargets(weights.temperature, regression, weights.divergence, weights.standardise)
    answers: dict[str, tuple[float, LossTerm]] = {
        "hard": (weights.hard, HardLabels(regression)),
        "soft": (weights.alpha, soft),
    }
    terms = _drop_zero_weights(
        answers | _alignment_terms(weights, plan) | _further_terms(weights, plan, 1 if regression else classes)
    )
    return _add_schedules(_share_weights(Objective(terms), plan), given)


def build_language_objective(
    weights: Weights, plan: Plan | None, dtype: torch.dtype | None = None, shared: SharedVocabulary | None = None
) -> Objective:
    """Build the objective of a language-modelling task.

    Args:
        weights: of its terms.
        plan: alignment of layers; None without a teacher.
        dtype: precision of products with the vocabulary.
        shared: common entries of two vocabularies.
    """
    given, weights = weights, weights.built
    vocabulary = LMHeadLoss(
        hard=weights.hard,
        soft=weights.alpha,
        divergence=weights.divergence,
        temperature=weights.temperature,
        dtype=dtype,
        shared=shared,
    )
    if weights.standardise:
        raise UsageError("objective.standardise is for the logits of classes, not for tokens")
    terms = _drop_zero_weights(_alignment_terms(weights, plan) | _further_terms(weights, plan, 0))
    return _add_schedules(_share_weights(Objective(terms, vocabulary if vocabulary.parts else None), plan), given)


def build_frame_objective(weights: Weights, plan: Plan | None) -> Objective:
    """Build the objective of speech recognition by labels of frames (CTC).

    Raises:
        UsageError: a setting that is for classes alone.
    """
    given, weights = weights, weights.built
    if weights.standardise:
        raise UsageError("objective.standardise is for the logits of classes, not for those of frames")
    soft = FrameTargets(weights.temperature, weights.divergence, weights.blank_frames)
    answers: dict[str, tuple[float, LossTerm]] = {
        "hard": (weights.hard, TranscriptCTC()),
        "soft": (weights.alpha, soft),
    }
    terms = _drop_zero_weights(answers | _alignment_terms(weights, plan) | _further_terms(weights, plan, 0))
    return _add_schedules(_share_weights(Objective(terms), plan), given)


def build_embedding_objective(weights: Weights, plan: Plan) -> Objective:
    """Build the objective of an embedding task; with different widths only similarities are compared."""
    given, weights = weights, weights.built
    same = all(theirs.width == ours.width for theirs, ours in plan.stacks)
    answers: dict[str, tuple[float, LossTerm]] = {
        "embedding": (weights.alpha if same else 0.0, EmbeddingDistance()),
        "similarity": (weights.alpha, EmbeddingSimilarity()),
    }
    terms = _drop_zero_weights(answers | _alignment_terms(weights, plan) | _further_terms(weights, plan, 0))
    return _add_schedules(_share_weights(Objective(terms), plan), given)


def build_pair_objective(weights: Weights, plan: Plan | None) -> Objective:
    """Build the objective of pairs of image and text; embeddings of different widths are not compared themselves."""
    if weights.divergence != "forward" or weights.standardise:
        raise UsageError("pairs of image and text are compared by forward KL of their similarities, as they are")
    given, weights = weights, weights.built
    answers: dict[str, tuple[float, LossTerm]] = {
        "contrastive": (weights.hard, PairContrast()),
        "pair-similarity": (weights.alpha, PairSimilarity(weights.temperature)),
    }
    if plan is not None and plan.teacher.joint_width == plan.student.joint_width:
        answers["embedding"] = (weights.alpha, PairDistance())
    terms = _drop_zero_weights(answers | _alignment_terms(weights, plan) | _further_terms(weights, plan, 0))
    return _add_schedules(_share_weights(Objective(terms), plan), given)


def _share_weights(objective: Objective, plan: Plan | None) -> Objective:
    """Divide the weights of terms that compare layers among several teachers."""
    if plan is None or not plan.shares:
        return objective
    places = {name: term.place for name, (_, term) in objective.terms.items() if isinstance(term, LayerTerm)}
    shares = {name: plan.shares[place.teacher] for name, place in places.items()}
    terms = {name: (weight * shares.get(name, 1.0), term) for name, (weight, term) in objective.terms.items()}
    return replace(objective, terms=_drop_zero_weights(terms), shares=shares)


def _add_schedules(objective: Objective, weights: Weights) -> Objective:
    """Add the schedules of the weights."""
    own = frozenset(name for name, given in weights.terms.items() if "temperature" in given)
    return replace(objective, moving=weights.moving, own_temperature=own)


def _further_terms(weights: Weights, plan: Plan | None, classes: int) -> dict[str, tuple[float, LossTerm]]:
    """Build the terms that the recipe names."""
    places, endings = ({}, {}) if plan is None else (_layer_pairs(plan), name_endings(plan))
    context = TermContext(plan, places, classes, weights.temperature, endings)
    return {name: (weight, term) for name, weight, term in build_terms(weights.terms, context)}


def name_endings(plan: Plan) -> dict[str, str]:
    """Return endings of the names of terms, by the teacher's stack.

    They are the student's stack of several, and the number of a teacher after the first; empty where there is one each.
    """
    several = len({one.student_stack for one in plan.maps}) > 1
    endings = {}
    for one in plan.maps:
        number, name = split_stack(one.teacher_stack)
        endings[one.teacher_stack] = f"{f' {name}' if several else ''}{f' {number + 1}' if number else ''}"
    return endings


def _layer_pairs(plan: Plan) -> dict[str, LayerPairs]:
    """Layer pairs by the teacher's stack."""
    pairs = {}
    for layer_map in plan.maps:
        target = plan.student.reads_target(layer_map.student_stack)
        looks_back = plan.student.looks_back(layer_map.student_stack)
        seen = plan.student.family == "dual" and layer_map.student_stack == "vision"
        number = split_stack(layer_map.teacher_stack)[0]
        pairs[layer_map.teacher_stack] = LayerPairs(
            plan.pairs_of(layer_map), target, seen, looks_back, plan.weighting, teacher=number, pooled=plan.pooled
        )
    return pairs


def _alignment_terms(weights: Weights, plan: Plan | None) -> dict[str, tuple[float, LossTerm]]:
    """Build the terms that compare layers, stack by stack and teacher by teacher, named by ``name_endings``."""
    terms: dict[str, tuple[float, LossTerm]] = {}
    places, endings = ({}, {}) if plan is None else (_layer_pairs(plan), name_endings(plan))
    for layer_map in plan.maps if plan is not None else ():
        assert plan is not None
        place = places[layer_map.teacher_stack]
        pairs = place.pairs
        measured = weights.gamma > 0 and plan.calibrated
        variances = {theirs: plan.variance(theirs) for _, theirs, _ in pairs} if measured else {}
        ending = endings[layer_map.teacher_stack]
        terms[f"cosine{ending}"] = (weights.beta, HiddenCosine(place.of_one_term()))
        terms[f"euclid{ending}"] = (weights.gamma, HiddenMSE(place.of_one_term(), variances))
        mean = plan.heads == "mean"
        terms[f"attention{ending}"] = (weights.delta, AttentionMaps(place.of_one_term(), mean))
        if place.reads_target:
            crossing = tuple(
                (cross_attention_layer(ours), cross_attention_layer(theirs), share) for ours, theirs, share in pairs
            )
            across = replace(place, pairs=crossing, looks_back=False).of_one_term()
            number = f" {place.teacher + 1}" if place.teacher else ""
            terms[f"attention cross{number}"] = (weights.delta, AttentionMaps(across, mean, frozenset({Signal.CROSS})))
        stacks = layer_map.student_stack, layer_map.teacher_stack
        terms[f"embeddings{ending}"] = (weights.embeddings, EmbeddingsCosine(place, stacks))
        parts = ("values",) if plan.relations == "values" else ("queries", "keys", "values")
        terms[f"relations{ending}"] = (weights.relations, Relations(place.of_one_term(), plan.relation_heads, parts))
    return terms


def _drop_zero_weights(terms: Mapping[str, tuple[float, LossTerm]]) -> dict[str, tuple[float, LossTerm]]:
    return {name: (weight, term) for name, (weight, term) in terms.items() if weight > 0}
