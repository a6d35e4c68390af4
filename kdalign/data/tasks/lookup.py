"""From the word on the command line to a task: a shipped name, a task file, or what the data itself shows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import yaml

from kdalign.data.split_files import ALIASES
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
from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.labels import check_kinds
from kdalign.data.tasks.language import FAMILIES, LanguageTask, language_task, with_columns
from kdalign.data.tasks.loading import load_table, split_exists
from kdalign.data.tasks.prompts import default_template
from kdalign.data.tasks.task import ClassificationTask, DataSource, PromptTemplate, normalise_label
from kdalign.errors import UsageError, did_you_mean, shorten, unknown
from kdalign.files import check_name, read_yaml
from kdalign.metrics.classification import GROUPS, expand_groups
from kdalign.metrics.languages import language_code
from kdalign.metrics.text import TEXT_METRICS
from kdalign.recipe import TASK_FILES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

AnyTask = ClassificationTask | LanguageTask

INFERRED = "classification"
_KEYS = (
    "name",
    "kind",
    "columns",
    "label",
    "labels",
    "metrics",
    "references",
    "language",
    "prompt",
    "data",
    "dataset",
    "config",
    "train",
    "evaluation",
    "test",
    "answers",
)
_SINGLE = ("name", "kind", "label", "language", "prompt", "data", "dataset", "config", "train")
_OF_TEXTS = ("references", "language")
"""Keys of tasks whose answers are texts."""
_LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "score", "y")
_SIDE_COLUMNS = ("idx", "id", "index", "guid", "source", "split")
_MOST_CLASSES = 100


def find_task(name: str, folder: str | None = None, dataset: str | None = None, config: str | None = None) -> AnyTask:
    """The task that a name stands for, with its data's place.

    Args:
        name: a GLUE task, a YAML task file, ``classification`` (worked out from the data), or a task of language
            modelling such as ``lm:sst2``.
        folder: a data folder, or the parent of one folder per task name.
        dataset: a hub data set instead.
        config: its configuration.

    Raises:
        UsageError: unknown name, unreadable task file, or data that does not show what the task is.
    """
    check_named(name, folder, dataset, config)
    if name == INFERRED:
        if folder is None and dataset is None:
            raise UsageError("--task classification works itself out from the data: give --data DIR or --dataset NAME")
        return _infer_task(_source(folder, dataset, config, name))
    language = language_task(name)
    if language is not None:
        if folder is None and dataset is None and language.source == DataSource():
            near = did_you_mean(name.rpartition(":")[2], GLUE) if ":" in name else ""
            raise UsageError(f"task {name!r} names no data{near}; give --data DIR or --dataset NAME")
        if folder is not None or dataset is not None:
            rest = name.partition(":")[2]
            of = "" if language.columns == (rest,) else rest  # a column's name is no folder's
            language = replace(language, source=_source(folder, dataset, config, of))
        return with_columns(language)
    if name in GLUE:
        task: AnyTask = GLUE[name]
    else:
        task = _from_file(_shipped().get(name, Path(name)))
    if folder is None and dataset is None:
        if task.source == DataSource():
            raise UsageError(f"task file {name!r} names no data: give it 'data' or 'dataset', or give --data DIR")
        return task
    return replace(task, source=_source(folder, dataset, config, task.name))


def _shipped() -> dict[str, Path]:
    """The task files that kdalign brings, by name."""
    return {file.stem: file for file in sorted(TASK_FILES.glob("*.yaml"))}


def check_named(name: str, folder: str | None = None, dataset: str | None = None, config: str | None = None) -> None:
    """Refuse names that stand for nothing, in an instant: no data is read.

    Raises:
        UsageError: an unknown task, a folder that is not there, or flags that do not go together.
    """
    if folder is not None and dataset is not None:
        raise UsageError("give --data or --dataset, not both")
    if config is not None and dataset is None:
        raise UsageError("--config goes with --dataset")
    check_name(name, "--task")
    for flag, given in (("--data", folder), ("--dataset", dataset), ("--config", config)):
        if given is not None:
            check_name(given, flag)
    of_file = name.endswith((".yaml", ".yml"))
    if of_file and not Path(name).exists():
        raise UsageError(f"cannot read task file {name!r}: there is none")
    names = [*GLUE, INFERRED, *FAMILIES, *_shipped()]
    if not (name in names or of_file or language_task(name) is not None):
        raise UsageError(
            f"unknown task {name!r}{did_you_mean(name, names)} "
            f"(accepted: {', '.join(names)}, or a task file ending in .yaml)"
        )
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"no data folder {folder!r} (accepted: a folder that holds <split>.parquet|csv|tsv|jsonl)")


def _source(folder: str | None, dataset: str | None, config: str | None, task: str) -> DataSource:
    if folder is None:
        return DataSource(dataset=dataset, config=config)
    path = Path(folder)
    return DataSource(folder=path / task if (path / task).is_dir() else path)


def _from_file(file: Path) -> AnyTask:
    # Every value is text: a label called no is not a boolean, nor is 2024-01-05 a date.
    tree = read_yaml(file, yaml.BaseLoader)
    if not isinstance(tree, dict):
        raise UsageError(f"task file {str(file)!r} holds no keys (known: {', '.join(_KEYS)})")
    for key in tree:
        if key not in _KEYS:
            raise unknown(f"key in task file {str(file)!r}:", str(key), _KEYS)
    given = {key: _words(key, value, file) for key, value in tree.items() if value not in ("", "~", "null", [])}
    if "columns" not in given:
        raise UsageError(f"task file {str(file)!r} needs 'columns', the text column or the two of a pair")
    one = {key: words[0] for key, words in given.items() if key in _SINGLE}
    _check_given(given, one, file)
    if "kind" in one:
        return _language_of(given, one, file)
    for key in _OF_TEXTS:
        if key in given:
            raise UsageError(
                f"task file {str(file)!r}: {key!r} is for tasks whose answers are texts, which name a kind"
            )
    labels = given.get("labels", ())
    task = ClassificationTask(
        name=one.get("name", file.stem),
        columns=given["columns"],
        labels=labels,
        metrics=given.get("metrics", ("accuracy",) if labels else ("pearson", "spearman")),
        source=_source_of(one, file),
        label=one.get("label", "label"),
        train=one.get("train", "train"),
        evaluation=given.get("evaluation", ("validation",)),
        test=given.get("test", ("test",)),
    )
    if not {"prompt", "answers"} & set(given):
        return task
    plain = default_template(task)
    return replace(
        task,
        wording=PromptTemplate(
            # A YAML block ends with a line break; what stands before an answer is the separator's to say.
            template=one["prompt"].rstrip() if "prompt" in one else plain.template,
            answers=given.get("answers", plain.answers),
        ),
    )


_LONGEST_WORD = 100
"""Bytes of a task's or a split's name, which is a part of files' names."""


