"""Measure how much faster kdalign's step is than a plain loop, alternating in one process on the same sentences.

The plain loop is what many scripts do: random batches padded to 128 tokens, float32, hidden states and attention maps
asked of the model (eager attention), the same five terms. kdalign's is its own loop with its own defaults.

    python examples/speed.py --teacher DIR --data DIR/sst2
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from kdalign import build_recipe, distill, read_record
from kdalign.data.tasks import find_task, load_examples
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.loading import load_classifier
from kdalign.models.student import copy_layers

ROUNDS = 3


def plain_samples_per_second(teacher: str, data: str, steps: int, batch: int = 32) -> float:
    """Train by the plain loop and return samples a second."""
    task = find_task("sst2", data)
    examples = load_examples(task, "train")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    big = AutoModelForSequenceClassification.from_pretrained(
        teacher, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    small = copy_layers(
        load_classifier(find_checkpoint(teacher), task, fresh_head=False, seed=0), {"encoder": (1, 3, 5)}
    ).train()
    small.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(small.parameters(), lr=2e-4)
    rows = np.random.default_rng(0).permutation(len(examples))
    times = []
    for step in range(steps + 2):
        chosen = rows[step * batch : (step + 1) * batch]
        begun = time.perf_counter()
        inputs = tokenizer(
            [examples.texts[0][row] for row in chosen],
            padding="max_length", truncation=True, max_length=128, return_tensors="pt",
        )  # fmt: skip
        labels = torch.from_numpy(examples.labels[chosen])
        with torch.no_grad():
            taught = big(**inputs, output_hidden_states=True, output_attentions=True)
        ours = small(**inputs, output_hidden_states=True, output_attentions=True)
        mask = inputs["attention_mask"].bool()
        loss = 0.3 * F.cross_entropy(ours.logits, labels)
        loss = loss + 0.7 * 4 * F.kl_div(
            F.log_softmax(ours.logits / 2, -1),
            F.log_softmax(taught.logits / 2, -1),
            log_target=True,
            reduction="batchmean",
        )
        for student_layer, teacher_layer in ((0, 1), (1, 3), (2, 5)):
            s, t = ours.hidden_states[student_layer + 1][mask], taught.hidden_states[teacher_layer + 1][mask]
            loss = loss + (1 - F.cosine_similarity(s, t, dim=-1)).mean() / 3 + F.mse_loss(s, t) / 3
            maps = (ours.attentions[student_layer] - taught.attentions[teacher_layer]).square().sum(-1).mean(1)
            loss = loss + maps[mask].mean() / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return batch * steps / sum(times[2:])  # the first two warm up


def kdalign_samples_per_second(teacher: str, data: str, steps: int) -> float:
    """Train kdalign's joint run and return samples a second from its record."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "teacher": teacher, "student": "layers=3", "data.task": "sst2", "data.folder": data,
            "train.max_steps": steps, "train.eval_every": 10**6, "out": str(Path(folder) / "run"),
        }  # fmt: skip
        distill(build_recipe(None, flags))
        return float(read_record(Path(folder) / "run").training["samples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=50, help="steps of kdalign a round")
    parser.add_argument("--plain-steps", type=int, default=5, help="steps of the plain loop a round")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ratios = []
    for number in range(ROUNDS):
        plain = plain_samples_per_second(given.teacher, given.data, given.plain_steps)
        ours = kdalign_samples_per_second(given.teacher, given.data, given.steps)
        ratios.append(ours / plain)
        print(f"round {number + 1}: plain {plain:.1f} samples/s, kdalign {ours:.1f} samples/s, {ratios[-1]:.1f} x")
    print(f"median: {np.median(ratios):.1f} x")


if __name__ == "__main__":
    main()
