"""Heads of checkpoints: classifier, masked or causal language model, encoder-decoder, CTC, none.

They are the same for text, sounds and images; which class of Transformers loads them depends on what the model reads.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from kdalign.models.layouts import modality_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HeadKind(StrEnum):
    """Head of a model: it answers with a class, tokens, a label for each frame of a sound, or not at all."""

    CLASSIFIER = "classifier"
    MASKED = "masked"
    CAUSAL = "causal"
    SEQ2SEQ = "seq2seq"
    DUAL = "dual"
    """Two towers, whose embeddings of an image and of a text are compared."""
    CTC = "ctc"
    NONE = ""


_HEADS = {
    "ForImageClassification": HeadKind.CLASSIFIER,
    "ForSequenceClassification": HeadKind.CLASSIFIER,
    "CLIPModel": HeadKind.DUAL,
    "SiglipModel": HeadKind.DUAL,
    "ForMaskedLM": HeadKind.MASKED,
    "ForPreTraining": HeadKind.MASKED,
    "ForCausalLM": HeadKind.CAUSAL,
    "LMHeadModel": HeadKind.CAUSAL,
    "ForConditionalGeneration": HeadKind.SEQ2SEQ,
    "MTModel": HeadKind.SEQ2SEQ,
    "ForCTC": HeadKind.CTC,
}


LANGUAGE_HEADS = {
    "masked": HeadKind.MASKED,
    "causal": HeadKind.CAUSAL,
    "permutation": HeadKind.CAUSAL,
    "seq2seq": HeadKind.SEQ2SEQ,
    "ctc": HeadKind.CTC,
}
"""The language-model head of each family."""
OWN_HEADS = {**LANGUAGE_HEADS, "vision": HeadKind.CLASSIFIER, "dual": HeadKind.DUAL}
"""The head that a new model of each family has."""


def head_of(config: "PretrainedConfig") -> HeadKind:
    """Return the head that a configuration names."""
    return head_of_class((config.architectures or [""])[0])


def head_of_class(name: str) -> HeadKind:
    """Return the head of models of this class."""
    if name == "ElectraForPreTraining":  # detects replaced tokens, and predicts none
        return HeadKind.NONE
    return next((head for ending, head in _HEADS.items() if name.endswith(ending)), HeadKind.NONE)


def auto_class(head: HeadKind, model_type: str) -> Any:
    """Return the class of Transformers that loads models of a type with this head."""
    import transformers

    of_modality = {
        ("image", HeadKind.CLASSIFIER): transformers.AutoModelForImageClassification,
        ("audio", HeadKind.SEQ2SEQ): transformers.AutoModelForSpeechSeq2Seq,
    }
    modality = modality_of(model_type)
    if (modality, head) in of_modality:
        return of_modality[modality, head]
    return {
        HeadKind.CLASSIFIER: transformers.AutoModelForSequenceClassification,
        HeadKind.MASKED: transformers.AutoModelForMaskedLM,
        HeadKind.CAUSAL: transformers.AutoModelForCausalLM,
        HeadKind.SEQ2SEQ: transformers.AutoModelForSeq2SeqLM,
        HeadKind.DUAL: transformers.AutoModel,
        HeadKind.CTC: transformers.AutoModelForCTC,
        HeadKind.NONE: transformers.AutoModel,
    }[head]


def has_classifier(config: "PretrainedConfig") -> bool:
    """Return whether a configuration names a head that classifies texts or images."""
    return head_of(config) is HeadKind.CLASSIFIER
