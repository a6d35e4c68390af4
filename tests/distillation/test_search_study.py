"""A search's study: equal draws after a stop, every setting once, and the better half at a rung."""

import pytest

optuna = pytest.importorskip("optuna", reason="Optuna is not installed (kdalign[search])")

from kdalign.distillation.search_study import ArmStudy, open_storage, open_study  # noqa: E402
from kdalign.errors import UsageError  # noqa: E402
from kdalign.runs.search_space import Range  # noqa: E402

SPACE = {"train.lr": Range(1e-5, 1e-3, log=True), "train.freeze": ("", "embeddings")}


def study_in(folder, space=SPACE, trials=12, own=None, of=None):
    storage = open_storage(None, folder / "study.journal")
    return ArmStudy("joint", space, trials, 0, open_study(storage, "joint", space, own or {}, of or {}))


def value(settings):
    """Best at a learning rate of 1e-4 with frozen embeddings."""
    import math

    return -abs(math.log10(settings["train.lr"]) + 4) + (settings["train.freeze"] == "embeddings")


def take(study, most=100):
    taken = []
    while len(taken) < most and (attempt := study.ask()) is not None:
        attempt.add_score("rte", value(attempt.settings))
        attempt.finish()
        taken.append(attempt.settings)
    return taken


def test_a_search_that_is_stopped_draws_what_it_would_have_drawn(tmp_path):
    whole = take(study_in(tmp_path / "whole"))
    assert len(whole) == 12
    parts = []
    for _ in range(4):
        parts += take(study_in(tmp_path / "parts"), most=3)
    assert parts == whole
    assert take(study_in(tmp_path / "parts")) == []
    more = take(study_in(tmp_path / "parts", trials=14))
    assert len(more) == 2, "more trials go on from there"


def test_a_lock_that_a_killed_process_left_does_not_hold_up_the_next_one(tmp_path):
    take(study_in(tmp_path), most=1)
    (tmp_path / "study.journal.lock").touch()
    assert len(take(study_in(tmp_path), most=1)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["study.journal"]


def test_an_attempt_under_way_goes_on_with_the_tasks_that_are_left(tmp_path):
    attempt = study_in(tmp_path).ask()
    attempt.add_score("rte", 50.0)
    assert not attempt.is_pruned(1, 40.0)
    (again,) = study_in(tmp_path).resume()
    assert (again.settings, again.scores, again.number) == (attempt.settings, {"rte": 50.0}, 0)
    again.add_score("cola", 20.0)
    assert again.finish() == 35.0
    assert study_in(tmp_path).resume() == []
    (candidate,) = study_in(tmp_path).candidates()
    assert (candidate.score, candidate.rungs, candidate.chosen) == (35.0, {"1/4": 40.0}, True)


def test_the_arms_own_settings_come_first_and_later_ones_are_near_the_best(tmp_path):
    taken = take(study_in(tmp_path, trials=30, own={"train.lr": 2e-4}))
    assert taken[0]["train.lr"] == 2e-4
    late = [value(settings) for settings in taken[20:]]
    assert sum(late) / len(late) > sum(map(value, taken[:5])) / 5


def test_settings_of_a_small_space_are_each_tried_once_and_then_it_ends(tmp_path):
    space = {"train.batch_size": Range(1, 3), "align.weights": ([1, 2], "uniform")}
    study = study_in(tmp_path, space, trials=20)
    taken = []
    while (attempt := study.ask()) is not None:
        attempt.add_score("rte", 1.0)
        attempt.finish()
        taken.append(tuple(map(str, attempt.settings.values())))
    assert sorted(taken) == sorted((str(n), weights) for n in (1, 2, 3) for weights in ("[1, 2]", "uniform"))
    assert [one.chosen for one in study.candidates()] == [True] + 5 * [False], "of equal scores the first"


def test_the_better_half_of_those_at_a_rung_goes_on(tmp_path):
    study = study_in(tmp_path)
    attempts = [study.ask() for _ in range(4)]
    stopped = [attempt.is_pruned(1, mean) for attempt, mean in zip(attempts, (50, 40, 60, 55), strict=True)]
    assert stopped == [False, True, False, False], "40 is not the best of two, and 55 is among the best two of four"
    attempts[1].prune()
    attempts[0].fail("diverged")
    for attempt, score in ((attempts[2], 61.0), (attempts[3], None)):
        attempt.add_score("rte", score)
        attempt.finish()
    kept = study.candidates()
    assert [one.pruned for one in kept] == [False, True, False, False]
    assert [one.score for one in kept] == [None, None, 61.0, None]
    assert [one.failed for one in kept] == ["diverged", "", "", "its score is undefined"]
    assert [one.chosen for one in kept] == [False, False, True, False]


def test_another_search_in_the_same_place_is_refused_by_what_differs(tmp_path):
    study_in(tmp_path, of={"train.max_steps": 6})
    with pytest.raises(UsageError, match=r"search 'joint' was begun as another one, train\.max_steps differ"):
        study_in(tmp_path, of={"train.max_steps": 7})
    with pytest.raises(UsageError, match=r"search of train\.lr differ"):
        study_in(tmp_path, {**SPACE, "train.lr": Range(1e-6, 1e-3)}, of={"train.max_steps": 6})


def test_a_database_keeps_studies_as_a_journal_does(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/search.db", tmp_path / "unused")
    study = ArmStudy("joint", SPACE, 3, 0, open_study(storage, "joint", SPACE, {}, {}))
    assert take(study) == take(study_in(tmp_path / "journal", trials=3))
    assert not (tmp_path / "unused").exists()
    with pytest.raises(UsageError, match="cannot open the search's storage 'nosuch://x'"):
        open_storage("nosuch://x", tmp_path / "unused")
