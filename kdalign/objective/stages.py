"""Stages of training that compare different parts of the models."""

from kdalign.alignment.plan import Plan
from kdalign.alignment.propose import progressive_plans
from kdalign.errors import UsageError
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import Recipe


def stages_of(recipe: Recipe, plan: Plan | None) -> list[tuple[float, Weights, Plan | None]]:
    """List a run's stages: the share of the steps after which each begins, its weights and its plan.

    The first stage of the objective is divided if layers are added one by one (``align.grow``).
    """
    stages: list[tuple[float, Weights, Plan | None]] = []
    for after, weights in recipe.objective.stages:
        if plan is not None and weights.built.aligning and after == 0:
            stages += [(begins, weights, each) for begins, each in progressive_plans(plan, recipe.align.grow)]
        else:
            stages.append((after, weights, plan))
    return stages


def check_steps(steps: int, recipe: Recipe, plan: Plan | None) -> None:
    """Refuse fewer steps than stages."""
    parts = len(stages_of(recipe, plan))
    if steps < parts:
        raise UsageError(
            f"{parts} parts (objective.align_first, align.grow) need a step each: train for {parts} at least"
        )
