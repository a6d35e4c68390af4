"""Splits of data sets on the hub: whole, or read row by row without downloading them."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdalign.data.tables import from_arrow
from kdalign.data.tasks.columns import is_missing
from kdalign.data.tasks.task import DataSource
from kdalign.errors import UsageError, cause_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_ROWS = 1_000
"""Rows of a part of a streamed split."""
_HELD_ROWS = 200
"""Rows of a part of a split of sounds or images."""


def load_hub_table(source: DataSource, split: str) -> "pd.DataFrame":
    """Load a split as a table, with the names of classes in place of their numbers, and the bytes of files.

    Raises:
        UsageError: no such data set or split, or it cannot be read.
    """
    found = _load(source, split)
    return _read_rows(found, source, split, 0, len(found))


def hub_table_parts(source: DataSource, split: str, wanted: Sequence[str] | None = None) -> Iterator["pd.DataFrame"]:
    """Read a split in tables of some rows each, as ``load_hub_table`` does; only one is in memory.

    Args:
        source: the data set.
        split: its name.
        wanted: columns that are read; all if None.

    Raises:
        UsageError: as of ``load_hub_table``.
    """
    found = _load(source, split)
    if wanted is not None:
        found = found.select_columns(list(wanted))
    for first in range(0, len(found), _HELD_ROWS):
        yield _read_rows(found, source, split, first, first + _HELD_ROWS)


def _load(source: DataSource, split: str) -> Any:
    """Download a split, which its library maps into memory."""
    import datasets

    datasets.disable_progress_bars()
    with _loading_errors(source, split):
        return datasets.load_dataset(source.dataset, source.config, split=split)


def _read_rows(found: Any, source: DataSource, split: str, first: int, end: int) -> "pd.DataFrame":
    with _loading_errors(source, split):
        rows = _with_bytes(found.with_format("arrow")[first:end], found.features)
    return _with_class_names(from_arrow(rows, f"{source}, split {split!r}", first), found.features)


def stream_hub_tables(source: DataSource, split: str, first: int) -> Iterator["pd.DataFrame"]:
    """Read a split from a row on, in tables of some rows each, as ``load_hub_table`` does.

    Rows before the first one are read over, but for the files that ``datasets`` can leave out.

    Raises:
        UsageError: as of ``load_hub_table``.
    """
    import datasets

    datasets.disable_progress_bars()
    with _loading_errors(source, split):
        stream = datasets.load_dataset(source.dataset, source.config, split=split, streaming=True)
        features = stream.features or {}
        batches = stream.skip(first).with_format("arrow").iter(_ROWS)
    while True:
        with _loading_errors(source, split):
            rows: Any = next(batches, None)
        if rows is None:
            return
        yield _with_class_names(from_arrow(rows, f"{source}, split {split!r}", first), features)
        first += len(rows)


def hub_splits(source: DataSource) -> list[str]:
    """List the splits of a data set.

    Raises:
        UsageError: there is no such data set.
    """
    import datasets

    with _hub_errors(f"cannot list the splits of data set {source}"):
        names: list[str] = datasets.get_dataset_split_names(source.dataset, source.config)
    return names


def _with_bytes(rows: "pa.Table", features: Any) -> "pa.Table":
    """Put the bytes of sounds and images that are files of the data set into their cells."""
    import datasets
    from datasets.table import embed_table_storage

    if any(isinstance(feature, datasets.Audio | datasets.Image) for feature in features.values()):
        return embed_table_storage(rows)
    return rows


def _with_class_names(table: "pd.DataFrame", features: Any) -> "pd.DataFrame":
    """Replace the numbers of classes by their names."""
    import datasets

    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            names: dict[Any, str] = dict(enumerate(feature.names))
            numbers = table[column].tolist()
            table[column] = [None if is_missing(number) else names.get(number, str(number)) for number in numbers]
    return table


@contextmanager
def _loading_errors(source: DataSource, split: str) -> Iterator[None]:
    """Turn errors of reading a split into one line."""
    if not source.dataset:
        raise UsageError("the task names no data: give --data DIR or --dataset NAME")
    with _hub_errors(f"cannot load split {split!r} of data set {source}"):
        yield


@contextmanager
def _hub_errors(failure: str) -> Iterator[None]:
    """Turn errors of loading a data set from the hub into one line that starts with ``failure``."""
    import datasets
    import yaml
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its HTTP library's

    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:  # says only that there was an error
        raise UsageError(f"{failure}: {cause_of(error.__cause__ or error)} (or give --data DIR)") from None
    except (
        ValueError,
        OSError,
        EOFError,  # a packed file that was cut
        zlib.error,
        RuntimeError,  # the data set is a script
        yaml.YAMLError,  # in the data set's card
        HTTPError,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise UsageError(f"{failure}: {cause_of(error)} (or give --data DIR)") from None
