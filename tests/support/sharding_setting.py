"""Runs of tiny models that several ranks share: recipes by name, and what one process and several make of them."""

import json
import os
import sys
from pathlib import Path
from weakref import ref

import pandas as pd
from accelerate import Accelerator

from kdalign import distill
from kdalign.distillation import build, memory
from kdalign.distillation.load import LoadedModels
from kdalign.distillation.teacher_source import computed_teacher
from kdalign.models.layouts import LAYOUTS
from kdalign.observer import NullObserver
from kdalign.recipe import Recipe
from support import family_setting
from support.served_setting import save_pair
from support.tiny import save_model, sentences

STEPS = 8
SERVER = "KDALIGN_TEST_SERVER"
"""Environment variable with the address of the server that recipes of served teachers ask."""


def make_inputs(folder: Path) -> None:
    """Write the teachers, a narrow student and the data of all recipes."""
    labelled, texts = folder / "labelled", folder / "texts"
    for made in (labelled, texts):
        made.mkdir(parents=True)
    for number, (split, n) in enumerate({"train": 60, "validation": 24}.items()):
        rows, labels = sentences(n, number)
        table = pd.DataFrame({"sentence": rows, "label": labels, "idx": range(n)})
        table.to_parquet(labelled / f"{split}.parquet")
        pd.DataFrame({"text": rows, "a": rows, "b": rows[::-1]}).to_parquet(texts / f"{split}.parquet")
    (folder / "pairs").mkdir()
    pd.DataFrame({"text": sentences(60, 0)[0]}).to_parquet(folder / "pairs" / "train.parquet")
    alike = {"sentence1": sentences(24, 1)[0], "sentence2": sentences(24, 2)[0], "label": [n % 5 for n in range(24)]}
    pd.DataFrame(alike).to_parquet(folder / "pairs" / "validation.parquet")
    names = {0: "negative", 1: "positive"}
    (folder / "bert").mkdir()
    (folder / "narrow").mkdir()
    (folder / "other").mkdir()
    save_model(folder / "bert", "bert", id2label=names)
    save_model(folder / "narrow", "bert", layers=2, width=24, heads=4, seed=1)
    save_model(folder / "other", "bert", layers=3, seed=2, id2label=names)
    save_pair(folder / "served")
    for kind in ("llama", "t5"):
        model = family_setting.model(kind)
        if kind == "llama":  # as SmolLM2, whose vocabulary's map is its embeddings
            model.config.tie_word_embeddings = True
            model.tie_weights()
        model.save_pretrained(folder / kind)
        family_setting.tokenizer(LAYOUTS[kind].family).save_pretrained(folder / kind)


