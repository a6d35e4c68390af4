"""Sizes of an image model that is built from scratch, such as ``new:vit,layers=4,image=28,patch=7``."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from kdalign.errors import UsageError
from kdalign.models.heads import HeadKind, auto_class
from kdalign.models.layouts import LAYOUTS
from kdalign.models.new_model_settings import read_dropout, read_settings

_TRANSFORMER = {"layers": "4", "width": "192", "heads": "3", "feed_forward": "", "image": "224", "patch": "16"}
_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "vit": _TRANSFORMER | {"channels": "3", "dropout": "0"},
    "deit": _TRANSFORMER | {"channels": "3", "dropout": "0"},
    "swin": {
        **{"depths": "2-2-6-2", "width": "96", "heads": "3-6-12-24", "window": "7", "image": "224", "patch": "4"},
        **{"channels": "3", "dropout": "0"},
    },
    "clip": _TRANSFORMER | {"channels": "3", "dropout": "0", "joint": "128", "positions": "77"},
    "siglip": _TRANSFORMER | {"channels": "3", "dropout": "0", "positions": "64"},
    "convnext": {"depths": "3-3-9-3", "widths": "96-192-384-768", "image": "224", "patch": "4", "channels": "3"},
    "resnet": {"depths": "2-2-2-2", "widths": "64-128-256-512", "image": "224", "channels": "3"},
}
"""Settings of each type, with their defaults: the smallest published model's, of ViT and DeiT four layers."""


@dataclass(frozen=True)
class ImageSpec:
    """Type and sizes of an image model to build.

    Attributes:
        model_type: key of ``LAYOUTS``.
        sizes: numbers by setting; several where stages differ.
        dropout: a probability; 0 for a type without dropout.
        image: height and width of the images that it reads.
    """

    model_type: str
    sizes: Mapping[str, tuple[int, ...]]
    dropout: float
    image: int

    @property
    def reads_text(self) -> bool:
        """True if it reads texts beside images."""
        return LAYOUTS[self.model_type].family == "dual"

    def config(self, tokenizer: PreTrainedTokenizerBase | None = None, entries: int = 0) -> PretrainedConfig:
        """Make the configuration; fields that no setting gives have their defaults.

        Args:
            tokenizer: of a model that reads texts, too; None if it is still to be trained.
            entries: number of its entries then.
        """
        fields = _FIELDS[self.model_type](self)
        if self.reads_text:
            roles = ("pad_token_id", "bos_token_id", "eos_token_id")
            ids = {role: 0 if tokenizer is None else getattr(tokenizer, role) for role in roles}
            fields["text_config"] |= ids | {"vocab_size": entries if tokenizer is None else len(tokenizer)}
        config: PretrainedConfig = AutoConfig.for_model(self.model_type, **fields)
        if self.reads_text:
            config.architectures = [AutoModel._model_mapping[type(config)].__name__]
            return config
        auto = auto_class(HeadKind.CLASSIFIER, self.model_type)
        found = auto._model_mapping[type(config)]
        config.architectures = [(found[0] if isinstance(found, tuple) else found).__name__]
        return config

    def one(self, setting: str) -> int:
        """Return the only number of a setting."""
        (number,) = self.sizes[setting]
        return number


