"""Facts of a finished run for its record: its data, its training, its memory."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from kdalign.data.tasks.segments import first_place
from kdalign.distillation.checks import join_by_name
from kdalign.distillation.prepare import PreparedRun, teacher_role
from kdalign.distillation.tokenize import TokenizedRun
from kdalign.environment import peak_memory
from kdalign.training.checkpoint import TrainState
from kdalign.training.row_order import rows_read

_MACHINE = ("memory", "disk", "cache folder")
"""Checks of the machine, which are recorded only if the run was allowed to fail them."""


def data_facts(run: PreparedRun, texts: TokenizedRun, stream: Mapping[str, int]) -> dict[str, object]:
    """The run's splits, their sizes and fingerprints, and what was found of them; of a stream, what was read of it."""
    train = {
        "n": len(run.splits.train),
        "tokens": int(texts.labelled.lengths.sum()),
        "truncated": texts.labelled.truncated,
        "fingerprint": run.splits.train.fingerprint(),
    }
    if stream:  # the beginning alone is known before
        train |= {"n": stream["examples"], "tokens": stream["tokens"], "truncated": stream["truncated"]}
        train["fingerprint"] = f"stream that begins with {train['fingerprint']}"
    facts: dict[str, object] = {
        "source": str(run.task.source),
        "train": train,
        "watched": {"n": len(run.splits.watched), "from": run.watched_word},
        "reported": {
            split: {
                "n": len(run.splits.reported[split]),
                "truncated": e.truncated,
                "fingerprint": run.splits.reported[split].fingerprint(),
            }
            for split, e in texts.reported.items()
        },
    }
    if run.splits.unlabelled is not None and texts.unlabelled is not None:
        facts["unlabelled"] = {
            "source": run.splits.unlabelled.source,
            "n": len(run.splits.unlabelled.examples),
            "an_epoch": run.splits.unlabelled.an_epoch,
            "tokens": int(texts.unlabelled.lengths.sum()),
            "truncated": texts.unlabelled.truncated,
            "fingerprint": run.splits.unlabelled.examples.fingerprint(),
            "left_out": dict(run.splits.unlabelled.dropped),
        }
    if run.augmenting is not None:
        copies = {"n": 0, "tokens": 0}
        if texts.copies is not None:
            copies = {"n": len(texts.copies), "tokens": int(texts.copies.lengths.sum())}
        facts["augmented"] = {"model": run.augmenting.name, "revision": run.augmenting.hash, **copies}
    findings = [finding for finding in run.findings if finding.allowed or finding.what not in _MACHINE]
    facts["checks"] = join_by_name([*((finding.what, finding.said) for finding in findings), *run.folder.findings])
    if any(texts.overlaps):
        apart = {teacher_role(number): each.facts for number, each in enumerate(texts.overlaps) if each is not None}
        facts["tokenizers_by_teacher"] = apart
    return facts if texts.across is None else facts | {"tokenizers": texts.across.facts}


def describe_stream(stream: Mapping[str, Any]) -> str:
    """Say how much of a stream was read, and what was cut, left out or blank in its first pass."""
    passes = stream["passes"]
    said = f"stream: {stream['read']:,} rows were read, in {passes} pass{'es' * (passes > 1)}"
    kinds = {"truncated": "examples were cut", "passed_over": "were left out", "blank": "have a blank text"}
    return "; ".join([said, *(f"{stream[name]:,} {kind}" for name, kind in kinds.items() if stream[name])])


def memory_facts(run: PreparedRun, device: torch.device) -> dict[str, int]:
    """The run's measured and predicted peak of memory, in bytes, as far as they are known."""
    facts = {"peak": peak_memory(device), "predicted": run.memory.total if run.memory is not None else None}
    return {name: size for name, size in facts.items() if size is not None}


def training_facts(progress: TrainState, run: PreparedRun, accelerator: Accelerator) -> dict[str, Any]:
    """What was spent on training, and the exported step."""
    best = run.recipe.train.select == "best"
    stream = rows_read(progress.stream)
    if stream:
        stream["checked"] = first_place(run.task, run.splits.train).rows
    return {
        "ranks": accelerator.num_processes,
        "parallelism": progress.parallelism,
        "steps": progress.step,
        "exported_step": progress.best_step if best else progress.step,
        "examples": progress.examples,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        **({"sampled_tokens": progress.sampled} if progress.sampled else {}),
        **progress.speed,
        **({"stream": stream} if stream else {}),
        "terms": progress.parts,
    }
