"""Tasks: which columns hold the text, what the labels mean, which metrics score it, where the data lies."""

from kdalign.tasks.data import Examples, load_examples
from kdalign.tasks.find import AnyTask, check_named, find_task
from kdalign.tasks.glue import GLUE
from kdalign.tasks.holdout import hold_out
from kdalign.tasks.language import LanguageTask, load_texts
from kdalign.tasks.prompts import Question, questions, wording_of
from kdalign.tasks.submission import write_submission
from kdalign.tasks.task import Source, Task, Wording
from kdalign.tasks.unlabelled import Unlabelled, unlabelled_texts

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
