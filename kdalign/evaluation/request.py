"""The request of an evaluation: data, metrics and settings, and their limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdalign.data.noise import TextNoise
from kdalign.errors import UsageError, shorten, unknown
from kdalign.evaluation.metric_names import AGREEMENT, MASKED_PPL, PERPLEXITIES
from kdalign.metrics.classification import GROUPS, METRICS, expand_groups
from kdalign.metrics.text import TEXT_METRICS
from kdalign.recipe import LONGEST_INPUT, MOST_ROWS, MOST_TOKENS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EvalRequest:
    """Data, metrics and settings with which ``kdalign.evaluate`` scores models.

    Every field can be left out: the data and the longest input then come from each run's recipe, the metrics from the
    task. ::

        kdalign.evaluate(["runs/joint-1"], EvalRequest(split="test", metrics=("accuracy", "ece")))
        kdalign.evaluate(["gpt2"], EvalRequest(task="lm", dataset="wikitext", config="wikitext-2-raw-v1"))

    Attributes:
        task: name of the task, or several; None for each run's own.
        folder: folder of the data.
        dataset: name of the dataset on the hub, in place of a folder.
        config: configuration of the dataset.
        split: split to score on; the task's first evaluation split if left out.
        metrics: names of metrics or groups of them; the task's if left out.
        max_length: longest input, in tokens.
        limit: number of examples, the first of the split.
        revision: branch, tag or commit of models on the hub.
        device: ``auto``, ``cpu``, ``cuda``, ...
        out: JSON file for the scores; a name below ``runs/eval`` if left out.
        stride: tokens from the start of a window to that of the next; windows do not overlap if left out.
        pseudo: how a masked model's pseudo-likelihood masks, ``word-l2r`` or ``token``.
        beams: beams of generation; 1 is greedy.
        new_tokens: most tokens of a generated text, if the model ends it itself.
        language: language code of the texts, such as ``de``; the task's if left out, or else Unicode's rules.
        precision: precision of local models, ``fp32`` or ``bf16``.
        shots: solved examples before each question to a model that answers classes in words.
        seed: seed of random draws, such as those examples.
        base_url: URL of the API of served models, ``openai:NAME``; OpenAI's if left out.
        chat: use the chat endpoint even if a server completes raw text.
        concurrency: requests to a server under way at once.
        max_requests: most requests to pay for; None for no limit.
        max_tokens: most tokens of a served model's prompts and answers to pay for; None for no limit.
        baselines: add rows of baselines that need no model if texts are generated.
        noise: noise in the inputs, scored in columns of its own in addition to the clean ones.
    """

    task: str | Sequence[str] | None = None
    folder: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    metrics: tuple[str, ...] | None = None
    max_length: int | None = None
    limit: int | None = None
    revision: str | None = None
    device: str = "auto"
    out: str | None = None
    stride: int | None = None
    pseudo: str = "word-l2r"
    beams: int = 1
    new_tokens: int = 256
    language: str | None = None
    precision: str = "fp32"
    shots: int = 0
    seed: int = 0
    base_url: str | None = None
    chat: bool = False
    concurrency: int = 4
    max_requests: int | None = None
    max_tokens: int | None = None
    baselines: bool = True
    noise: TextNoise | None = None

    @property
    def tasks(self) -> tuple[str | None, ...]:
        """The tasks by name; None for a run's own."""
        if self.task is None:
            return (None,)
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)

    @property
    def metric_names(self) -> tuple[str, ...] | None:
        """The metrics, each group replaced by its members; None for the task's."""
        return None if self.metrics is None else expand_groups(self.metrics)

    def check(self) -> None:
        """Refuse numbers beyond their limits and names that are unknown.

        Raises:
            UsageError: the first of them.
        """
        for field, limit in _LIMITS.items():
            value = getattr(self, field)
            if value is not None and value > limit:
                flag, shown = field.replace("_", "-"), shorten(str(value), 40)
                raise UsageError(f"--{flag} {shown} is more than can be meant (accepted: up to {limit:,})")
        if self.metrics is not None and not self.metrics:
            raise UsageError("--metrics names no metric")
        known = tuple(dict.fromkeys((*METRICS, AGREEMENT, *PERPLEXITIES, MASKED_PPL, *TEXT_METRICS, *GROUPS)))
        for name in self.metrics or ():
            if name not in known and ":" not in name:
                raise unknown("metric", name, known)
        if self.precision not in DTYPES:
            raise unknown("precision", self.precision, DTYPES)
        if self.pseudo not in ("word-l2r", "token"):
            raise unknown("pseudo-likelihood", self.pseudo, ("word-l2r", "token"))


_LIMITS = {
    **{"max_length": LONGEST_INPUT, "stride": LONGEST_INPUT, "new_tokens": LONGEST_INPUT, "limit": MOST_ROWS},
    **{"beams": 1_000, "shots": 1_000, "concurrency": 1_000, "seed": 2**31 - 1},
    **{"max_requests": MOST_ROWS, "max_tokens": MOST_TOKENS},
}
"""The largest number accepted for each field."""
