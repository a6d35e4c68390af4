"""Experiment trackers of accelerate."""

from accelerate import Accelerator

from kdalign.recipe import Recipe


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's trackers with its values as their configuration."""
    if recipe.train.trackers:
        config = {key: value for key, value in recipe.flat().items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("kdalign", config=config)
