"""Heads of checkpoints: classifier, masked or causal language model, encoder-decoder, none."""

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HeadKind(StrEnum):
    """Head of a model: it answers with a class, with tokens, or not at all."""

    CLASSIFIER = "classifier"
    MASKED = "masked"
    CAUSAL = "causal"
    SEQ2SEQ = "seq2seq"
    NONE = ""


_HEADS = {
    "ForSequenceClassification": HeadKind.CLASSIFIER,
    "ForMaskedLM": HeadKind.MASKED,
    "ForPreTraining": HeadKind.MASKED,
    "ForCausalLM": HeadKind.CAUSAL,
    "LMHeadModel": HeadKind.CAUSAL,
    "ForConditionalGeneration": HeadKind.SEQ2SEQ,
    "MTModel": HeadKind.SEQ2SEQ,
}


LANGUAGE_HEADS = {
    "masked": HeadKind.MASKED,
    "causal": HeadKind.CAUSAL,
    "permutation": HeadKind.CAUSAL,
    "seq2seq": HeadKind.SEQ2SEQ,
}
"""The language-model head of each family."""


def head_of(config: "PretrainedConfig") -> HeadKind:
    """Return the head that a configuration names."""
    return head_of_class((config.architectures or [""])[0])


def head_of_class(name: str) -> HeadKind:
    """Return the head of models of this class."""
    if name == "ElectraForPreTraining":  # detects replaced tokens, and predicts none
        return HeadKind.NONE
    return next((head for ending, head in _HEADS.items() if name.endswith(ending)), HeadKind.NONE)


def auto_class(head: HeadKind) -> Any:
    """Return the class of Transformers that loads models with this head."""
    import transformers

    return {
        HeadKind.CLASSIFIER: transformers.AutoModelForSequenceClassification,
        HeadKind.MASKED: transformers.AutoModelForMaskedLM,
        HeadKind.CAUSAL: transformers.AutoModelForCausalLM,
        HeadKind.SEQ2SEQ: transformers.AutoModelForSeq2SeqLM,
        HeadKind.NONE: transformers.AutoModel,
    }[head]


def has_classifier(config: "PretrainedConfig") -> bool:
    """Return whether a configuration names a sequence-classification head."""
    return head_of(config) is HeadKind.CLASSIFIER
