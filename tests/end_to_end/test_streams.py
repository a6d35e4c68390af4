"""Runs on a stream: the steps of the rows as a whole, resumed anywhere, with errors and refusals in one line."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from kdalign.files import sha256
from kdalign.training import task_trainer
from support.commands import run_in, steps_of
from support.family_setting import model, tokenizer
from support.ranks import run
from support.streams import stream, write_rows
from support.tiny import make_tokenizer, one_line

WHOLE = ("--set", "data.streaming=false", "--set", "data.stream_rows=16384")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny GPT-2, a T5 and a BERT that predicts masked words, by their types."""
    folder = tmp_path_factory.mktemp("models")
    for kind, family in {"gpt2": "causal", "t5": "seq2seq", "bert": "masked"}.items():
        model(kind).save_pretrained(folder / kind)
        tokenizer(family).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def plain(teacher, tmp_path_factory):
    """A finished run on a stream of 250 rows of sst2, in segments of 100."""
    folder = tmp_path_factory.mktemp("plain")
    run_in(folder, *stream(teacher, write_rows(folder / "data", 250), folder / "run"))
    return folder / "run"


def weights(out):
    return sha256(Path(out) / "student" / "model.safetensors")


def losses(out):
    return [step["loss"] for step in steps_of(Path(out))]


def record_of(out):
    return json.loads((Path(out) / "record.json").read_text())


LANGUAGE = [
    ("gpt2", "lm:sentence"),
    pytest.param("bert", "lm:sentence", marks=pytest.mark.slow),
    pytest.param("t5", "translation:sentence-turned", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "task"), [(None, "sst2"), *LANGUAGE])
def test_a_stream_of_one_segment_is_an_epoch_of_the_whole(kdalign, teacher, models, tmp_path, kind, task):
    folder, allow = write_rows(tmp_path / "data", 130), ("--max-length", "32", "--allow", "weak-teacher")
    own, more = (teacher, ()) if kind is None else (models / kind, allow)
    for out, which in (("stream", ()), ("whole", WHOLE)):
        code, _, err = kdalign(*stream(own, folder, out, *more, *which, rows=131, task=task))
        assert code == 0, err
    assert losses("stream") == losses("whole")
    assert len(losses("stream")) == 24, "more than one pass"
    assert weights("stream") == weights("whole")


