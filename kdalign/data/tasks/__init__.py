"""Tasks: text columns, labels, metrics and the source of the data."""

from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.glue import GLUE, write_submission
from kdalign.data.tasks.holdout import hold_out
from kdalign.data.tasks.language import LanguageTask, load_texts
from kdalign.data.tasks.loading import load_examples
from kdalign.data.tasks.lookup import AnyTask, check_named, find_task, task_of
from kdalign.data.tasks.prompts import PromptedExample, prompt_examples, prompt_template
from kdalign.data.tasks.task import ClassificationTask, DataSource, PromptTemplate
from kdalign.data.tasks.unlabelled import UnlabelledSource, unlabelled_texts

__all__ = [
    "GLUE",
    "AnyTask",
    "ClassificationTask",
    "DataSource",
    "Examples",
    "LanguageTask",
    "PromptTemplate",
    "PromptedExample",
    "UnlabelledSource",
    "check_named",
    "find_task",
    "hold_out",
    "load_examples",
    "load_texts",
    "prompt_examples",
    "prompt_template",
    "task_of",
    "unlabelled_texts",
    "write_submission",
]