def parse_image_spec(text: str) -> ImageSpec:
    """Read ``new:TYPE,key=value,...`` of an image model; stages are written ``depths=2-2-6``.

    Raises:
        UsageError: an unknown key, or sizes that no model can have.
    """
    model_type = text.removeprefix("new:").partition(",")[0]
    given = read_settings(text, list(_SETTINGS[model_type]))
    values = {**_SETTINGS[model_type], **given}
    dropout = read_dropout(values.pop("dropout", "0"))
    if values.get("feed_forward") == "":
        del values["feed_forward"]
    sizes = {key: _numbers(key, value) for key, value in values.items()}
    if "heads" not in given and model_type in ("vit", "deit", "clip", "siglip"):
        sizes["heads"] = (max(1, sizes["width"][0] // 64),)
    if "heads" not in given and model_type == "swin":
        width = sizes["width"][0]
        sizes["heads"] = tuple(max(1, width * 2**stage // 32) for stage in range(len(sizes["depths"])))
    spec = ImageSpec(model_type, sizes, dropout, sizes["image"][0])
    _check(spec)
    return spec


def is_image_type(model_type: str) -> bool:
    """Return whether models of a type read images, and can be built from scratch."""
    return model_type in _SETTINGS


_STAGED = ("depths", "widths")


def _numbers(key: str, value: str) -> tuple[int, ...]:
    parts = value.split("-")
    several = key in _STAGED or key == "heads"
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,5}", part) for part in parts) or (len(parts) > 1 and not several):
        shown = f"{key}=N-N-N, whole numbers" if several else f"{key}=N, a whole number"
        raise UsageError(f"{key}={value} (accepted: {shown} from 1 to 999999)")
    return tuple(map(int, parts))


def _check(spec: ImageSpec) -> None:
    """Refuse sizes on which Transformers would fail later, some of them only in the first forward pass."""
    sizes, shown = spec.sizes, {key: "-".join(map(str, numbers)) for key, numbers in spec.sizes.items()}
    stages = len(sizes.get("depths", (0,)))
    patch = sizes.get("patch", (1,))[0]  # a ResNet has none, and reads images of any size
    rules = [
        (spec.image % patch == 0, f"image={spec.image} and patch={patch}", "an image that the patch divides"),
        (
            all(len(sizes[key]) == stages for key in ("widths", *(["heads"] if stages else [])) if key in sizes),
            ", ".join(f"{key}={shown[key]}" for key in ("depths", "widths", "heads") if key in sizes),
            "as many numbers for each stage",
        ),
        (
            "width" not in sizes
            or all(sizes["width"][0] * 2**stage % heads == 0 for stage, heads in enumerate(sizes["heads"])),
            f"width={shown.get('width')} and heads={shown.get('heads')}",
            "heads that divide the width",
        ),
        (
            not stages or spec.model_type == "resnet" or spec.image // patch >= 2 ** (stages - 1),
            f"image={spec.image}, patch={patch} and {stages} stages",
            "an image of which each stage leaves a cell, as they halve it",
        ),
    ]
    for holds, given, accepted in rules:
        if not holds:
            raise UsageError(f"new:{spec.model_type} with {given} (accepted: {accepted})")
    if "window" in sizes:
        _check_window(spec, stages)


def _check_window(spec: ImageSpec, stages: int) -> None:
    """Refuse windows of attention that are larger than a stage's grid; one that does not divide it is padded."""
    window, patch = spec.one("window"), spec.one("patch")
    grids = [-(-spec.image // (patch * 2**stage)) for stage in range(stages)]  # each halves it, rounded up
    for stage, cells in enumerate(grids, start=1):
        if cells < window:
            raise UsageError(
                f"new:{spec.model_type} with image={spec.image}, patch={patch} and window={window}, which is larger "
                f"than the grid of stage {stage}, {cells} x {cells} (accepted: window={grids[-1]} or smaller, which "
                f"fits all {stages} stages; a larger image; fewer stages)"
            )


def _vit(spec: ImageSpec) -> dict[str, Any]:
    width = spec.one("width")
    return {
        **{"num_hidden_layers": spec.one("layers"), "hidden_size": width, "num_attention_heads": spec.one("heads")},
        **{"intermediate_size": spec.sizes.get("feed_forward", (4 * width,))[0]},
        **{"image_size": spec.image, "patch_size": spec.one("patch"), "num_channels": spec.one("channels")},
        **{"hidden_dropout_prob": spec.dropout, "attention_probs_dropout_prob": spec.dropout},
    }


def _dual(spec: ImageSpec) -> dict[str, Any]:
    width = spec.one("width")
    tower = {
        **{"num_hidden_layers": spec.one("layers"), "hidden_size": width, "num_attention_heads": spec.one("heads")},
        **{"intermediate_size": spec.sizes.get("feed_forward", (4 * width,))[0], "attention_dropout": spec.dropout},
    }
    images = {"image_size": spec.image, "patch_size": spec.one("patch"), "num_channels": spec.one("channels")}
    texts = {"max_position_embeddings": spec.one("positions")}
    if "joint" not in spec.sizes:  # a SigLIP's embeddings are as wide as its layers
        return {"vision_config": tower | images, "text_config": tower | texts}
    joint = {"projection_dim": spec.one("joint")}
    return {"vision_config": tower | joint | images, "text_config": tower | joint | texts, **joint}


def _swin(spec: ImageSpec) -> dict[str, Any]:
    return {
        **{"depths": list(spec.sizes["depths"]), "embed_dim": spec.one("width")},
        **{"num_heads": list(spec.sizes["heads"]), "window_size": spec.one("window")},
        **{"image_size": spec.image, "patch_size": spec.one("patch"), "num_channels": spec.one("channels")},
        **{"hidden_dropout_prob": spec.dropout, "attention_probs_dropout_prob": spec.dropout, "drop_path_rate": 0.0},
    }


def _convnext(spec: ImageSpec) -> dict[str, Any]:
    return {
        **{"depths": list(spec.sizes["depths"]), "hidden_sizes": list(spec.sizes["widths"])},
        **{"num_stages": len(spec.sizes["depths"]), "num_channels": spec.one("channels")},
        **{"image_size": spec.image, "patch_size": spec.one("patch")},
    }


def _resnet(spec: ImageSpec) -> dict[str, Any]:
    widths = list(spec.sizes["widths"])
    return {
        **{"depths": list(spec.sizes["depths"]), "hidden_sizes": widths, "embedding_size": widths[0]},
        **{"layer_type": "basic", "num_channels": spec.one("channels"), "image_size": spec.image},
    }


_FIELDS: Mapping[str, Callable[[ImageSpec], dict[str, Any]]] = {
    **{
        "vit": _vit,
        "deit": _vit,
        "clip": _dual,
        "siglip": _dual,
        "swin": _swin,
        "convnext": _convnext,
        "resnet": _resnet,
    },
}
"""Configuration fields of each type. A ResNet's ``image_size`` is kdalign's own: Transformers has no field for it."""

assert _FIELDS.keys() == _SETTINGS.keys() <= LAYOUTS.keys(), "every type has settings, fields and a layout"