def recipes(folder: Path) -> dict[str, dict]:
    """Recipes by name: families, and what else a sharded student or teacher must do."""
    labelled = {"task": ["sst2"], "folder": str(folder / "labelled")}
    texts = {"task": ["lm:text"], "folder": str(folder / "texts"), "max_length": 24}
    bert = {"teacher": str(folder / "bert"), "student": "layers=2", "data": labelled}
    llama = {"teacher": str(folder / "llama"), "student": "layers=2", "data": texts}
    t5 = {**llama, "teacher": str(folder / "t5"), "data": {**texts, "task": ["translation:a-b"]}}
    words = {"hard": 0.5, "alpha": 1, "beta": 1, "gamma": 0.5, "delta": 0.5, "embeddings": 0.5, "relations": 0.5}
    served = {
        "teacher": "openai:tiny",
        "student": str(folder / "served" / "student"),
        "data": {**texts, "folder": str(folder / "served" / "texts"), "max_length": 32},
        "objective": {"hard": 0.5},
        "served": {"base_url": os.environ.get(SERVER), "top_k": 8},
    }
    best = {"select": "best", "holdout": 0.2}
    narrow = {**bert, "student": str(folder / "narrow"), "train": {"gradient_checkpointing": True}}
    return {
        "bert": {**bert, "objective": {"gamma": 0.5, "relations": 0.5}, "train": best},
        "llama": {**llama, "objective": words, "train": {"samples": 2, "profile": True}},
        "rounded": {**llama, "objective": words, "train": {"precision": "bf16"}},
        "new": {**llama, "student": "new:gpt2,layers=2,width=32,heads=4", "objective": {"hard": 0.5}},
        "t5": {**t5, "objective": words, "train": {"samples": 1, "gradient_checkpointing": True}},
        "projections": {
            **narrow,
            "objective": {"balance": "uncertainty", "masked_lm": 0.5},
            "align": {"weights": "learned"},
        },
        "stages": {**bert, "objective": {"align_first": 0.5, "hard": 1, "alpha": 0}},
        "map": {**bert, "align": {"map": "cka", "remap_every": 3}},
        "adapters": {**bert, "train": {"lora": 4}},
        "own texts": {**llama, "objective": words, "on_policy": {"share": 0.5, "max_new_tokens": 6}},
        "teachers": {**bert, "teacher": [str(folder / "bert"), str(folder / "other")], "objective": {"beta": 0}},
        "cache": {**bert, "objective": {"beta": 0, "delta": 0}, "cache": {}},
        "sentences": {
            **bert,
            "student": str(folder / "narrow"),
            "data": {"task": ["embedding"], "folder": str(folder / "pairs")},
            "objective": {"terms": {"info-nce": {"weight": 0.5, "queue": 16}, "cka": {"weight": 0.1}}},
            "train": {"micro_batch": 6},  # a group is a micro-batch of all ranks
        },
        "stream": {**bert, "data": {**labelled, "streaming": True, "stream_rows": 20}},
        "served": served,
        "served own texts": {**served, "on_policy": {"share": 0.5, "max_new_tokens": 6}},
        "moments": {**bert, "train": {"optimizer_state": "bf16"}},
    }


def recipe(folder: Path, name: str, out: Path, **train: object) -> Recipe:
    """A recipe of the name, whose run is in ``out / name``."""
    given = recipes(folder)[name]
    if "cache" in given:
        given = {**given, "cache": {"folder": str(out / "kept")}}
    steps = {"max_steps": STEPS, "batch_size": 6, "micro_batch": 2, "dropout": 0, "device": "cpu", "precision": "fp32"}
    more = {"profile": False, "eval_every": 4, "checkpoint_every": 2, "samples": 0}
    return Recipe.model_validate(
        {
            **given,
            "train": {**steps, **more, **given.get("train", {}), **train},
            "out": str(out / name),
            "allow": ["weak-teacher", "memory"],
        }
    )


def events(run: Path, kind: str) -> list[dict]:
    """A run's events of a kind."""
    return [
        event for event in map(json.loads, (run / "history.jsonl").read_text().splitlines()) if event["kind"] == kind
    ]


def uncounted(*_: object) -> None:
    """Stand in for the count of a run's memory, which takes longer than its steps."""
    raise LookupError("not counted in this test")


class Announcing(NullObserver):
    """Prints what is announced."""

    def announce(self, line: str) -> None:
        print(line, flush=True)


def frees_what_it_rounds(loaded: LoadedModels, accelerator: Accelerator) -> object:
    """Bring the teachers to their precision, after which nothing holds those in float32 that were shared."""
    shared = [ref(next(each.model.parameters())) for each in loaded.teachers if each.shapes is not None]
    computed = computed_teacher(loaded, accelerator)
    assert all(each() is None for each in shared)
    return computed


def main() -> None:
    """On each rank: carry out recipes; words are folders of inputs and runs, ``resume`` or ``begin``, and names."""
    folder, out, what, *names = sys.argv[1:]
    memory._trace = uncounted
    build.computed_teacher = frees_what_it_rounds
    Accelerator.end_training = lambda _: None  # after which ranks are not connected any more
    for name in names:
        # Ranks that are connected already may find what the first one has written.
        resume = what == "resume"
        distill(
            recipe(Path(folder), name, Path(out), sharding="fsdp2"), Announcing(), resume=resume, overwrite=not resume
        )
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
