"""A tiny teacher and student of every language-model family, with tokenizer, plan and objective."""

from functools import cache

import pytest
import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import collate
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import DataSource, Examples, LanguageTask
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.evaluation.adapters.language_modeling import LanguageModelingAdapter
from kdalign.models import student
from kdalign.models.architecture import describe, layout_of
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.models.layouts import LAYOUTS
from kdalign.objective.build import build_language_objective
from kdalign.objective.terms import TermInputs
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.covering import one_of_each
from support.tiny import sentences

KINDS = ["bert", "albert", "modernbert", "deberta-v2", "xlnet", "gpt2", "gpt_neox", "opt", "llama", "gemma2"]


KINDS += ["t5", "bart", "marian"]


EVERY = pytest.mark.parametrize("kind", KINDS)
ONE_OF_EACH = pytest.mark.parametrize("kind", one_of_each(KINDS, ("bert", "xlnet", "llama", "t5")))
"""Masked, permutation, causal and encoder-decoder by default; every family in `make test-all`."""


# Their last hidden state carries the final norm.
FINAL_NORM = ("modernbert", "gpt2", "gpt_neox", "opt", "llama", "gemma2", "t5")


@cache
def tokenizer(family):
    return train_tokenizer(sentences(200, 7)[0], 300, family, 64)


def model(kind, layers=4, seed=0):
    """A tiny language model whose weights are large enough to tell tokens apart."""
    own = ",kv_heads=2" if kind in ("llama", "gemma2") else ",dropout=0"
    new = parse_scratch_spec(f"new:{kind},layers={layers},width=32,heads=4,feed_forward=64,positions=64{own}")
    made = build_from_scratch(scratch_config(new, tokenizer(LAYOUTS[kind].family)), seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2 and kind != "t5":  # whose weights start large
                parameter.mul_(4)
    return made.eval()


def adapter(kind, max_length=24):
    family = LAYOUTS[kind].family
    task = LanguageTask("lm", "translation" if family == "seq2seq" else "lm", ("a", "b"), DataSource())
    return LanguageModelingAdapter(task, family, max_length)


def encoded(kind, scored=False, n=8, max_length=24):
    texts = tuple(sentences(n, 3)[0])
    columns = (texts, texts[::-1]) if LAYOUTS[kind].family == "seq2seq" else (texts,)
    return adapter(kind, max_length).tokenize(
        Examples("train", columns, None),
        InputReader(tokenizer(LAYOUTS[kind].family), model(kind).config),
        scored=scored,
    )


ALL = Weights(hard=0.5, alpha=0.7, beta=1, gamma=0.5, delta=0.5, embeddings=0.5, relations=0.5, temperature=1.5)


def answered(batch):
    """Real positions of a model's output."""
    return batch.inputs["decoder_attention_mask"].bool() if "decoder_attention_mask" in batch.inputs else batch.real


class Setting:
    """A teacher of four layers, a student of two cut out of it and shaken, and their objective."""

    def __init__(self, kind, weights=None, bf16=False):
        self.data = encoded(kind)
        big = model(kind)
        small = student.copy_layers(big, {stack.name: (1, 3) for stack in layout_of(big.config).stacks})
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        device = torch.device("cpu")
        self.teacher = ComputedTeacher(big, None, torch.bfloat16 if bf16 else torch.float32, device)
        plan = propose(describe(big.config), describe(small.config), options=PlanOptions(relations="all"))
        plan = calibrate(plan, self.teacher, [collate(self.data, range(len(self.data)))], device)
        dtype = torch.bfloat16 if bf16 else None
        self.objective = build_language_objective(weights or ALL, plan, dtype)
        self.learner = Learner(small, Projections((), 0), plan, [self.objective], None, bf16).eval()

    def breakdown(self, batch, units):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(TermInputs(self.learner(batch.inputs, taught), taught, batch), units)

    def gradient(self, batches, units):
        self.learner.zero_grad()
        for batch in batches:
            self.breakdown(batch, units).total.backward()
        return {name: p.grad.clone() for name, p in self.learner.named_parameters() if p.grad is not None}
