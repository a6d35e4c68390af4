"""The tables of docs/results are those that their commands print from the archives in benchmarks."""

import re
import shlex

import pytest

from refresh import ROOT, differences, refresh


@pytest.mark.slow
def test_every_table_is_what_its_command_prints():
    for name in ("classification", "objective"):
        page = ROOT / f"docs/results/{name}.md"
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- kdalign ") == text.count("<!-- end -->") > 0
        assert differences(page, refresh(text)) == []


def test_the_table_of_the_readme_is_what_its_command_prints(kdalign, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command, table = re.search(r"```text\n\$ kdalign (.*?)\n(.*?)```", text, re.S).groups()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "92")
    code, out, _ = kdalign(*shlex.split(command))
    assert code == 0
    printed = {line.rstrip() for line in out.splitlines()}
    rows = [line.rstrip() for line in table.splitlines()]
    assert len(rows) > 10
    assert [row for row in rows if row not in printed] == []


@pytest.mark.parametrize(("name", "most"), [("results", 2_400_000), ("objective", 300_000)])
def test_kept_results_stay_small(name, most):
    files = [path for path in (ROOT / "benchmarks" / name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < most
