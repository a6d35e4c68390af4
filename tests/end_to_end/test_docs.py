"""README, guide and examples run, and docs/reference/losses.md names its tests."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from kdalign.cli import main
from support.covering import one_of_each
from support.media_setting import save_captions, save_image_data, save_speech_data, save_whisper
from support.tiny import sentences

ROOT = Path(__file__).resolve().parents[2]


README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands_of(page):
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("kdalign ")]


def run(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0, command


def run_commands(page, monkeypatch):
    for command in commands_of(page):
        run(command, monkeypatch)


@pytest.fixture(scope="module")
def reader(teacher, data, tmp_path_factory):
    """The folder of a reader who has run the README's commands."""
    folder = tmp_path_factory.mktemp("reader")
    for name, target in {"teacher": teacher, "sst2": data, "encoder": teacher, "examples": ROOT / "examples"}.items():
        (folder / name).symlink_to(target)
    save_image_data(folder / "digits", size=(16, 16))
    save_captions(folder / "digits-captions")
    save_speech_data(folder / "speech")
    save_whisper(folder / "untrained", layers=2, positions=256)
    (folder / "pairs").mkdir()
    pd.DataFrame({"text": sentences(64, 0)[0]}).to_parquet(folder / "pairs/train.parquet")
    pairs = pd.DataFrame({"sentence1": sentences(8, 1)[0], "sentence2": sentences(8, 2)[0], "score": range(8)})
    pairs.to_parquet(folder / "pairs/validation.parquet")
    (folder / "answers.jsonl").write_text('{"prediction": "a fine film", "reference": "a good film"}\n' * 3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("KDALIGN_CACHE", str(folder / "cache"))
        run_commands(README, monkeypatch)
        trained = "distill --teacher none --student ./untrained --task speech-recognition --data ./speech --lr 3e-3"
        run(f"kdalign {trained} --max-steps 300 --out first", monkeypatch)
        (folder / "whisper").symlink_to(folder / "first" / "student")
    return folder


def test_the_python_of_the_readme_runs_after_its_commands(reader, monkeypatch):
    assert len(commands_of(README)) == 3
    monkeypatch.chdir(reader)
    (code,) = blocks(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert Path("runs/python/record.json").is_file()


@pytest.mark.parametrize(
    "page", one_of_each(GUIDE, [page for page in GUIDE if page.stem == "ci-gates"]), ids=lambda page: page.stem
)
def test_every_command_of_the_guide_runs_in_order(page, reader, tmp_path, monkeypatch):
    assert commands_of(page)
    folder = shutil.copytree(reader, tmp_path / "reader", symlinks=True)
    if page.stem == "distill":
        shutil.rmtree(folder / "runs")  # whose runs have the same names as those of the README
    monkeypatch.chdir(folder)
    run_commands(page, monkeypatch)


def test_the_readme_is_short_and_its_links_and_make_targets_exist():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 8_000
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    pages = [text, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    assert (
        {"demo", "docs", "test"}
        <= {name for page in pages for name in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.M)}
        <= targets
    )


def test_the_tests_that_the_security_page_names_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_tree_and_the_names_of_contributing_are_those_of_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^kdalign/\n(.*?)^tests/", text, re.M | re.S)
    packages, modules = set(re.findall(r"^  (\w+)/ ", tree, re.M)), set(re.findall(r"(\w+\.py)\b", tree))
    code = ROOT / "kdalign"
    assert packages == {file.parent.name for file in code.glob("*/__init__.py")}
    assert modules == {file.name for file in code.glob("*.py") if not file.name.startswith("__")}
    for path, name in re.findall(r"`([\w/]+\.py): (\w+)`", text):
        assert re.search(rf"^{name}\b", (code / path).read_text(encoding="utf-8"), re.M), (path, name)


def test_every_public_name_is_on_the_page_of_the_api():
    import kdalign

    page = (ROOT / "docs/reference/python-api.md").read_text(encoding="utf-8")
    names = {f"kdalign.{name}" for name in [*kdalign.__all__, "plugins"] if name != "__version__"}
    assert set(re.findall(r"^::: (\S+)", page, re.M)) == names


def test_every_page_of_the_docs_is_in_the_navigation():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)) == pages


def test_the_example_recipe_and_task_file_are_valid(teacher, data, tmp_path, monkeypatch):
    from kdalign.data.tasks import find_task, load_examples
    from kdalign.recipe import build_recipe

    recipe = build_recipe(ROOT / "examples" / "sst2.yaml", {"teacher": str(teacher)})
    assert recipe.data.task == ("sst2",)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "reviews.yaml", tmp_path / "examples")
    folder = tmp_path / "runs" / "demo" / "data"
    folder.mkdir(parents=True)
    (folder / "validation.csv").write_text("text,label\nfine film,positive\ndull film,negative\n")
    task = find_task(str(tmp_path / "examples" / "reviews.yaml"))
    assert load_examples(task, "validation").labels.tolist() == [1, 0]


def test_the_example_of_an_ablation_is_valid():
    from kdalign.runs.ablation_spec import build_ablation

    ablation = build_ablation(ROOT / "examples" / "ablation.yaml", {})
    assert (list(ablation.arms), len(ablation.tasks), ablation.seeds) == (
        ["labels", "soft", "joint"],
        5,
        (0, 1, 2, 3, 4),
    )
    trials = ablation.trials(Path("runs"))
    assert len(trials) == 75
    assert {one.recipe.data.limit_seed for one in trials} == {0}


def test_every_loss_has_its_row_in_the_methods_and_the_test_it_names_exists():
    import inspect

    from kdalign.objective import losses
    from kdalign.objective.balancing import BALANCES
    from kdalign.recipe import LAYER_WEIGHTS
    from kdalign.recipe.presets import preset_names
    from kdalign.recipe.schedules import SHAPES

    first, *others = (ROOT / "docs/reference/losses.md").read_text().split("\n## ")
    sections = {title: body for title, _, body in (other.partition("\n") for other in others)}

    def rows_in(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("| `")]

    def words_in(rows: list[str]) -> set[str]:
        return {row.split("`")[1] for row in rows}

    firsts, further = rows_in(first), rows_in(sections["Further terms"])
    rows = firsts + further
    named = {row.split(" | ")[2].strip("`") for row in firsts} | {row.split(" | ")[1].strip("`") for row in further}
    assert named == {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    for row in further:
        assert re.search(r"\| (0|[+−]\d+) %", row), f"its cost a step: {row}"
    of_layers, of_augmentation = rows_in(sections["Layer weights"]), rows_in(sections["Augmentation"])[1:]
    of_balance = [row for row in rows_in(sections["Balance"]) if "`static`" not in row]
    assert words_in(of_layers) == set(LAYER_WEIGHTS)
    assert set(re.findall(r"^\| (\w+)(?: \([^|]*\))? \| v[₀₁]", sections["Schedules"], re.M)) == set(SHAPES)
    assert words_in(of_balance) == set(BALANCES)
    assert words_in(rows_in(sections["Presets"])) == set(preset_names())
    for row in [*rows, *of_layers, *of_balance, *of_augmentation]:
        file, test = re.search(r"`([\w/]*test_\w+\.py)::(\w+)`", row).groups()
        assert f"def {test}(" in (ROOT / "tests" / file).read_text()


def test_the_workflow_is_yaml_with_its_jobs():
    tree = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"lint", "tests", "benchmark"} <= set(tree["jobs"])
    assert "GITHUB_STEP_SUMMARY" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
