"""Look up a task by its name: a shipped task, a task file, or one inferred from the data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter

import yaml

from kdalign.data.media.rows import Modality
from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.inference import TRAIN, infer_task
from kdalign.data.tasks.language import FAMILIES, LanguageTask, language_task
from kdalign.data.tasks.language_columns import with_columns
from kdalign.data.tasks.prompts import default_template
from kdalign.data.tasks.task import ClassificationTask, DataSource, PromptTemplate
from kdalign.errors import UsageError, did_you_mean, shorten, unknown
from kdalign.files import check_name
from kdalign.metrics.classification import GROUPS, expand_groups
from kdalign.metrics.languages import language_code
from kdalign.metrics.text import TEXT_METRICS
from kdalign.recipe import TASK_FILES, DataSettings
from kdalign.recipe.strict_yaml import read_yaml

AnyTask = ClassificationTask | LanguageTask

INFERRED: Mapping[str, Modality] = {"classification": "text", "image-classification": "image"}
"""Kinds of task with labels, which are inferred from the data, and what their columns hold."""
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
"""Keys for tasks whose outputs are texts."""
_OF_LABELS = ("label", "labels", "answers")
"""Keys for tasks whose outputs are classes or scores."""


def task_of(data: DataSettings) -> AnyTask:
    """Find the first task of a recipe; of a training split that is a stream, only the first rows will be loaded.

    Raises:
        UsageError: as of ``find_task``.
    """
    return find_task(data.task[0], data.folder, data.dataset, data.config, data.held_rows)


def find_task(
    name: str,
    folder: str | None = None,
    dataset: str | None = None,
    config: str | None = None,
    held_rows: int | None = None,
) -> AnyTask:
    """Find the task of a name, and the source of its data.

    Args:
        name: a GLUE task, a YAML task file, ``classification`` or ``image-classification`` (inferred from the data), or
            a language-modelling task such as ``lm:sst2``.
        folder: a data folder, or the parent of one folder per task name.
        dataset: a data set on the hub instead.
        config: its configuration.
        held_rows: rows that are held of a training split that is read as a stream; None to read it as a whole.

    Raises:
        UsageError: unknown name, unreadable task file, or data from which no task can be inferred.
    """
    check_named(name, folder, dataset, config)
    if name in INFERRED:
        if folder is None and dataset is None:
            raise UsageError(f"--task {name} is inferred from the data: give --data DIR or --dataset NAME")
        _check_streamed(name, INFERRED[name], held_rows)
        return infer_task(_streamed(_source(folder, dataset, config, name), TRAIN, held_rows), INFERRED[name])
    language = language_task(name)
    if language is not None:
        _check_streamed(name, language.modality, held_rows)
        if folder is None and dataset is None and language.source == DataSource():
            near = did_you_mean(name.rpartition(":")[2], GLUE) if ":" in name else ""
            raise UsageError(f"task {name!r} names no data{near}; give --data DIR or --dataset NAME")
        if folder is not None or dataset is not None:
            rest = name.partition(":")[2]
            of = "" if language.columns == (rest,) else rest  # a column's name is not a folder's
            language = replace(language, source=_source(folder, dataset, config, of))
        return with_columns(replace(language, source=_streamed(language.source, language.train, held_rows)))
    if name in GLUE:
        task: AnyTask = GLUE[name]
    else:
        task = _from_file(_shipped().get(name, Path(name)))
    _check_streamed(name, task.modality, held_rows)
    if folder is None and dataset is None:
        if task.source == DataSource():
            raise UsageError(f"task file {name!r} names no data: give it 'data' or 'dataset', or give --data DIR")
        source = task.source
    else:
        source = _source(folder, dataset, config, task.name)
    return replace(task, source=_streamed(source, task.train, held_rows))


def _check_streamed(name: str, modality: Modality, held_rows: int | None) -> None:
    """Refuse a stream of sounds or images."""
    if modality != "text" and held_rows is not None:
        raise UsageError(
            f"task {name!r} reads {modality} data, and data.streaming=true reads text alone: leave it out (files are "
            "read when a batch needs them)"
        )


def _streamed(source: DataSource, split: str, held_rows: int | None) -> DataSource:
    """Return a source whose split is read as a stream, if only some of its rows are held."""
    return source if held_rows is None else replace(source, streamed=split, held=held_rows)


def _shipped() -> dict[str, Path]:
    """Shipped task files by name."""
    return {file.stem: file for file in sorted(TASK_FILES.glob("*.yaml"))}


def check_named(name: str, folder: str | None = None, dataset: str | None = None, config: str | None = None) -> None:
    """Refuse unknown tasks, folders and combinations of flags without reading any data.

    Raises:
        UsageError: an unknown task, a missing folder, or flags that exclude each other.
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
    names = [*GLUE, *INFERRED, *FAMILIES, *_shipped()]
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
    kind = one.get("kind", "classification")
    if kind not in INFERRED:
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
        modality=INFERRED[kind],
    )
    return _with_words(task, given, one, file) if {"prompt", "answers"} & set(given) else task


