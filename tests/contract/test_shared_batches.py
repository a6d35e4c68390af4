"""Ranks share what models read: scores, predictions, texts and caches are those of one process, byte for byte."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.devices import make_accelerator
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import generate
from kdalign.evaluation.predictions import embed
from kdalign.models.architecture import blocks
from kdalign.models.layouts import LAYOUTS
from kdalign.models.sharding import needs_every_rank
from kdalign.observer import no_progress
from kdalign.teachers.cache_files import CacheFolder, CacheIndex
from support.answering_server import answering_server
from support.family_setting import model, tokenizer
from support.logprob_server import logprob_server
from support.ranks import run
from support.tiny import sentences

pytestmark = pytest.mark.slow

TORCHRUN = ("-m", "torch.distributed.run", "--master_port", "0", "--rdzv_backend", "c10d",
            "--rdzv_endpoint", "localhost:0", "--nproc_per_node")  # fmt: skip
DEVICE = ("--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Models of every family, pairs to translate, and enough texts for several batches."""
    root = tmp_path_factory.mktemp("root")
    families = {"gpt2": "causal", "bert": "masked", "xlnet": "permutation", "t5": "seq2seq"}
    for kind, family in families.items():
        model(kind).save_pretrained(root / kind)
        tokenizer(family).save_pretrained(root / kind)
    (root / "pairs").mkdir()
    for number, split in enumerate(("train", "validation")):
        pairs = {"en": sentences(70, number)[0], "de": sentences(70, number + 2)[0]}
        pd.DataFrame(pairs).to_parquet(root / f"pairs/{split}.parquet")
    (root / "many").mkdir()
    for number, (split, n) in enumerate({"train": 1200, "validation": 40}.items()):
        texts, labels = sentences(n, number)
        pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(root / f"many/{split}.parquet")
    return root


def launch(size, words, folder, status=0):
    """Run a command in a folder of its own, by one process or by several."""
    folder.mkdir(exist_ok=True)
    done = run([*((*TORCHRUN, str(size)) if size > 1 else ()), "-m", "kdalign", *map(str, words)], cwd=folder)
    assert done.returncode == status, done.stderr
    return done


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


EVALUATIONS = {
    "classes": (2, "{teacher} --task sst2 --data {data} --metrics accuracy,f1,ece --noise typos=0.2"),
    "words for classes": (2, "{root}/gpt2 --task sst2 --data {data} --metrics accuracy --max-length 64 --shots 1"),
    "continuations": (3, "{root}/gpt2 {root}/bert {root}/xlnet --task lm:sst2 --data {data} --max-length 24 "
                         "--limit 120 --metrics ppl,bits_per_byte,bleu,rouge,cer"),
    "answers": (2, "{root}/t5 --task translation:en-de --data {root}/pairs --max-length 24 --new-tokens 8 --beams 2 "
                   "--metrics ppl,bleu,cer"),
}  # fmt: skip


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_is_that_of_one_process(name, root, teacher, data, tmp_path):
    size, words = EVALUATIONS[name]
    words = words.format(root=root, teacher=teacher, data=data).split()
    if str(data) in words:
        words += ["--split", "train"]  # 256 rows, four batches
    command = ["eval", *words, *DEVICE, "--out", "scores.json"]
    one, several = (launch(number, command, tmp_path / str(number)) for number in (1, size))
    assert one.stdout == several.stdout, "only the first rank shows it"
    found = files_of(tmp_path / str(size))
    assert found == files_of(tmp_path / "1")
    assert [name for name in found if name.endswith(".parquet")]


