"""Read a split: from a folder of files or from the hub, checked before any model is loaded."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.errors import UsageError, did_you_mean, unknown
from kdalign.tasks.task import Source, Task, normal

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("parquet", "csv", "tsv", "jsonl")
TEXT_FORMATS = (*FORMATS, "txt")
"""Formats of text without labels: in a .txt file, every line that is not blank is a document."""
ALIASES: Mapping[str, tuple[str, ...]] = {"validation": ("valid", "dev", "val")}


@dataclass(frozen=True)
class Examples:
    """A split's texts and labels.

    Attributes:
        texts: one column of texts, or two of the same length.
        labels: class numbers (int64) or scores (float64); None where the split has none.
        passed_over: documents without a word that were left out.
        references: for each row all texts that are right; empty where the second column is all there is.
    """

    split: str
    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray[Any, Any] | None
    passed_over: int = 0
    references: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.texts[0])

    def take(self, rows: Sequence[int]) -> "Examples":
        """The examples of these rows, in this order."""
        return replace(
            self,
            texts=tuple(tuple(column[row] for row in rows) for column in self.texts),
            labels=None if self.labels is None else self.labels[np.asarray(rows, dtype=np.int64)],
            references=tuple(self.references[row] for row in rows) if self.references else (),
        )

    def fingerprint(self) -> str:
        """A hash of texts and labels."""
        digest = hashlib.sha256()
        for column in self.texts:
            for text in column:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        for known in self.references:
            digest.update("\0".join(known).encode("utf-8", "surrogatepass") + b"\1")
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()[:16]


def load_examples(task: Task, split: str) -> Examples:
    """Read and check a split.

    Raises:
        UsageError: no such split, file of another format, missing column, row without text, label outside the
            task's set, or no rows at all.
    """
    table = load_table(task.source, split, task.columns)
    where = f"{task.source}, split {split!r}"
    return Examples(split=split, texts=_texts(task, table, where), labels=_labels(task, table, where))


def load_unlabelled(task: Task, place: Path) -> Examples:
    """Read texts in a task's columns from a file, or from the split ``train`` of a folder, whatever their labels.

    A ``.txt`` file holds one text a line, for tasks of single texts.

    Raises:
        UsageError: nothing there, another format, a missing column, a row without text, or no rows at all.
    """
    file = place
    if place.is_dir():
        own = place / task.name if (place / task.name).is_dir() else place
        found = _file_of(own, "train", TEXT_FORMATS)
        if found is None:
            has = splits_of(own, TEXT_FORMATS)
            raise UsageError(
                f"--unlabelled {str(place)!r}: no file train.{chr(124).join(TEXT_FORMATS)} there "
                f"(it has: {', '.join(has) or 'none of these formats'}); a file can be given, too"
            )
        file = found
    elif not place.is_file():
        raise UsageError(f"--unlabelled {str(place)!r}: no such folder or file (accepted: one of these, or rest)")
    elif file.suffix.lstrip(".") not in TEXT_FORMATS:
        raise UsageError(f"--unlabelled {str(place)!r}: a file of another format (accepted: {', '.join(TEXT_FORMATS)})")
    table = read_table(file, task.columns)
    if file.suffix == ".txt":
        if len(task.columns) > 1:
            raise UsageError(
                f"--unlabelled {str(file)!r} holds one text a line, and task {task.name!r} reads pairs "
                f"({', '.join(task.columns)}): give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            )
        table = table.set_axis(list(task.columns), axis=1)
    return Examples(split="unlabelled", texts=_texts(task, table, str(file)), labels=None)


def _texts(task: Task, table: "pd.DataFrame", where: str) -> tuple[tuple[str, ...], ...]:
    """The texts of a task's columns, every row of which has one."""
    if len(table) == 0:
        raise UsageError(f"{where} has no rows")
    for column in task.columns:
        if column not in table.columns:
            raise UsageError(
                f"task {task.name!r} needs column {column!r}, which {where} lacks"
                f"{did_you_mean(column, table.columns)} (it has: {', '.join(table.columns)})"
            )
    for column in task.columns:
        missing = np.flatnonzero(table[column].isna())
        if len(missing):
            raise UsageError(f"{where}: row {missing[0]} has no text in column {column!r}")
    return tuple(tuple(table[column].astype(str)) for column in task.columns)


def load_table(source: Source, split: str, texts: Sequence[str] = (), text_files: bool = False) -> "pd.DataFrame":
    """Read a split as a table.

    Args:
        source: a folder, or a data set on the hub.
        split: its name.
        texts: columns that hold text whatever they look like.
        text_files: whether a ``.txt`` file counts, too.
    """
    if source.folder is None:
        return _from_hub(source, split)
    return _from_folder(source.folder, split, texts, TEXT_FORMATS if text_files else FORMATS)


def splits_of(folder: Path, formats: Sequence[str] = FORMATS) -> list[str]:
    """The splits that a folder holds, by its files' names."""
    return sorted(file.stem for file in folder.iterdir() if file.suffix.lstrip(".") in formats)


def split_exists(source: Source, split: str) -> bool:
    """Whether a source has a split."""
    if source.folder is not None:
        return _file_of(source.folder, split, TEXT_FORMATS) is not None
    import datasets

    with _reading(f"cannot list the splits of data set {source}"):
        names = datasets.get_dataset_split_names(source.dataset, source.config)
    return split in names


