"""The nine GLUE tasks as ``nyu-mll/glue`` holds them (Wang et al. 2018, arXiv:1804.07461).

Their wordings are those of lm-evaluation-harness 0.4.13: ``lm_eval/tasks/glue/*/default.yaml`` and ``mnli/utils.py``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tasks.task import ClassificationTask, DataSource, PromptTemplate
from kdalign.files import write_text

_ENTAILMENT = ("entailment", "not_entailment")


def _words(question: str, *answers: str, sentences: tuple[str, ...] = ()) -> PromptTemplate:
    return PromptTemplate(
        f"{question}\nAnswer:", answers, sentences=sentences, origin="prompt of lm-evaluation-harness 0.4.13"
    )


WORDINGS: Mapping[str, PromptTemplate] = {
    "cola": _words("{sentence}\nQuestion: Does this sentence make sense?", "no", "yes"),
    "sst2": _words("{sentence}\nQuestion: Is this sentence positive or negative?", "negative", "positive"),
    "mrpc": _words(
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?",
        "no",
        "yes",
    ),
    "qqp": _words(
        "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?", "no", "yes"
    ),
    "mnli": _words(
        "{premise}\nQuestion: {hypothesis} True, False or Neither?",
        *("True", "Neither", "False"),
        sentences=("hypothesis",),
    ),
    "qnli": _words("{question}\n{sentence}\nQuestion: Does this response answer the question?", "yes", "no"),
    "rte": _words("{sentence1}\nQuestion: {sentence2} True or False?", "True", "False"),
    "wnli": _words("{sentence1}\nQuestion: {sentence2} True or False?", "False", "True"),
}
"""Prompts by task; STS-B, a score, has none."""


def _task(
    name: str, columns: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...], file: str
) -> ClassificationTask:
    return ClassificationTask(
        name=name,
        columns=columns,
        labels=labels,
        metrics=metrics,
        source=DataSource(dataset="nyu-mll/glue", config=name),
        submission=(file,),
        wording=WORDINGS.get(name),
    )


_PAIR = ("sentence1", "sentence2")

GLUE: Mapping[str, ClassificationTask] = {
    task.name: task
    for task in (
        _task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), "CoLA.tsv"),
        _task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "SST-2.tsv"),
        _task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy"), "MRPC.tsv"),
        _task("stsb", _PAIR, (), ("pearson", "spearman"), "STS-B.tsv"),
        _task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"), "QQP.tsv"),
        ClassificationTask(
            name="mnli",
            columns=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            source=DataSource(dataset="nyu-mll/glue", config="mnli"),
            evaluation=("validation_matched", "validation_mismatched"),
            test=("test_matched", "test_mismatched"),
            submission=("MNLI-m.tsv", "MNLI-mm.tsv"),
            wording=WORDINGS["mnli"],
        ),
        _task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), "QNLI.tsv"),
        _task("rte", _PAIR, _ENTAILMENT, ("accuracy",), "RTE.tsv"),
        _task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",), "WNLI.tsv"),
    )
}

NAMES_IN_SUBMISSION = ("mnli", "qnli", "rte")
"""Tasks whose leaderboard file holds label names; the others hold numbers."""


def write_submission(
    task: ClassificationTask, split: str, predictions: np.ndarray[Any, Any], folder: Path
) -> Path | None:
    """Write the leaderboard's file for a test split: a header, then one row per example.

    STS-B's scores are clipped to 0..5, the leaderboard's scale.

    Returns:
        The file; None for a task without a leaderboard.
    """
    if split not in task.test or not task.submission:
        return None
    if task.regression:
        values = [f"{min(5.0, max(0.0, float(value))):.3f}" for value in predictions]
    elif task.name in NAMES_IN_SUBMISSION:
        values = [task.labels[int(number)] for number in predictions]
    else:
        values = [str(int(number)) for number in predictions]
    file = folder / task.submission[task.test.index(split)]
    write_text(file, "index\tprediction\n" + "".join(f"{row}\t{value}\n" for row, value in enumerate(values)))
    return file
