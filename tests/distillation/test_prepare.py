"""What is prepared of a run before anything is loaded."""

import shutil
from dataclasses import replace

from transformers import AutoModel

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


def test_a_sharded_teacher_is_loaded_whole_where_it_runs_by_itself_first(teacher, data, tmp_path):
    headless = shutil.copytree(teacher, tmp_path / "headless")
    AutoModel.from_pretrained(teacher).save_pretrained(headless)

    def loads_in_shards(**more):
        flags = {
            "teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data),
            "out": str(tmp_path / "run"), "train.sharding": "fsdp2",
        }  # fmt: skip
        return prepare(build_recipe(None, flags | more)).loads_in_shards

    assert loads_in_shards()
    assert loads_in_shards(student="layers=2,width=16", init="random"), "nothing is measured"
    for alone in (
        {"train.sharding": "none"}, {"teacher": str(headless)}, {"student": "layers=2,width=16"},
        {"cache.folder": str(tmp_path / "kept")},
    ):  # fmt: skip
        assert not loads_in_shards(**alone), alone
