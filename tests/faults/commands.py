"""The commands that write, on tiny models, and what of their results must be the same whatever happened meanwhile."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROWS = {"train": 48, "validation": 24}
STEPS = 12
_FEW = ("--batch-size", "8", "--precision", "fp32", "--device", "cpu")


@dataclass(frozen=True)
class Command:
    """A command that writes into ``out`` in its working folder.

    Attributes:
        name: its name in tables.
        words: the words after ``kdalign``.
        facts: reads what must be the same of a working folder: hashes and numbers by name.
        resumes: True if ``--resume`` resumes it; else the same command does.
        ranks: number of processes that share it.
        served: True if it asks a server, whose URL takes the place of ``URL``.
        endless: True if its work is shared by processes, so that a second one waits instead of being refused.
    """

    name: str
    words: tuple[str, ...]
    facts: Callable[[Path], dict[str, Any]]
    resumes: bool = False
    ranks: int = 1
    served: bool = False
    endless: bool = False

    def at(self, url: str) -> "Command":
        """The command with the URL of its server."""
        return replace(self, words=tuple(url if word == "URL" else word for word in self.words))


def save_inputs(folder: str) -> None:
    """Save the models and the data that the commands read."""
    import pandas as pd

    from support import family_setting
    from support.tiny import save_model, sentences

    root = Path(folder)
    labels = {0: "negative", 1: "positive"}
    save_model(root / "teacher", "bert", id2label=labels)
    save_model(root / "student", "bert", layers=2, width=24, seed=1, id2label=labels)
    family_setting.model("llama").save_pretrained(root / "writer")
    family_setting.tokenizer("causal").save_pretrained(root / "writer")
    for name in ("films", "pairs"):
        (root / name).mkdir()
    for seed, (split, rows) in enumerate(ROWS.items()):
        texts, labels_ = sentences(rows, seed)
        rows_of = {"sentence": texts, "label": labels_, "idx": range(rows)}
        pd.DataFrame(rows_of).to_parquet(root / "films" / f"{split}.parquet")
        pairs = {"id": range(rows), "en": texts, "de": sentences(rows, 9 + seed)[0]}
        (root / "pairs" / f"{split}.jsonl").write_text(pd.DataFrame(pairs).to_json(orient="records", lines=True))


def commands(inputs: Path) -> dict[str, Command]:
    """The commands by name, on the inputs in a folder."""
    teacher, student, writer = (str(inputs / name) for name in ("teacher", "student", "writer"))
    films, pairs = ("--data", str(inputs / "films")), ("--data", str(inputs / "pairs"))
    task = ("--task", "sst2", *films)
    steps = ("--max-steps", str(STEPS), "--set", "train.eval_every=4", "--set", "train.checkpoint_every=3")
    train = ("--teacher", teacher, "--student", student, *task, *_FEW, *steps, "--no-profile")
    distill = ("distill", *train, "--set", "objective.beta=0.05", "--out", "out")
    arms = ("--arms", "labels,soft", "--seeds", "1", "--no-profile", "--out", "out")
    ablate = ("ablate", "--teacher", teacher, "--student", student, *task, *_FEW, *steps, *arms)
    evaluate = ("eval", student, teacher, *task, "--device", "cpu", "--noise", "typos=0.1", "--out", "out/scores.json")
    cached = ("--task", "sst2", *films, "--precision", "fp32", "--device", "cpu")
    build = ("cache", "build", "--teacher", teacher, "--student", "layers=2", *cached, "--out", "out")
    translated = ("--task", "translation:en-de", *pairs, "--new-tokens", "6", "--keep", "any-end", "--out", "out")
    generate = ("generate", "--teacher", writer, *translated, "--batch-size", "4", "--device", "cpu")
    asked = ("generate", "--teacher", "openai:tiny", "--base-url", "URL", *translated)
    questioned = ("eval", "openai:tiny", "--base-url", "URL", "--task", "translation:en-de", *pairs)
    found = [
        Command("distill", distill, facts_of_run, resumes=True),
        Command("ablate", ablate, facts_of_ablation),
        Command("eval", evaluate, facts_of_scores),
        Command("cache build", build, facts_of_cache, endless=True),
        Command("generate", generate, facts_of_generated),
        Command("distill on 2 ranks", distill, facts_of_run, resumes=True, ranks=2),
        Command("generate by a server", asked, facts_of_generated, served=True),
        Command("eval of a server", (*questioned, "--out", "out/scores.json"), facts_of_scores, served=True),
    ]
    return {command.name: command for command in found}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _files(folder: Path, left_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Hashes of a folder's files; of JSON that of what it says, which a lost newline at its end does not change."""
    return {
        str(file.relative_to(folder)): _hash(_said(file) if file.suffix == ".json" else file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(left_out)
    }


def _said(file: Path) -> bytes:
    try:
        return json.dumps(json.loads(file.read_bytes())).encode()
    except ValueError:  # damaged
        return file.read_bytes()


_TIMED = ("record.json", "log.txt", "log.1.txt", "README.md")
"""Files of a run with times."""


def facts_of_run(folder: Path) -> dict[str, Any]:
    """Weights, projections, history, plan and predictions by their bytes, all files by name, and the scores."""
    out = folder / "out"
    record = json.loads((out / "record.json").read_text())
    files = {name: digest for name, digest in _files(out, _TIMED).items() if not name.startswith("checkpoints")}
    return {**files, "scores": record["scores"], "names": sorted(record["files"])}


def facts_of_ablation(folder: Path) -> dict[str, Any]:
    """Scores, predictions and evaluations that are kept of each run, and its weights and history."""
    from kdalign.errors import UsageError
    from kdalign.runs.archive import read_all_archived
    from kdalign.runs.integrity import read_whole

    out, facts = folder / "out", dict[str, Any](changed="")
    for run in read_all_archived(out):
        answers = {
            f"{split}/{name}": _hash(values.tobytes())
            for split, columns in run.answers.items()
            for name, values in columns.items()
        }
        facts[run.trial.name] = [run.record.to_json()["scores"], answers, run.watched, dict(run.inputs)]
        own = _files(folder / str(run.trial.recipe.out), _TIMED)
        try:
            read_whole(folder / str(run.trial.recipe.out))
        except UsageError as error:  # the ablation needs its folder no more; whoever reads it is told
            facts["changed"] = str(error)
        facts |= {f"{run.trial.name}/{name}": digest for name, digest in own.items()}
    return facts


def facts_of_scores(folder: Path) -> dict[str, Any]:
    """Scores, and the predictions and texts behind them; not a server's kept answers, which come in any order."""
    tree = json.loads((folder / "out/scores.json").read_text())
    results = [{key: value for key, value in one.items() if key not in _OF_REQUESTS} for one in tree["results"]]
    return {"results": results, **_files(folder / "out", ("scores.json", "served.jsonl"))}


_OF_REQUESTS = ("served", "api", "usage", "notes")


def facts_of_cache(folder: Path) -> dict[str, Any]:
    """Each row's arrays by their bytes: how rows are spread over shards is free."""
    from kdalign.teachers.cache_files import CacheFolder, CacheIndex

    cache = CacheFolder(folder / "out")
    cache.check()
    index = CacheIndex(cache)
    names = {name for shard in index._shards for name in shard._names}
    facts: dict[str, Any] = {"rows": len(index), "meta": cache.meta}
    for key in index.keys:
        arrays = index.read(key, sorted(names)) or {}
        facts[key.hex()] = _hash(b"".join(_bytes_of(arrays[name]) for name in sorted(arrays)))
    return facts


def _bytes_of(values: Any) -> bytes:
    """The bytes of a tensor, whatever its type."""
    import torch

    return bytes(values.contiguous().view(torch.uint8).numpy().tobytes())


def facts_of_generated(folder: Path) -> dict[str, Any]:
    """The splits by their bytes, and the record but for what tells of requests and time."""
    out = folder / "out"
    record = json.loads((out / "generation.json").read_text())
    left_out = ("known_before", "seconds", "teacher", "seal")
    kept = {name: value for name, value in record.items() if name not in left_out}
    command = json.loads((out / "generation/command.json").read_text())
    return {
        **_files(out, ("generation.json", "command.json", "answers.jsonl", "served.jsonl")),
        **kept,
        "command": command,
    }


def read_facts(command: str, inputs: str, folder: str) -> Mapping[str, Any]:
    """The facts of a working folder, by the name of its command."""
    return commands(Path(inputs))[command].facts(Path(folder))
