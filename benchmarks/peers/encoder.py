"""What the peers that distill a classifier share: rows, models, the five terms, and the accuracy of the student.

Each peer pads and groups rows in its own way. The terms do the work of kdalign's joint objective, over real tokens, at
scales of their own: kdalign divides squared distances of features by the teacher's variance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from benchmarks.peers.meter import Job

BATCH, LENGTH = 32, 128
"""Rows of a step, and the longest row in tokens."""
RATE, DECAY, CLIP = 2e-4, 0.01, 1.0
"""Learning rate and weight decay of AdamW, and the largest norm of the gradient."""
HARD, SOFT, TEMPERATURE = 0.3, 0.7, 2.0
"""Weights of the cross-entropy with labels and of the divergence from the teacher, and its temperature."""


@dataclass(frozen=True)
class Pair:
    """A teacher and its student, with the layers that are compared, from 0: ``(student's, teacher's)``."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    layers: tuple[tuple[int, int], ...]

    @classmethod
    def load(cls, job: Job) -> "Pair":
        """Load both in float32, so that they give hidden states and attention maps."""
        logging.disable_progress_bar()
        teacher, student = (load_classifier(folder) for folder in (job.teacher, job.student))
        depth, cut = (int(model.config.num_hidden_layers) for model in (teacher, student))
        layers = tuple((layer, depth * (layer + 1) // cut - 1) for layer in range(cut))
        return cls(teacher.eval(), student.train(), layers)


def load_classifier(folder: str, **options: Any) -> PreTrainedModel:
    """Load a classifier in float32 that gives hidden states and attention maps."""
    options = {"attn_implementation": "eager", **options}
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **options)


@dataclass(frozen=True)
class Data:
    """The rows of a job and its tokenizer."""

    job: Job

    @cached_property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return AutoTokenizer.from_pretrained(self.job.teacher)

    def table(self, split: str) -> pd.DataFrame:
        """Read a split: ``sentence`` and ``label``."""
        return pd.read_parquet(Path(self.job.data) / f"{split}.parquet")

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Read and tokenize a split: ids and masks without padding, and ``labels``."""
        table = self.table(split)
        tokens = self.tokenizer(table["sentence"].tolist(), truncation=True, max_length=LENGTH)
        names, labels = list(tokens.keys()), table["label"].tolist()
        return [{name: tokens[name][row] for name in names} | {"labels": labels[row]} for row in range(len(labels))]

    def collate(self, rows: Sequence[dict[str, Any]], to: str = "longest") -> dict[str, Tensor]:
        """Make a batch of rows, padded to the ``longest`` or to the ``max_length``."""
        texts = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        batch = dict(self.tokenizer.pad(texts, padding=to, max_length=LENGTH, return_tensors="pt"))
        return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


def joint_loss(ours: Any, theirs: Any, mask: Tensor, labels: Tensor, layers: Sequence[tuple[int, int]]) -> Tensor:
    """Return labels, soft targets, cosine and squared distance of features, and squared distance of attention maps.

    Args:
        ours: the student's output, with hidden states and attention maps.
        theirs: the teacher's.
        mask: 1 for real tokens; (rows, length).
        labels: classes; (rows,).
        layers: layers that are compared, as in `Pair`.
    """
    real = mask.bool()
    ours_logs, theirs_logs = (F.log_softmax(each.logits.float() / TEMPERATURE, dim=-1) for each in (ours, theirs))
    divergence = F.kl_div(ours_logs, theirs_logs, log_target=True, reduction="batchmean")
    loss = HARD * F.cross_entropy(ours.logits.float(), labels) + SOFT * TEMPERATURE**2 * divergence
    for our_layer, their_layer in layers:
        s, t = ours.hidden_states[our_layer + 1][real], theirs.hidden_states[their_layer + 1][real]
        maps = (ours.attentions[our_layer] - theirs.attentions[their_layer]).square().sum(-1).mean(1)[real].mean()
        loss = loss + ((1 - F.cosine_similarity(s, t, dim=-1)).mean() + F.mse_loss(s, t) + maps) / len(layers)
    return loss


def make_optimizer(student: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of every peer."""
    return torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=DECAY)


def accuracy_of(job: Job, student: nn.Module) -> Callable[[], float] | None:
    """Return what scores the student on the validation split, in float32; None if the job asks for no scores.

    A copy of the student is scored, so that each peer's is by the same code.
    """
    if not job.accuracy_steps:
        return None
    data = Data(job)
    rows = sorted(data.rows("validation"), key=lambda row: len(row["input_ids"]))
    copy = load_classifier(job.student, attn_implementation="sdpa").eval()

    def score() -> float:
        copy.load_state_dict(student.state_dict())
        right = 0
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for begin in range(0, len(rows), BATCH):
                batch = data.collate(rows[begin : begin + BATCH])
                labels = batch.pop("labels")
                right += int((copy(**batch).logits.argmax(dim=-1) == labels).sum())
        return right / len(rows)

    return score
