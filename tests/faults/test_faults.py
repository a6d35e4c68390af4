"""Faults at random moments: every command ends in the undisturbed result, and every damaged file is seen."""

from pathlib import Path

import pytest

from support.ranks import run

ROOT = Path(__file__).parents[2]
FIVE = ("distill", "ablate", "eval", "cache build", "generate")
SHARED = ("distill on 2 ranks", "generate by a server", "eval of a server")


def faults(folder, command, *more):
    return run(["-m", "tests.faults", "--commands", command, "--folder", str(folder), *more], cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*FIVE, *SHARED])
def test_a_command_that_meets_a_fault_ends_in_the_undisturbed_result(tmp_path, command):
    done = faults(tmp_path, command, "--kills", "11")  # each kind of fault once or more
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 ended in the undisturbed result" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", FIVE)
def test_each_file_of_a_command_that_is_damaged_is_refused_or_made_again(tmp_path, command):
    done = faults(tmp_path, command, "--files")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_memory_and_history_of_a_long_run_are_bounded(tmp_path):
    done = run(["-m", "tests.faults.load", "--steps", "3000", "--folder", str(tmp_path)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
