"""Names of metrics that are not of classes: agreement, perplexities, metrics of written texts."""

from kdalign.metrics.classification import METRICS
from kdalign.metrics.text import TEXT_METRICS, TextMetric
from kdalign.registry import resolve

AGREEMENT = "agreement"
"""Agreement of a student with its teacher."""
MASKED_PPL = "masked_ppl"
"""Perplexity of 15 % of the tokens, masked."""
PERPLEXITIES = ("ppl", "word_ppl", "byte_ppl", "bits_per_byte")
"""Metrics of the likelihood of all tokens."""


def is_text_metric(name: str) -> bool:
    """Return whether a metric compares texts: a built-in one, or the user's own."""
    return name in TEXT_METRICS or (
        ":" in name and name not in METRICS and isinstance(resolve(name, {}, "metric"), TextMetric)
    )