def _with_words(
    task: ClassificationTask, given: Mapping[str, tuple[str, ...]], one: Mapping[str, str], file: Path
) -> ClassificationTask:
    """Add what a model of words reads: captions of images, one a label, or a prompt and its answers."""
    if task.modality == "image":
        if not task.labels:
            raise UsageError(f"task file {str(file)!r}: a prompt makes a caption for each label: give 'labels', too")
        prompt, words = one.get("prompt", "a photo of a {label}.").rstrip(), given.get("answers", task.labels)
        return replace(task, captions=tuple(prompt.replace("{label}", word) for word in words))
    plain = default_template(task)
    return replace(
        task,
        wording=PromptTemplate(
            # A YAML block ends with a line break; the separator alone decides what precedes an answer.
            template=one["prompt"].rstrip() if "prompt" in one else plain.template,
            answers=given.get("answers", plain.answers),
        ),
    )


_LONGEST_WORD = 100
"""Largest number of bytes of a task's or a split's name, which becomes part of file names."""


def _check_given(given: Mapping[str, tuple[str, ...]], one: Mapping[str, str], file: Path) -> None:
    """Refuse keys that exclude each other, repeated values, and names that cannot be part of a file name."""
    where = f"task file {str(file)!r}"
    for key, words in given.items():
        if len(set(words)) < len(words) and key != "answers":
            raise UsageError(f"{where}: {key!r} names one thing twice ({', '.join(words)})")
    if "data" in one and "dataset" in one:
        raise UsageError(f"{where}: give 'data' or 'dataset', not both")
    if "config" in one and "dataset" not in one:
        raise UsageError(f"{where}: 'config' is of a 'dataset' on the hub, and none is named")
    if one.get("label", "label") in given["columns"] and one.get("kind", "classification") in INFERRED:
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
    """Refuse all but ``{column}`` between braces: ``{text:>999999999}`` would be filled up with spaces."""
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
    """Source of the data in a task file; a folder is relative to the file."""
    folder = file.parent / one["data"] if "data" in one else None
    return DataSource(folder, one.get("dataset"), one.get("config"))


def _language_of(given: Mapping[str, tuple[str, ...]], one: Mapping[str, str], file: Path) -> LanguageTask:
    """Build a task of texts from a task file: documents, or sources and targets."""
    where, kind = f"task file {str(file)!r}", one["kind"]
    if kind not in FAMILIES or kind in ("chat", "embedding"):
        known = [*INFERRED, *(name for name in FAMILIES if name not in ("chat", "embedding"))]
        raise unknown(f"kind in {where}:", kind, known)
    for key in _OF_LABELS:
        if key in given:
            raise UsageError(f"{where}: {key!r} is for classes, and the answers of a {kind} are texts")
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
    if task.modality != "text" and task.prompt:
        raise UsageError(f"{where}: a prompt is for texts, and a {kind} reads sounds")
    _check_prompt(task.prompt, task.columns[0], where)
    task.render_prompt({column: "" for column in task.columns})  # raises if a column's name cannot stand in a prompt
    for metric in task.metrics:
        if metric not in TEXT_METRICS and ":" not in metric:
            raise unknown(f"metric in {where}:", metric, [*TEXT_METRICS, *GROUPS])
    return task


def _words(key: str, value: object, file: Path) -> tuple[str, ...]:
    """Values of a key of a task file: one, or several if the key takes a list."""
    words = value if isinstance(value, list) else [value]
    alone = key in _SINGLE and len(words) > 1
    blank = key != "answers" and any(isinstance(word, str) and not word.strip() for word in words)  # own error
    if not words or alone or blank or not all(isinstance(word, str) for word in words):
        takes = "one text" if key == "prompt" else "one name" if key in _SINGLE else "a name or a list of names"
        raise UsageError(f"task file {str(file)!r}: {key!r} takes {takes}")
    return tuple(words)
