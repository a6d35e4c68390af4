"""What a teacher of another family or modality than its student's can teach: features alone."""

from transformers import PretrainedConfig

from kdalign.data.media.rows import Modality
from kdalign.models.architecture import layout_of


def reads_transcripts(teacher: PretrainedConfig, modality: Modality) -> bool:
    """Return whether a teacher of text reads transcripts, since its student, of this modality, hears sounds."""
    return modality == "audio" and layout_of(teacher).modality == "text"


def teaches_features_alone(teacher: PretrainedConfig, family: str, modality: Modality) -> bool:
    """Return whether a teacher's answers are of another kind than those of its student, so that only layers compare.

    Args:
        teacher: the teacher's configuration.
        family: the student's.
        modality: what the student reads.
    """
    layout = layout_of(teacher)
    other_family = family == "ctc" and layout.family != family and layout.modality == "audio"
    return other_family or reads_transcripts(teacher, modality)
