"""A teacher of text, a student that hears sounds, and their transcripts, with everything that joins them."""

from dataclasses import replace

import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import collate
from kdalign.data.transcript_reader import TranscriptReader
from kdalign.models.architecture import describe
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.objective.build import build_frame_objective, build_language_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support import media_setting, speech_setting
from support.dual_setting import byte_fallback, word_piece

CPU = torch.device("cpu")
TEXTS = ("one", "two zero", "no one", "", "zoo", "tone")
"""Transcripts of the sounds; a Whisper is also trained on silence, whose transcript has no token."""
ALL = Weights(hard=0.5, alpha=0, beta=1, gamma=0.5, delta=0)


SIZES = "layers=4,width=24,heads=2,feed_forward=48,positions=64"


def teacher_of_text(kind: str):
    """A small model of text with weights of a useful size, and its tokenizer."""
    tokenizer = {"bert": word_piece, "llama": byte_fallback}[kind]()
    config = scratch_config(parse_scratch_spec(f"new:{kind},{SIZES}"), tokenizer)
    model, generator = build_from_scratch(config, 3).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, tokenizer


class Setting:
    """A teacher of text and a student of sounds, a CTC model from nothing or a tiny Whisper."""

    def __init__(self, student: str = "wav2vec2", teacher: str = "bert", weights: Weights = ALL) -> None:
        big, self.tokenizer = teacher_of_text(teacher)
        reads = TranscriptReader(self.tokenizer, max_positions(big.config))
        self.teacher = ComputedTeacher(big, None, torch.float32, CPU)
        self.texts = TEXTS if student == "whisper" else tuple(text or "nine" for text in TEXTS)
        if student == "whisper":
            folder = media_setting.saved("whisper")
            small, reader = media_setting.load(folder), replace(media_setting.reader_of(folder), transcripts=reads)
            self.data = media_setting.sounds(reader, len(TEXTS), texts=list(TEXTS))
        else:
            small, reader = speech_setting.model(student), replace(speech_setting.reader(student), transcripts=reads)
            self.data = speech_setting.adapter().tokenize(speech_setting.examples(self.texts), reader, scored=False)
        plan = propose(describe(big.config), describe(small.config), options=PlanOptions(pooled=True))
        self.plan = plan = calibrate(plan, self.teacher, [collate(self.data, range(len(self.data)))], CPU)
        build = build_language_objective if student == "whisper" else build_frame_objective
        self.objective = build(weights, plan)
        self.learner = Learner(small, Projections(plan.projections, 0), plan, [self.objective], None, False).eval()

    def breakdown(self, batch, units=None):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        view = TermInputs(self.learner(batch.inputs, taught), taught, batch)
        return self.objective(view, units or count_units([batch]))

    def gradient(self, batches, units=None):
        self.learner.zero_grad()
        units = units or count_units(batches)
        for batch in batches:
            self.breakdown(batch, units).total.backward()
        return {name: p.grad.clone() for name, p in self.learner.named_parameters() if p.grad is not None}
