"""Front matter of a model card: Hugging Face's ``ModelCardData`` with a model index of scores."""

import re
from collections.abc import Mapping
from typing import Any

from kdalign.data.tasks import LanguageTask
from kdalign.errors import printable
from kdalign.metrics.classification import Score
from kdalign.models.heads import HeadKind
from kdalign.runs.card_facts import CardFacts

TAGS = ("kdalign", "knowledge-distillation")
HUB_METRICS: Mapping[str, str] = {
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "ppl": "perplexity",
    "word_ppl": "perplexity",
    "byte_ppl": "perplexity",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "rougeLsum": "rouge",
    "cer_normalized": "cer",
    "wer_normalized": "wer",
}
"""The hub's names of metrics that kdalign names differently."""
_LANGUAGE = re.compile(r"[a-z]{2}")


def metadata(card: CardFacts) -> Any:
    """Build the card's ``ModelCardData``."""
    from huggingface_hub import EvalResult, ModelCardData

    task_type = "sentence-similarity" if card.head is HeadKind.NONE else card.pipeline
    results = [
        EvalResult(
            task_type=task_type,
            dataset_type=printable(card.hub[0]) if card.hub is not None else "unknown",  # the hub's word for local data
            dataset_name=printable(card.data_name),
            dataset_config=card.hub[1] if card.hub is not None else None,
            dataset_split=printable(split),
            metric_type=printable(score.metric if score.mark else HUB_METRICS.get(score.metric, score.metric)),
            metric_name=printable(titled(score)),
            metric_value=round(score.value, 4),
        )
        for split in card.record.scores
        for score in card.record.split_scores(split).student
        if score.value is not None
    ]
    return ModelCardData(
        model_name=printable(card.name),
        base_model=list(map(printable, card.starts)) or None,
        datasets=[printable(card.hub[0])] if card.hub is not None else None,
        eval_results=results or None,
        language=_languages(card),
        library_name="transformers",
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag=card.pipeline,
        tags=list(TAGS),
    )


def _languages(card: CardFacts) -> list[str] | None:
    """Language codes, if task or data name them."""
    if card.hub is not None and card.hub[0] == "nyu-mll/glue":
        return ["en"]
    if not isinstance(card.task, LanguageTask):
        return None
    pair = card.task.columns if card.task.kind == "translation" else ()
    found = [*(pair if all(map(_LANGUAGE.fullmatch, pair)) else ()), card.task.language]
    return list(dict.fromkeys(filter(None, found))) or None


def titled(score: Score) -> str:
    """Return a metric's name with its unit."""
    return f"{score.metric} ({score.unit})" if score.unit else score.metric
