"""Bad inputs end in one line or in a result; and a command that ends otherwise is seen."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.case import ANY, REFUSED, Case
from tests.bad_input.run import KEY, Outcome, judge

ROOT = Path(__file__).parents[2]
GOOD = Outcome(2, "", "kdalign: error: no such file\n", 0.5, 10**8)
FAULTS = {
    "ended with -11": Outcome(-11, "", "", 0.5, 10**8),
    "traceback": Outcome(1, "", "Traceback (most recent call last):\nkdalign: error: x\n", 0.5, 10**8),
    "0 error lines": Outcome(2, "", "no such file\n", 0.5, 10**8),
    "2 error lines": Outcome(2, "", "kdalign: error: a\nkdalign: error: b\n", 0.5, 10**8),
    "took 31 s": Outcome(2, "", GOOD.err, 31.0, 10**8),
    "out of memory": Outcome(1, "", "kdalign: error: out of memory: no more\n", 0.5, 10**8),
    "a line of more than 1,000 characters": Outcome(2, "", f"kdalign: error: {'a' * 1000}\n", 0.5, 10**8),
    "control characters '\\x1b'": Outcome(0, "\x1b[31m", "", 0.5, 10**8),
    "control characters '\\u202e'": Outcome(0, "\u202e", "", 0.5, 10**8),
    "the key is told": Outcome(0, "", f"key {KEY}\n", 0.5, 10**8),
}


def faults(outcome, before, after, folder, expect=ANY):
    return judge(Case("recipes", "", (), expect=expect), outcome, before, after, folder)


def test_a_refusal_in_one_line_has_no_fault(tmp_path):
    assert faults(GOOD, {}, {}, tmp_path, REFUSED) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(tmp_path, fault):
    assert faults(FAULTS[fault], {}, {}, tmp_path) == [fault]


def test_what_is_written_told_or_run_is_seen(tmp_path):
    (tmp_path / "log.txt").write_text(KEY)
    written = {"log.txt": (len(KEY), 1)}
    assert faults(GOOD, written, written, tmp_path) == ["the key is told"]
    (found,) = faults(GOOD, {}, {"out": (0, 0)}, tmp_path)
    assert found.startswith("wrote before refusing: [('out'")
    assert faults(Outcome(0, "", "", 0.5, 10**8), {}, {"a/RAN": (0, 0)}, tmp_path) == ["code of a stranger's ran"]
    assert faults(Outcome(0, "", "", 0.5, 10**8), {}, {}, tmp_path, REFUSED) == ["nonsense accepted"]


@pytest.mark.slow
def test_three_hundred_bad_inputs_end_in_one_line_or_in_a_result(tmp_path):
    words = [sys.executable, "-m", "tests.bad_input", "--count", "300", "--place", str(tmp_path / "place")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
