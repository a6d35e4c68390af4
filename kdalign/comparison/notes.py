"""What is said under a table: how its numbers were made, and what they cannot show."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdalign.comparison.comparability import (
    describe_signatures,
    find_incomparable,
    find_protocols,
    have_different_tasks,
    have_different_teachers,
)
from kdalign.comparison.table import SHARED, Cell, Column, Row, metric_key
from kdalign.errors import UsageError
from kdalign.files import read_json
from kdalign.runs.ablation_spec import SEARCH, TRIED
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.record import RunRecord, first_split


def footnotes(
    entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]], rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
    """How the numbers were made, and what they cannot show."""
    notes = []
    records = records_of(entries)
    for task, seen in find_protocols(entries).items():
        notes += [f"{task}: {protocol}" for protocol in sorted(seen)]
        if len(seen) > 1:
            notes.append(f"{task}: rows were scored on different data or by different versions: do not rank them")
    notes += _of_scores(entries, evaluations)
    notes += _other_tokens(entries, columns)
    shared = [column.key for column in columns if column.key in SHARED]
    if shared and have_different_tasks(entries):
        notes.append(f"{', '.join(shared)}: of each row's own tasks, so they do not rank rows of different tasks")
    elif shared and have_different_teachers(entries):
        notes.append("agreement, retained: of each row's own teacher, so they do not rank rows of different teachers")
    notes += _evaluated(evaluations)
    for row in rows:
        if len(row.seeds) > 1 and row.kind == "student":
            seeds = " ".join(map(str, row.seeds))
            notes.append(f"{row.name}: mean of {len(row.seeds)} seeds ({seeds}), 95 % t-interval over seeds")
    if any(len(row.seeds) == 1 for row in rows):
        notes.append("one seed: 95 % intervals are over examples (Wilson for accuracy, bootstrap otherwise)")
    means = [column.key for column in columns if column.key == column.task]
    notes += _budgets(entries)
    if means:
        notes.append(
            f"{', '.join(means)}: the mean of the task's metrics; macro: the mean over tasks, as GLUE averages"
        )
    if any(column.key == "retained" for column in columns):
        notes.append("retained: the student's score as a share of its teacher's (of perplexities, the other way round)")
    if any(column.key == "agreement" for column in columns):
        notes += _agreement_of_scores(records)
    if any(column.key == "ece" for column in columns):
        notes.append("ECE: expected calibration error in 15 bins (arXiv:1706.04599), the mean over tasks of classes")
    models = [model for record in records for model in (record.student, record.teacher) if model is not None]
    if any(column.key == "flops" for column in columns):
        lengths = _lengths(model.tokens for model in models if model.flops is not None)
        notes.append(f"FLOPs/token: of a forward of {lengths} tokens, 2 a multiply-add, attention and head included")
    if any(column.key == "tokens" for column in columns):
        notes.append("tokens: real ones that were trained on, each time that they were read")
    if any(column.key.startswith("steps-to/") for column in columns):
        notes.append(
            "steps to: the first evaluation on the watched texts that reached it; runs look only so often "
            "(train.eval_every)"
        )
    if any(column.key == "speed-up" for column in columns):
        notes.append(
            f"latency: one forward of {_lengths(model.tokens for model in models if model.latency_ms is not None)} "
            f"tokens in fp32, median, taken in each run, with what else the machine did; "
            f"speed-up: both models in turns in the row's own run"
        )
    notes += _together(entries)
    sizes = {record.student.bytes_per_parameter for record in records}
    sizes |= {record.teacher.bytes_per_parameter for record in records if record.teacher is not None}
    if len(sizes) > 1:
        notes.append("disk: some weights are stored in 2 bytes each, some in 4; params compare sizes")
    unsealed = [
        entry.name
        for entry in entries
        if not entry.answers and not all(record.seal for record in entry.records.values())
    ]
    if unsealed:
        notes.append(
            f"records of an older kdalign, without a seal that would show a changed number: {list_names(unsealed)}"
        )
    if not any(row.kind == "difference" for row in rows):  # tests say more than intervals
        notes += _ties(rows, columns)
    for row in rows:
        for key, cell in row.cells.items():
            if cell.value is None and cell.reason:
                notes.append(f"{row.name}, {key}: no value, {cell.reason}")
    notes += _lacking(rows, columns)
    return notes + _published([row for row in rows if row.kind == "reference"], columns)


def _lengths(tokens: Iterable[int]) -> str:
    """Numbers of tokens in words."""
    return " or ".join(map(str, sorted(set(tokens))))


def _of_scores(entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """What must be known to read single scores, such as the class that F1 is of; said once where all rows share it."""
    told: dict[tuple[str, str], dict[str, None]] = {}
    rows: dict[str, dict[str, None]] = {}
    found = [
        (one.name, task, first_split(record)["student"]) for one in entries for task, record in one.records.items()
    ]
    found += [(Path(one["model"]).name, one["task"], one["scores"]) for one in evaluations]
    for name, task, scores in found:
        for score in scores:
            key = metric_key(task, score["metric"])
            rows.setdefault(key, {})[name] = None
            for part in filter(None, score.get("note", "").split("; ")):
                told.setdefault((key, part), {})[name] = None
    return [
        f"{key}{'' if names == rows[key] else f' of {list_names(list(names))}'}: {note}"
        for (key, note), names in told.items()
    ]


def _together(entries: Sequence[RunGroup]) -> list[str]:
    """Say of rows over several tasks what all their students take: one with a head each, or one for each."""
    notes: dict[str, None] = {}
    together = {entry.name: found for entry in entries if (found := _multi_task(entry)) is not None}
    for name, whole in together.items():
        tasks = ", ".join(f"{task} {one['steps']:,}" for task, one in whole["tasks"].items())
        notes[
            f"{name}: one student for {len(whole['tasks'])} tasks, {whole['parameters'] / 1e6:.2f} M parameters and "
            f"{whole['megabytes']:,.1f} MB with all heads; params and disk are of one task's; steps: {tasks}"
        ] = None
        notes |= dict.fromkeys(f"{name}: {line}" for line in whole["leaks"])
    for entry in entries if together else ():
        if entry.name not in together and len(entry.records) > 1:
            students = [record.student for record in entry.records.values()]
            size, disk = sum(each.parameters for each in students), sum(each.megabytes for each in students)
            notes[
                f"{entry.name}: {len(entry.records)} students, {size / 1e6:.2f} M parameters and {disk:,.1f} MB in "
                f"all; params and disk are of one"
            ] = None
    return list(notes)


def _multi_task(entry: RunGroup) -> dict[str, Any] | None:
    """What the records of a student of several tasks say of it; None for other students."""
    found: dict[str, Any] | None = next(iter(entry.records.values())).training.get("multi_task")
    return found


def _agreement_of_scores(records: Sequence[RunRecord]) -> list[str]:
    """Say where agreement is no share of equal classes."""
    agreed = {record.task: first_split(record)["agreement"] for record in records}
    tasks = [
        task for task, found in agreed.items() if found is not None and found.get("signature", "").startswith("scipy")
    ]
    return [f"agreement on {', '.join(tasks)}: Pearson's correlation with the teacher's scores"] if tasks else []


MOST_NAMES = 12
"""A note with more names than this counts the rest."""


def list_names(names: Sequence[str]) -> str:
    """Names with commas, the first of them where they are many."""
    shown = (
        list(names) if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    )
    return ", ".join(shown)


def _budgets(entries: Sequence[RunGroup]) -> list[str]:
    """For each ablation, whether its arms spent the same on each task and seed, and how long each trained in all."""
    ablations = list(dict.fromkeys(entry.ablation for entry in entries if entry.ablation is not None))
    notes = []
    for ablation in ablations:
        named = f"{ablation.name}, " if len(ablations) > 1 else ""
        notes += [f"{named}{note}" for note in budget_notes([one for one in entries if one.ablation == ablation])]
        notes += [f"{named}{note}" for note in _searched(ablation)]
    if len(ablations) > 1 or any(entry.ablation is None for entry in entries):
        notes += _unequal(entries)
    return notes


def _searched(ablation: Path) -> list[str]:
    """Which settings of its arms a search has chosen."""
    file = ablation / SEARCH / TRIED
    if not file.is_file():
        return []
    chosen: dict[str, dict[str, Any]] = {}
    tried = read_json(file)
    for one in tried if isinstance(tried, list) else [tried]:
        if not isinstance(one, dict) or not isinstance(one.get("settings"), dict):
            raise UsageError(f"{str(file)!r} is not what a search has tried")
        if one.get("chosen"):
            chosen[str(one.get("arm"))] = one["settings"]
    told = [
        f"{arm} {', '.join(f'{key} {value}' for key, value in settings.items()) or 'as it is'}"
        for arm, settings in chosen.items()
    ]
    return [f"settings chosen on a slice of train ({SEARCH}/{TRIED}): {'; '.join(told)}"]


def _unequal(entries: Sequence[RunGroup]) -> list[str]:
    """Say by task which rows that are no arms of one ablation were trained for longer than others."""
    notes = []
    spent: dict[str, dict[str, int]] = {}
    for entry in entries:
        for task, record in entry.records.items():
            spent.setdefault(task, {})[entry.name] = record.training["steps"]
    for task, by_row in spent.items():
        if len(set(by_row.values())) > 1:
            told = list_names([f"{name} {steps:,}" for name, steps in by_row.items()])
            notes.append(f"budgets differ on {task}, in steps: {told}; longer training alone can make a row better")
    return notes


def budget_notes(entries: Sequence[RunGroup]) -> list[str]:
    """Whether all arms took as many steps and tokens on each task and seed, and how long each arm took in all."""
    spent: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    read: dict[str, dict[str, str]] = {}
    beside: dict[str, dict[str, int]] = {}
    hours: dict[str, float] = {}
    for entry in entries:
        for task, record in entry.records.items():
            training = record.training
            spent.setdefault((task, entry.seed), {})[entry.name] = training["steps"], training["tokens"]
            read.setdefault(task, {})[entry.name] = record.data["train"]["fingerprint"]
            beside.setdefault(task, {})[entry.name] = record.data.get("unlabelled", {"n": 0})["n"]
            hours[entry.name] = hours.get(entry.name, 0.0) + training["seconds"] / 3600
    notes = []
    for (task, seed), arms in spent.items():
        if len(set(arms.values())) > 1:
            told = ", ".join(f"{arm} {steps:,} steps of {tokens:,} tokens" for arm, (steps, tokens) in arms.items())
            notes.append(f"budgets differ on {task}, seed {seed}: {told}")
    for task, by_arm in read.items():
        if len(set(by_arm.values())) > 1:
            notes.append(f"arms learnt from different training examples of {task}: {', '.join(by_arm)}")
    alike = len(hours) > 1 and not notes
    same = ["budget: all arms took the same steps and tokens on each task and seed"] if alike else []
    for task, texts in beside.items():
        if any(texts.values()):
            told = ", ".join(f"{arm} {n:,}" for arm, n in texts.items())
            notes.append(f"texts without labels that arms learnt from on {task}: {told}")
    return [*same, *notes, f"hours of training: {', '.join(f'{arm} {time:.2f}' for arm, time in hours.items())}"]


def _other_tokens(entries: Sequence[RunGroup], columns: Sequence[Column]) -> list[str]:
    """Say which likelihoods are over other tokens from row to row."""
    keys = [column.key for column in columns]
    return [
        f"{key}: a token's, and the rows' tokenizers differ: do not rank them"
        + (f"; compare {' or '.join(instead)}" if instead else "")
        for key, instead in find_incomparable(entries).items()
        if key in keys
    ]


def _evaluated(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """How evaluations were made: what all models of a split share is said once."""
    notes: dict[str, None] = {}
    scored = [result for result in evaluations if result["scores"]]
    splits = dict.fromkeys((result["task"], result["split"], result["n"], result["source"]) for result in scored)
    for task, split, n, source in splits:
        ours = [r for r in scored if (r["task"], r["split"], r["n"], r["source"]) == (task, split, n, source)]
        made: dict[str, dict[str, dict[str, None]]] = {}
        for result in ours:
            for score in result["scores"]:
                models = made.setdefault(score["metric"], {}).setdefault(score["signature"], {})
                models[Path(result["model"]).name] = None
        alike = describe_signatures(
            [{"metric": m, "signature": next(iter(by))} for m, by in made.items() if len(by) == 1]
        )
        notes[f"{task}: {split}, n = {n:,} of {source}{'; ' if alike else ''}{alike}"] = None
        apart: dict[tuple[str, str], list[str]] = {}
        for metric, by in made.items():
            for signature, models in by.items() if len(by) > 1 else ():
                apart.setdefault((", ".join(models), signature), []).append(metric)
        notes |= {f"{task}, {models}: {', '.join(m)} by {how}": None for (models, how), m in apart.items()}
    for result in scored:
        notes |= dict.fromkeys(result.get("notes", ()))
        if result.get("truncated"):
            notes[f"{Path(result['model']).name}, {result['task']}: {result['truncated']:,} examples were cut"] = None
        marks = {score["mark"] for score in result["scores"] if score.get("mark")}
        notes |= {f"* {mark}-perplexity: no perplexity, and compares with none": None for mark in marks}
    if notes:
        notes["evaluations are never marked best"] = None
    if any(result.get("trained_tokens") for result in scored):
        notes["trained: tokens that the run behind a model read, not those of the model that it began with"] = None
    return list(notes)


def _lacking(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Why rows have a dash where no score was even asked for: what their kind does not have."""
    measured = [row for row in rows if row.kind != "reference"]
    costs = [
        [column for column in columns if column.cost and column.training is training] for training in (False, True)
    ]
    tables = [([column for column in columns if not column.cost and not column.published], measured)]
    tables += [(own, [row for row in measured if any(column.key in row.cells for column in own)]) for own in costs]
    several = any(len(_tasks_of(row, columns)) > 1 for row in measured)
    told: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for own, shown in tables:
        for column in own:
            beside = [row for row in shown if several or not column.task or column.task in _tasks_of(row, columns)]
            for row in beside if any(column.key in row.cells for row in beside) else ():
                cell = row.cells.get(column.key)
                if cell is None or (cell.value is None and not cell.reason):
                    where, who = told.setdefault(_why_lacking(row, column, columns), ({}, {}))
                    where[column.title] = None
                    who[row.name] = None
    return [f"– in {', '.join(where)} of {list_names(list(who))}: {why}" for why, (where, who) in told.items()]


