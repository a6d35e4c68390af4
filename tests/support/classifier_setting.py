"""A tiny teacher, student, plan and objective of a classification task."""

import numpy as np
import pytest
import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import Batch, collate
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.models.architecture import Layer, describe
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.tiny import tiny_classifier

PAIRS = [("bert", "bert", 32), ("bert", "distilbert", 24), ("distilbert", "distilbert", 32)]


FAMILIES = pytest.mark.parametrize(("theirs", "ours", "width"), PAIRS, ids=["bert", "bert-distilbert", "distilbert"])


ALL = Weights(hard=0.3, alpha=0.7, beta=1, gamma=1, delta=1, temperature=2)


def examples(n: int = 8, seed: int = 0) -> TokenizedSplit:
    generator = np.random.default_rng(seed)
    rows = [[2, *generator.integers(5, 90, generator.integers(1, 9)).tolist(), 3] for _ in range(n)]
    kinds = [[0] * 2 + [1] * (len(row) - 2) for row in rows]
    columns = {"input_ids": rows, "token_type_ids": kinds}
    return TokenizedSplit(columns, generator.integers(0, 2, n), {"input_ids": 0, "token_type_ids": 0}, 0)


def layer(number):
    return Layer("encoder", number)


class Setting:
    """A teacher of 4 layers and a student of 2, without dropout, with everything that joins them."""

    def __init__(self, theirs: str, ours: str, width: int, weights: Weights = ALL) -> None:
        silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        self.device = torch.device("cpu")
        self.teacher = ComputedTeacher(tiny_classifier(theirs, 4, 32, seed=1), (0, 1), torch.float32, self.device)
        student = tiny_classifier(ours, 2, width, seed=2, **(still if ours == "distilbert" else silent))
        self.data = examples()
        plan = propose(describe(self.teacher.model.config), describe(student.config))
        self.plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], self.device)
        self.objective = build_classification_objective(weights, self.plan, regression=False)
        self.learner = Learner(
            student, Projections(self.plan.projections, 0), self.plan, [self.objective], (0, 1), False
        )

    def breakdown(self, batch: Batch, units: dict[Unit, float]):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(TermInputs(self.learner(batch.inputs, taught), taught, batch), units)

    def gradient(self, batches: list[Batch]) -> torch.Tensor:
        self.learner.zero_grad()
        units = count_units(batches)
        for batch in batches:
            self.breakdown(batch, units).total.backward()
        return torch.cat([p.grad.flatten() for p in self.learner.parameters() if p.grad is not None])
