"""On-policy steps: the student continues the rows' prompts, and student and teacher read what it wrote.

GKD, Agarwal et al. 2024, arXiv:2306.13649, algorithm 1. Which steps these are is a function of (seed, step), and a
sample one of the student, (seed, step) and its row: neither the split of a step nor its ranks change it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.data.batches import Batch, collate
from kdalign.data.continuations import Continuation, continuation_of, with_samples
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import NotFinite, RunError
from kdalign.models.capture import Activations
from kdalign.models.lm_head import block_rows
from kdalign.models.sampling import Sampling, sample_continuations, uniform_numbers
from kdalign.models.sharding import gathered_whole
from kdalign.models.token_targets import label_log_probabilities
from kdalign.observer import Observer
from kdalign.recipe import OnPolicySettings
from kdalign.recipe.schedules import Place
from kdalign.training.checkpoint import TrainState
from kdalign.training.diagnostics import StepViewer, Teach
from kdalign.training.diverged import or_fp32
from kdalign.training.learner import Learner
from kdalign.training.sample_alarms import Alarm, SampleWatch, TextMeasures, measure_texts

Samples = list[list[int]]
"""Tokens of each sample, its end token included."""


@dataclass(frozen=True)
class OnPolicy:
    """On-policy steps of a run.

    Attributes:
        settings: how many there are, and how texts are sampled.
        sampling: the same for the run's models.
        seed: the run's seed.
        max_length: longest row of data in tokens.
        dtype: precision of matrix products; None for float32.
        mark_returned: marks the samples' positions at which a server returned nothing; None for a teacher in memory.
    """

    settings: OnPolicySettings
    sampling: Sampling
    seed: int
    max_length: int
    dtype: torch.dtype | None = None
    mark_returned: Callable[[Batch], Batch] | None = None

    def is_due(self, step: int, place: Place) -> bool:
        """Return whether a step, counted from 0, is on-policy: spread evenly, from a number that the seed decides."""
        if place.done < round(self.settings.after * place.total):
            return False
        share, start = self.settings.share, np.random.default_rng([self.seed, 6]).random()
        return math.floor((step + 1) * share + start) > math.floor(step * share + start)

    def continuations(self, encoded: TokenizedSplit, rows: Sequence[int]) -> list[Continuation]:
        """Divide rows into prompts and what follows."""
        return [continuation_of(encoded, row, self.settings.prompt_tokens) for row in rows]

    def measure_data(self, encoded: TokenizedSplit, rows: Sequence[int]) -> TextMeasures:
        """Measure what follows the prompts of rows in the data, as far as a sample may reach."""
        most = self.sampling.new_tokens
        given = self.continuations(encoded, rows)
        ended = [
            len(one.rest) <= most and self._has_end(encoded, row, one) for row, one in zip(rows, given, strict=True)
        ]
        return measure_texts([one.rest[:most] for one in given], ended)

    def _has_end(self, encoded: TokenizedSplit, row: int, given: Continuation) -> bool:
        """Return whether the end of a text is in its row, whatever token it is."""
        if given.followed or (given.rest and given.rest[-1] in self.sampling.ends):
            return True
        return "document" not in encoded.columns and len(encoded.columns["targets"][row]) < self.max_length

    def draw(
        self, student: PreTrainedModel, encoded: TokenizedSplit, batches: Sequence[Batch], step: int
    ) -> tuple[list[Batch], Samples]:
        """Sample a continuation of each row of these micro-batches, and make micro-batches of them.

        Args:
            student: the student, whose state of training is put back.
            encoded: the split that the rows are of.
            batches: a rank's micro-batches; a stand-in stays as it is.
            step: number of the step.
        """
        rows = [_rows_of(batch) for batch in batches]
        every = [row for each in rows for row in each]
        asked = self.continuations(encoded, every)
        draws = [uniform_numbers(self._key(encoded, row, step), self.sampling.new_tokens) for row in every]
        start = encoded.columns["decoder_input_ids"][0][0] if "decoder_input_ids" in encoded.columns else 0
        prompts = [one.prompt for one in asked]
        samples = sample_continuations(student, prompts, draws, self.sampling, start=start, dtype=self.dtype)
        made, place = [], 0
        for batch, own in zip(batches, rows, strict=True):
            part = slice(place, place + len(own))
            place += len(own)
            if not own:
                made.append(batch)
                continue
            split = with_samples(encoded, asked[part], samples[part], own)
            texts = replace(collate(split, range(len(own))), rows=batch.rows, taught_by=batch.taught_by)
            made.append(texts if self.mark_returned is None else self.mark_returned(texts))
        return made, samples

    def _key(self, encoded: TokenizedSplit, row: int, step: int) -> str:
        """Text that decides a row's sample."""
        content = (encoded.columns[name][row] for name in ("input_ids", "targets"))
        return " / ".join([f"{self.seed} {step}", *(" ".join(map(str, ids)) for ids in content)])


