"""A tiny teacher and student whose training has steps on the student's own texts, without the command line."""

import json

import torch
from accelerate import Accelerator

from kdalign.models.layouts import LAYOUTS
from kdalign.models.sampling import Sampling
from kdalign.observer import NullObserver
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import OnPolicySettings, TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.diagnostics import StepViewer
from kdalign.training.loop import train
from kdalign.training.on_policy import OnPolicy
from kdalign.training.task_trainer import Stage, TrainTask
from support.family_setting import Setting, encoded, tokenizer

WEIGHTS = Weights(hard=0.5, alpha=0.7, beta=1, gamma=0, delta=0, temperature=1.0)
LEFT_TO_RIGHT = ["llama", "gpt2", "t5"]


class Announced(NullObserver):
    """An observer that keeps announcements and reports."""

    def __init__(self):
        self.lines, self.reports = [], []

    def announce(self, line):
        self.lines.append(line)

    def stepped(self, report):
        self.reports.append(report)


class OnPolicySetting(Setting):
    """A teacher of four layers and a student of two; 12 rows."""

    def __init__(self, kind, weights=WEIGHTS, ends=None, **settings):
        super().__init__(kind, weights)
        self.data = encoded(kind, n=24).take(range(12))
        given = OnPolicySettings(**{"share": 0.5, "max_new_tokens": 9, "prompt_tokens": 4, **settings})
        entries = int(self.learner.student.config.vocab_size)
        end = frozenset([tokenizer(LAYOUTS[kind].family).eos_token_id]) if ends is None else frozenset(ends)
        sampling = Sampling(given.max_new_tokens, given.temperature, given.top_p, end, entries, 64)
        self.on_policy = OnPolicy(given, sampling, 0, 24)

    @property
    def viewer(self):
        """Runs both models on micro-batches."""
        wanted = self.learner.wanted_of_teacher
        return StepViewer(self.learner, lambda batch: self.teacher(batch, wanted), Accelerator(cpu=True), 0)

    def train(self, path, observer=None, resume=False, **settings):
        """Train in a folder; return the progress and the history."""
        torch.manual_seed(0)
        folder = RunFolder(path)
        folder.begin("{}", {}, keep=resume)
        task = TrainTask(
            "lm", self.learner, self.teacher, [Stage(0.0, self.objective)], self.data, folder, on_policy=self.on_policy
        )
        given = {"max_steps": 6, "batch_size": 4, "micro_batch": 2, "precision": "fp32", "checkpoint_every": 2}
        chosen = TrainSettings(**{**given, **settings})
        progress = train(task, chosen, Accelerator(cpu=True), observer or NullObserver(), resume=resume)
        return progress, [json.loads(line) for line in folder.history.read_text().splitlines()]
