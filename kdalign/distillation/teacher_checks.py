"""Check a teacher once it is scored, before the first step: above chance, rows in order, better than the student."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import numpy as np

from kdalign.data.tasks import ClassificationTask, Examples, LanguageTask
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.distillation.checks import Finding, settle
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.row_shifts import few_blocks, find_shifted_labels, find_shifted_targets
from kdalign.distillation.tokenize import OpenedRun
from kdalign.errors import RefusedRun, UsageError
from kdalign.evaluation.adapters import AnyPredictions
from kdalign.metrics.arrays import Array
from kdalign.metrics.chance import frequency_nats, log_softmax, shuffled_fit
from kdalign.metrics.intervals import ratio_interval
from kdalign.metrics.significance import LEVEL, UndefinedDifference, paired_difference
from kdalign.metrics.system_outputs import LabelOutputs, SufficientStats, SystemOutputs
from kdalign.metrics.text import count_texts
from kdalign.models.architecture import vocabulary_size
from kdalign.recipe import CHECKS
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import Predictions, TokenPredictions
from kdalign.runs.written_texts import WrittenTexts

Predict = Callable[[TokenizedSplit], AnyPredictions]
"""A teacher's predictions on a tokenized split."""
LEAST_ROWS = 50
"""Fewest rows on which a classifier is refused: on fewer a useful one may look like chance."""
NEAR_UNIFORM = 0.9
"""Share of the logarithm of a vocabulary's size from which on a language model is next to a uniform guess."""
_LEAST_ENTRIES = 100
"""Smallest vocabulary for that: a few entries may all be about as frequent."""
_COUNTED = 1_000_000
"""Most tokens of train whose frequencies are counted."""
_ORDERED = 0.01
"""Level below which answers fit labels worse than by chance."""


def check_scored_teacher(opened: OpenedRun, answers: AnyPredictions, predict: Predict | None = None) -> list[Finding]:
    """Check a teacher that is scored.

    Args:
        opened: the run.
        answers: the teacher's answers on the monitored slice of train, those of several as one.
        predict: the teacher's predictions on tokenized rows, asked about neighbouring rows; None for several.

    Raises:
        RefusedRun: what is wrong and not allowed, with its mend.
    """
    return settle_loaded(_findings(opened, answers, predict), opened.run)


def settle_loaded(findings: Iterable[Finding], run: PreparedRun) -> list[Finding]:
    """Settle findings of loaded models; none stops a run whose training has begun, which passed them then.

    Raises:
        RefusedRun: the first finding that is wrong and not allowed, with its mend.
    """
    above = run.folder.path.parent if run.recipe.multi_task.together else run.folder.path
    begun = any(RunFolder(above).checkpoints.glob("step-*"))
    allow = CHECKS if begun else run.recipe.allow
    try:
        return list(settle(findings, allow))
    except UsageError as error:
        raise RefusedRun(str(error)) from None


def _findings(opened: OpenedRun, answers: AnyPredictions, predict: Predict | None) -> Iterator[Finding]:
    run, adapter = opened.run, opened.run.adapter
    teacher, tokenizer, task = run.teacher, run.tokenizers.teacher, run.task
    assert teacher is not None, "a teacher is checked"
    assert tokenizer is not None, "a teacher has a tokenizer"

    def read(examples: Examples) -> AnyPredictions:
        assert predict is not None, "rows are read by one teacher"
        return predict(adapter.tokenize(examples, run.reader_of(0), scored=True))

    neighbours = run.splits.neighbours if predict is not None else ()
    blocks = few_blocks(neighbours, tokenizer, adapter.max_length)
    if isinstance(task, ClassificationTask):
        weak = list(_no_better_than_chance(run, task, answers))
        shifted = find_shifted_labels(read, blocks, task) if weak and blocks else iter(())
        yield from islice(chain(shifted, weak), 1)
    elif adapter.predicts_tokens:
        if blocks and len(blocks[0].texts) == 2:
            yield from find_shifted_targets(read, blocks)
        yield from _no_better_than_frequencies(opened, answers, vocabulary_size(teacher.config))


