r"""Classification prompts: questions that a language model answers with a word for each label.

A question is a context and, for each label, an answer that begins with its separator, so that context and answer
together are the whole text. The likeliest answer is the model's class, as lm-evaluation-harness scores GLUE
(``output_type: multiple_choice``). With solved examples before it, a context reads::

    {question}{separator}{answer}{between}{question}{separator}{answer}{between}{question}
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.task import ClassificationTask, PromptTemplate
from kdalign.errors import UsageError


@dataclass(frozen=True)
class PromptedExample:
    """Prompt and possible answers of an example: ``context + answers[k]`` is the whole text of label k.

    Attributes:
        context: text before the answer and its separator.
        answers: in the task's label order, each with the separator before it.
    """

    context: str
    answers: tuple[str, ...]


def prompt_template(task: ClassificationTask) -> PromptTemplate:
    """Return the task's own prompt template, or the default one.

    Raises:
        UsageError: the task has a score, which no word stands for, or reads images.
    """
    if task.modality != "text":
        raise UsageError(f"task {task.name!r} reads {task.modality} data, which a prompt cannot hold")
    return task.wording or default_template(task)


def default_template(task: ClassificationTask) -> PromptTemplate:
    r"""Build the default template: the columns by their names, then the labels to choose from.

    For columns ``subject`` and ``body`` and labels ``billing``, ``bug`` and ``not_ours`` of ``queue``::

        subject: {subject}
        body: {body}
        Question: What is the queue: billing, bug or not ours?
        Answer:

    Underscores are read as spaces.

    Raises:
        UsageError: the task has a score.
    """
    if task.regression:
        raise UsageError(f"task {task.name!r} has a score, which no word stands for: only classes have prompts")
    answers = tuple(label.replace("_", " ") for label in task.labels)
    lines = [f"{_escape(column)}: {{{column}}}" for column in task.columns]
    choice = f"{', '.join(answers[:-1])} or {answers[-1]}"
    lines += [f"Question: What is the {_escape(task.label)}: {_escape(choice)}?", "Answer:"]
    return PromptTemplate("\n".join(lines), answers, origin="plain prompt")


def _escape(words: str) -> str:
    """Escape words for a template."""
    return words.replace("_", " ").replace("{", "{{").replace("}", "}}")


def prompt_examples(
    task: ClassificationTask, examples: Examples, shots: Examples | None = None, count: int = 0, seed: int = 0
) -> list[PromptedExample]:
    """Build the prompt of every example, after ``count`` solved examples.

    As in lm-evaluation-harness by default for these tasks, every question gets solved examples of its own, drawn at
    random from the training split without regard to their labels, in the order of the draw. Unlike there, where one
    generator runs from question to question, a draw is a function of (seed, the example's number) alone: the first
    questions of a split are the same whatever its size. So the draws differ from the harness', with the same
    distribution. Rows with the question's own texts are left out.

    Args:
        task: a task of classes.
        examples: examples to classify.
        shots: split to draw solved examples from.
        count: number of solved examples per question.
        seed: seed of the draws.

    Raises:
        UsageError: the task has a score, or there are too few solved examples to draw from.
    """
    wording = prompt_template(task)
    answers = tuple(wording.separator + answer for answer in wording.answers)
    rows = list(zip(*examples.texts, strict=True))
    asked = [wording.fill(task.columns, row) for row in rows]
    if count == 0:
        return [PromptedExample(question, answers) for question in asked]
    if shots is None or shots.labels is None:
        what = "no split" if shots is None else f"split {shots.split!r}, which has no labels"
        raise UsageError(f"task {task.name!r}: {count} solved examples cannot be drawn from {what}")
    solved = list(zip(*shots.texts, strict=True))
    copies = Counter(solved)
    found = []
    for number, (row, question) in enumerate(zip(rows, asked, strict=True)):
        # Enough are drawn that ``count`` are left without the question's own texts.
        wanted = count + copies[row]
        if wanted > len(solved):
            raise UsageError(
                f"task {task.name!r}: {count} solved examples before example {number}, but split {shots.split!r} "
                f"has only {len(solved) - copies[row]} with other texts"
            )
        drawn = np.random.default_rng([seed, number]).choice(len(solved), wanted, replace=False).tolist()
        before = [
            wording.fill(task.columns, solved[shot]) + answers[int(shots.labels[shot])] + wording.between
            for shot in [shot for shot in drawn if solved[shot] != row][:count]
        ]
        found.append(PromptedExample("".join(before) + question, answers))
    return found
