"""Names on a terminal, and terminals that know little: nothing moves the cursor, nothing is markup, nothing raises."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.table import Table

from kdalign.errors import printable
from kdalign.evaluation.result import EvaluationResult
from kdalign.metrics.classification import Score
from kdalign.report.progress import ConsoleObserver
from kdalign.report.screen import Screen, encoding_note, plain_text, replace_unencodable
from support.tiny import one_line

HOSTILE = "a\x1b[31mred\x07\x9b2J\u202eevil\u2066x\rover\nline\u2028end[/][red]\udcff"


def stream(encoding):
    made = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    replace_unencodable(made)
    return made


def written(made):
    return made.buffer.getvalue().decode(made.encoding)


def test_what_a_name_holds_reaches_no_terminal_as_a_command():
    file = io.StringIO()
    screen = Screen(file=file, width=60, force_terminal=True)
    table = Table(title=plain_text(HOSTILE))
    table.add_column(plain_text(HOSTILE), overflow="fold")
    table.add_row(plain_text(HOSTILE), style="bold")
    screen.print(table)
    screen.print(HOSTILE, markup=False)
    shown = file.getvalue()
    assert "\x1b[1m" in shown, "the table's own style"
    assert "\x1b[31m" not in shown, "the name's"
    shown = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert not [sign for sign in shown if sign != "\n" and printable(sign) != sign]
    assert "[/][red]" in shown


def test_an_announcement_is_one_clean_line_on_the_terminal_and_in_the_log(tmp_path):
    file = io.StringIO()
    watcher = ConsoleObserver(Screen(file=file, width=40)).into(tmp_path / "log.txt")
    watcher.announce(f"task {HOSTILE}")
    watcher.announce("0:1 " * 20_000)
    first, second = file.getvalue().splitlines()
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first == f"task {printable(HOSTILE)}"
    assert [line.partition(" ")[2] for line in logged] == [first, second]
    assert len(second) <= 1000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_tables_are_as_wide_and_signs_have_stand_ins_where_an_encoding_lacks_them(encoding):
    made = stream(encoding)
    table = Table("model", "score")
    table.add_row("joint", "83.3↑")
    table.add_row("soft – labels", "81.0≈")
    wide = io.StringIO()
    for file in (made, wide):
        Screen(file=file, width=60).print(table)
    plain, whole = written(made), wide.getvalue()
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in whole.splitlines()]
    assert "83.3^" in plain
    assert "81.0~" in plain
    assert "?" not in plain
    assert encoding_note() is None


def test_what_has_no_stand_in_is_a_question_mark_and_said_once():
    made = stream("ascii")
    print("café 模型 \udcff", file=made)
    assert written(made) == "caf? ?? ?\n"
    assert "ascii" in (encoding_note() or "")
    assert encoding_note() is None
    half = stream("utf-8")
    print("café \udcff", file=half)
    assert written(half) == "café ?\n"
    assert encoding_note() is not None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("form", ["rich", "markdown", "latex", "csv", "json"])
def test_a_table_is_printed_whatever_the_encoding_of_stdout(kdalign, monkeypatch, tmp_path, encoding, form):
    score = Score("cer", 12.5, "%", 4, False, "x → y", 10.0, 15.0)
    result = EvaluationResult("模型", "t", "s", "naïve.csv", 4, 0, (score,), notes=("– ≥ 2",))
    file = tmp_path / "e.json"
    file.write_text(json.dumps({"kind": "evaluation", "results": [result.to_json()]}))
    made = stream(encoding)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "argv", ["kdalign", "compare", str(file), "--format", form])
    from kdalign.cli import main

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "12.5" in written(made)
    if form == "json":
        assert "模型" in json.dumps(json.loads(written(made)), ensure_ascii=False)


def started(words, **options):
    """The real command in a process of its own; ``recipe show`` loads no torch."""
    environment = os.environ | {"COLUMNS": "80", **options.pop("environment", {})}
    return subprocess.run([sys.executable, "-m", "kdalign", *words], env=environment, timeout=120, **options)


def test_an_output_that_takes_nothing_is_one_line_and_a_reader_who_leaves_none():
    with open("/dev/full", "w") as full:
        done = started(["recipe", "show", "tinybert"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert "No space left on device" in one_line(done.stderr)
        done = started(["recipe", "show", "no-such"], stdout=subprocess.PIPE, stderr=full, text=True)
        assert done.returncode == 2
    reading, writing = os.pipe()
    os.close(reading)
    done = started(["recipe", "show"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_streams_are_said_before_any_work():
    words = f"{sys.executable} -m kdalign recipe show"
    done = subprocess.run(["/bin/sh", "-c", f"{words} >&-"], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert "stdout is closed" in one_line(done.stderr)
    done = subprocess.run(["/bin/sh", "-c", f"{words} 2>&-"], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0
    assert "tinybert" in done.stdout


def test_a_locale_without_utf_8_prints_every_table():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = started(["recipe", "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, environment=plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tinybert" in done.stdout
    assert done.stdout.isascii()