def _file_of(folder: Path, split: str, formats: Sequence[str]) -> Path | None:
    for name in (split, *ALIASES.get(split, ())):
        for extension in formats:
            file = folder / f"{name}.{extension}"
            if file.is_file():
                return file
    return None


def _from_folder(folder: Path, split: str, texts: Sequence[str], formats: Sequence[str]) -> "pd.DataFrame":
    if not folder.is_dir():
        raise UsageError(f"no data folder {str(folder)!r}")
    file = _file_of(folder, split, formats)
    if file is None:
        has = splits_of(folder, formats)
        raise UsageError(
            f"no split {split!r} in {str(folder)!r}{did_you_mean(split, has)} "
            f"(it has: {', '.join(has) or f'no file named SPLIT.{chr(124).join(formats)}'})"
        )
    return read_table(file, texts)


def read_table(file: Path, texts: Sequence[str]) -> "pd.DataFrame":
    """Read a file as a table; ``texts`` are columns that hold text whatever they look like.

    Raises:
        UsageError: the file is not what its name says.
    """
    import pandas as pd

    try:
        match file.suffix:
            case ".parquet":
                return pd.read_parquet(file)
            case ".csv":
                return _read_csv(file, texts)
            case ".tsv":
                return _read_csv(file, texts, sep="\t", quoting=3)
            case ".txt":
                lines = file.read_text(encoding="utf-8").split("\n")
                return pd.DataFrame({"text": [line for line in lines if line.strip()]})
            case _:
                return _read_jsonl(file)
    except (ValueError, OSError) as error:  # pandas' and arrow's parse errors are ValueErrors
        raise UsageError(f"{str(file)!r} is not a {file.suffix[1:]} file: {_one_line(error)}") from None


def _read_csv(file: Path, texts: Sequence[str], **dialect: Any) -> "pd.DataFrame":
    import pandas as pd

    as_text: dict[str, Any] = dict.fromkeys(texts, str)  # 007 stays 007
    table: pd.DataFrame = pd.read_csv(file, dtype=as_text, keep_default_na=False, na_values=[""], **dialect)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more fields than its header")  # pandas takes the first ones for row names
    return table


def _read_jsonl(file: Path) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object with keys")
                rows.append(row)
    return pd.DataFrame(rows)


def _from_hub(source: Source, split: str) -> "pd.DataFrame":
    import datasets

    if not source.dataset:
        raise UsageError("the task names no data: give --data DIR or --dataset NAME")
    datasets.disable_progress_bars()
    with _reading(f"cannot load split {split!r} of data set {source}"):
        found = datasets.load_dataset(source.dataset, source.config, split=split)
    table: pd.DataFrame = found.to_pandas()
    for column, feature in found.features.items():
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            names = dict(enumerate(feature.names))
            table[column] = [names.get(number, -1) for number in table[column]]
    return table


@contextmanager
def _reading(failure: str) -> Iterator[None]:
    """Turn what goes wrong between here and a data set on the hub into one line that starts with ``failure``."""
    import datasets
    import yaml
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its HTTP library's

    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:  # says only that there was an error
        raise UsageError(f"{failure}: {_one_line(error.__cause__ or error)} (or give --data DIR)") from None
    except (
        ValueError,
        OSError,
        RuntimeError,  # the data set is a script
        yaml.YAMLError,  # in the data set's card
        HTTPError,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise UsageError(f"{failure}: {_one_line(error)} (or give --data DIR)") from None


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return words if len(words) <= 200 else words[:197] + "..."


def _labels(task: Task, table: "pd.DataFrame", where: str) -> np.ndarray[Any, Any] | None:
    """The labels as numbers in the task's order; None for a split without labels (-1 everywhere, or no column)."""
    import pandas as pd

    if task.label not in table.columns:
        return None
    column = table[task.label]
    if column.isna().any():
        raise UsageError(f"{where}: row {int(np.flatnonzero(column.isna())[0])} has no label in {task.label!r}")
    named = {float(name): number for number, name in enumerate(task.labels) if re.fullmatch(r"-?\d+", name)}
    if pd.api.types.is_numeric_dtype(column):
        if (column == -1).all() and -1 not in named:
            return None
        values = column.to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            raise UsageError(f"{where}: label {values[~np.isfinite(values)][0]} is not a number to learn")
        if task.regression:
            return values
        if len(named) < len(task.labels):
            named = {float(number): number for number in range(len(task.labels))}
        numbered = [named.get(value, -1) for value in values.tolist()]
        if -1 in numbered:
            row = numbered.index(-1)
            allowed = ", ".join(f"{value:g} {task.labels[number]}" for value, number in named.items())
            raise UsageError(
                f"{where}: label {values[row]:g} in row {row} is not one of task {task.name!r} (accepted: {allowed})"
            )
        return np.array(numbered, dtype=np.int64)
    if (column.astype(str) == "-1").all():
        return None
    if task.regression:
        raise UsageError(f"{where}: task {task.name!r} needs a number in {task.label!r}, not {column.iloc[0]!r}")
    numbers = {normal(name): number for number, name in enumerate(task.labels)}
    encoded = [numbers.get(normal(name), -1) for name in column]
    if -1 in encoded:
        raise unknown(f"label in row {encoded.index(-1)} of {where}:", str(column.iloc[encoded.index(-1)]), task.labels)
    return np.array(encoded, dtype=np.int64)
