"""``kdalign distill`` without ``--data``: teacher and data come from a hub, here a small one of our own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdalign.data.tasks import Examples
from support.hub_server import Hub, sha256
from support.tiny import save_model, sentences

TEACHER = "tests/tiny-teacher"
ROWS = {"train": 96, "validation": 40, "test": 8}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with GLUE and with teachers, some of them broken."""
    folder = tmp_path_factory.mktemp("hub")
    names = {0: "negative", 1: "positive"}
    main = save_model(folder / "main", "bert", id2label=names)
    other = save_model(folder / "other", "bert", seed=1, id2label=names)
    with Hub() as hub:
        hub.add("models", TEACHER, main)
        hub.add("models", TEACHER, other, revision="better")
        hub.add("models", "tests/sharded", sharded(main, folder / "sharded"))
        hub.add("models", "tests/only-pickles", without(main, folder / "only-pickles", "model.safetensors"))
        hub.add("models", "tests/no-tokenizer", without(main, folder / "no-tokenizer", "tokenizer"))
        hub.add("models", "tests/no-config", without(main, folder / "no-config", "config.json"))
        hub.add("datasets", "nyu-mll/glue", glue(folder / "glue", ["negative", "positive"]))
        hub.add("datasets", "tests/turned", glue(folder / "turned", ["positive", "negative"]))
        hub.add("datasets", "bentrevett/multi30k", pairs(folder / "multi30k"))
        hub.add("datasets", "wmt/wmt14", wmt(folder / "wmt14"))
        hub.add("datasets", "tests/script", script(folder / "script"))
        yield hub


def without(model: Path, folder: Path, start: str) -> Path:
    """A copy of a model without the files whose names start so, and with a pickle."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns(f"{start}*"))
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    return folder


def sharded(model: Path, folder: Path) -> Path:
    """The same model in several files, beside a pickle that nobody asks for."""
    from transformers import AutoModelForSequenceClassification

    without(model, folder, "model.safetensors")
    AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(folder, max_shard_size="60KB")
    return folder


def glue(folder: Path, names: list[str]) -> Path:
    """A data set laid out as ``nyu-mll/glue`` is, whose labels are numbered in the order of ``names``."""
    card = {"dataset_info": [], "configs": []}
    for config in ("cola", "sst2"):
        (folder / config).mkdir(parents=True)
        for number, (split, n) in enumerate(ROWS.items()):
            texts, labels = sentences(n, number)
            numbers = [names.index(("negative", "positive")[label]) for label in labels]
            table = {
                "sentence": texts,
                "label": [-1] * n if split == "test" else numbers,
                "idx": np.arange(n, dtype="int32"),
            }
            pd.DataFrame(table).to_parquet(folder / config / f"{split}-00000-of-00001.parquet", index=False)
        label = {"class_label": {"names": {str(number): name for number, name in enumerate(names)}}}
        columns = {"sentence": "string", "label": label, "idx": "int32"}
        card["dataset_info"].append(
            {
                "config_name": config,
                "features": [{"name": name, "dtype": dtype} for name, dtype in columns.items()],
                "splits": [{"name": split, "num_bytes": 1000, "num_examples": n} for split, n in ROWS.items()],
            }
        )
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in ROWS]
        card["configs"].append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# GLUE\n")  # YAML can be written as JSON
    return folder


def pairs(folder: Path) -> Path:
    """Multi30k as the hub has it: a line, a pair."""
    folder.mkdir()
    for number, split in enumerate(("train", "val", "test")):
        rows = [{"en": text, "de": text.upper()} for text in sentences(8, number)[0]]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def wmt(folder: Path) -> Path:
    """WMT as the hub has it: both texts of a pair in one column."""
    (folder / "de-en").mkdir(parents=True)
    for number, split in enumerate(("train", "validation")):
        rows = [{"translation": {"de": text.upper(), "en": text}} for text in sentences(6, number)[0]]
        pd.DataFrame(rows).to_parquet(folder / "de-en" / f"{split}-00000-of-00001.parquet", index=False)
    files = [{"split": split, "path": f"de-en/{split}-*"} for split in ("train", "validation")]
    card = {"configs": [{"config_name": "de-en", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return folder


def script(folder: Path) -> Path:
    """A data set of the old kind, a Python file."""
    folder.mkdir()
    (folder / "script.py").write_text("raise SystemExit('this was run')")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all commands of this module, empty before the first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def python(hub, cache, tmp_path_factory):
    """Run Python in a process of its own that knows no other hub, no proxy, and is not offline."""
    empty = tmp_path_factory.mktemp("empty")
    told = re.compile("(hf|huggingface|hugging_face|transformers|kdalign)_.*|.*_proxy", re.IGNORECASE)
    ours = {name: value for name, value in os.environ.items() if not told.fullmatch(name)} | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache / "hub"),
        "KDALIGN_CACHE": str(cache / "kdalign"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets counts loads at another address
        "RES_OPTIONS": "attempts:1 timeout:1",  # and looks for a host datasets-server.127.0.0.1, which is nowhere
        "OMP_NUM_THREADS": "1",
    }

    def run(*words, **changes):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, env=ours | changes, cwd=empty, capture_output=True, text=True, check=False)

    return run


def words(out, teacher):
    return [
        *("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2"),
        *("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--out", out),
    ]


@pytest.fixture
def one_thread():
    """As processes of their own have here: another number of threads has other last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def distill(python):
    """Run ``kdalign distill`` without ``--data``; returns the finished process."""

    def run(out, *more, teacher=TEACHER, **changes):
        return python("-m", "kdalign", *words(out, teacher), *more, **changes)

    return run