def _teachers(run: PreparedRun) -> str:
    names = " and ".join(repr(teacher.name) for teacher in run.teachers)
    return f"teacher {names}" if len(run.teachers) == 1 else f"the mixture of teachers {names}"


def _no_better_than_chance(run: PreparedRun, task: ClassificationTask, answers: Predictions) -> Iterator[Finding]:
    """Find a classifier whose answers fit the labels no better than labels in random order."""
    labels = run.splits.watched.labels
    if labels is None or len(np.unique(labels)) < 2:
        return
    scores = answers.logits if task.regression else log_softmax(answers.logits)
    better, worse = shuffled_fit(scores, labels)
    if better < LEVEL:
        return
    n, turned = len(labels), worse < _ORDERED and not task.regression
    where = f"{_teachers(run)} on {n:,} rows {run.watched_word}"
    if task.regression:
        said = f"{where}: its scores do not rise with those of the data"
    else:
        right, commonest = 100 * np.mean(answers.values == labels), 100 * np.max(np.bincount(labels)) / n
        fit = "worse than labels in random order" if turned else "no better than labels in random order"
        said = f"{where}: {right:.1f} % are right, {commonest:.1f} % by the commonest class alone; "
        said += f"answers fit labels {fit}"
    said = f"{said} (p = {worse if turned else better:.2g})"
    if n < LEAST_ROWS:
        yield Finding("weak-teacher", f"{said}, but {n} rows are too few to tell")
    elif turned:
        yield Finding("weak-teacher", said, "name its outputs in their order (id2label in its config.json)")
    elif run.finetunes:
        yield Finding("weak-teacher", said, "fine-tune it for longer (finetune.epochs)")
    else:
        yield Finding("weak-teacher", said, f"give a teacher that was fine-tuned for {task.name}")


def _no_better_than_frequencies(opened: OpenedRun, answers: TokenPredictions, entries: int) -> Iterator[Finding]:
    """Find a language model that predicts tokens no better than their frequencies in train, or a uniform guess do."""
    counts = _token_counts(opened)
    nll, tokens = _by_text(answers, opened.texts.watched_by_teacher)
    low, _ = ratio_interval(nll, tokens)
    if low is None or counts.sum() < 2:
        return
    known = frequency_nats(counts, entries)
    uniform = math.log(entries)
    nearly = NEAR_UNIFORM * uniform if entries >= _LEAST_ENTRIES else uniform
    if low < min(known, nearly):
        return
    run, n = opened.run, int(tokens.sum())
    nats = float(nll.sum()) / n
    yield Finding(
        "weak-teacher",
        f"{_teachers(run)} has a perplexity of {_perplexity(nats)} on {n:,} tokens {run.watched_word}; the frequencies "
        f"of tokens alone have {_perplexity(known)}, a guess among all entries {entries:,}",
        "give a teacher that was trained on such texts; weights that its files lack or do not tie are random "
        "(tie_word_embeddings)",
    )


def _perplexity(nats: float) -> str:
    return f"{math.exp(nats):,.0f}" if nats < 40 else f"e^{nats:,.0f}"


def _by_text(answers: TokenPredictions, encoded: TokenizedSplit) -> tuple[Array, Array]:
    """Sum likelihoods and tokens by text, if the rows of a text are known."""
    if encoded.groups is None:
        return answers.nll, answers.tokens
    _, group = np.unique(encoded.groups, return_inverse=True)
    return np.bincount(group, answers.nll), np.bincount(group, answers.tokens)


def _token_counts(opened: OpenedRun) -> Array:
    """Count how often the teacher predicts each token, in train, as far as ``_COUNTED`` tokens.

    With two tokenizers the monitored slice is counted, whose targets are in the teacher's.
    """
    texts, tokenizer = opened.texts, opened.run.tokenizers.teacher
    assert tokenizer is not None, "a teacher has a tokenizer"
    columns = (texts.train if texts.across is None else texts.watched_by_teacher).columns
    if "targets" in columns:
        rows, left_out = columns["targets"], {IGNORED}
    else:
        rows, left_out = columns["input_ids"], set(tokenizer.all_special_ids)
    ids = np.fromiter(islice(chain.from_iterable(rows), _COUNTED), dtype=np.int64)
    counts: Array = np.bincount(ids[~np.isin(ids, list(left_out))], minlength=1)
    return counts[counts > 0]


