"""Data files and predictions files in every format."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from support.tiny import sentences
from tests.bad_input.case import Case
from tests.bad_input.draw import SCALARS, TREES, changed_bytes
from tests.bad_input.place import SHORT

TEXTS, LABELS = sentences(12, 3)
CHAT = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]
TASKS: dict[str, dict[str, list[Any]]] = {
    "sst2": {"sentence": TEXTS, "label": LABELS},
    "classification": {"text": TEXTS, "label": ["good" if label else "bad" for label in LABELS]},
    "mrpc": {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "label": LABELS},
    "lm:text": {"text": TEXTS},
    "language-modeling": {"text": TEXTS},
    "translation:de-en": {"de": TEXTS, "en": TEXTS[::-1]},
    "chat": {"messages": CHAT},
    "embedding": {"text": TEXTS},
}
CLASSES = ("sst2", "classification", "mrpc", "embedding")


def written(columns: dict[str, list[Any]], form: str) -> bytes:
    """A table in a format; what a format cannot hold becomes text."""
    form, packed = form.removesuffix(".gz"), form.endswith(".gz")
    if form == "parquet":
        content = _parquet(columns)
    elif form in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="," if form == "csv" else "\t", lineterminator="\n")
        writer.writerow(columns)
        longest = max(map(len, columns.values()), default=0)
        writer.writerows([[_at(column, row) for column in columns.values()] for row in range(longest)])
        content = text.getvalue().encode("utf-8", "surrogatepass")
    elif form == "txt":
        content = "".join(f"{value}\n" for value in next(iter(columns.values()), ())).encode("utf-8", "surrogatepass")
    else:
        longest = max(map(len, columns.values()), default=0)
        rows = [{name: column[row] for name, column in columns.items() if row < len(column)} for row in range(longest)]
        text_ = json.dumps(rows) if form == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        content = text_.encode()
    return gzip.compress(content, mtime=0) if packed else content


def _at(column: list[Any], row: int) -> Any:
    return column[row] if row < len(column) else ""


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    arrays = {}
    longest = max(map(len, columns.values()), default=0)
    for name, column in columns.items():
        padded = [*column, *[None] * (longest - len(column))]
        try:
            arrays[name] = pa.array(padded)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            arrays[name] = pa.array(
                [None if value is None else str(value).encode("utf-8", "replace").decode() for value in padded]
            )
    sink = io.BytesIO()
    try:
        pq.write_table(pa.table(arrays), sink)
    except pa.ArrowException:  # such as a mapping without keys
        return _parquet({name: list(map(str, column)) for name, column in columns.items()})
    return sink.getvalue()


def _changed_columns(columns: dict[str, list[Any]]) -> st.SearchStrategy[tuple[str, dict[str, list[Any]]]]:
    names = sorted(columns)
    cells = st.one_of(
        SCALARS, TREES, st.sampled_from(["", " ", "a\0b", "\x1b[2J", "a" * 20_000, "\ufeff", "\u2028", -1, 99])
    )

    def cell(name: str, row: int, value: Any) -> tuple[str, dict[str, list[Any]]]:
        column = [*columns[name][:row], value, *columns[name][row + 1 :]]
        return f"{name} row {row}: {str(value)[:40]!r}", {**columns, name: column}

    def all_cells(name: str, value: Any) -> tuple[str, dict[str, list[Any]]]:
        return f"{name} everywhere: {str(value)[:40]!r}", {**columns, name: [value] * len(columns[name])}

    def rename(name: str, new: str) -> tuple[str, dict[str, list[Any]]]:
        return f"{name} called {new!r}", {new if key == name else key: column for key, column in columns.items()}

    def leave_out(name: str) -> tuple[str, dict[str, list[Any]]]:
        return f"without {name}", {key: column for key, column in columns.items() if key != name}

    def first(count: int) -> tuple[str, dict[str, list[Any]]]:
        return f"{count} rows", {key: column[:count] for key, column in columns.items()}

    name = st.sampled_from(names)
    return st.one_of(
        st.builds(cell, name, st.integers(0, 11), cells),
        st.builds(cell, name, st.integers(0, 11), cells),
        st.builds(all_cells, name, cells),
        st.builds(
            rename,
            name,
            st.sampled_from(["", " ", "Label", "label ", "\x1b[31m", "text\n", "x" * 500, "idx", "prediction"]),
        ),
        st.builds(leave_out, name),
        st.builds(first, st.integers(0, 2)),
    )


def data_files(place: Path) -> st.SearchStrategy[Case]:
    """A bad split ``train`` beside a good ``validation``, or the other way round."""

    def make(task: str, form: str, split: str, made: tuple[str, bytes], how: str) -> Case:
        other = "validation" if split == "train" else "train"
        good = form if form in ("csv", "tsv", "jsonl", "parquet", "txt") else "jsonl"
        files = {f"d/{split}.{form}": made[1], f"d/{other}.{good}": written(TASKS[task], good)}
        model = "@bert" if task in CLASSES else "@causal/teacher"
        if how == "eval" and task != "embedding":
            words = (
                "eval",
                model,
                "--task",
                task,
                "--data",
                "d",
                "--device",
                "cpu",
                "--max-length",
                "32",
                "--new-tokens",
                "4",
            )
        else:
            student = "layers=2" if task in CLASSES else "layers=1"
            words = ("distill", "--teacher", model, "--student", student, "--task", task, "--data", "d", *SHORT)
            words = (
                *words,
                "--max-length",
                "32",
                "--out",
                "out",
                *(["--set", "data.streaming=true"] if how == "stream" else []),
            )
            words = (*words, "--dry-run")
        return Case("data files", f"{form}, {task}: {made[0]}", words, files)

    tasks, forms = (
        st.sampled_from(sorted(TASKS)),
        st.sampled_from(["csv", "tsv", "jsonl", "parquet", "txt", "json", "csv.gz", "jsonl.gz"]),
    )
    hows = st.sampled_from(["dry", "dry", "dry", "eval", "stream"])
    splits = st.sampled_from(["train", "train", "validation"])
    return st.tuples(tasks, forms).flatmap(
        lambda chosen: st.builds(
            make,
            st.just(chosen[0]),
            st.just(chosen[1]),
            splits,
            st.one_of(
                _changed_columns(TASKS[chosen[0]]).map(lambda made: (made[0], written(made[1], chosen[1]))),
                _changed_columns(TASKS[chosen[0]]).map(lambda made: (made[0], written(made[1], chosen[1]))),
                changed_bytes(written(TASKS[chosen[0]], chosen[1])),
            ),
            hows,
        )
    )


ANSWERS: dict[str, dict[str, list[Any]]] = {
    "texts": {"prediction": TEXTS, "reference": TEXTS[::-1]},
    "classes": {"prediction": LABELS, "reference": LABELS[::-1]},
    "references": {"prediction": TEXTS, "references": [[text, text[::-1]] for text in TEXTS]},
    "scores": {"prediction": [label + 0.5 for label in LABELS], "reference": [label * 2.5 for label in LABELS[::-1]]},
}


def predictions(_place: Path) -> st.SearchStrategy[Case]:
    metrics = st.sampled_from(
        ["", "", "bleu,chrf", "accuracy,f1", "pearson,spearman", "rougeL,cer", "exact_match,distinct1"]
    )

    def make(form: str, made: tuple[str, bytes], metric: str) -> Case:
        words = ("eval", "--predictions", f"p.{form}", *(["--metrics", metric] if metric else []))
        return Case("predictions files", f"{form}: {made[0]}", words, {f"p.{form}": made[1]})

    return st.tuples(
        st.sampled_from(sorted(ANSWERS)), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "json"])
    ).flatmap(
        lambda chosen: st.builds(
            make,
            st.just(chosen[1]),
            st.one_of(
                _changed_columns(ANSWERS[chosen[0]]).map(lambda made: (made[0], written(made[1], chosen[1]))),
                _changed_columns(ANSWERS[chosen[0]]).map(lambda made: (made[0], written(made[1], chosen[1]))),
                changed_bytes(written(ANSWERS[chosen[0]], chosen[1])),
            ),
            metrics,
        )
    )
