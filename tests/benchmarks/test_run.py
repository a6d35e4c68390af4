"""The command, from its mistakes to a table."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import run


@pytest.fixture
def command(monkeypatch, capsys):
    def start(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        try:
            run.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return start


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--quick", "--only", "kdalin"], "unknown peer 'kdalin'; did you mean 'kdalign'?"),
        (["--teacher", "."], "give --quick or --full, or --render FILE"),
        (["--quick"], "give --teacher DIR, the folder of a classifier of SST-2"),
        (["--quick", "--teacher", "nowhere", "--data", "."], "--teacher nowhere: there is no such folder"),
        (["--quick", "--teacher", ".", "--data", ".", "--turns", "0"], "--turns 0: 1 or more are needed"),
        (["--full", "--teacher", ".", "--data", ".", "--write", "--out", "x.json"], "leave out --out"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(command, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*words)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_fails_says_why_and_the_others_go_on(tmp_path):
    rows = [row for row in run.choose_rows(["trainer", "textbrewer"], language=False) if row.variant == "tuned"]
    given = run.make_parser().parse_args(["--quick", "--teacher", str(tmp_path), "--data", str(tmp_path)])
    pythons = {"trainer": "cannot be installed: no network", "textbrewer": Path(sys.executable)}
    measured = run.take_turns(rows, run.MODES["quick"].with_turns(1), given, tmp_path, pythons)
    assert [each.turns for each in measured] == [[], []]
    assert [each.error for each in measured] == [
        "cannot be installed: no network",
        "ModuleNotFoundError: No module named 'textbrewer'",  # which the running environment lacks
    ]


@pytest.mark.slow
def test_quick_measures_kdalign_and_a_trainer_on_a_tiny_model(command, teacher, data, tmp_path):
    out = tmp_path / "speed.json"
    words = [
        "--quick",
        "--turns",
        1,
        "--teacher",
        teacher,
        "--data",
        data,
        "--only",
        "kdalign",
        "trainer",
        "--out",
        out,
    ]
    code, shown, err = command(*words)
    assert code == 0, err
    kept = json.loads(out.read_text())
    assert len(kept["rows"]) == 7
    for row in kept["rows"]:
        assert row["error"] == ""
        [turn] = row["turns"]
        assert turn["samples"] == 32 * turn["steps"]
        assert turn["tokens"] >= 3 * turn["samples"]  # two marks and a word
        assert turn["steps"] >= (16 if row["sorted"] else 2)
        assert row["what"] in " ".join(shown.split())
    code, text, _ = command("--render", out)
    assert code == 0
    assert text.count("| kdalign, ") == 5