def _tasks_of(row: Row, columns: Sequence[Column]) -> set[str]:
    return {column.task for column in columns if column.task and column.key in row.cells}


def _why_lacking(row: Row, column: Column, columns: Sequence[Column]) -> str:
    if row.kind == "teacher" and column.key in ("agreement", "speed-up"):
        return "a teacher is not compared with itself"
    if row.kind == "difference":
        return "there is no verdict on it"
    if column.task and column.task not in _tasks_of(row, columns):
        return f"they are not of {column.task}"
    if row.kind == "student" and column.key in ("agreement", "retained", "speed-up"):
        return "there is no teacher, or none whose answers compare"
    if column.key == "ece":
        return "it is taken of runs on classes"
    if row.kind == "baseline":
        return "it is of models, and was not taken of this row"
    return "it was not measured"


def _published(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Say where published rows are from, and that no number of theirs ranks with a measured one."""
    notes = []
    measured = [column for column in columns if not column.published]
    for mark in dict.fromkeys(row.mark for row in rows):
        ours = [row for row in rows if row.mark == mark]
        said = [ours[0].source, *filter(None, [ours[0].note]), *_other_names(ours, measured)]
        notes.append(f"{mark} published, not measured here: {'; '.join(said)}")
    marks = dict.fromkeys(row.mark for row in rows if any(column.key in row.cells for column in measured))
    if marks:
        notes.append(
            f"{', '.join(marks)}: beside measured rows, but of other data or protocols, as far as is known: "
            f"do not rank them together"
        )
    return notes


def _other_names(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Which published numbers are shown under a metric that their source calls otherwise."""
    names: dict[str, None] = {}
    for row in rows:
        for column in columns:
            metric = column.key.removeprefix(f"{column.task}/")
            if column.key in row.cells and row.cells[column.key].called not in (column.key, metric):
                names[f"{row.cells[column.key].called} under {metric}"] = None
    return [f"shown here: its {', its '.join(names)}"] if names else []


def _ties(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Say where the best student's interval meets another's: the table then shows no difference."""
    meeting: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        students = [row for row in rows if row.kind == "student" and column.key in row.cells]
        best = next((row for row in students if row.cells[column.key].best), None)
        if column.cost or best is None:
            continue
        top = best.cells[column.key]
        others = [row.name for row in students if row is not best and _meet(top, row.cells[column.key])]
        if others:
            meeting.setdefault((best.name, list_names(others)), []).append(column.title)
    return [
        f"{', '.join(titles)}: the intervals of {best} and {others} overlap; this table alone does not tell them apart"
        for (best, others), titles in meeting.items()
    ]


def _meet(first: Cell, second: Cell) -> bool:
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None for end in ends):
        return False
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    return low <= other_high and other_low <= high