def _check_given(given: Mapping[str, tuple[str, ...]], one: Mapping[str, str], file: Path) -> None:
    """Refuse what goes with nothing, is said twice, or cannot be part of a file's name."""
    where = f"task file {str(file)!r}"
    for key, words in given.items():
        if len(set(words)) < len(words) and key != "answers":
            raise UsageError(f"{where}: {key!r} names one thing twice ({', '.join(words)})")
    if "data" in one and "dataset" in one:
        raise UsageError(f"{where}: give 'data' or 'dataset', not both")
    if "config" in one and "dataset" not in one:
        raise UsageError(f"{where}: 'config' is of a 'dataset' on the hub, and none is named")
    if one.get("label", "label") in given["columns"] and "kind" not in one:
        raise UsageError(f"{where}: column {one.get('label', 'label')!r} cannot be text and label at once")
    for key in ("data", "dataset", "config"):
        check_name(one.get(key, key), f"{where}: {key!r}")
    names: dict[str, tuple[str, ...]] = {"name": (one.get("name", file.stem),)}
    names |= {key: given[key] for key in ("train", "evaluation", "test") if key in given}
    for key, words in names.items():
        for word in words:
            written = word.encode("utf-8", "surrogatepass")
            if not word.isprintable() or set("/\\") & set(word) or word in (".", "..") or len(written) > _LONGEST_WORD:
                raise UsageError(
                    f"{where}: {key} {shorten(word, 60)!r} is to be part of a file's name: one line of at most "
                    f"{_LONGEST_WORD} bytes without / and \\"
                )


