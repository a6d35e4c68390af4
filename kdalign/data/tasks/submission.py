"""The GLUE leaderboard's files: a header, then one row per test example."""

from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tasks.glue import NAMES_IN_SUBMISSION
from kdalign.data.tasks.task import ClassificationTask
from kdalign.files import write_text


def write_submission(
    task: ClassificationTask, split: str, predictions: np.ndarray[Any, Any], folder: Path
) -> Path | None:
    """Write the leaderboard's file for a test split; None where the task has no leaderboard.

    STS-B's scores are clipped to the scale of 0 to 5, as the leaderboard wants them.
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
