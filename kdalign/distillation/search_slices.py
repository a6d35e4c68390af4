"""Slices of train to choose settings by, held out by whole texts and written as data sets.

So a search's runs are like any other, on other data, and the reported split stays unread.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdalign.data.media.rows import MediaRows
from kdalign.data.tasks import ClassificationTask, find_task, hold_out
from kdalign.data.tasks.unlabelled import REST
from kdalign.distillation.splits import training_examples
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.files import atomic_file, write_text
from kdalign.recipe import set_key
from kdalign.runs.ablation_spec import AblationSpec

if TYPE_CHECKING:
    import pandas as pd

SHARE = 0.1
"""Share of train that is held out to choose by; at most 1,000 rows."""
SEED = 0
"""Seed of the slice, and of the runs that are compared on it."""


def base_on_slices(ablation: AblationSpec, folder: Path) -> dict[str, Any]:
    """Return the recipe that all arms share, on slices of train that are written into a folder.

    Raises:
        UsageError: a data set that cannot be searched on.
    """
    base = deepcopy(dict(ablation.base))
    if base.get("data", {}).get("unlabelled") == REST:
        raise UsageError(
            "--search trains on slices of train, which leave no rest: give --unlabelled a folder or a file"
        )
    _write_slices(ablation, folder)
    for key in ("dataset", "config", "limit"):
        base.get("data", {}).pop(key, None)
    set_key(base, "data.folder", str(folder))
    return base


def _write_slices(ablation: AblationSpec, folder: Path) -> None:
    """Cut every task's train into a part to train on and a slice to choose by, each task in a folder of its own.

    Raises:
        UsageError: a task without classes or scores, or the folder holds slices of other data.
    """
    import pandas as pd

    for trial in {trial.task: trial for trial in ablation.trials(Path("runs"))}.values():
        data = trial.recipe.data
        task = find_task(trial.task, data.folder, data.dataset, data.config, data.held_rows)
        if not isinstance(task, ClassificationTask) or trial.task.endswith((".yaml", ".yml")):
            raise UsageError(
                f"--search is for GLUE's tasks and classification of texts or images, not for task {trial.task!r}"
            )
        train, _ = training_examples(adapter_for(task, "masked", data.max_length, "none"), trial.recipe)
        own, fingerprint = folder / trial.task, train.fingerprint()
        mark = own / "train-of.txt"
        if mark.is_file():
            if mark.read_text(encoding="utf-8") != fingerprint:
                raise UsageError(f"{str(own)!r} holds a slice of other data: give another --out, or --overwrite")
            continue
        assert train.labels is not None, "training examples were checked"
        labels = train.labels.tolist()
        table = pd.DataFrame(dict(zip(task.columns, map(_cells, train.texts), strict=True)))
        numbered = task.regression or task.modality != "text"
        table[task.label] = labels if numbered else [task.labels[number] for number in labels]
        rows, held = hold_out(train, SHARE, SEED)
        for split, part in ((task.train, rows), *((name, held) for name in task.evaluation)):
            with atomic_file(own / f"{split}.parquet") as temporary:
                _write(table.iloc[part], task, temporary)
        write_text(mark, fingerprint)


def _write(table: "pd.DataFrame", task: ClassificationTask, file: Path) -> None:
    """Write a slice; of images with the names of their classes as ``datasets`` does, since names may be digits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if task.modality == "text":
        table.to_parquet(file, index=False)
        return
    features = {task.label: {"names": list(task.labels), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(metadata), file)


def _cells(column: Sequence[str]) -> list[str] | list[bytes]:
    """Return a column's texts, or the bytes of its images."""
    if isinstance(column, MediaRows):
        return [column.read(row) for row in range(len(column))]
    return list(column)
