"""Tables rendered from a kept measurement."""

import io

import pytest
from rich.console import Console

from benchmarks.run import write_page
from benchmarks.table import markdown, show


def row(peer, variant, turns, *, error="", teacher=True, what="a way"):
    facts = {"group": "joint", "peer": peer, "variant": variant, "what": what, "teacher": teacher}
    return facts | {"turns": turns, "error": error}


def turn(number, seconds, **more):
    return {
        "turn": number, "samples": 100, "tokens": 1000, "seconds": seconds, "cpu_seconds": 1.0, "gib": 1.25,
        "other_cores": 0.0, "precision": "fp32", "torch": "2.0", **more,
    }  # fmt: skip


@pytest.fixture
def kept():
    scores = {
        "after_steps": {"accuracy": 0.875, "steps": 64, "seconds": 12.0},
        "after_seconds": {"accuracy": 0.9, "steps": 110, "seconds": 20.1},
    }
    return {
        "command": "python -m benchmarks.run --full",
        "created": "2026-01-02",
        "settings": {"turns": 2, "accuracy_steps": 64, "accuracy_seconds": 20.0},
        "versions": {"textbrewer": ["textbrewer==0.2.1.post1"]},
        "peaks": {"fp32": 2e4, "bf16": 4e4},
        "bandwidth": 2e10,
        "minutes": 3.0,
        "other_cores": 0.0,
        "flops": {"classifier": {"teacher": 2.0, "student": 3.0, "length": 10}},
        "machine": {"processor": "a processor", "cpus": 2, "threads": 1,
                    "libraries": {"torch": "2.0", "transformers": "5.0"}},
        "rows": [
            row("kdalign", "joint", [turn(0, 1.0), turn(1, 2.0, **scores)]),
            row("kdalign", "alone", [turn(0, 0.5)], teacher=False, what="no teacher", error="killed"),
            row("textbrewer", "padded", [turn(1, 4.0, other_cores=0.5)], what="padded"),
            row("torchdistill", "dynamic", [], error="RuntimeError: no nms"),
        ],
    }  # fmt: skip


def cells_of(text, start):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_row_shows_medians_spreads_its_ratio_and_its_scores(kept):
    assert cells_of(markdown(kept), "kdalign, a way (fp32)") == [
        "75.0 (50.0 to 100.0)", "750 (500 to 1,000)", "10.0 (10.0 to 10.0)", "1.25 (1.25 to 1.25)",
        "19 % (12 to 25)",  # 750 tokens/s of 2 + 3 operations, of 20,000
        "1.00 (1.00 to 1.00)", "87.5 (12 s)", "90.0 (110)",
    ]  # fmt: skip


def test_a_row_without_a_teacher_counts_the_student_alone(kept):
    # 2,000 tokens/s of 3 operations, of 20,000; twice the speed of the first row's turn
    assert cells_of(markdown(kept), "kdalign, no teacher")[4:6] == ["30 %", "2.00"]


def test_what_went_wrong_is_said(kept):
    text = markdown(kept)
    assert cells_of(text, "textbrewer, padded (fp32)*")[5] == "0.50"
    assert "Rows with a star: other processes were at work in these turns: textbrewer, padded (2)." in text
    assert "kdalign, no teacher: 1 turns only; another one failed: killed" in text
    assert cells_of(text, "torchdistill, a way: RuntimeError: no nms") == ["–"] * 8


def test_the_terminal_shows_the_same_cells(kept):
    console = Console(file=io.StringIO(), width=250)
    show(kept, console)
    shown = console.file.getvalue()
    for start in ("kdalign, a way (fp32)", "textbrewer, padded (fp32)*"):
        assert all(cell in shown for cell in cells_of(markdown(kept), start))


def test_a_page_gets_the_tables_once_and_keeps_the_rest(kept, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\ntext\n")
    write_page(kept, page, "kept.json")
    first = page.read_text()
    assert first.startswith("# Speed\n\ntext\n\n## ")
    page.write_text(first + "\nmore\n")
    kept["rows"] = kept["rows"][:1]
    write_page(kept, page, "kept.json")
    again = page.read_text()
    assert again.count("<!-- python -m benchmarks.run --render kept.json -->") == again.count("<!-- end -->") == 1
    assert markdown(kept) in again
    assert "textbrewer, padded" not in again
    assert again.endswith("<!-- end -->\n\nmore\n")