def test_a_row_of_one_rank_that_gives_nan_ends_all_ranks_with_one_line(root, data, tmp_path):
    broken = model("gpt2")
    words = broken.get_input_embeddings().weight
    broken.lm_head.weight = torch.nn.Parameter(words.detach().clone())
    broken.config.tie_word_embeddings = False
    pieces = tokenizer("causal")
    [rare] = set(pieces("7", add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        words[rare] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    pieces.save_pretrained(tmp_path / "broken")
    (tmp_path / "texts").mkdir()
    texts = sentences(300, 1)[0]
    for bad in (0, 1):  # the longest row is in the first batch, of rank 0; the shortest in the second, of rank 1
        rows = [*texts, "7 " + " ".join(texts[:2]) if bad == 0 else "7"]
        for split in ("train", "validation"):
            pd.DataFrame({"text": rows}).to_parquet(tmp_path / "texts" / f"{split}.parquet")
        command = ["eval", tmp_path / "broken", "--task", "lm:text", "--data", tmp_path / "texts"]
        command += ["--max-length", 24, "--metrics", "ppl", *DEVICE, "--out", "scores.json"]
        done = launch(2, command, tmp_path / str(bad), status=1)
        lines = [line for line in done.stderr.splitlines() if line.startswith("kdalign: error")]
        assert len(lines) == 2
        assert len(set(lines)) == 1
        assert "gives NaN" in lines[0]
        assert not list((tmp_path / str(bad)).rglob("*.parquet"))


def test_answers_are_generated_once_whatever_the_number_of_ranks_that_go_on(root, tmp_path):
    command = ["generate", "--teacher", root / "t5", "--task", "translation:en-de", "--data", root / "pairs", *DEVICE]
    command += ["--out", "out", "--max-length", 24, "--new-tokens", 6, "--batch-size", 8, "--keep", "any-end"]
    command += ["--samples", 2]
    launch(1, command, tmp_path / "one")
    launch(2, command, tmp_path / "several")
    # As a kill leaves it: some answers, and half of one.
    out = tmp_path / "several/out"
    answers = out / "generation/answers.jsonl"
    assert answers.read_bytes() == (tmp_path / "one/out/generation/answers.jsonl").read_bytes()
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:40]) + lines[40][:9])
    (out / "generation.json").unlink()
    (out / "train.parquet").unlink()
    launch(3, command, tmp_path / "several")
    one, several = files_of(tmp_path / "one/out"), files_of(out)
    records = [json.loads(files.pop("generation.json")) for files in (one, several)]
    assert one == several
    assert [record.pop("known_before") for record in records] == [0, 40]
    assert [record.pop("seconds") > 0 for record in records] == [True, True]
    seals = [record.pop("seal") for record in records]
    assert seals[0] != seals[1], "of all that is in a record, these two, too"
    assert records[0] == records[1]
    assert "complete already" in launch(2, command, tmp_path / "several").stderr


