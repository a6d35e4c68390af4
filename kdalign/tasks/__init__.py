"""Tasks: which columns hold the text, what the labels mean, which metrics score it, where the data lies."""

from kdalign.tasks.data import Examples, load_examples
from kdalign.tasks.find import find_task
from kdalign.tasks.glue import GLUE
from kdalign.tasks.holdout import hold_out
from kdalign.tasks.submission import write_submission
from kdalign.tasks.task import Source, Task

__all__ = ["GLUE", "Examples", "Source", "Task", "find_task", "hold_out", "load_examples", "write_submission"]
