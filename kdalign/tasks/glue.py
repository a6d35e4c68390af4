"""The nine GLUE tasks as ``nyu-mll/glue`` holds them (Wang et al. 2018, arXiv:1804.07461)."""

from collections.abc import Mapping

from kdalign.tasks.task import Source, Task

_ENTAILMENT = ("entailment", "not_entailment")


def _task(name: str, columns: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...], file: str) -> Task:
    return Task(
        name=name,
        columns=columns,
        labels=labels,
        metrics=metrics,
        source=Source(dataset="nyu-mll/glue", config=name),
        submission=(file,),
    )


_PAIR = ("sentence1", "sentence2")

GLUE: Mapping[str, Task] = {
    task.name: task
    for task in (
        _task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), "CoLA.tsv"),
        _task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "SST-2.tsv"),
        _task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy"), "MRPC.tsv"),
        _task("stsb", _PAIR, (), ("pearson", "spearman"), "STS-B.tsv"),
        _task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"), "QQP.tsv"),
        Task(
            name="mnli",
            columns=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            source=Source(dataset="nyu-mll/glue", config="mnli"),
            evaluation=("validation_matched", "validation_mismatched"),
            test=("test_matched", "test_mismatched"),
            submission=("MNLI-m.tsv", "MNLI-mm.tsv"),
        ),
        _task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), "QNLI.tsv"),
        _task("rte", _PAIR, _ENTAILMENT, ("accuracy",), "RTE.tsv"),
        _task("wnli", _PAIR, ("not_entailment", "entailment"), ("accuracy",), "WNLI.tsv"),
    )
}

NAMES_IN_SUBMISSION = ("mnli", "qnli", "rte")
"""Tasks whose leaderboard file holds label names; the others hold numbers."""
