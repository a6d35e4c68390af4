"""Runs that read their teacher's outputs from a cache: the same curves, built once, and refused where they are not."""

import json

import pandas as pd
import pytest
import torch

from kdalign import distill
from kdalign.distillation import build
from kdalign.errors import UsageError
from kdalign.observer import NullObserver
from kdalign.recipe import build_recipe
from support import family_setting
from support.tiny import save_model, sentences

EXACT = {"cache.folder": "auto", "cache.states": "fp32"}


class Lines(NullObserver):
    def __init__(self):
        self.lines = []

    def announce(self, line):
        self.lines.append(line)

    def into(self, log):
        return self


def run(teacher, data, out, lines=None, /, **flags):
    basis = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    basis |= {
        "train.max_steps": 6,
        "train.batch_size": 32,
        "train.precision": "fp32",
        "train.device": "cpu",
        "train.eval_every": 99,
        "allow": ["weak-teacher"],
    }
    recipe = build_recipe(None, basis | {"train.samples": 0, "out": str(out)} | flags, ["train.dropout=0"])
    distill(recipe, lines or Lines())
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "step"]


@pytest.fixture(scope="module")
def pair(teacher, data, tmp_path_factory):
    """A run without a cache, one that builds it and one that finds it: losses, records, what was said, and the task."""
    out, tasks = tmp_path_factory.mktemp("pair"), []
    built = build.build_task
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KDALIGN_CACHE", str(out / "kept"))
        patched.setattr(
            "kdalign.distillation.pipeline.build_task",
            lambda *given: tasks.append((given[0], built(*given))) or tasks[-1][1],
        )
        said = {name: Lines() for name in ("online", "first", "again")}
        losses = {
            name: run(teacher, data, out / name, said[name], **(EXACT if name != "online" else {})) for name in said
        }
    records = {name: json.loads((out / name / "record.json").read_text()) for name in said}
    return losses, records, {name: lines.lines for name, lines in said.items()}, tasks[1]


def test_a_run_with_a_cache_has_the_curve_of_one_without_and_the_same_each_time(pair):
    losses, _, said, _ = pair
    assert losses["first"] == pytest.approx(losses["online"], rel=1e-5)
    assert losses["again"] == losses["first"]
    assert any("rows once" in line for line in said["first"])
    assert not any("rows once" in line for line in said["again"])


def test_training_with_a_cache_holds_no_weights_of_the_teacher(pair):
    *_, (loaded, task) = pair
    assert {parameter.device.type for parameter in loaded.teacher.model.parameters()} == {"meta"}
    assert not any(isinstance(value, torch.nn.Module) for value in vars(task.teacher).values())


def test_the_record_says_what_is_kept_and_counts_a_teacher_whose_weights_are_gone(pair):
    _, records, *_ = pair
    assert records["first"]["teacher"]["parameters"] == records["online"]["teacher"]["parameters"]
    facts = records["first"]["training"]["cache"]
    assert facts["states"] == "fp32"
    assert 0 < facts["rows"] <= 6 * 32 + 1
    assert facts["bytes_a_token"] == pytest.approx(facts["bytes"] / facts["tokens"])
    assert "cache" not in records["online"]["training"]


@pytest.mark.slow
def test_another_seed_and_batch_size_read_the_same_entries_and_add_what_is_missing(teacher, data, tmp_path):
    folder = tmp_path / "cache"
    named = {"cache.folder": str(folder)}
    lines = Lines()
    run(teacher, data, tmp_path / "a", lines, **named, **{"train.max_steps": 2})
    (line,) = [line for line in lines.lines if "rows once" in line]
    assert "64 of 64 rows" in line or "65 of 65 rows" in line, "its two steps' rows, and the first row"
    lines = Lines()
    run(
        teacher,
        data,
        tmp_path / "b",
        lines,
        **named,
        **{"train.seed": 3, "train.batch_size": 20, "train.max_steps": 13},
    )
    (line,) = [line for line in lines.lines if "rows once" in line]
    assert " of 256 rows" in line
    assert len(list(folder.glob("shard-*.safetensors"))) == 2


@pytest.mark.slow
def test_a_cache_of_another_teacher_is_refused_before_anything_is_written(teacher, data, tmp_path):
    named = {"cache.folder": str(tmp_path / "cache")}
    run(teacher, data, tmp_path / "a", **named)
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    other = save_model(tmp_path / "other", "bert", seed=9, **labels)
    with pytest.raises(UsageError, match=r"holds outputs of another teacher: .* there, .* here; give another --cache"):
        run(other, data, tmp_path / "b", **named)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UsageError, match=r"cache\.states is int8 here"):
        run(teacher, data, tmp_path / "c", **named, **{"cache.states": "int8"})
    with pytest.raises(UsageError, match=r"term 'embeddings' asks for embeddings:encoder"):
        run(teacher, data, tmp_path / "d", **named, **{"objective.embeddings": 0.5})
    assert not any((tmp_path / name).exists() for name in "cd")


@pytest.mark.slow
def test_a_damaged_cache_is_refused_and_mended_by_removing_the_file(teacher, data, tmp_path):
    named = {"cache.folder": str(tmp_path / "cache")}
    run(teacher, data, tmp_path / "a", **named)
    (shard,) = (tmp_path / "cache").glob("shard-*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + b"000000000")
    with pytest.raises(UsageError, match=f"{shard.name}.*damaged"):
        run(teacher, data, tmp_path / "b", **named)
    assert not (tmp_path / "b").exists()
    shard.unlink()
    lines = Lines()
    run(teacher, data, tmp_path / "c", lines, **named)
    assert any("rows once" in line for line in lines.lines)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"data.augment": {"by": "cutoff"}}, "changes rows in every epoch"),
        ({"align.map": "cka", "align.remap_every": 5}, "measures the teacher's layers during training"),
        ({"teacher": "openai:big", "data.task": "lm"}, "its answers are kept already"),
        ({"cache.keep": ("tokenz",)}, "no such output; did you mean 'tokens'"),
    ],
)
def test_what_no_cache_can_keep_is_refused(flags, why, teacher, data, tmp_path):
    with pytest.raises(UsageError, match=why):
        run(teacher, data, tmp_path / "a", **EXACT, **flags)
    assert not (tmp_path / "a").exists()


def test_a_language_model_keeps_its_likeliest_tokens_and_says_what_it_leaves_out(tmp_path):
    teacher, data = tmp_path / "teacher", tmp_path / "texts"
    family_setting.model("llama").save_pretrained(teacher)
    family_setting.tokenizer("causal").save_pretrained(teacher)
    data.mkdir()
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame({"text": sentences(24, number)[0]}).to_parquet(data / f"{split}.parquet")
    lines = Lines()
    flags = {"data.task": "lm", "data.max_length": 32, "train.batch_size": 4, "train.max_steps": 3}
    run(teacher, data, tmp_path / "run", lines, **flags, **{"cache.folder": "auto", "cache.tail": 0.5})
    facts = json.loads((tmp_path / "run" / "record.json").read_text())["training"]["cache"]
    (line,) = [line for line in lines.lines if "likeliest tokens are kept" in line]
    assert f"the {facts['top_k']} likeliest tokens are kept" in line
    assert facts["kept"] == ["tokens:1", "hidden:decoder.1", "hidden:decoder.3"]
    assert 0 < facts["mean_tails"]["1"] < 0.6
    assert facts["predictions"] == facts["tokens"], "every position of a packed row is predicted"
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert f"of tokens the {facts['top_k']} likeliest in fp16" in card
