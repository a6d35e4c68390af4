"""The section of a model card on limits, and when a share of the teacher's score can be stated."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kdalign.metrics.classification import Score
from kdalign.runs.card_facts import CardFacts
from kdalign.runs.markdown import code_span, escape
from kdalign.runs.record import SplitScores

_UNMEASURED = {
    "text": "Text of other kinds and languages, longer text, mistakes in words and bias",
    "audio": "Other speakers, languages and recordings, noise and bias",
    "image": "Images of other kinds and from other cameras, noise and bias",
}


def limits_section(card: CardFacts) -> str:
    """Write what was not measured, and which scores are undefined or undecided."""
    data, recipe = card.record.data, card.recipe
    splits = ", ".join(code_span(split) for split in data["reported"])
    found = [
        f"Scored on {splits} of the data above alone. {_UNMEASURED[card.modality]} were not measured, nor whether "
        f"training and scored examples overlap.",
        f"One seed ({recipe.train.seed}): how much another one would change is not known; the intervals are over "
        f"examples.",
    ]
    for name, facts in (("training", data["train"]), *data["reported"].items()):
        if facts["truncated"]:
            cut = f"{facts['truncated']:,} of {facts['n']:,} {escape(name)} texts were cut to "
            cut += f"{recipe.data.max_length} tokens"
            found.append(f"{cut}, or their sounds to what the model reads." if card.modality == "audio" else f"{cut}.")
    if recipe.data.limit is not None:
        part = "data with labels" if "unlabelled" in data else "data"
        made = ", without new texts made of them" if "augmented" in data else ""
        found.append(f"Only part of the {part} was used: at most {recipe.data.limit:,} examples of a split{made}.")
    stream = card.record.training.get("stream")
    if stream is not None:
        found.append(
            f"Training text was read as a stream, {stream['read']:,} rows, passes begun: {stream['passes']}; the "
            f"checks before the run saw its first {stream['checked']:,} rows."
        )
    if "unlabelled" in data and data["unlabelled"]["n"] == recipe.data.unlabelled_limit:
        found.append(f"Only part of the text without labels was used: {recipe.data.unlabelled_limit:,} texts.")
    found += _tokenizers(data)
    for leak in card.record.training.get("multi_task", {}).get("leaks", ()):
        if f" texts of {card.record.task}, " in leak:
            found.append(f"Scored texts were searched for in the training texts of the other tasks: {escape(leak)}.")
    found += _undefined(card)
    found += _overlaps(card)
    found += _checks(data.get("checks", {}), recipe.allow)
    found.append("No licence is named: those of the teacher, of the checkpoint it started from and of the data apply.")
    return "\n".join(["## Limits", "", *(f"- {said}" for said in found)])


def why_not_retained(card: CardFacts, ours: Score, theirs: Score | None) -> str:
    """Return why no share of the teacher's score can be stated; empty if it can."""
    if theirs is None:
        return "the teacher was not scored by it"
    if ours.unit != "%" and "tokenizers" in card.record.data:
        return "student and teacher read other tokens"
    if ours.value is None or theirs.value is None:
        return f"the {'student' if ours.value is None else 'teacher'}'s score is undefined"
    if theirs.value <= 0:
        return f"the teacher's score, {theirs.value:.4g}, is not above 0"
    if not ours.higher_is_better and ours.value <= 0:
        return f"the student's score, {ours.value:.4g}, is not above 0"
    return ""


def _checks(checks: Mapping[str, str], allowed: Collection[str]) -> Iterable[str]:
    """Findings of the checks before the run that bear on its numbers."""
    for what, said in checks.items():
        if what in allowed:
            yield f"A finding of the checks before the run was allowed: {escape(what)}, {escape(said)}."
        elif what == "batch norm":
            yield f"In training, batch norm {escape(said)}."


def _tokenizers(data: Mapping[str, Any]) -> Iterable[str]:
    if "tokenizers" in data:
        yield "Teacher and student read other tokens: their perplexities do not compare."
    if "tokenizers_by_teacher" in data:
        who = ", ".join(map(escape, data["tokenizers_by_teacher"]))
        yield f"Other tokens than the student's are read by: {who}."


def _undefined(card: CardFacts) -> Iterable[str]:
    for split in card.record.scores:
        scores, where = card.record.split_scores(split), code_span(split)
        for score in scores.student:
            if score.value is None:
                yield f"{escape(score.metric)} on {where} is undefined: {escape(score.reason)}."
            elif score.low is None:
                yield f"{escape(score.metric)} on {where} has no interval: the examples are too few or all alike."
        for name, score in _further_scores(scores):
            if score.value is None:
                yield f"{escape(name)} on {where} is undefined: {escape(score.reason)}."
        for score in scores.student if scores.teacher else ():
            why = why_not_retained(card, score, scores.teacher_score(score.metric))
            if why:
                yield f"{escape(score.metric)} on {where}: no retained share is stated: {escape(why)}."


def _further_scores(scores: SplitScores) -> Iterable[tuple[str, Score]]:
    """The teacher's scores, agreement and calibration, each with its name in a sentence."""
    yield from ((f"the teacher's {score.metric}", score) for score in scores.teacher)
    if scores.agreement is not None:
        yield "agreement with the teacher", scores.agreement
    for who, score in scores.calibration.items():
        yield f"the {who}'s expected calibration error", score


def _overlaps(card: CardFacts) -> Iterable[str]:
    """Metrics in which the intervals of student and teacher overlap."""
    for split in card.record.scores:
        scores = card.record.split_scores(split)
        for ours in scores.student:
            theirs = scores.teacher_score(ours.metric)
            if theirs is None or ours.low is None or ours.high is None or theirs.low is None or theirs.high is None:
                continue
            if ours.low <= theirs.high and theirs.low <= ours.high:
                yield (
                    f"{escape(ours.metric)} on {code_span(split)}: the intervals of student and teacher overlap, "
                    f"so this score alone does not tell them apart."
                )
