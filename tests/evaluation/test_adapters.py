"""Adapters say which metrics they cannot compute, and why."""

import numpy as np
import pytest

from kdalign.data.tasks import GLUE, DataSource, Examples, LanguageTask
from kdalign.evaluation.adapters import EmbeddingAdapter, adapter_for

LABELLED = Examples("validation", (("a film", "a play"),), np.array([0, 1]))
UNLABELLED = Examples("test", (("a film", "a play"),), None)


def test_a_classifier_has_metrics_of_classes_where_there_are_labels():
    adapter = adapter_for(GLUE["sst2"], "masked", 64, "tiny")
    assert adapter.unsupported("accuracy", LABELLED) is None
    assert adapter.unsupported("accuracy", UNLABELLED) == "split test has no labels"
    assert "has 2 classes; its metrics are accuracy" in (adapter.unsupported("pearson", LABELLED) or "")


@pytest.mark.parametrize("metric", ["ppl", "masked_ppl", "bleu"])
def test_the_texts_of_a_classification_are_scored_as_language_modelling(metric):
    reason = adapter_for(GLUE["sst2"], "causal", 64, "tiny").unsupported(metric, LABELLED)
    assert reason == "task sst2 is of classes; its texts are scored by --task lm:sst2"


def test_every_language_model_has_the_perplexities_of_all_tokens():
    task = LanguageTask("lm", "lm", ("text",), DataSource())
    for family in ("masked", "causal"):
        adapter = adapter_for(task, family, 64, "tiny")
        assert [adapter.unsupported(name, UNLABELLED) for name in ("ppl", "bits_per_byte")] == [None, None]
        assert "task lm has" in (adapter.unsupported("accuracy", UNLABELLED) or "")


def test_an_encoder_is_scored_on_pairs_with_their_likeness_alone():
    task = LanguageTask("embedding", "embedding", ("text",), DataSource(), scored=GLUE["stsb"])
    adapter = adapter_for(task, "masked", 64, "tiny")
    assert isinstance(adapter, EmbeddingAdapter)
    assert adapter.unsupported("pearson", LABELLED) is None
    assert adapter.unsupported("pearson", UNLABELLED) == "split test has no pairs with a similarity"
