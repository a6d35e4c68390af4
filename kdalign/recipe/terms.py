"""Facts of every shipped loss term in one table, which recipe, objective, curves, progress and model card read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VARIANCES = "teacher's variances"
"""Unit of terms that divide by the variance of a teacher layer's features, which is measured before training."""


@dataclass(frozen=True)
class TermFacts:
    """Facts of a loss term.

    Attributes:
        name: name in a run's history, followed by a stack's name if there are several.
        compares: target that the student is compared with: the data's labels, the teacher's answers, the teacher's
            layers, or tokens of the text that were masked.
        unit: unit of its values.
        key: recipe key of its weight; empty for a further term, whose weight stands by its name in
            ``objective.terms``.
        says: description in a model card; empty for its name.
        says_of_tokens: description for tasks of tokens, if it differs.
        unit_of_scores: unit of its values for tasks of scores, if it differs.
        short: name in the progress line; empty for its name.
    """

    name: str
    compares: Literal["labels", "answers", "layers", "masked tokens"]
    unit: str
    key: str = ""
    says: str = ""
    says_of_tokens: str = ""
    unit_of_scores: str = ""
    short: str = ""


TERM_FACTS: Mapping[str, TermFacts] = {
    facts.name: facts
    for facts in (
        TermFacts(
            "hard",
            "labels",
            "nats",
            key="hard",
            says="cross-entropy with the labels",
            says_of_tokens="cross-entropy with the text's tokens",
            unit_of_scores="squared error",
        ),
        TermFacts(
            "soft",
            "answers",
            "nats",
            key="alpha",
            says="divergence from the teacher's answers",
            says_of_tokens="divergence from the teacher's tokens",
            unit_of_scores="squared error",
        ),
        TermFacts(
            "embedding",
            "answers",
            "1 − cosine",
            key="alpha",
            says="distance from the teacher's embeddings, by direction and by similarity of texts",
        ),
        TermFacts("contrastive", "labels", "nats", key="hard"),
        TermFacts("similarity", "answers", "teacher's spreads", key="alpha"),
        TermFacts("pair-similarity", "answers", "nats", key="alpha"),
        TermFacts("cosine", "layers", "1 − cosine", key="beta", says="cosine between hidden states", short="cos"),
        TermFacts(
            "euclid",
            "layers",
            VARIANCES,
            key="gamma",
            says="squared distance between hidden states",
            short="euc",
        ),
        TermFacts(
            "attention",
            "layers",
            "squared distance",
            key="delta",
            says="squared distance between attention maps",
            short="attn",
        ),
        TermFacts("embeddings", "layers", "1 − cosine", key="embeddings", says="cosine between embeddings"),
        TermFacts("relations", "layers", "nats", key="relations", says="relations between positions"),
        TermFacts(
            "masked-lm",
            "masked tokens",
            "nats",
            key="masked_lm",
            says="cross-entropy with masked tokens of the texts, by a head that is not exported",
        ),
        TermFacts("logit-mse", "answers", "squared distance"),
        TermFacts("dkd", "answers", "nats"),
        TermFacts("dist", "answers", "1 − correlation"),
        TermFacts("nmse", "layers", "teacher's squared lengths"),
        TermFacts("pkd", "layers", "squared distance"),
        TermFacts("attended-euclid", "layers", VARIANCES),
        TermFacts("attention-kl", "layers", "nats"),
        TermFacts("cka", "layers", "1 − CKA"),
        TermFacts("rkd-distance", "layers", "Huber distance"),
        TermFacts("rkd-angle", "layers", "Huber distance"),
        TermFacts("similarity-preserving", "layers", "squared distance"),
        TermFacts("info-nce", "layers", "nats"),
        TermFacts("crd", "layers", "nats"),
    )
}
"""Facts by a term's name: those with a key of the recipe in the order of the objective, then further terms."""

KEYS_OF_TERMS: Mapping[str, str] = {name: facts.key for name, facts in TERM_FACTS.items() if facts.key}
"""Recipe key of each term's weight; a further term's key is its name."""


def _keys(*compares: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(KEYS_OF_TERMS[name] for name in KEYS_OF_TERMS if TERM_FACTS[name].compares in compares))


TERM_KEYS = tuple(dict.fromkeys(KEYS_OF_TERMS.values()))
"""Keys of the objective's weights."""
TEACHERLESS_KEYS = _keys("labels", "masked tokens")
"""Weights of terms that need no teacher."""
ALIGNING_KEYS = _keys("layers")
"""Weights of terms that compare layers."""
FIRST_KEYS = _keys("layers", "masked tokens")
"""Weights of the first stage under ``align_first``."""
ANSWER_TERMS = tuple(name for name, facts in TERM_FACTS.items() if facts.compares == "answers" and not facts.key)
"""Further terms that compare answers; all others compare layers."""


def describe_weights(answers: str) -> dict[str, str]:
    """Describe what each weight of the recipe multiplies, by its key.

    Args:
        answers: kind of the task's answers: ``classes``, ``tokens`` or ``embeddings``.
    """
    absent = "soft" if answers == "embeddings" else "embedding"  # both are weighted by alpha
    return {
        facts.key: (facts.says_of_tokens if answers == "tokens" else "") or facts.says
        for facts in TERM_FACTS.values()
        if facts.says and facts.name != absent
    }
