"""Positions of an image model's layers, and the grid on which two models' features are compared.

A layer has a grid of patches, or of cells of a convolution, after its class tokens. Stages of a pyramid and models with
patches of another size have other grids: their features are averaged over the cells of the smallest grid of all.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from kdalign.data.media.grid import Grid
from kdalign.errors import UsageError, library_errors
from kdalign.models.architecture import blocks, layout_of, meta_model
from kdalign.models.inputs import has_text, vision_config


@functools.cache
def grid_of(positions: int, class_tokens: int, image: tuple[int, int]) -> Grid:
    """Return the grid of a layer with this number of positions over an image of (height, width).

    There is one at most: a larger stride leaves no more rows and no more columns.

    Raises:
        UsageError: the positions are no grid of the image's shape.
    """
    cells = positions - class_tokens
    found = (Grid(class_tokens, rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0)
    grid = next((each for each in found if _is_over(each, image)), None)
    if grid is None:
        raise UsageError(f"{positions} positions are no grid over an image of {image[0]} x {image[1]}")
    return grid


def _is_over(grid: Grid, image: tuple[int, int]) -> bool:
    """Return whether one stride divides an image into these rows and columns, what is left over dropped or kept."""
    sides = list(zip(image, (grid.rows, grid.columns), strict=True))
    largest = min(side / cells for side, cells in sides)
    if max(side / (cells + 1) for side, cells in sides) < largest:
        return True
    below = min(side / (cells - 1) if cells > 1 else math.inf for side, cells in sides)
    return max(side / cells for side, cells in sides) < below


def move_to_grid(
    features: Float[Tensor, "batch positions width"], own: Grid, wanted: Grid
) -> Float[Tensor, "batch wanted width"]:
    """Move features to another grid: the mean over the cells that a wanted cell covers, as adaptive pooling takes it.

    Of the class tokens, the first ones are kept, as many as are wanted.
    """
    tokens, cells = features[:, : wanted.class_tokens], features[:, own.class_tokens :]
    if (own.rows, own.columns) != (wanted.rows, wanted.columns):
        maps = cells.transpose(1, 2).reshape(len(cells), -1, own.rows, own.columns)
        cells = F.adaptive_avg_pool2d(maps, (wanted.rows, wanted.columns)).flatten(2).transpose(1, 2)
    elif own.class_tokens == wanted.class_tokens:
        return features
    return torch.cat([tokens, cells], dim=1)


def layer_grids(config: PretrainedConfig, image: tuple[int, int]) -> list[Grid]:
    """Return the grid of each layer's output over images of (height, width), by a forward without storage.

    Raises:
        UsageError: the model cannot read images of this size.
    """
    model = meta_model(config)
    try:
        return _layer_grids(model, image)
    except NotImplementedError:  # its forward reads numbers, which the meta device lacks
        return _layer_grids(meta_model(config, device="cpu"), image)


def _layer_grids(model: PreTrainedModel, image: tuple[int, int]) -> list[Grid]:
    shapes: list[torch.Size] = []

    def keep(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        shapes.append((output[0] if isinstance(output, tuple) else output).shape)

    seeing = [block for layer, block in blocks(model).items() if layer.stack == "vision"]
    handles = [block.register_forward_hook(keep) for block in seeing]
    tower = model.get_submodule("vision_model") if has_text(model.config) else model
    pixels = torch.zeros(1, vision_config(model.config).num_channels, *image, device=model.device)
    try:
        with torch.no_grad(), library_errors(f"a {model.config.model_type} model cannot read images of {image}"):
            tower(pixel_values=pixels)
    finally:
        for handle in handles:
            handle.remove()
    tokens = layout_of(model.config).class_tokens
    return [Grid(0, *shape[2:]) if len(shape) == 4 else grid_of(shape[1], tokens, image) for shape in shapes]


def common_grid(models: Sequence[tuple[PretrainedConfig, tuple[int, int]]]) -> Grid:
    """Return the grid on which all layers of models are compared: the smallest of them, with the tokens that all have.

    Args:
        models: configurations, each with the size of the images that its model reads.
    """
    grids = [grid for config, image in models for grid in layer_grids(config, image)]
    return Grid(*(min(sizes) for sizes in zip(*((g.class_tokens, g.rows, g.columns) for g in grids), strict=True)))


def check_same_grid(models: Sequence[tuple[PretrainedConfig, tuple[int, int]]], grid: Grid) -> None:
    """Refuse models of which a layer has other positions than the grid, as attention between positions is compared.

    Raises:
        UsageError: the model, and its positions.
    """
    for config, image in models:
        other = next((each for each in layer_grids(config, image) if each != grid), None)
        if other is not None:
            raise UsageError(
                f"attention is compared position by position, and a {config.model_type} model has {other} where others "
                f"have {grid}: give --delta 0 --set objective.relations=0"
            )
