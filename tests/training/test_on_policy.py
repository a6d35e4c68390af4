"""Training with steps on the student's own texts: which they are, what is kept, resumed and stopped."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.errors import RunError
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe.schedules import Place
from kdalign.training import loop, run_length
from kdalign.training.checkpoint import TrainState, newest_sound
from kdalign.training.on_policy import OnPolicyStep, gather_samples
from support.covering import first_only, one_of_each
from support.on_policy_setting import LEFT_TO_RIGHT, Announced, OnPolicySetting

SLOW = pytest.mark.slow


def due(steps, seed=0, **settings):
    on_policy = OnPolicySetting("llama", **settings).on_policy
    on_policy = replace(on_policy, seed=seed)
    return [step for step in range(steps) if on_policy.is_due(step, Place(step, steps))]


def test_the_share_of_on_policy_steps_is_kept_from_the_place_where_they_begin():
    assert len(due(100, share=0.3)) == 30
    assert all(len([step for step in due(100, share=0.3) if start <= step < start + 10]) == 3 for start in (0, 40, 77))
    assert due(10, share=1.0) == list(range(10))
    later = due(100, share=0.5, after=0.6)
    assert len(later) == 20
    assert min(later) in (60, 61)
    assert due(100, share=0.3) == due(100, share=0.3)
    assert due(100, share=0.3) != due(100, seed=1, share=0.3)


def test_samples_are_marked_where_a_teacher_says_nothing():
    setting = OnPolicySetting("llama")
    batch = collate(setting.data, range(4))
    silent = replace(setting.on_policy, mark_returned=lambda made: replace(made, returned=made.targets == 9))
    student = setting.learner.student
    ([whole], first), ([marked], second) = (
        each.draw(student, setting.data, [batch], 1) for each in (setting.on_policy, silent)
    )
    assert first == second
    assert whole.returned is None
    assert marked.answered.tolist() == (whole.predicted & (whole.targets == 9)).tolist()


@pytest.mark.parametrize("kind", one_of_each(LEFT_TO_RIGHT, ("t5",)))
def test_the_history_holds_the_samples_of_on_policy_steps_and_no_label_of_theirs(kind, tmp_path):
    setting, observer = OnPolicySetting(kind), Announced()
    progress, history = setting.train(tmp_path, observer)
    steps = [event for event in history if event["kind"] == "step"]
    own = [event for event in steps if "on_policy" in event]
    assert [event["step"] - 1 for event in own] == [
        step for step in range(6) if setting.on_policy.is_due(step, Place(step, 6))
    ]
    assert len(own) == 3
    for event in steps:
        assert ("hard" in event["parts"]) == ("on_policy" not in event)
        assert not any(key.endswith("second") for key in event)
    assert set(own[0]["on_policy"]) == {"length", "ended", "repeated", "distinct", "likelihood"}
    assert progress.sampled == sum(round(4 * event["on_policy"]["length"]) for event in own)
    assert observer.reports[-1].sampled_per_second > 0
    assert observer.reports[-1].trained_per_second > observer.reports[-1].tokens_per_second


def test_samples_are_watched_by_the_teachers_likelihood_where_no_term_compares_its_tokens(tmp_path):
    layers_alone = Weights(hard=0.5, alpha=0, beta=1, gamma=0, delta=0)
    setting = OnPolicySetting("gpt2", layers_alone)
    assert not setting.learner.wanted_of_teacher.answers
    _, history = setting.train(tmp_path)
    own = [event["on_policy"] for event in history if "on_policy" in event]
    assert own
    assert all("likelihood" in measures for measures in own)


@pytest.mark.parametrize("length", first_only([{}, {"max_steps": None, "max_tokens": 150}]), ids=["steps", "tokens"])
def test_a_run_stopped_and_resumed_ends_in_the_same_weights_and_history(length, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    progress, _ = OnPolicySetting("gpt2").train(whole, **length)
    kept = loop.save_checkpoint

    def stop(folder, *rest):
        kept(folder, *rest)
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(SystemExit):
            OnPolicySetting("gpt2").train(stopped, **length)
    assert newest_sound(loop.RunFolder(stopped)).progress.step < progress.step
    again, _ = OnPolicySetting("gpt2").train(stopped, resume=True, **length)
    assert (again.step, again.tokens) == (progress.step, progress.tokens)
    assert (whole / "history.jsonl").read_bytes() == (stopped / "history.jsonl").read_bytes()
    last = f"step-{progress.step}"
    one, other = (load_file(path / "checkpoints" / last / "model.safetensors") for path in (whole, stopped))
    assert all((one[name] == other[name]).all() for name in one)
    assert newest_sound(loop.RunFolder(whole)).progress.watch["steps"] > 0


def test_a_run_that_collapses_stops_after_its_patience_and_keeps_earlier_checkpoints(tmp_path):
    setting = OnPolicySetting("t5", ends=(), share=1.0, patience=4, max_new_tokens=24)  # no sample ends, the data does
    observer = Announced()
    with pytest.raises(
        RunError, match=r"collapse: 4 on-policy .*: endless 4; at step 4 no sample ends within its 24 tokens"
    ):
        setting.train(tmp_path, observer, max_steps=20)
    told = [line for line in observer.lines if line.startswith("alarm")]
    assert [line.partition(":")[0] for line in told if "no sample ends" in line] == ["alarm at step 3"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


BUDGET = {"max_steps": None, "max_tokens": 300, "scheduler": "linear", "warmup": 0.1, "lr": 1e-3}


def tokens_before(reports):
    """Tokens trained before each step."""
    return [0, *(BUDGET["max_tokens"] - report.tokens_left for report in reports[:-1])]


@pytest.mark.parametrize(
    ("share", "longest"), [(0.5, 40), *(pytest.param(share, 1, marks=pytest.mark.slow) for share in (1.0, 0.5))]
)
def test_a_budget_of_tokens_is_reached_by_the_last_step_and_schedules_end_there(share, longest, tmp_path):
    setting, observer = OnPolicySetting("llama", ends=(), share=share, max_new_tokens=longest), Announced()
    progress, history = setting.train(tmp_path, observer, **BUDGET)
    before = tokens_before(observer.reports)
    sizes = [after - start for start, after in zip(before, [*before[1:], progress.tokens], strict=True)]
    assert before[-1] < 300 <= progress.tokens
    assert min(sizes) > 0
    own = ["on_policy" in event for event in history if event["kind"] == "step"]
    assert abs(sum(own) - share * len(own)) <= 1
    rates = [event["lr"] for event in history if event["kind"] == "step"]
    # A warm-up of 30 tokens, then a line to 0 at 300 tokens.
    assert rates[1:] == pytest.approx([1e-3 * min(1, (300 - start) / 270) for start in before[1:]])
    assert rates[-1] <= 1e-3 * max(sizes) / 270
    assert observer.lines == []
    assert observer.reports[-1].tokens_left == observer.reports[-1].seconds_left == 0
    assert observer.reports[-1].steps == progress.step


def test_steps_on_own_texts_begin_at_their_share_of_a_budget_of_tokens(tmp_path):
    setting, observer = OnPolicySetting("llama", ends=(), share=1.0, after=0.5, max_new_tokens=2), Announced()
    _, history = setting.train(tmp_path, observer, **BUDGET)
    own = ["on_policy" in event for event in history if event["kind"] == "step"]
    assert own == [start >= 150 for start in tokens_before(observer.reports)]
    assert set(own) == {False, True}


def test_a_run_that_samples_too_short_texts_for_its_budget_stops_with_its_steps_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(run_length, "MOST_TIMES", 0.1)
    setting = OnPolicySetting("llama", ends=(), share=1.0, max_new_tokens=1)
    with pytest.raises(RunError, match=r"too short for --max-tokens: at step (\d+) \(\d+ of 300 tokens\)"):
        setting.train(tmp_path, **BUDGET)
    saved = newest_sound(loop.RunFolder(tmp_path)).progress
    assert 0 < saved.tokens < 300


class TwoRanks:
    """The first of two ranks, whose other one has these samples already."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, others, failed=0):
        self.others, self.failed = others, failed

    def gather(self, padded):
        theirs = torch.full_like(padded, -1)
        for number, sample in enumerate(self.others):
            theirs[number, : len(sample)] = torch.tensor(sample)
        return torch.cat([padded, theirs])

    def reduce(self, failed, reduction):
        assert reduction == "sum"
        return failed + self.failed


def test_every_rank_measures_the_samples_of_all():
    assert gather_samples([[5, 2], [7]], TwoRanks([[9, 9, 9]]), 3, 3) == [[5, 2], [7], [9, 9, 9]]


@pytest.mark.parametrize(("here", "others"), [(False, 1), (True, 0)])
def test_logits_that_are_not_finite_on_one_rank_stop_all(here, others):
    setting = OnPolicySetting("llama", share=1.0)
    viewer = replace(setting.viewer, accelerator=TwoRanks([], failed=others))
    step = OnPolicyStep(setting.on_policy, viewer, setting.data, [0, 1], micro_batches(setting.data, [0, 1], 0, 2, 1))
    if here:
        torch.nn.init.constant_(setting.learner.student.get_output_embeddings().weight, torch.nan)
    cause = ": 1 of 1 samples have logits that are NaN or infinite" if here else ""
    with pytest.raises(RunError, match=f"it cannot write texts of its own at step 1{cause}; lower --lr"):
        step.sample(setting.learner, TrainState())