def _check_prompt(prompt: str, source: str, where: str) -> None:
    """Refuse all but ``{column}`` between braces: ``{text:>999999999}`` would be filled up with blanks."""
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise UsageError(
            f"{where}: the prompt has a brace that belongs to no place ({error}); write it twice"
        ) from None
    for _, place, form, conversion in parts:
        if place is not None and (place != source or form or conversion):
            raise UsageError(f"{where}: its prompt may name {{{source}}} alone; given {shorten(prompt, 100)!r}")


def _source_of(one: Mapping[str, str], file: Path) -> DataSource:
    """Where a task file says that its data lies; a folder is looked for beside the file."""
    folder = file.parent / one["data"] if "data" in one else None
    return DataSource(folder, one.get("dataset"), one.get("config"))


def _language_of(given: Mapping[str, tuple[str, ...]], one: Mapping[str, str], file: Path) -> LanguageTask:
    """A task file of text: documents, or sources and what is to be written."""
    where, kind = f"task file {str(file)!r}", one["kind"]
    if kind not in FAMILIES or kind in ("chat", "embedding"):
        raise unknown(f"kind in {where}:", kind, [name for name in FAMILIES if name not in ("chat", "embedding")])
    for key in ("label", "labels", "answers"):
        if key in given:
            raise UsageError(f"{where}: {key!r} is for classes, which have no kind")
    task = LanguageTask(
        one.get("name", file.stem),
        kind,
        given["columns"],
        _source_of(one, file),
        train=one.get("train", "train"),
        evaluation=given.get("evaluation", ("validation",)),
        test=given.get("test", ("test",)),
        references=given.get("references", ()),
        language=language_code(one["language"], f"language in {where}:") if "language" in one else "",
        prompt=one.get("prompt", ""),
        metrics=expand_groups(given.get("metrics", ())),
    )
    if task.pairs and len(task.columns) != 2:
        raise UsageError(f"{where}: a {kind} has two columns, its source and its target")
    if not task.pairs and (task.references or task.prompt):
        raise UsageError(f"{where}: references and prompt are for tasks with a source and a target")
    _check_prompt(task.prompt, task.columns[0], where)
    task.render_prompt(
        {column: "" for column in task.columns}
    )  # raises where a column's name is none that a prompt can have
    for metric in task.metrics:
        if metric not in TEXT_METRICS and ":" not in metric:
            raise unknown(f"metric in {where}:", metric, [*TEXT_METRICS, *GROUPS])
    return task


def _words(key: str, value: object, file: Path) -> tuple[str, ...]:
    """What a task file gives for a key: one word, or several where the key takes them."""
    words = value if isinstance(value, list) else [value]
    alone = key in _SINGLE and len(words) > 1
    blank = key != "answers" and any(isinstance(word, str) and not word.strip() for word in words)  # theirs is said
    if not words or alone or blank or not all(isinstance(word, str) for word in words):
        takes = "one text" if key == "prompt" else "one name" if key in _SINGLE else "a name or a list of names"
        raise UsageError(f"task file {str(file)!r}: {key!r} takes {takes}")
    return tuple(words)


def _infer_task(source: DataSource) -> ClassificationTask:
    """Read the training split and say which columns are text, which is the label, and what it can be."""
    table = load_table(source, "train")
    where = f"{source}, split 'train'"
    if len(table) == 0:
        raise UsageError(f"{where} has no rows")
    if len(table) == 1:
        raise UsageError(f"{where} has one row, and what the task is cannot be worked out from it (at least two)")
    label = _label_column(table, source)
    columns = _text_columns(table, label, source)
    if looks_like_data(label) or all(map(looks_like_data, columns)):
        raise UsageError(f"{where}: no column has a name{missing_header_hint(table)}")
    labels, kind, ordered = _label_set(table, label, where)
    evaluation = next((split for split in ("validation", "test") if split_exists(source, split)), None)
    if evaluation is None:
        wanted = ", ".join(("validation", *ALIASES["validation"], "test"))
        raise UsageError(f"{source} has no split to score on besides train (looked for: {wanted})")
    rest = [column for column in table.columns if column not in (*columns, label)]
    found = f"text in {' and '.join(columns)}, {kind} in {label}, scored on {evaluation}" + (
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
    )


def _label_column(table: "pd.DataFrame", source: DataSource) -> str:
    """The column with the label: by its name, or the only one with few values."""
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
        raise _not_all_text(table, column, source)
    if not texts:
        raise _no_text(table, source)
    if len(texts) <= 2:
        return tuple(texts)
    raise UsageError(
        f"{source}: {len(texts)} text columns ({', '.join(texts)}); name the one or two to use in a task file"
    )


