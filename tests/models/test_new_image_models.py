"""Sizes of new models of images: those that no model can have are refused, and all others give models that read."""

import re

import pytest
import torch

from kdalign.data.media.grid import Grid
from kdalign.errors import UsageError
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec
from kdalign.models.grids import layer_grids
from support.media_setting import IMAGE_TYPES, save_image_data, save_image_model

REFUSED = {
    "vit,width=32,heads=4,image=30,patch=8": "image=30 and patch=8 (accepted: an image that the patch divides)",
    "deit,width=32,heads=4,image=4,patch=8": "image=4 and patch=8 (accepted: an image that the patch divides)",
    "clip,width=30,heads=4,image=32,patch=8": "width=30 and heads=4 (accepted: heads that divide the width)",
    "vit,width=32,heads=5,image=32,patch=8": "width=32 and heads=5 (accepted: heads that divide the width)",
    "swin,depths=1-1,width=4,heads=2-3,window=2,image=32,patch=4": (
        "width=4 and heads=2-3 (accepted: heads that divide the width)"
    ),
    "swin,depths=1-1-1,width=4,heads=1-1,window=2,image=32,patch=4": (
        "depths=1-1-1, heads=1-1 (accepted: as many numbers for each stage)"
    ),
    "convnext,depths=1-1,widths=8,image=32": "depths=1-1, widths=8 (accepted: as many numbers for each stage)",
    "resnet,depths=1-1,widths=8-8-8,image=32": "depths=1-1, widths=8-8-8 (accepted: as many numbers for each stage)",
    "convnext,depths=1-1-1-1-1,widths=8-8-8-8-8,image=32": (
        "image=32, patch=4 and 5 stages (accepted: an image of which each stage leaves a cell, as they halve it)"
    ),
    "convnext,depths=1-1,widths=8-8,image=30": "image=30 and patch=4 (accepted: an image that the patch divides)",
    "swin,image=32": (
        "image=32, patch=4 and window=7, which is larger than the grid of stage 2, 4 x 4 (accepted: window=1 or "
        "smaller, which fits all 4 stages; a larger image; fewer stages)"
    ),
    "swin,depths=1-1-1,width=4,heads=1-1-1,window=3,image=32,patch=4": (
        "window=3, which is larger than the grid of stage 3, 2 x 2 (accepted: window=2 or smaller"
    ),
    "swin,depths=1,width=4,heads=1,window=9,image=32,patch=4": (
        "window=9, which is larger than the grid of stage 1, 8 x 8 (accepted: window=8 or smaller"
    ),
}


@pytest.mark.parametrize("sizes", REFUSED)
def test_sizes_that_no_model_can_have_are_refused_with_what_is_accepted(sizes):
    with pytest.raises(UsageError, match=re.escape(REFUSED[sizes])) as error:
        parse_scratch_spec(f"new:{sizes}")
    assert str(error.value).startswith(f"new:{sizes.partition(',')[0]} with ")


ACCEPTED = {
    "swin,depths=1-2-1,width=4,heads=1-1-1,window=2,image=32,patch=4": [Grid(0, 4, 4), Grid(0, 2, 2), Grid(0, 2, 2)],
    "swin,depths=2,width=4,heads=1,window=8,image=32,patch=4": [Grid(0, 8, 8)],
    "swin,depths=2-2,width=4,heads=1-1,window=3,image=20,patch=4": [Grid(0, 3, 3), Grid(0, 3, 3)],
    "resnet,depths=1-1,widths=8-8,image=30": [Grid(0, 8, 8), Grid(0, 4, 4)],
    "resnet,depths=1-1-1,widths=8-8-8,image=4": [Grid(0, 1, 1)] * 3,
    "convnext,depths=1-1-1-1,widths=8-8-8-8,image=32": [Grid(0, 8, 8), Grid(0, 4, 4), Grid(0, 2, 2), Grid(0, 1, 1)],
}


@pytest.mark.parametrize("sizes", ACCEPTED)
def test_the_largest_window_a_window_that_is_padded_and_images_of_any_size_for_a_resnet_are_read(sizes):
    spec = parse_scratch_spec(f"new:{sizes}")
    config = spec.config()
    assert layer_grids(config, (spec.image, spec.image)) == ACCEPTED[sizes]
    net = build_from_scratch(config, 0).eval()
    net(pixel_values=torch.randn(2, 3, spec.image, spec.image)).logits.sum().backward()
    assert all(parameter.grad is not None for name, parameter in net.named_parameters() if "stages" in name)


def test_a_run_with_a_window_that_is_too_large_ends_before_anything_is_written(kdalign, tmp_path):
    data, out = save_image_data(tmp_path / "images", rows=4), tmp_path / "run"
    teacher = save_image_model(tmp_path / "vit", IMAGE_TYPES["vit"])
    words = ("--teacher", teacher, "--student", "new:swin,image=32", "--task", "image-classification", "--data", data)
    for dry in ((), ("--dry-run",)):
        status, _, err = kdalign("distill", *words, "--delta", "0", "--out", out, *dry)
        assert status == 2
        assert "window=7, which is larger than the grid of stage 2" in err
        assert len(err.strip().splitlines()) == 1
        assert not out.exists()
