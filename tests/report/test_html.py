"""One HTML file that shows a comparison, and a look into a run, through the real command line."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kdalign.files import sha256
from kdalign.runs.folder import seal_of
from support.tiny import one_line

STRANGE = '<b>&"x'
"""A run folder's name."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher, data):
    """Three finished runs: joint of two seeds, and one of another name and a map by likeness."""
    from kdalign.distillation.pipeline import distill
    from kdalign.recipe import build_recipe

    folder = tmp_path_factory.mktemp("runs")
    for name, seed, choice in (("joint-0", 0, "auto"), ("joint-1", 1, "auto"), (STRANGE, 0, "cka")):
        flags = {
            "teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data),
            "align.map": choice, "train.max_steps": 6, "train.precision": "fp32", "train.seed": seed,
            "train.device": "cpu", "out": str(folder / name),
        }  # fmt: skip
        distill(build_recipe(None, flags))
    return folder


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The page of these runs, and the comparison that it shows."""
    from kdalign.comparison.compare import compare
    from kdalign.report.html import render_html
    from kdalign.runs.finished import finished_runs

    comparison = compare([runs])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_html(comparison, finished_runs([runs])), encoding="utf-8")
    return file, json.loads(json.dumps(comparison.to_json()))


class Page(HTMLParser):
    """The tables of a page, the text around them, what it loads, and which elements it has."""

    VOID = ("meta", "link", "br", "img", "path", "use", "rect")

    def __init__(self, file):
        super().__init__()
        self.open, self.ids, self.loads, self.tags = [], [], [], []
        self.rows, self.text = [], ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, given):
        attributes = dict(given)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loads += [attributes[name] for name in ("src", "href", "xlink:href", "data") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append({"name": "", "values": []})
        if tag == "td":
            self.rows[-1]["values"].append(attributes.get("data-value"))

    def handle_startendtag(self, tag, given):
        attributes = dict(given)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loads += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" in self.open or "script" in self.open:
            return
        self.text += text
        if self.open and self.open[-1] == "th" and "tbody" in self.open:
            self.rows[-1]["name"] += text.strip()


def test_the_numbers_of_the_page_are_those_of_the_json_form(written):
    file, tree = written
    shown = {}
    for row in Page(file).rows:
        shown.setdefault(row["name"], []).extend(value for value in row["values"] if value is not None)
    for row in tree["rows"]:
        own = [row["cells"].get(column["key"], {"value": None})["value"] for column in tree["columns"]]
        name = row["name"] + (f" ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else "")
        assert sorted(map(float, shown[name])) == sorted(value for value in own if value is not None)
    assert len(tree["rows"]) == 3
    for note in tree["notes"]:
        assert note in Page(file).text


def test_the_best_is_bold_the_second_underlined_and_intervals_stand_below():
    from kdalign.comparison.table import Cell, Column, ComparisonTable, Row
    from kdalign.report.html import render_html

    cells = (
        Cell(91.25, 90.04, 92.0, best=True),
        Cell(90.0, second=True),
        Cell(80.0, 79.0, 81.0, verdict="↓"),
        Cell(None, reason="it <failed>"),
    )
    rows = tuple(Row(f"row {number}", "student", (0,), {"t/accuracy": cell}) for number, cell in enumerate(cells))
    found = render_html(ComparisonTable((Column("t/accuracy", "t accuracy", "%", 1, task="t"),), rows), [])
    assert "<strong>91.2</strong><small>(90.0 to 92.0)</small>" in found
    assert "<u>90.0</u></td>" in found
    assert ">80.0 ↓<small>(79.0 to 81.0)</small>" in found
    assert '<td title="it &lt;failed&gt;">–</td>' in found


def test_a_page_may_have_metrics_as_rows(runs, kdalign):
    status, out, _ = kdalign("compare", runs, "--format", "html", "--transpose")
    assert status == 0
    assert '<th scope="col">metric</th>' in out
    assert '<th scope="row">sst2 accuracy (%)</th>' in out


def test_whatever_users_name_is_escaped(written):
    file, _ = written
    text = file.read_text(encoding="utf-8")
    assert STRANGE in Page(file).text
    assert html.escape(STRANGE) in text or "&lt;b&gt;&amp;&#34;x" in text
    assert "<b>" not in text
    assert not any(tag == "b" for tag, _ in Page(file).tags)


def test_the_page_lets_the_browser_fetch_nothing_and_run_its_own_script_alone(written):
    file, _ = written
    text = file.read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{own}';" in policy


def test_a_page_has_no_control_character_of_a_name(runs):
    from kdalign.comparison.compare import compare
    from kdalign.report.html import render_html
    from kdalign.runs.finished import finished_runs

    hostile = "x\x1b[31m\u202e\udcff</script><b>"
    named = [replace(run, name=hostile) for run in finished_runs([runs / "joint-0"])]
    table = compare([runs / "joint-0"])
    table = replace(table, notes=(hostile,), rows=tuple(replace(row, name=hostile) for row in table.rows))
    text = render_html(table, named)
    text.encode()
    assert all(sign == "\n" or sign.isprintable() for sign in text)
    assert "<b>" not in text


def test_the_page_loads_nothing_and_names_no_address(written):
    file, _ = written
    page = Page(file)
    assert all(load.startswith(("#", "data:")) for load in page.loads), page.loads
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?:https?:)?//""", text)
    assert not re.search(r"@import|url\(", text.replace('="url(#', ""))
    assert not any(tag in ("iframe", "object", "embed") for tag, _ in page.tags)