def compare_with_start(opened: OpenedRun, ours: AnyPredictions, theirs: AnyPredictions) -> tuple[str, list[Finding]]:
    """Compare a teacher with the student as it is before its first step, on the monitored slice of train.

    Args:
        opened: the run.
        ours: the student's answers.
        theirs: the teacher's.

    Returns:
        A line with both scores, empty if they do not compare; and a finding if the student is better.
    """
    run, texts, adapter = opened.run, opened.texts, opened.run.adapter
    scores = {score.metric: score for score in adapter.score(ours, texts.watched, interval=False)}
    others = {score.metric: score for score in adapter.score(theirs, texts.watched_by_teacher, interval=False)}
    # Tokens of two tokenizers differ, and their bytes are the same; what is masked for both is not.
    names = [*adapter.metrics[:1]] if texts.across is None or not adapter.predicts_tokens else ["bits_per_byte"]
    pairs = [(scores[name], others[name]) for name in names if name in scores and name in others]
    if not pairs:
        return "", []
    [(student, teacher)] = pairs
    if student.value is None or teacher.value is None:
        return "", []
    several = f" of {run.task.name}" if run.recipe.multi_task.together else ""
    line = f"the teacher on the same texts{several}: {teacher.metric} {teacher.value:.4g}"
    sign = 1 if teacher.higher_is_better else -1
    if sign * teacher.value > sign * student.value:
        return line, []
    line = (
        f"{line}, no better than the student before its first step ({student.value:.4g}; {len(texts.watched):,} rows)"
    )
    metric = student.metric
    arm = _outputs(opened, metric, ours, texts.watched)
    baseline = _outputs(opened, metric, theirs, texts.watched_by_teacher)
    if arm is None or baseline is None:
        return line, []
    try:
        difference = paired_difference([arm], [baseline], higher_is_better=teacher.higher_is_better)
    except UndefinedDifference:
        return line, []
    if difference.value <= 0 or difference.p >= LEVEL:
        return f"{line}; p = {difference.p:.2g}", []
    said = (
        f"before its first step, the student is better than {_teachers(run)} on {difference.n:,} rows "
        f"{run.watched_word}: {teacher.metric} {student.value:.4g} against {teacher.value:.4g} (p = {difference.p:.2g})"
    )
    held = "" if run.recipe.train.holds_out else ", or compare on rows held out of train (--select best)"
    return line, [Finding("weak-teacher", said, f"give a better teacher{held}")]


def _outputs(opened: OpenedRun, name: str, answers: AnyPredictions, encoded: TokenizedSplit) -> SystemOutputs | None:
    """Return answers as outputs that a paired test compares; None if it would take long, or texts cannot be paired."""
    task = opened.run.task
    scored = task if isinstance(task, ClassificationTask) else task.scored
    if scored is not None:
        metric = scored.metric(name)
        if (metric.of_counts is None and metric.of_weights is None) or encoded.labels is None:
            return None
        return LabelOutputs((metric,), answers.logits if metric.of_logits else answers.values, encoded.labels)
    if isinstance(answers, WrittenTexts):
        assert encoded.transcripts is not None, "a task of speech has transcripts"
        assert isinstance(task, LanguageTask), "a task of speech"
        counts = count_texts(name, answers.texts, encoded.transcripts.references, task.language)
        return SufficientStats(counts.rows, lambda sums: np.array([counts.value(row) for row in sums]), encoded.lengths)
    nll, tokens = _by_text(answers, encoded)
    if opened.texts.across is not None:  # the same texts in other tokens
        if encoded.groups is None:
            return None
        tokens = np.ones_like(nll)
    return SufficientStats(np.column_stack([nll, tokens]), _mean, tokens)


def _mean(sums: Array) -> Array:
    """Return nats a token, or a text, from sums (resamples, 2) of both."""
    means: Array = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
    return means