def _rows_of(batch: Batch) -> list[int]:
    """Numbers of a batch's rows; none of a stand-in that is not counted."""
    assert batch.rows is not None, "training examples are numbered"
    numbers: list[int] = batch.rows.tolist()
    return numbers if bool(batch.counted.any()) else []


def gather_samples(samples: Samples, accelerator: Accelerator, rows: int, longest: int) -> Samples:
    """Return the samples of all ranks.

    Args:
        samples: this rank's.
        accelerator: device and ranks.
        rows: number of rows of the step, over all ranks.
        longest: most tokens of a sample.
    """
    if accelerator.num_processes == 1:
        return samples
    padded = torch.full((-(-rows // accelerator.num_processes), longest), -1, device=accelerator.device)
    for number, sample in enumerate(samples):
        padded[number, : len(sample)] = torch.tensor(sample, device=padded.device)
    every: Samples = accelerator.gather(padded).tolist()
    return [[token for token in row if token >= 0] for row in every if row[0] >= 0]


class LikelihoodMeter:
    """A teacher's forward that also sums its log-likelihood of the tokens to predict."""

    def __init__(self, teach: Teach, entries: int) -> None:
        self._teach, self._entries, self._sums = teach, entries, np.zeros(4)

    def __call__(self, batch: Batch) -> Activations:
        """Run the teacher's forward on a batch, and add its tokens."""
        taught = self._teach(batch)
        here = batch.answered
        if taught.tokens is not None and bool(here.any()):
            assert batch.targets is not None, "a language-modelling task has targets"
            labels: Tensor = batch.targets[here]
            rows = block_rows(self._entries, labels.device)
            nats, outside = label_log_probabilities(taught.tokens.select(here), labels, rows)
            lost = 0 if outside is None else int(outside.sum())
            self._sums += [float(nats.double().sum()), len(labels), lost, outside is not None]
        return taught

    def measure(self, texts: TextMeasures, accelerator: Accelerator) -> TextMeasures:
        """Add the likelihood over all ranks, and the share outside of the kept entries, to measures of texts."""
        sums = torch.tensor(self._sums, device=accelerator.device, dtype=torch.float64)
        nats, tokens, outside, kept = accelerator.reduce(sums, reduction="sum").tolist()
        if not tokens:
            return texts
        return replace(texts, likelihood=nats / tokens, outside=outside / tokens if kept else None)


@dataclass(frozen=True)
class SampleReport:
    """Measures of a step's samples, and their alarms.

    Attributes:
        measures: measures by name.
        alarms: the step's alarms.
        new: those that are announced now.
        stopping: number of steps in a row with an alarm, if that is as many as the patience; else 0.
        counts: number of these steps with each alarm, by name.
    """

    measures: Mapping[str, float]
    alarms: Sequence[Alarm]
    new: Sequence[Alarm]
    stopping: int
    counts: Mapping[str, int] = field(default_factory=dict)

    def announce(self, observer: Observer, step: int) -> None:
        """Announce the alarms that are new.

        Raises:
            RunError: there were too many steps in a row with one; earlier checkpoints stay.
        """
        for alarm in self.new:
            observer.announce(f"alarm at step {step}: {alarm.said}: {alarm.mend}")
        if self.stopping:
            said = "; ".join(alarm.said for alarm in self.alarms)
            mends = "; ".join(dict.fromkeys(alarm.mend for alarm in self.alarms))
            counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
            raise RunError(
                f"the student's own texts collapse: {self.stopping} on-policy steps in a row with an alarm "
                f"(on_policy.patience): {counts}; at step {step} {said}; start again with --overwrite: {mends}"
            )


class OnPolicyStep:
    """One on-policy step of a task: its samples, and the teacher's likelihood of them.

    Attributes:
        batches: this rank's micro-batches of prompts and samples.
        viewer: runs learner and teacher on them.
        divergence: divergence from the teacher; the objective's if None.
    """

    def __init__(
        self,
        on_policy: OnPolicy,
        viewer: StepViewer,
        encoded: TokenizedSplit,
        rows: Sequence[int],
        data: Sequence[Batch],
    ) -> None:
        """Take the rows of a step.

        Args:
            on_policy: how texts are sampled.
            viewer: runs learner and teacher on micro-batches.
            encoded: the training examples.
            rows: numbers of the step's rows, over all ranks.
            data: this rank's micro-batches of them.
        """
        assert viewer.teach is not None, "checked: an on-policy step has a teacher"
        self._on_policy, self._encoded, self._rows, self._data = on_policy, encoded, rows, data
        self.divergence = on_policy.settings.divergence
        self._teach, self._entries = viewer.teach, on_policy.sampling.entries
        self._meter = LikelihoodMeter(viewer.teach, self._entries)
        self.viewer = replace(viewer, teach=self._meter)
        self.batches, self._samples = list(data), Samples()

    def sample(self, learner: Learner, progress: TrainState) -> None:
        """Sample in place of the rows' texts, and count tokens and time.

        Raises:
            RunError: the student's logits are not finite, on one rank or several; all of them stop.
        """
        begun, accelerator = time.perf_counter(), self.viewer.accelerator
        own, bad = Samples(), ""
        try:
            with gathered_whole(learner.student):
                self.batches, own = self._on_policy.draw(learner.student, self._encoded, self._data, progress.step)
        except NotFinite as error:
            bad = f": {error}"
        failed = torch.tensor([float(bool(bad))], device=accelerator.device)
        if accelerator.reduce(failed, reduction="sum").item():
            raise RunError(
                f"the student has diverged: it cannot write texts of its own at step {progress.step + 1}{bad}; "
                f"lower --lr{or_fp32(learner.bf16)}"
            )
        self._samples = gather_samples(own, accelerator, len(self._rows), self._on_policy.sampling.new_tokens)
        progress.sampled += sum(map(len, self._samples))
        progress.sampling_seconds += time.perf_counter() - begun

    def watch(self, progress: TrainState) -> SampleReport:
        """Measure the samples after the step, and find their alarms."""
        accelerator, ends = self.viewer.accelerator, self._on_policy.sampling.ends
        now = measure_texts(self._samples, [sample[-1] in ends for sample in self._samples])
        now = self._meter.measure(now, accelerator)
        data = self._on_policy.measure_data(self._encoded, self._rows)
        watch = SampleWatch(progress.watch, self._on_policy.settings.patience)
        if watch.needs_data_likelihood and now.likelihood is not None:
            meter = LikelihoodMeter(self._teach, self._entries)
            for batch in self._data:
                meter(batch.to(accelerator.device))
            data = meter.measure(data, accelerator)
        alarms, new = watch.add(now, data)
        in_a_row = int(progress.watch["alarmed"])
        return SampleReport(now.known(), alarms, new, in_a_row if watch.is_patience_exhausted else 0, watch.counts)