def test_the_first_segment_has_the_steps_of_its_rows_as_a_file(kdalign, teacher, tmp_path):
    long, short = write_rows(tmp_path / "long", 250), write_rows(tmp_path / "short", 250)
    lines = (short / "train.jsonl").read_text().splitlines(keepends=True)
    (short / "train.jsonl").write_text("".join(lines[:100]))
    assert kdalign(*stream(teacher, long, "of-long", "--set", "train.scheduler=constant"))[0] == 0
    assert kdalign(*stream(teacher, short, "of-short", *WHOLE, "--set", "train.scheduler=constant"))[0] == 0
    first = -(-100 // 16)
    assert losses("of-long")[:first] == losses("of-short")[:first]
    assert losses("of-long")[first] != losses("of-short")[first]


@pytest.mark.parametrize(("task", "ahead"), [("sst2", False), ("lm:sentence", True)])
def test_a_run_stopped_in_any_segment_goes_on_as_if_it_had_not(
    kdalign, stopped, teacher, models, tmp_path, monkeypatch, task, ahead
):
    monkeypatch.setattr(task_trainer, "prepares_ahead", lambda device: ahead)
    folder = write_rows(tmp_path / "data", 250)
    own, more = teacher, ()
    if task != "sst2":  # documents are packed into rows, and half of the steps are on the student's own texts
        on_policy = ("--on-policy", "0.5", "--set", "on_policy.max_new_tokens=4", "--set", "on_policy.prompt_tokens=4")
        own, more = models / "gpt2", ("--max-length", "24", "--allow", "weak-teacher", *on_policy)
    code, _, err = kdalign(*stream(own, folder, "plain", *more, task=task))
    assert code == 0, err
    places = {}
    for every in (7, 16, 20):  # at the end of a segment, in the third, and in the second pass
        words = stream(own, folder, f"at{every}", *more, "--set", f"train.checkpoint_every={every}", task=task)
        assert stopped(*words)[0] == 9
        progress = json.loads((tmp_path / f"at{every}/checkpoints/step-{every}/progress.json").read_text())
        places[every] = tuple(progress["stream"][name] for name in ("number", "passes", "begins"))
        code, _, err = kdalign("distill", "--out", f"at{every}", "--resume")
        assert code == 0, err
        assert losses(f"at{every}") == losses("plain")
        assert weights(f"at{every}") == weights("plain")
        assert record_of(f"at{every}")["training"]["stream"] == record_of("plain")["training"]["stream"]
    if task == "sst2":
        assert places == {7: (0, 0, 0), 16: (2, 0, 14), 20: (3, 1, 18)}


def test_the_end_of_a_stream_is_announced_once_and_the_record_says_what_was_read(kdalign, teacher, tmp_path):
    folder = write_rows(tmp_path / "data", 150)
    code, _, err = kdalign(*stream(teacher, folder, "run"))
    assert code == 0, err
    assert err.count("the stream ended after 150 rows, and begins again") == 1
    assert "stream: 400 rows were read, in 3 passes" in err
    record = record_of("run")
    read = {"segments": 5, "passes": 3, "read": 400, "examples": 150, "checked": 100}
    assert read.items() <= record["training"]["stream"].items()
    assert record["data"]["train"]["n"] == 150
    assert "see the first 100 rows alone" in record["data"]["checks"]["stream"]
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "the checks before the run saw its first 100 rows" in card
    code, out, err = kdalign("compare", "run", "--beside", "majority")
    assert "it needs all rows of train, which the run reads as a stream" in " ".join(f"{out} {err}".split())
    code, _, err = kdalign("eval", "run", "--split", "train")
    assert (code, "name another split" in one_line(err)) == (2, True)


def test_all_formats_and_a_packed_file_give_the_same_student(kdalign, teacher, plain, tmp_path):
    import gzip

    for kind in ("csv", "parquet"):
        folder = write_rows(tmp_path / kind, 250, kind)
        assert kdalign(*stream(teacher, folder, f"of-{kind}"))[0] == 0
    packed = write_rows(tmp_path / "packed", 250)
    (packed / "train.jsonl.gz").write_bytes(gzip.compress((packed / "train.jsonl").read_bytes()))
    (packed / "train.jsonl").unlink()
    assert kdalign(*stream(teacher, packed, "of-packed"))[0] == 0
    assert {weights(f"of-{kind}") for kind in ("csv", "parquet", "packed")} == {weights(plain)}


def test_a_budget_of_tokens_is_reached_in_the_middle_of_a_stream(kdalign, stopped, teacher, tmp_path):
    folder = write_rows(tmp_path / "data", 250)
    words = [word for word in stream(teacher, folder, "run") if word not in ("--max-steps", "24")]
    words += ["--max-tokens", "1500", "--set", "train.checkpoint_every=9"]
    assert kdalign(*words)[0] == 0
    training = record_of("run")["training"]
    last = steps_of(tmp_path / "run")[-1]
    assert 1500 <= training["tokens"] < 1500 + 16 * 13
    assert last["step"] == training["steps"] > 7
    assert stopped(*[word if word != "run" else "again" for word in words])[0] == 9
    assert kdalign("distill", "--out", "again", "--resume")[0] == 0
    assert weights("again") == weights("run")


def test_a_bad_row_of_a_later_segment_is_named_and_once_mended_the_run_goes_on(kdalign, teacher, plain, tmp_path):
    folder = write_rows(tmp_path / "data", 250)
    good = (folder / "train.jsonl").read_text()
    lines = good.splitlines(keepends=True)
    lines[230] = '{"sentence": null, "label": 1}\n'
    (folder / "train.jsonl").write_text("".join(lines))
    code, _, err = kdalign(*stream(teacher, folder, "run"))
    said = err.strip().splitlines()[-1]
    assert (code, "row 230 has no text in column 'sentence'; step 14 of 24 is saved" in said) == (1, True), err
    (folder / "train.jsonl").write_text(good)
    code, _, err = kdalign("distill", "--out", "run", "--resume")
    assert code == 0, err
    assert weights("run") == weights(plain)


def test_a_stream_whose_read_rows_changed_is_not_resumed(kdalign, stopped, teacher, tmp_path):
    folder = write_rows(tmp_path / "data", 250)
    assert stopped(*stream(teacher, folder, "run", "--set", "train.checkpoint_every=16"))[0] == 9
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    lines[205] = lines[1]
    (folder / "train.jsonl").write_text("".join(lines))
    code, _, err = kdalign("distill", "--out", "run", "--resume")
    assert code == 2
    assert "rows 200 to 249 are not as they were when the run read them" in err.splitlines()[-1]


REFUSED = {
    "no length": ([], "has no epochs: give --max-steps or --max-tokens"),
    "a limit": (["--max-steps", 2, "--limit", 9], "and --limit draws from all rows of train: leave one out"),
    "unlabelled": (["--max-steps", 2, "--unlabelled", "x.txt"], "and --unlabelled joins its texts"),
    "new texts": (
        ["--max-steps", 2, "--set", "data.augment.by=masked-lm", "--set", "data.augment.model=m"],
        "and data.augment.by=masked-lm writes new texts of all rows first",
    ),
    "the best": (["--max-steps", 2, "--select", "best"], "and --select best and --patience hold out a slice"),
    "patience": (["--max-steps", 2, "--patience", 2], "and --select best and --patience hold out a slice"),
    "a cache": (
        ["--max-steps", 2, "--cache", "kept"],
        "reads rows that are not known before training: leave out --cac",
    ),
    "one row": (["--max-steps", 2, "--set", "data.stream_rows=1"], "data.stream_rows"),
}


@pytest.mark.parametrize(("more", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_what_needs_all_rows_is_refused_before_anything_is_written(kdalign, teacher, data, tmp_path, more, said, dry):
    words = ["distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data]
    code, _, err = kdalign(*words, "--set", "data.streaming=true", *more, "--out", "run", *dry)
    assert code == 2, err
    assert said in one_line(err)
    assert not (tmp_path / "run").exists()


def test_several_tasks_in_one_student_and_a_teacher_without_a_head_are_refused(kdalign, teacher, data, tmp_path):
    words = ["--student", "layers=2", "--set", "data.streaming=true", "--max-steps", 2, "--out", "run"]
    code, _, err = kdalign("distill", "--teacher", teacher, "--task", "sst2,cola", "--multi-task", *words)
    assert (code, "and --multi-task divides the steps by the numbers of rows" in one_line(err)) == (2, True)
    from transformers import AutoModel

    AutoModel.from_pretrained(teacher).save_pretrained(tmp_path / "body")
    make_tokenizer(tmp_path / "body", "bert")
    code, _, err = kdalign("distill", "--teacher", tmp_path / "body", "--task", "sst2", "--data", data, *words)
    assert (code, "give a fine-tuned one" in one_line(err)) == (2, True)


def test_a_task_that_is_scored_on_its_streamed_split_is_refused(kdalign, teacher, tmp_path):
    """Its score would be that of the first segment."""
    folder = write_rows(tmp_path / "data", 250)
    task = {"name": "both", "columns": ["sentence"], "label": "label", "evaluation": ["validation", "train"]}
    task |= {"labels": ["negative", "positive"], "metrics": ["accuracy"], "data": str(folder)}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(task))
    words = stream(teacher, folder, "run", task=str(tmp_path / "both.yaml"))
    del words[words.index("--data") : words.index("--data") + 2]
    for dry in ((), ("--dry-run",)):
        code, _, err = kdalign(*words, *dry)
        assert (code, "is scored on 'train', too, which data.streaming=true never holds" in one_line(err)) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_took_all_steps_ends_without_its_stream(kdalign, stopped, teacher, tmp_path):
    """Its export alone is left, which reads no row of train beyond the first segment."""
    folder = write_rows(tmp_path / "data", 250)
    words = stream(teacher, folder, "run", "--set", "train.checkpoint_every=12")
    assert kdalign(*words)[0] == 0
    before = weights("run")
    (tmp_path / "run" / "record.json").unlink()
    shutil.rmtree(tmp_path / "run" / "student")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    lines[205] = lines[1]
    (folder / "train.jsonl").write_text("".join(lines))
    code, _, err = kdalign("distill", "--out", "run", "--resume")
    assert code == 0, err
    assert weights("run") == before


def test_a_dry_run_says_what_the_checks_saw(kdalign, teacher, tmp_path):
    folder = write_rows(tmp_path / "data", 250)
    code, out, err = kdalign(*stream(teacher, folder, "run", "--dry-run"))
    assert code == 0, err
    said = " ".join(out.split())
    assert "train is read 100 rows at a time" in said
    assert "see the first 100 rows alone" in said
    assert "100 in the first segment" in said


@pytest.mark.slow
def test_two_ranks_share_the_rows_of_a_stream(kdalign, teacher, tmp_path):
    folder = write_rows(tmp_path / "data", 250)
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0")
    torchrun += ("--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0")
    more = ("--set", "train.dropout=0")
    done = run([*torchrun, "-m", "kdalign", *stream(teacher, folder, "two", *more)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kdalign(*stream(teacher, folder, "one", *more))[0] == 0
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
    assert record_of("two")["training"]["ranks"] == 2
    assert record_of("two")["training"]["stream"] == record_of("one")["training"]["stream"]
