"""Tasks: which columns hold the text, what the labels mean, which metrics score it, where the data lies."""

from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.holdout import hold_out
from kdalign.data.tasks.language import LanguageTask, load_texts
from kdalign.data.tasks.loading import Examples, load_examples
from kdalign.data.tasks.lookup import AnyTask, check_named, find_task
from kdalign.data.tasks.prompts import Question, questions, wording_of
from kdalign.data.tasks.submission import write_submission
from kdalign.data.tasks.task import Source, Task, Wording
from kdalign.data.tasks.unlabelled import Unlabelled, unlabelled_texts

__all__ = [
    "GLUE",
    "AnyTask",
    "Examples",
    "LanguageTask",
    "Question",
    "Source",
    "Task",
    "Unlabelled",
    "Wording",
    "check_named",
    "find_task",
    "hold_out",
    "load_examples",
    "load_texts",
    "questions",
    "unlabelled_texts",
    "wording_of",
    "write_submission",
]
