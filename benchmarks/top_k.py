"""Error of a distillation loss by what is kept of the teacher: python benchmarks/top_k.py --teacher DIR --text FILE.

The forward KL of whole distributions, and its gradient by the student's logits, are compared with those of the k
likeliest entries: with all others as one entry (as a cache keeps them, in fp16), renormalised over the k (the rest is
forgotten), and truncated (the terms of the k alone). Two students read the same text: the teacher cut to every second
layer, which is far from it, and the teacher with noise on its weights, which is near.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.layer_selection import choose_layers
from kdalign.models.loading import load_language_model
from kdalign.models.student import copy_layers
from kdalign.models.token_targets import top_log_probabilities
from kdalign.models.tokenizer import load_tokenizer
from kdalign.objective.losses import divergence, divergence_of_top

LADDER = (8, 16, 32, 64, 128, 256)
LENGTH = 256
NOISE = 0.05
"""Standard deviation of the near student's noise, in units of each matrix's own."""


def tail_as_one(student: Tensor, teacher: Tensor, entries: Tensor) -> Tensor:
    kept = top_log_probabilities(teacher, entries).half().float().log_softmax(dim=1)  # as a cache rounds them
    return divergence_of_top(student, entries, kept, "forward", 1.0)


def renormalised(student: Tensor, teacher: Tensor, entries: Tensor) -> Tensor:
    return divergence(student.gather(1, entries), teacher.gather(1, entries), "forward", 1.0)


def truncated(student: Tensor, teacher: Tensor, entries: Tensor) -> Tensor:
    ours, theirs = (each.log_softmax(dim=1).gather(1, entries) for each in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum()


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rest as one": tail_as_one,
    "renormalised": renormalised,
    "truncated": truncated,
}


def with_noise(model):
    torch.manual_seed(0)
    other = copy_layers(model, {"decoder": range(model.config.num_hidden_layers)})
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter.add_(NOISE * parameter.std() * torch.randn_like(parameter))
    return other.eval()


def measure(student, teacher, rows: list[Tensor]) -> tuple[dict[str, float], dict[int, float], int]:
    """Sums over positions: each loss, squared gradients and their errors; and the probability of the rest, by k."""
    sums: dict[str, float] = {}
    tails = dict.fromkeys(LADDER, 0.0)
    positions = 0
    for ids in rows:
        with torch.no_grad():
            theirs, ours = (model(ids[None]).logits[0].float() for model in (teacher, student))
        positions += len(ids)
        exact = divergence(ours.requires_grad_(), theirs, "forward", 1.0)
        (slope,) = torch.autograd.grad(exact, ours)
        found = {"loss": float(exact.detach()), "slope": float(slope.square().sum())}
        probabilities, entries = theirs.softmax(dim=1).topk(max(LADDER), dim=1)
        likely = probabilities.cumsum(dim=1)
        for k in LADDER:
            tails[k] += float((1 - likely[:, k - 1]).sum())
            for name, way in WAYS.items():
                loss = way(ours, theirs, entries[:, :k])
                (own,) = torch.autograd.grad(loss, ours)
                found[f"{name} {k}"] = float(loss.detach())
                found[f"{name} {k} slope"] = float((own - slope).square().sum())
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
        print(f"{positions} positions", flush=True)
    return sums, tails, positions


def table(name: str, sums: dict[str, float], tails: dict[int, float], n: int, entries: int) -> str:
    lines = [
        f"Student: {name}. Exact loss {sums['loss'] / n:.4f} nats a token, n = {n:,} positions.",
        "",
        "| k | bytes a token | probability of the rest | "
        + " | ".join(f"{way}: loss, gradient" for way in WAYS)
        + " |",
        "|---:|---:|---:|" + "---:|" * len(WAYS),
    ]
    for k in LADDER:
        size = k * (2 if entries <= 2**16 else 4) + 2 * (k + 1)
        cells = []
        for way in WAYS:
            loss = sums[f"{way} {k}"] / sums["loss"] - 1
            slope = (sums[f"{way} {k} slope"] / sums["slope"]) ** 0.5
            cells.append(f"{100 * loss:+.1f} %, {100 * slope:.1f} %")
        lines.append(f"| {k} | {size} | {100 * tails[k] / n:.2f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=8)
    given = parser.parse_args()
    checkpoint = find_checkpoint(given.teacher)
    tokenizer, teacher = load_tokenizer(checkpoint), load_language_model(checkpoint).float().eval()
    ids = tokenizer(given.text.read_text(encoding="utf-8")[: 20 * LENGTH * given.rows])["input_ids"]
    rows = [torch.tensor(ids[begin : begin + LENGTH]) for begin in range(0, LENGTH * given.rows, LENGTH)]
    depth = teacher.config.num_hidden_layers
    cut = copy_layers(teacher, {"decoder": choose_layers("uniform", depth // 2, depth)}).eval()
    for name, student in (("every second layer, untrained", cut), ("noise on the weights", with_noise(teacher))):
        print(table(name, *measure(student, teacher, rows), len(tokenizer)), flush=True)