def test_a_server_is_asked_by_the_first_rank_alone(root, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering_server(lambda body: (body["prompt"].upper(), "stop")) as server:
        command = ["generate", "--teacher", "openai:m", "--base-url", server.url, "--task", "translation:en-de"]
        command += ["--data", root / "pairs", "--limit", 9, "--out", "out"]
        launch(2, command, tmp_path / "here")
        assert (
            len(server.asked) == json.loads((tmp_path / "here/out/generation.json").read_text())["prompts"]["different"]
        )


LEAVING = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print("inside" if dist.is_initialized() else "left", flush=True))
from kdalign.devices import make_accelerator
make_accelerator("cpu").wait_for_everyone()
"""


def test_ranks_leave_their_group_as_they_end(tmp_path):
    (tmp_path / "script.py").write_text(LEAVING)  # what is registered first runs last
    done = run([*TORCHRUN, "2", tmp_path / "script.py"])
    assert (done.returncode, done.stdout.split()) == (0, ["left", "left"]), done.stderr


def test_a_served_teacher_that_is_refused_ends_all_ranks_with_its_line(root, data, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with logprob_server(model("gpt2"), tokenizer("causal"), protocols=()) as server:
        command = ["distill", "--teacher", "openai:tiny", "--base-url", server.url, "--student", root / "gpt2"]
        command += ["--task", "lm:sst2", "--data", data, "--max-length", 24, *DEVICE, "--out", "run"]
        done = launch(2, command, tmp_path / "here", status=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("kdalign: error")]
    assert len(lines) == 2
    assert "another process" not in done.stderr
    assert "texts that it writes can be learned from" in lines[0] == lines[1]
    assert not (tmp_path / "here" / "run").exists()


@pytest.mark.parametrize(("kind", "size"), [("classes", 2), ("tokens", 3)])
def test_all_scores_of_a_run_are_those_of_one_process(kind, size, root, data, teacher, tmp_path, monkeypatch):
    who = (teacher, "sst2") if kind == "classes" else (root / "gpt2", "lm:sst2")
    command = ["distill", "--teacher", who[0], "--task", who[1], "--data", data, "--student", "layers=2"]
    command += ["--max-steps", 4, "--eval-every", 2, "--batch-size", 16, "--max-length", 24, "--precision", "fp32"]
    command += [*DEVICE, "--out", "run", "--allow", "weak-teacher"]
    command += [
        "--lr",
        1e-30,
        "--set",
        "train.dropout=0",
    ]  # so small that every number of ranks ends in the same weights
    kept = {}
    for number in (1, size):
        folder = tmp_path / str(number)
        monkeypatch.setenv("KDALIGN_CACHE", str(folder / "cache"))
        launch(number, command, folder)
        record = json.loads((folder / "run/record.json").read_text())
        events = [json.loads(line) for line in (folder / "run/history.jsonl").read_text().splitlines()]
        results = [file for name in ("predictions", "samples") for file in (folder / "cache" / name).glob("*.safe*")]
        kept[number] = {
            "scores": record["scores"],
            "samples": record["samples"],
            "events": [event for event in events if event["kind"] not in ("step", "gradients")],
            "predictions": files_of(folder / "run/predictions"),
            "cache": {file.name: file.read_bytes() for file in results},
        }
        assert record["training"]["ranks"] == number
    assert kept[1] == kept[size]
    assert sum(event["kind"] == "evaluation" for event in kept[1]["events"]) == 3
    assert len(kept[1]["cache"]) == (3 if kind == "classes" else 5)
    assert bool(kept[1]["samples"]) == (kind == "tokens")


def test_a_cache_holds_each_row_once_and_the_same_values_whatever_the_number_of_ranks(root, teacher, tmp_path):
    def build(size, folder):
        words = ["cache", "build", "--teacher", teacher, "--student", "layers=2", "--task", "sst2"]
        words += ["--data", root / "many", "--precision", "fp32", *DEVICE, "--out", folder, "--set", "cache.logs=fp32"]
        words += ["--set", "cache.states=fp32", "--max-length", 32, "--json"]
        return json.loads(launch(size, words, tmp_path).stdout)

    def rows_of(folder):
        index = CacheIndex(CacheFolder(folder))
        found = {key: index.read(key, arrays_of(folder)) for key in index.keys}
        assert len(found) == len(index), "each row once"
        return found

    facts = {size: build(size, tmp_path / f"kept-{size}") for size in (1, 2, 3)}
    one = rows_of(tmp_path / "kept-1")
    assert len(one) == facts[1]["rows"] == facts[2]["rows"] == facts[3]["rows"] > 1000
    shards = {size: len(CacheFolder(tmp_path / f"kept-{size}").files) for size in facts}
    assert shards == {1: 1, 2: 2, 3: 3}, "each rank writes its own"
    # As kills leave it: one rank's shard was written, the others' were not.
    shutil.copytree(tmp_path / "kept-3", tmp_path / "stopped")
    for file in CacheFolder(tmp_path / "stopped").files[1:]:
        file.unlink()
    build(2, tmp_path / "stopped")
    for folder in ("kept-2", "kept-3", "stopped"):
        rows = rows_of(tmp_path / folder)
        assert rows.keys() == one.keys()
        for key, arrays in one.items():
            assert arrays.keys() == rows[key].keys()
            assert all(torch.equal(values, rows[key][name]) for name, values in arrays.items()), folder


def arrays_of(folder):
    """Names of the arrays of a cache's shards."""
    from safetensors import safe_open

    names = set()
    for file in CacheFolder(folder).files:
        with safe_open(str(file), framework="pt") as shard:
            names |= {name for name in shard.keys() if not name.startswith("lines of ") and name != "row keys"}
    return sorted(names)


SHARDED = ("bert", "gpt2", "t5")


def test_a_model_that_is_sharded_over_ranks_is_read_in_step():
    done = run([*TORCHRUN, "3", str(Path(__file__).resolve())])
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.endswith("same")] == [f"{kind}: same" for kind in SHARDED]


def compare_sharded() -> None:
    """On each of three ranks: what a model gives before and after it is sharded, in five batches."""
    accelerator = make_accelerator("cpu")
    texts = sentences(20, 3)[0]
    for kind in SHARDED:
        pieces, net = tokenizer(LAYOUTS[kind].family), model(kind)
        net = net.base_model if kind == "bert" else net
        rows = TokenizedSplit({"input_ids": pieces(texts)["input_ids"]}, None, {"input_ids": pieces.pad_token_id})
        settings = GenerationSettings(new_tokens=7, rows=4, max_length=24)

        def read(net=net, pieces=pieces, rows=rows, settings=settings, kind=kind):
            if kind == "bert":
                return embed(net, rows, batch_size=4)
            return generate(net, pieces, [GenerationCase(text, ("",)) for text in texts], settings, no_progress)[0]

        expected = read()
        assert not needs_every_rank(net)
        mesh = init_device_mesh("cpu", (accelerator.num_processes,))
        for layer in dict.fromkeys(blocks(net).values()):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        assert needs_every_rank(net)
        with torch.no_grad():  # the first forward is of the whole model
            net(torch.ones(1, 1).long(), **({"decoder_input_ids": torch.ones(1, 1).long()} if kind == "t5" else {}))
        assert np.array_equal(read(), expected), kind
        if accelerator.is_main_process:
            print(f"{kind}: same", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    compare_sharded()