def test_the_page_is_whole_and_says_what_it_is(written):
    file, _ = written
    page = Page(file)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert dict(page.tags)["html"]["lang"] == "en"
    assert "3 models compared on sst2" in page.text
    pictures = [given for tag, given in page.tags if tag in ("svg", "img")]
    assert len(pictures) == 5
    assert all(given.get("aria-label") or given.get("alt") for given in pictures)
    targets = [load[1:] for load in page.loads if load.startswith("#")]
    assert set(targets) <= set(page.ids)


def test_the_page_holds_examples_recipes_and_the_commands_that_make_the_runs_again(written, runs, data):
    file, _ = written
    text = Page(file).text
    assert "Where students differ from their teacher" in text
    assert f"--task sst2 --data {data} --max-steps 6 --precision fp32 --device cpu" in text
    assert "--map cka" in text
    assert (runs / STRANGE / "recipe.yaml").read_text() in text
    assert "torch 2" in text


@pytest.mark.slow
def test_twenty_runs_are_under_two_megabytes(runs, tmp_path):
    from kdalign.comparison.compare import compare
    from kdalign.report.html import render_html
    from kdalign.runs.finished import finished_runs
    from kdalign.runs.folder import RunFolder
    from kdalign.runs.record import read_record

    for number in range(20):
        shutil.copytree(runs / "joint-0", tmp_path / f"run-{number}", ignore=shutil.ignore_patterns("student", "c*"))
        event = json.loads((runs / "joint-0" / "history.jsonl").read_text().splitlines()[1])
        steps = [event | {"step": step, "loss": float(np.sin(step))} for step in range(1, 2001)]
        folder = RunFolder(tmp_path / f"run-{number}")
        folder.history.write_text("\n".join(map(json.dumps, steps)))
        record = read_record(folder.path)
        other = {**record.recipe, "train": {**record.recipe["train"], "lr": 1e-4 * (1 + number)}}
        folder.write_record(replace(record, recipe=other))
    assert len(render_html(compare([tmp_path]), finished_runs([tmp_path])).encode()) < 2_000_000


