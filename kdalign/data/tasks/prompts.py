r"""Classification as text: questions that a model answers by a word for each label.

A question is a context and, for each label, an answer that begins with its separator, so that context and answer
together are the whole text. The likeliest answer is the model's class, as lm-evaluation-harness scores GLUE
(``output_type: multiple_choice``). With solved examples before it, a context reads::

    {question}{separator}{answer}{between}{question}{separator}{answer}{between}{question}
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from kdalign.data.tasks.loading import Examples
from kdalign.data.tasks.task import ClassificationTask, PromptTemplate
from kdalign.errors import UsageError


@dataclass(frozen=True)
class PromptedExample:
    """What a model reads, and what it may answer: ``context + answers[k]`` is the whole text of label k.

    Attributes:
        context: all before the answer and its separator.
        answers: in the task's label order, each with the separator before it.
    """

    context: str
    answers: tuple[str, ...]


def prompt_template(task: ClassificationTask) -> PromptTemplate:
    """The task's own wording, or the plain one.

    Raises:
        UsageError: the task asks for a score, which no word stands for.
    """
    return task.wording or default_template(task)


def default_template(task: ClassificationTask) -> PromptTemplate:
    r"""The wording of a task that brings none: its columns by their names, then its labels to choose from.

    Of the columns ``subject`` and ``body`` and the labels ``billing``, ``bug`` and ``not_ours`` of ``queue``::

        subject: {subject}
        body: {body}
        Question: What is the queue: billing, bug or not ours?
        Answer:

    Underscores are read as spaces.

    Raises:
        UsageError: the task asks for a score.
    """
    if task.regression:
        raise UsageError(
            f"task {task.name!r} asks for a score, which no word stands for: text can only ask for classes"
        )
    answers = tuple(label.replace("_", " ") for label in task.labels)
    lines = [f"{_literal(column)}: {{{column}}}" for column in task.columns]
    choice = f"{', '.join(answers[:-1])} or {answers[-1]}"
    lines += [f"Question: What is the {_literal(task.label)}: {_literal(choice)}?", "Answer:"]
    return PromptTemplate("\n".join(lines), answers, origin="plain prompt")


def _literal(words: str) -> str:
    """Words as they stand in a template."""
    return words.replace("_", " ").replace("{", "{{").replace("}", "}}")


def prompt_examples(
    task: ClassificationTask, examples: Examples, shots: Examples | None = None, count: int = 0, seed: int = 0
) -> list[PromptedExample]:
    """A question for every example, after ``count`` solved examples.

    As lm-evaluation-harness does by default for these tasks, every question gets examples of its own, drawn at random
    from the training split without regard to their labels, in the order of the draw. Unlike there, where one generator
    goes on from question to question, a draw is a function of (seed, the example's number) alone: the first questions
    of a split are the same however many follow. So the draws are others than the harness', of the same distribution.
    A solved example is never the question's own: rows with the same texts are left out.

    Args:
        task: what is asked.
        examples: what it is asked about.
        shots: the split from which solved examples are drawn.
        count: how many.
        seed: of the draws.

    Raises:
        UsageError: the task asks for a score, or there are too few solved examples to draw from.
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
        # So many more are drawn that enough are left without the question's own texts.
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
