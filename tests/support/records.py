"""Run records and evaluations, written as a run writes them, and their cells in a table."""

import json

from kdalign.recipe import Recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import SCHEMA, ModelRecord, RunRecord

PER_CENT = {"accuracy": "%", "f1": "%", "agreement": "%", "ece": "%", "ppl": "", "word_ppl": ""}


def scores(**values):
    return [
        {
            "metric": metric,
            "value": value,
            "unit": PER_CENT[metric],
            "n": 10,
            "higher_is_better": metric in ("accuracy", "f1", "agreement"),
            "signature": "hand",
            "low": None if value is None else value - 1,
            "high": None if value is None else value + 1,
        }
        for metric, value in values.items()
    ]


def run(path, task, student, teacher=None, seed=0, fingerprint="ab", calibration=None, **objective):
    """A finished run whose scores are given by hand."""
    recipe = Recipe.model_validate(
        {"teacher": "t" if teacher else "none", "data": {"task": task}, "train": {"seed": seed}, "objective": objective}
    )
    agreement = None
    if teacher:
        (agreement,) = scores(agreement=90.0)
        agreement |= {"low": 80.0, "high": 95.0}
    folder = RunFolder(path)
    folder.begin(recipe.dump(), {}, keep=False)
    record = RunRecord(
        schema=SCHEMA,
        version="0",
        created="2025-01-01T00:00:00+00:00",
        task=task,
        metrics=tuple(student),
        recipe=recipe.model_dump(mode="json"),
        student=ModelRecord("s", "0", 1_000_000, 4.0, "trained", 2.0),
        teacher=ModelRecord("t", "1", 2_000_000, 8.0, "its own", 3.0) if teacher else None,
        data={"reported": {"validation": {"n": 10, "fingerprint": fingerprint * 4}}},
        scores={
            "validation": {
                "student": scores(**student),
                "teacher": scores(**(teacher or {})),
                "agreement": agreement,
                **({"calibration": calibration} if calibration is not None else {}),
            }
        },
        training={"steps": 5, "seconds": 2.0, "examples": 20},
        environment={},
        seconds=3.0,
    )
    folder.write_record(record)
    return path


def cell(table, row, key):
    [found] = [each for each in table.rows if each.name == row]
    return found.cells[key]


def best(table, key):
    return [row.name for row in table.rows if key in row.cells and row.cells[key].best]


def evaluation(path, scores, absent=()):
    result = {"model": f"m/{path.stem}", "task": "lm", "split": "validation", "source": "d", "n": 10}
    tree = {"kind": "evaluation", "results": [{**result, "scores": scores, "absent": list(absent)}]}
    path.write_text(json.dumps(tree))
    return path


def calibrated(student, teacher):
    return {
        who: scores(ece=value)[0] | {"low": None, "high": None}
        for who, value in zip(("student", "teacher"), (student, teacher), strict=True)
    }