@pytest.fixture(scope="module")
def first(distill, tmp_path_factory):
    """The folder of a run that had nothing cached."""
    out = tmp_path_factory.mktemp("runs") / "first"
    done = distill(out)
    assert done.returncode == 0, done.stderr
    return out


def record_of(out: Path) -> dict:
    return json.loads((out / "record.json").read_text())


def test_teacher_and_data_come_from_the_hub(hub, first):
    record = record_of(first)
    assert record["teacher"]["source"] == TEACHER
    assert record["teacher"]["revision"] == hub.find("models", TEACHER, "main").commit
    assert record["teacher"]["megabytes"] > 0
    assert record["data"]["source"] == "nyu-mll/glue (sst2)"
    assert record["data"]["train"]["n"] == ROWS["train"]
    scores = record["scores"]["validation"]
    assert {score["n"] for score in (*scores["student"], *scores["teacher"])} == {ROWS["validation"]}


def test_the_hub_s_rows_arrive_as_they_are(first):
    data = record_of(first)["data"]
    for number, (split, kept) in enumerate((("train", data["train"]), ("validation", data["reported"]["validation"]))):
        texts, labels = sentences(ROWS[split], number)
        assert kept["fingerprint"] == Examples(split, (tuple(texts),), np.array(labels)).fingerprint()


def test_after_the_configuration_all_of_a_model_comes_from_the_commit_that_is_recorded(hub, first):
    asked = [request.split()[1] for request in hub.requests if f"/{TEACHER}/resolve/" in request]
    commit = record_of(first)["teacher"]["revision"]
    assert f"/{TEACHER}/resolve/{commit}/model.safetensors" in asked
    assert {path for path in asked if "/main/" in path} == {f"/{TEACHER}/resolve/main/config.json"}