def _not_all_text(table: "pd.DataFrame", column: str, source: DataSource) -> UsageError:
    """Name the first cell of a column of text that is none."""
    cells = column_cells(table, column)
    row = next(row for row, cell in enumerate(cells) if not is_missing(cell) and not isinstance(cell, str))
    return UsageError(
        f"{source}, split 'train': row {row} has {describe_cell(cells[row])} in column {column!r}, whose other rows "
        "have text"
    )


def _no_text(table: "pd.DataFrame", source: DataSource) -> UsageError:
    """Say why no column can be the text."""
    for column in table.columns:
        if str(column).strip().lower() in TEXT_COLUMNS and table[column].astype(str).nunique() == 1:
            return UsageError(
                f"{source}, split 'train': column {column!r} has {describe_cell(column_cells(table, column)[0])} in "
                "every row, and nothing can be learnt from one text"
            )
    return UsageError(
        f"{source}: no text column (columns: {', '.join(map(str, table.columns))}){missing_header_hint(table)}"
    )


def _by_number(name: str) -> tuple[str, int]:
    """Sorts LABEL_10 after LABEL_2."""
    digits = name[len(name.rstrip("0123456789")) :]
    return (name.removesuffix(digits), int(digits or -1))


def _label_set(table: "pd.DataFrame", label: str, where: str) -> tuple[tuple[str, ...], str, bool]:
    """The classes, none for a score; what they are in words; and whether their order is the data's own."""
    cells = [cell for cell in column_cells(table, label) if not (isinstance(cell, str) and is_blank(cell))]
    cells = [cell for cell in cells if not is_missing(cell)]
    if not cells:
        raise UsageError(f"{where}: column {label!r} has no labels")
    kinds = check_kinds(column_cells(table, label), where, label)
    if kinds == {"truth"} or ("text" in kinds and {str(cell).strip().lower() for cell in cells} == {"false", "true"}):
        return ("false", "true"), "2 classes (false, true)", True
    if "text" in kinds:
        names = _names(table, label, where)
        return names, f"{len(names)} classes ({', '.join(names)})", False
    return (*_numbered(parse_numbers(cells, where, label), label, where), True)


def _numbered(values: "np.ndarray[Any, Any]", label: str, where: str) -> tuple[tuple[str, ...], str]:
    """Classes that are counted from 0; none where the numbers have fractions."""
    lowest, highest = values.min(), values.max()
    if ((values % 1) != 0).any():
        return (), f"a score from {lowest:g} to {highest:g}"
    if lowest == highest:
        raise UsageError(
            f"{where}: all labels in {label!r} are {lowest:g}, so the classes cannot be worked out: there are two or "
            "more; name them in a task file"
        )
    if lowest != 0 or not 1 <= highest < _MOST_CLASSES:
        mend = f"; subtract {lowest:g}" if lowest > 0 and highest > lowest else ""
        raise UsageError(
            f"{where}: labels from {lowest:g} to {highest:g} in {label!r} are not classes counted from 0, so they "
            f"cannot be worked out{mend}{', or' if mend else ';'} name them in a task file"
        )
    names = tuple(f"LABEL_{number}" for number in range(int(highest) + 1))
    absent = [str(number) for number in range(len(names)) if number not in set(values.tolist())]
    none = f", none of {', '.join(absent)}" if absent else ""
    return names, f"{len(names)} classes (0 to {highest:g}{none})"


def _names(table: "pd.DataFrame", label: str, where: str) -> tuple[str, ...]:
    """Classes that are named by text, sorted."""
    rows: dict[str, int] = {}
    for row, cell in enumerate(column_cells(table, label)):
        if not is_missing(cell) and not is_blank(cell):
            rows.setdefault(cell, row)
    seen: dict[str, str] = {}
    for name in rows:
        other = seen.setdefault(normalise_label(name), name)
        if other != name:
            raise UsageError(
                f"{where}: labels {other!r} (row {rows[other]}) and {name!r} (row {rows[name]}) differ in blanks, case "
                "or separators alone: write them alike, or name the classes in a task file"
            )
    names = tuple(sorted(rows, key=_by_number))
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise UsageError(f"{where}: {len(names)} different labels are no classes (accepted: 2 to {_MOST_CLASSES})")
    return names