def in_browser(chromium, file, profile, *words):
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --allow-file-access-from-files"
    ).split()
    command = [chromium, *flags, f"--user-data-dir={profile}", *words, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def chromium():
    """A browser without a window."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("no chromium here to open the page with")


def test_a_browser_opens_the_page_without_a_complaint_and_on_a_telephone_it_does_not_scroll_sideways(
    written, chromium, tmp_path
):
    file, _ = written
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe width="400" height="800" src="{file.as_uri()}"></iframe><script>onload = () => {{'
        "const page = document.querySelector('iframe').contentDocument;"
        "document.body.dataset.wide = page.documentElement.scrollWidth;"
        "const head = page.querySelectorAll('th button')[0]; head.click();"
        "document.body.dataset.sorted = head.parentElement.ariaSort;"
        "}</script>"
    )
    done = in_browser(chromium, frame, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert int(re.search(r'data-wide="(\d+)"', done.stdout)[1]) <= 400
    assert 'data-sorted="descending"' in done.stdout


@pytest.mark.slow
def test_compare_writes_the_page_and_the_pictures(kdalign, runs, tmp_path):
    status, out, err = kdalign("compare", runs, "--format", "html", "--out", "report.html", "--plots", "pictures")
    assert (status, out) == (0, "")
    assert "written: report.html" in err
    assert "pictures: 10 files" in err
    assert Path("report.html").read_text().startswith("<!doctype html>")
    assert {file.suffix for file in Path("pictures").iterdir()} == {".png", ".svg"}
    status, out, _ = kdalign("compare", runs, "--format", "html", "--require", "accuracy>=101")
    assert out.startswith("<!doctype html>")
    assert status == 1
    assert re.search("<li>fail: joint: sst2/accuracy &gt;= 101", out, re.I)


@pytest.mark.slow
def test_the_page_is_made_without_torch(runs, tmp_path):
    code = (
        "import sys; sys.argv = ['kdalign', 'compare', sys.argv[1], '--format', 'html', '--out', sys.argv[2]]\n"
        "from kdalign.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, runs, tmp_path / "r.html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures_in_the_place_of_a_file_are_refused_before_anything_is_read(kdalign, runs, tmp_path):
    (tmp_path / "there").write_text("")
    status, _, err = kdalign("compare", runs, "--plots", "there", "--out", "table.txt")
    assert status == 2
    assert "is a file; name a folder" in one_line(err)
    assert not (tmp_path / "table.txt").exists()


def test_the_teacher_s_logits_are_kept_and_give_its_calibration(runs):
    from kdalign.runs.disagreements import read_answers
    from kdalign.runs.finished import finished_runs

    [run] = finished_runs([runs / "joint-0"])
    found = read_answers(run)
    assert found.teacher_logits.shape == found.student_logits.shape == (64, 2)
    assert (found.teacher_logits.argmax(1) == found.teacher).all()


def test_inspect_shows_layers_answers_and_examples_and_draws_them(kdalign, runs):
    status, out, err = kdalign(
        "inspect", runs / "joint-0", "--text", "the film was great", "--examples", "2", "--plots", "inside"
    )
    assert status == 0, err
    said = " ".join(out.split())
    for word in ("student layer", "before", "after", "the film was great", "student: ", "% sure", "validation"):
        assert word in said, word
    names = sorted(file.name for file in Path("inside").iterdir())
    assert names == ["attention.png", "attention.svg", "likeness.png", "likeness.svg"]
    svg = (Path("inside") / "attention.svg").read_text()
    for token in ("[CLS]", "film", "great"):
        assert f">{token}<" in svg


def test_the_likeness_before_training_is_the_plan_s_and_after_it_another(runs):
    from kdalign.alignment.plan import read_plan
    from kdalign.distillation.inspection import layer_similarity, load_pair
    from kdalign.runs.finished import finished_runs

    [run] = finished_runs([runs / STRANGE])
    found = layer_similarity(load_pair(run, "cpu"))
    measured = np.array(read_plan(run.folder.plan).similarities["encoder"])
    assert np.array(found.before["encoder"]) == pytest.approx(measured, abs=1e-5)
    assert np.abs(np.array(found.after["encoder"]) - measured).max() > 1e-4
    assert np.array(found.after["encoder"]).shape == (2, 4)


def test_where_a_model_looks_is_what_it_computes_when_asked_for_its_attention(runs):
    import torch
    from transformers import AutoModelForSequenceClassification

    from kdalign.distillation.inspection import attention_on, find_example, load_pair
    from kdalign.runs.finished import finished_runs

    [run] = finished_runs([runs / "joint-0"])
    pair = load_pair(run, "cpu")
    found = attention_on(pair, find_example(pair, ["a very good film"], None))
    assert [each[:2] for each in found.maps] == [("0", "1"), ("1", "3")]
    assert found.student_tokens == found.teacher_tokens == ("[CLS]", "a", "very", "good", "film", "[SEP]")
    plain = AutoModelForSequenceClassification.from_pretrained(run.folder.student, attn_implementation="eager").eval()
    with torch.no_grad():
        made = plain(**pair.student_tokenizer("a very good film", return_tensors="pt"), output_attentions=True)
    for layer, (_, _, ours, _) in enumerate(found.maps):
        assert ours == pytest.approx(made.attentions[layer][0].numpy(), abs=1e-5)
    label, sure = found.answers[0]
    assert plain.config.id2label[int(made.logits.argmax())] == label
    assert sure == pytest.approx(float(made.logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--text", "a", "--text", "b"), "task 'sst2' takes 1 --text an example, given 2"),
        (("--head", "4"), "--head 4: the smaller model has 4 attention heads (accepted: 0 to 3)"),
    ],
)
def test_what_inspect_cannot_do_is_one_line(kdalign, runs, words, said):
    status, out, err = kdalign("inspect", runs / "joint-0", *words, "--plots", "inside")
    assert (status, out) == (2, "")
    assert said in one_line(err)
    assert not Path("inside").exists()


def test_a_run_whose_data_has_changed_cannot_be_looked_into(kdalign, runs, tmp_path):
    shutil.copytree(runs / "joint-0", "changed")
    inputs = json.loads(Path("changed/inputs.json").read_text())
    Path("changed/inputs.json").write_text(json.dumps(inputs | {"train": "0" * 16}))
    record = json.loads(Path("changed/record.json").read_text())
    record["files"]["inputs.json"] = sha256(Path("changed/inputs.json"))
    Path("changed/record.json").write_text(json.dumps({**record, "seal": seal_of(record)}))
    status, _, err = kdalign("inspect", "changed")
    assert status == 2
    assert "run 'changed' read another train" in one_line(err)
    status, _, err = kdalign("inspect", "nowhere")
    assert "no run at 'nowhere'" in one_line(err)
