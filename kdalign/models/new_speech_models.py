"""Sizes of a CTC model of speech that is built from scratch, such as ``new:wav2vec2,layers=4,width=192,conv=64``."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import AutoConfig, PretrainedConfig

from kdalign.errors import UsageError
from kdalign.models.heads import HeadKind, auto_class
from kdalign.models.new_model_settings import read_dropout, read_settings, read_size

TYPES = ("wav2vec2", "hubert", "wavlm")
_SETTINGS: Mapping[str, str] = {
    **{"layers": "4", "width": "192", "heads": "", "feed_forward": "", "conv": "64", "dropout": "0.1"},
}
"""Settings with their defaults; empty for one that follows from the width."""
_GROUPS = 16
"""Groups of the convolution that gives positions."""


@dataclass(frozen=True)
class SpeechSpec:
    """Type and sizes of a CTC model of speech to build.

    Seven convolutions, with the kernels and strides of the published models (Baevski et al. 2020, arXiv:2006.11477;
    defaults of Transformers' configurations), make a frame of each 20 ms of a sound of 16 kHz. They have a layer norm
    each, not a group norm over time, so that padding changes no frame; what masks frames or skips layers at random is
    off.

    Attributes:
        layers: layers of its encoder.
        conv: channels of each convolution over the samples.
        dropout: a probability.
    """

    model_type: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    conv: int
    dropout: float

    def config(self, entries: int, blank: int) -> PretrainedConfig:
        """Make the configuration for a vocabulary of ``entries``, of which one is CTC's blank."""
        dropouts = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout")
        config: PretrainedConfig = AutoConfig.for_model(
            self.model_type,
            vocab_size=entries,
            pad_token_id=blank,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.feed_forward,
            conv_dim=(self.conv,) * 7,
            num_conv_pos_embedding_groups=_GROUPS,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            conv_bias=True,
            **dict.fromkeys(dropouts, self.dropout),
            layerdrop=0.0,
            apply_spec_augment=False,
            mask_time_prob=0.0,
        )
        auto = auto_class(HeadKind.CTC, self.model_type)
        config.architectures = [auto._model_mapping[type(config)].__name__]
        return config


def is_speech_type(model_type: str) -> bool:
    """Return whether models of a type are trained by CTC, and can be built from scratch."""
    return model_type in TYPES


def parse_speech_spec(text: str) -> SpeechSpec:
    """Read ``new:wav2vec2,key=value,...``.

    Raises:
        UsageError: an unknown key, or sizes that no model can have.
    """
    model_type = text.removeprefix("new:").partition(",")[0]
    given = read_settings(text, list(_SETTINGS))
    values = {**_SETTINGS, **given}
    dropout = read_dropout(values.pop("dropout"))
    sizes = {key: read_size(key, value) for key, value in values.items() if value or key in given}
    width = sizes["width"]
    spec = SpeechSpec(
        model_type=model_type,
        layers=sizes["layers"],
        width=width,
        heads=sizes.get("heads", max(1, width // 64)),
        feed_forward=sizes.get("feed_forward", 4 * width),
        conv=sizes["conv"],
        dropout=dropout,
    )
    if width % spec.heads or width % _GROUPS:
        raise UsageError(
            f"new:{model_type} with width={width} and heads={spec.heads} (accepted: heads that divide the width, and a "
            f"width that is a multiple of {_GROUPS})"
        )
    return spec
