"""What is prepared of a run before anything is loaded."""

from dataclasses import replace

from kdalign.distillation.prepare import prepare
from kdalign.recipe import build_recipe


def test_a_saved_plan_keeps_no_statistics_of_the_teacher_that_it_was_made_for(teacher, data, tmp_path):
    flags = {
        "teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data),
        "out": str(tmp_path / "run"),
    }  # fmt: skip
    plan = prepare(build_recipe(None, flags)).plan
    measured = plan.with_statistics({f"variance/{layer}": 2.0 for layer in plan.teaching})
    assert measured.statistics
    file = tmp_path / "plan.json"
    file.write_text(measured.to_json())
    again = prepare(build_recipe(None, {**flags, "align.plan": str(file)})).plan
    assert replace(again, statistics=measured.statistics) == replace(measured, chosen=again.chosen)
    assert not again.statistics
