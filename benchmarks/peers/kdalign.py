"""Train by kdalign's own loop, with its defaults for the task but the batch size.

Variants: ``joint`` distills a classifier; ``cached`` reads the teacher's outputs from a cache, which is filled before
the clock starts; ``alone`` fine-tunes the same student without a teacher; ``embedding`` and ``embedding-layers``
distill an encoder's embeddings, without and with its layers; ``language`` distills a language model.
"""

import json
from pathlib import Path
from typing import Any

from kdalign.environment import set_thread_defaults

set_thread_defaults()  # before torch is loaded, as the command line does

import tempfile  # noqa: E402
import time  # noqa: E402

from benchmarks.on_policy import Pair, kdalign_steps  # noqa: E402
from benchmarks.peers.encoder import BATCH, CLIP, DECAY, LENGTH, RATE, accuracy_of  # noqa: E402
from benchmarks.peers.meter import Enough, Job, Meter  # noqa: E402
from benchmarks.settings import PAIR_SHAPE  # noqa: E402
from benchmarks.step import begin_training  # noqa: E402
from kdalign.recipe import build_recipe  # noqa: E402
from kdalign.training.step import settings_of_steps  # noqa: E402

STEPS = 10**6
"""Length of the run that the steps are taken from; the learning rate is constant."""


def flags_of(job: Job, folder: str) -> dict[str, Any]:
    """Return a variant's recipe as flags."""
    layers = json.loads((Path(job.student) / "config.json").read_text())["num_hidden_layers"]
    flags = {
        "teacher": job.teacher, "student": f"layers={layers}", "data.task": "sst2", "data.folder": job.data,
        "data.max_length": LENGTH, "train.batch_size": BATCH, "train.lr": RATE, "train.weight_decay": DECAY,
        "train.clip": CLIP, "train.scheduler": "constant", "train.warmup": 0.0, "train.max_steps": STEPS,
        "train.seed": job.seed, "train.profile": False, "train.eval_every": STEPS, "train.checkpoint_every": STEPS,
        "out": f"{folder}/run",
    }  # fmt: skip
    if job.variant == "cached":
        flags |= {"cache.folder": f"{job.scratch}/kdalign-cache"}
    if job.variant == "alone":
        flags |= {"teacher": "none", "student": job.student}
    if job.variant.startswith("embedding"):
        flags |= {"data.task": "embedding", "data.folder": f"{job.data}/pairs"}
    if job.variant == "embedding":
        flags |= {"objective.beta": 0.0, "objective.gamma": 0.0, "objective.delta": 0.0}
    return flags


def train_encoder(job: Job) -> None:
    """Train a classifier or an encoder, and tell what was measured."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:
        trainer, models, _ = begin_training(build_recipe(None, flags_of(job, folder)), STEPS)
        prepared = time.perf_counter() - begun
        progress = trainer.progress
        scores = None if job.variant.startswith("embedding") else accuracy_of(job, models.student)
        meter = Meter(job, lambda: (progress.examples, progress.tokens), scores)
        with settings_of_steps(trainer.accelerator.device):
            take(meter, lambda: trainer._take_step(False))
        meter.tell("bf16" if models.opened.bf16 else "fp32", preparing_seconds=prepared)


def train_language(job: Job) -> None:
    """Train a language model, and tell what was measured."""
    pair = Pair(job.teacher, job.student, *PAIR_SHAPE)
    meter = Meter(job, lambda: (meter.steps * pair.rows, meter.steps * pair.rows * pair.length))
    with kdalign_steps(pair, "off-policy", STEPS) as step:
        take(meter, step)
    meter.tell("bf16")


def take(meter: Meter, step: Any) -> None:
    """Take steps until all is measured."""
    try:
        while True:
            step()
            meter.stepped()
    except Enough:
        return


if __name__ == "__main__":
    job = Job.read()
    (train_language if job.variant == "language" else train_encoder)(job)