@pytest.mark.slow
def test_once_everything_is_cached_nothing_is_asked_of_the_hub_offline(hub, first, distill, tmp_path):
    before = len(hub.requests)
    done = distill(tmp_path / "again", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == before
    again, once = record_of(tmp_path / "again"), record_of(first)
    assert again["teacher"]["revision"] == once["teacher"]["revision"]
    assert again["data"] == once["data"]
    assert (tmp_path / "again/student/model.safetensors").read_bytes() == (
        first / "student/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_revision_is_recorded_as_its_commit_and_its_weights_are_loaded(hub, first, distill, tmp_path):
    done = distill(tmp_path / "better", "--revision", "better", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    better = hub.find("models", TEACHER, "better")
    assert record_of(tmp_path / "better")["teacher"]["revision"] == better.commit
    assert better.commit != record_of(first)["teacher"]["revision"]
    assert f"GET /storage/{sha256(better.file('model.safetensors'))} 200" in hub.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("tests/nobody", "no model 'tests/nobody' here or on the hub"),
        pytest.param("tests/only-pickles", "'tests/only-pickles' has no model.safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_that_the_hub_lacks_gets_one_line_and_status_two_and_nothing_is_written(
    distill, tmp_path, teacher, said
):
    done = distill(tmp_path / "out", teacher=teacher)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


PROBES = """
import json
from kdalign.errors import UsageError
from kdalign.models.checkpoint_files import find_checkpoint, weights_megabytes
from kdalign.models.loading import load_any
from kdalign.models.tokenizer import load_tokenizer
from kdalign.data.tasks import find_task, load_examples
from kdalign.data.tasks.loading import split_exists
from kdalign.data.tasks.row_stream import RowReader, RowStream

def sst2(dataset, config="sst2"):
    return find_task("sst2", dataset=dataset, config=config)

def said(action):
    try:
        return action()
    except UsageError as error:
        return str(error)

def sharded():
    checkpoint = find_checkpoint("tests/sharded")
    return load_any(checkpoint).num_parameters(), weights_megabytes(checkpoint)

def streamed():
    reader = RowReader(RowStream(sst2("tests/turned", "cola").source, "train"))
    return [reader.read(40)["sentence"].tolist(), reader.read(90)["sentence"].tolist(), reader.seek(70),
            reader.read(9)[["sentence", "label"]].to_numpy().tolist(), reader.row]

print(json.dumps({
    "streamed": said(streamed),
    "sharded": said(sharded),
    "turned": said(lambda: load_examples(sst2("tests/turned"), "train").labels.tolist()),
    "splits": said(lambda: [split_exists(sst2("tests/turned").source, split) for split in ("test", "dev")]),
    "no tokenizer": said(lambda: load_tokenizer(find_checkpoint("tests/no-tokenizer"))),
    "unknown revision": said(lambda: find_checkpoint("tests/sharded", "better")),
    "no config": said(lambda: find_checkpoint("tests/no-config")),
    "unknown data": said(lambda: load_examples(sst2("tests/nothing"), "train")),
    "unknown config": said(lambda: load_examples(sst2("tests/turned", "sst3"), "train")),
    "unknown split": said(lambda: load_examples(sst2("tests/turned"), "dev")),
    "splits of nothing": said(lambda: split_exists(sst2("tests/nothing").source, "test")),
    "a script": said(lambda: load_examples(sst2("tests/script", None), "train")),
}))
"""


@pytest.fixture(scope="module")
def probes(python):
    done = python("-c", PROBES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_hub_s_labels_are_matched_by_name_not_by_number(probes):
    assert probes["turned"] == sentences(ROWS["train"], 0)[1]


def test_a_split_that_is_streamed_has_its_rows_in_order_from_any_row_on_and_is_not_downloaded(probes, cache):
    texts, labels = sentences(ROWS["train"], 0)
    names = [("negative", "positive")[label] for label in labels]
    rows = [list(row) for row in zip(texts, names, strict=True)]
    assert probes["streamed"] == [texts[:40], texts[40:], None, rows[70:79], 79]
    prepared = [file.parts for file in (cache / "hub" / "datasets").rglob("*.arrow")]
    assert any("sst2" in parts for parts in prepared)
    assert not any("cola" in parts for parts in prepared)


def test_a_model_in_several_files_is_loaded_and_weighed(hub, probes):
    files = list(hub.find("models", "tests/sharded", "main").folder.glob("*.safetensors"))
    assert len(files) > 1
    parameters, megabytes = probes["sharded"]
    assert megabytes == sum(file.stat().st_size for file in files) / 1e6
    assert 4 * parameters < 1e6 * megabytes < 6 * parameters


def test_splits_are_found_by_name(probes):
    assert probes["splits"] == [True, False]


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("no tokenizer", "model 'tests/no-tokenizer' has no tokenizer"),
        ("unknown revision", "better is not a valid git identifier"),
        ("no config", "'tests/no-config' holds no model: it has no config.json"),
        ("unknown data", "split 'train' of data set tests/nothing (sst2): Dataset 'tests/nothing' doesn't exist"),
        ("unknown config", "tests/turned (sst3): BuilderConfig 'sst3' not found. Available: ['cola', 'sst2']"),
        ("unknown split", "Should be one of ['train', 'validation', 'test']"),
        ("splits of nothing", "cannot list the splits of data set tests/nothing"),
        ("a script", "Dataset scripts are no longer supported"),
    ],
)
def test_a_hub_repository_that_cannot_be_used_is_named_in_one_line(probes, case, line):
    assert line in probes[case]
    assert "\n" not in probes[case]


def test_pickled_weights_are_not_even_asked_for(hub, first, probes):
    assert not [request for request in hub.requests if ".bin" in request]


TASKS = """
import json
from kdalign.data.tasks import find_task, load_texts
found = {}
for name in ("multi30k", "wmt14"):
    task = find_task(name)
    examples = load_texts(task, "validation")
    found[name] = [examples.texts[0][0], examples.texts[1][0], len(examples), task.language]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_shipped_tasks_find_their_pairs_on_the_hub(python):
    done = python("-c", TASKS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    text = sentences(8, 1)[0][0]
    assert found["multi30k"] == [text, text.upper(), 8, "de"]
    text = sentences(6, 1)[0][0]
    assert found["wmt14"] == [text.upper(), text, 6, "en"]


@pytest.mark.slow
def test_a_streamed_split_gives_the_student_of_the_same_rows_in_a_folder(distill, hub, kdalign, tmp_path, one_thread):
    whole = ("--max-steps", "8", "--batch-size", "16", "--no-profile")
    stream = (*whole, "--set", "data.streaming=true", "--set", "data.stream_rows=40")
    folder = tmp_path / "data"
    folder.mkdir()
    for number, (split, n) in enumerate(ROWS.items()):
        texts, labels = sentences(n, number)
        pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(folder / f"{split}.parquet")
    done = distill(tmp_path / "hub", *stream, HF_DATASETS_CACHE=str(tmp_path / "datasets"))
    assert done.returncode == 0, done.stderr
    status, _, err = kdalign(
        *words(tmp_path / "folder", hub.find("models", TEACHER, "main").folder), *stream, "--data", folder
    )
    assert status == 0, err
    assert {record_of(tmp_path / out)["training"]["stream"]["read"] for out in ("hub", "folder")} == {96 + 40}
    assert not list((tmp_path / "datasets").rglob("*.arrow")), "no split was downloaded and prepared as a whole"
    assert sha256(tmp_path / "hub/student/model.safetensors") == sha256(tmp_path / "folder/student/model.safetensors")
