"""Infer a classification task from its training split: columns of text or images, label column and classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdalign.data.media.rows import NOUNS, Modality
from kdalign.data.split_files import ALIASES, split_files
from kdalign.data.tables import FORMATS, class_names, file_format
from kdalign.data.tasks.columns import (
    TEXT_COLUMNS,
    cell_kinds,
    column_cells,
    describe_cell,
    is_blank,
    is_missing,
    looks_like_data,
    missing_header_hint,
    parse_numbers,
)
from kdalign.data.tasks.labels import check_kinds
from kdalign.data.tasks.loading import load_table, split_exists
from kdalign.data.tasks.media_columns import find_media_column
from kdalign.data.tasks.task import ClassificationTask, DataSource, normalise_label
from kdalign.errors import UsageError, shorten

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "score", "y")
_SIDE_COLUMNS = ("idx", "id", "index", "guid", "source", "split")
_MOST_CLASSES: Mapping[Modality, int] = {"text": 100, "image": 10_000}
TRAIN = "train"
"""Split that a task is inferred from."""


def infer_task(source: DataSource, modality: Modality = "text") -> ClassificationTask:
    """Infer a task of texts or images from its training split.

    Raises:
        UsageError: columns or classes that cannot be inferred, or no split to score on.
    """
    table = load_table(source, TRAIN)
    where = f"{source}, split 'train'"
    if len(table) == 0:
        raise UsageError(f"{where} has no rows")
    if len(table) == 1:
        raise UsageError(f"{where} has one row, from which no task can be inferred (at least two are needed)")
    label = _label_column(table, source)
    if modality == "text":
        columns = _text_columns(table, label, source)
    else:
        columns = (find_media_column(table, modality, where),)
    if looks_like_data(label) or all(map(looks_like_data, columns)):
        raise UsageError(f"{where}: no column has a name{missing_header_hint(table)}")
    known = _feature_classes(source, label) if modality != "text" else ()
    labels, kind, ordered = (known, _count(known), True) if known else _label_set(table, label, where, modality)
    evaluation = next((split for split in ("validation", "test") if split_exists(source, split)), None)
    if evaluation is None:
        wanted = ", ".join(("validation", *ALIASES["validation"], "test"))
        raise UsageError(f"{source} has no split to score on besides train (looked for: {wanted})")
    rest = [column for column in table.columns if column not in (*columns, label)]
    what = "text" if modality == "text" else f"{NOUNS[modality]}s"
    found = f"{what} in {' and '.join(columns)}, {kind} in {label}, scored on {evaluation}" + (
        f"; not used: {', '.join(rest)}" if rest else ""
    )
    metrics = ("pearson", "spearman") if not labels else ("accuracy", "f1" if len(labels) == 2 else "macro_f1")
    return ClassificationTask(
        name=source.folder.resolve().name if source.folder is not None else str(source.dataset).rpartition("/")[2],
        columns=columns,
        labels=labels,
        metrics=metrics,
        source=source,
        label=label,
        evaluation=(evaluation,),
        test=("test",),
        found=found,
        order_unknown=not ordered,
        modality=modality,
    )


def _label_column(table: "pd.DataFrame", source: DataSource) -> str:
    """Find the column of labels: by its name, or the only one with few values."""
    by_name: dict[str, list[str]] = {}
    for column in table.columns:
        by_name.setdefault(str(column).strip().lower(), []).append(str(column))
    for name in _LABEL_COLUMNS:
        if len(by_name.get(name, ())) > 1:
            raise UsageError(
                f"{source}: which column is the label, {' or '.join(map(repr, by_name[name]))}? Rename one"
            )
        if name in by_name:
            return by_name[name][0]
    few = [
        str(column)
        for column in table.columns
        if str(column).lower() not in _SIDE_COLUMNS
        and cell_kinds(column_cells(table, column)) <= {"text", "digits", "number", "truth"}
        and 2 <= table[column].nunique() <= min(20, len(table) // 2)
    ]
    if len(few) == 1:
        if few[0] in table[few[0]].tolist():
            raise UsageError(
                f"{source}: {few[0]!r} is the name of a column and one of its labels, as if a header were missing: put "
                "one before the first line, such as text,label, or name the column in a task file"
            )
        return few[0]
    raise UsageError(
        f"{source}: cannot tell which column holds the label (columns: {', '.join(map(str, table.columns))}); "
        f"name it in a task file, or call it 'label'{missing_header_hint(table)}"
    )


def _text_columns(table: "pd.DataFrame", label: str, source: DataSource) -> tuple[str, ...]:
    """Find the one or two columns of text; in csv, a column of numbers is one only by its name."""
    texts, mixed = [], []
    for column in table.columns:
        name = str(column).strip().lower()
        if column == label or name in _SIDE_COLUMNS:
            continue
        kinds = cell_kinds(column_cells(table, column))
        if "text" in kinds and not kinds <= {"text", "digits"}:
            mixed.append(str(column))
        elif ("text" in kinds or (kinds == {"digits"} and name in TEXT_COLUMNS)) and table[column].nunique() > 1:
            texts.append(str(column))
    named = [column for column in mixed if column.strip().lower() in TEXT_COLUMNS]
    for column in named or ([] if texts else mixed):
        raise _mixed_column_error(table, column, source)
    if not texts:
        raise _no_text_error(table, source)
    if len(texts) <= 2:
        return tuple(texts)
    raise UsageError(
        f"{source}: {len(texts)} text columns ({', '.join(texts)}); name the one or two to use in a task file"
    )


def _mixed_column_error(table: "pd.DataFrame", column: str, source: DataSource) -> UsageError:
    """Name the first cell of a column of text that is none."""
    cells = column_cells(table, column)
    row = next(row for row, cell in enumerate(cells) if not is_missing(cell) and not isinstance(cell, str))
    return UsageError(
        f"{source}, split 'train': row {row} has {describe_cell(cells[row])} in column {column!r}, whose other rows "
        "have text"
    )


def _no_text_error(table: "pd.DataFrame", source: DataSource) -> UsageError:
    """Say why no column can be the text."""
    for column in table.columns:
        if str(column).strip().lower() in TEXT_COLUMNS and table[column].astype(str).nunique() == 1:
            return UsageError(
                f"{source}, split 'train': column {column!r} has {describe_cell(column_cells(table, column)[0])} in "
                "every row, and nothing can be learned from one text"
            )
    return UsageError(
        f"{source}: no text column (columns: {', '.join(map(str, table.columns))}){missing_header_hint(table)}"
    )


def _number_key(name: str) -> tuple[str, int]:
    """Sort key that puts LABEL_10 after LABEL_2."""
    digits = name[len(name.rstrip("0123456789")) :]
    return (name.removesuffix(digits), int(digits or -1))


def _feature_classes(source: DataSource, label: str) -> tuple[str, ...]:
    """Names of the classes that the features of ``datasets`` give in a parquet file; empty for other files."""
    files = split_files(source.folder, TRAIN, FORMATS) if source.folder is not None else []
    return class_names(files[0], label) if files and file_format(files[0]) == "parquet" else ()


def _count(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({shorten(', '.join(names))})"


def _label_set(table: "pd.DataFrame", label: str, where: str, modality: Modality) -> tuple[tuple[str, ...], str, bool]:
    """Infer the classes (none for a score), their description, and whether the data gives their order.

    Digits that do not count from 0 are names of images' classes, as of folders.
    """
    most = _MOST_CLASSES[modality]
    cells = [cell for cell in column_cells(table, label) if not (isinstance(cell, str) and is_blank(cell))]
    cells = [cell for cell in cells if not is_missing(cell)]
    if not cells:
        raise UsageError(f"{where}: column {label!r} has no labels")
    kinds = check_kinds(column_cells(table, label), where, label)
    if kinds == {"truth"} or ("text" in kinds and {str(cell).strip().lower() for cell in cells} == {"false", "true"}):
        return ("false", "true"), "2 classes (false, true)", True
    named = modality != "text" and kinds == {"digits"} and "0" not in cells
    if "text" in kinds or named:
        names = _named_classes(table, label, where, most)
        return names, _count(names), False
    return (*_numbered_classes(parse_numbers(cells, where, label), label, where, most), True)


def _numbered_classes(values: "np.ndarray[Any, Any]", label: str, where: str, most: int) -> tuple[tuple[str, ...], str]:
    """Infer classes counted from 0; none for numbers with fractions."""
    lowest, highest = values.min(), values.max()
    if ((values % 1) != 0).any():
        return (), f"a score from {lowest:g} to {highest:g}"
    if lowest == highest:
        raise UsageError(
            f"{where}: all labels in {label!r} are {lowest:g}, so the classes cannot be inferred: there are two or "
            "more; name them in a task file"
        )
    if lowest != 0 or not 1 <= highest < most:
        mend = f"; subtract {lowest:g}" if lowest > 0 and highest > lowest else ""
        raise UsageError(
            f"{where}: labels from {lowest:g} to {highest:g} in {label!r} are not classes counted from 0, so they "
            f"cannot be inferred{mend}{', or' if mend else ';'} name them in a task file"
        )
    names = tuple(f"LABEL_{number}" for number in range(int(highest) + 1))
    absent = [str(number) for number in range(len(names)) if number not in set(values.tolist())]
    none = f", none of {', '.join(absent)}" if absent else ""
    return names, f"{len(names)} classes (0 to {highest:g}{none})"


def _named_classes(table: "pd.DataFrame", label: str, where: str, most: int) -> tuple[str, ...]:
    """Infer classes named by text, sorted."""
    rows: dict[str, int] = {}
    for row, cell in enumerate(column_cells(table, label)):
        if not is_missing(cell) and not is_blank(cell):
            rows.setdefault(cell, row)
    seen: dict[str, str] = {}
    for name in rows:
        other = seen.setdefault(normalise_label(name), name)
        if other != name:
            raise UsageError(
                f"{where}: labels {other!r} (row {rows[other]}) and {name!r} (row {rows[name]}) differ in spaces, case "
                "or separators alone: write them alike, or name the classes in a task file"
            )
    names = tuple(sorted(rows, key=_number_key))
    if not 2 <= len(names) <= most:
        raise UsageError(f"{where}: {len(names)} different labels are not classes (accepted: 2 to {most:,})")
    return names
