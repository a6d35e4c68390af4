"""Terms on frames: divided by labels and frames, zero at the teacher, and sure blanks as their weight says."""

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.models.capture import Activations
from kdalign.objective.build import build_frame_objective
from kdalign.objective.terms import FrameTargets, TermInputs, TranscriptCTC, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights
from support.speech_setting import encoded


def view(ours=0, theirs=1):
    batch = collate(encoded(), [0, 1, 2])

    def says(seed):
        generator = torch.Generator().manual_seed(seed)
        return Activations(logits=3 * torch.randn(*batch.real.shape, 12, generator=generator))

    return TermInputs(says(ours), says(theirs), batch)


def test_the_units_are_labels_of_transcripts_and_real_frames():
    inputs = view()
    units = count_units([inputs.batch])
    assert units[TranscriptCTC().unit] == len("one") + len("two|zero") + len("no|one")
    assert units[FrameTargets(1.0).unit] == int(inputs.batch.real.sum()) < inputs.batch.real.numel()
    assert TranscriptCTC().unit is Unit.TARGET


def test_soft_targets_are_zero_at_the_teacher_and_count_no_padding():
    assert float(FrameTargets(2.0)(view(0, 0))) == pytest.approx(0, abs=1e-4)
    inputs = view()
    before = float(FrameTargets(2.0)(inputs))
    inputs.student.logits[~inputs.batch.real] = 50.0
    assert float(FrameTargets(2.0)(inputs)) == before > 0


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_sure_blanks_weigh_what_the_weight_says(divergence):
    inputs = view()
    inputs.teacher.logits[:, ::2, 0] = 20.0  # every other frame is surely blank
    whole, labelled, half = (float(FrameTargets(2.0, divergence, weight)(inputs)) for weight in (1.0, 0.0, 0.5))
    assert 0 < labelled < whole
    assert half == pytest.approx((whole + labelled) / 2, rel=1e-5)


def test_the_recipe_sets_the_weight_of_sure_blanks():
    objective = build_frame_objective(ObjectiveWeights(blank_frames=0.25, alpha=1, divergence="reverse"), None)
    _, soft = objective.terms["soft"]
    assert (soft.blank_weight, soft.divergence) == (0.25, "reverse")
