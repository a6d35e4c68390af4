"""Recipes, assignments, ablation recipes, plans, task files and published rows."""

import json
from pathlib import Path
from typing import Any, get_args

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from kdalign.recipe import Recipe
from tests.bad_input.case import ANY, REFUSED, Case
from tests.bad_input.draw import NASTY, WORDS, changed_bytes, changed_trees
from tests.bad_input.place import BERT, PUBLISHED, SHORT, TASK

DRY = ("distill", *BERT, *SHORT, "--out", "out", "--dry-run")
SNIPPETS = (
    "a: &a [x, *a]\n",
    "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
    "!!python/object/apply:os.system ['touch RAN']\n", "!!python/name:os.system\n", "train: !!binary abcd\n",
    "train: {lr: 1e-4, lr: 1e-3}\n", "train: {lr: 2001-01-01}\n", "train: {seed: 0xffffffffffffffffffff}\n",
    "- a\n- b\n", "--- {}\n--- {}\n", "%YAML 9.9\n---\nteacher: x\n", "? [a, b]\n: c\n", "train: !!set {a, b}\n",
    "\tteacher: x\n", "null\n", "7\n", "teacher: !!str\n", "train: {epochs: .nan}\n", "train: {epochs: .inf}\n",
    "train: {max_steps: 1:30}\n", "on: off\n", "objective: {terms: {evil.py:X: 1}}\n", "align: {map: 'os:system'}\n",
    "data: {task: [sst2, sst2]}\n", "data: {task: []}\n", "preset: [kd]\n", "preset: nope\n", "teacher: [bert]\n",
    "teacher: [[bert]]\n", "out: /proc/x/y\n", "out: ''\n", "multi_task: {tasks: {sst2: {train: {lr: x}}}}\n",
    "multi_task: {tasks: [sst2]}\n", "teachers: {weights: [1, 2]}\n", "served: {base_url: 'file:///etc/passwd'}\n",
    "data: {augment: {by: masked-lm}}\n", "data: {streaming: true}\n", "allow: [everything]\n", "allow: code\n",
    "train: {trackers: [nope]}\n", "train: {device: 'tpu'}\n", "train: {precision: fp8}\n", "on_policy: {share: 2}\n",
    "cache: {folder: x, top_k: 0}\n", "finetune: {epochs: -1}\n", "revision: '../x'\n",
)  # fmt: skip


def recipes(_place: Path) -> st.SearchStrategy[Case]:
    good = {
        "teacher": "t",
        "student": "layers=2",
        "data": {"max_length": 64, "limit": 12},
        "align": {"map": "uniform", "weights": [1, 2]},
        "objective": {"beta": 0.5, "temperature": 2, "terms": {"pkd": {"weight": 1}}},
        "train": {"lr": 1e-4, "epochs": 1, "batch_size": 4, "seed": 1},
    }
    text = yaml.safe_dump(good).encode()
    words = (*DRY, "--recipe", "r.yaml")
    return st.one_of(
        changed_trees(good).map(lambda made: (made[0], _yaml(made[1]))),
        changed_trees(good).map(lambda made: (made[0], _yaml(made[1]))),
        changed_bytes(text),
        st.sampled_from(SNIPPETS).map(lambda snippet: (snippet[:40].strip(), snippet.encode())),
    ).map(lambda made: Case("recipes", made[0], words, {"r.yaml": made[1]}))


def _yaml(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 400


def keys_of(model: type[BaseModel], above: str = "") -> list[tuple[str, Any]]:
    """All keys of a recipe with their annotations."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys_of(kind, f"{above}{name}.")
        else:
            found.append((above + name, kind))
    return found


def _plain(kind: Any) -> set[Any]:
    parts = get_args(kind)
    return {kind} if not parts else {inner for part in parts for inner in _plain(part)}


def assignments(_place: Path) -> st.SearchStrategy[Case]:
    """``--set`` of each key with what no number, no choice, no switch can be, and with what may be."""

    def make(key: tuple[str, Any], value: str) -> Case:
        name, kind = key
        plain = _plain(kind) - {type(None)}
        nonsense = plain <= {int, float} and value in ("word", "{a: 1}", "true", "nan", "a,b", "@file", "5%")
        nonsense |= plain == {bool} and value in ("word", "1", "yes please", "{a: 1}")
        nonsense |= all(isinstance(part, str) for part in plain) and value in ("word", "{a: 1}", "true")
        nonsense &= name not in ("data.task", "allow")
        return Case(
            "`--set` of every key", name, (*DRY, "--set", f"{name}={value}"), expect=REFUSED if nonsense else ANY
        )

    plainly = st.sampled_from(
        ["word", "{a: 1}", "true", "nan", "a,b", "@file", "5%", "1", "yes please", "-1", "0", "1e30"]
    )
    odd = st.tuples(st.text("abcdefgh._=", min_size=1, max_size=12), WORDS).map(
        lambda made: Case("`--set` of every key", "another key", (*DRY, "--set", "=".join(made)))
    )
    return st.one_of(
        *[st.builds(make, st.sampled_from(keys_of(Recipe)), values) for values in (plainly, plainly, WORDS)],
        odd,
    )


def ablations(_place: Path) -> st.SearchStrategy[Case]:
    good = {
        "data": {"limit": 12},
        "train": {"max_steps": 2, "batch_size": 4},
        "arms": {"labels": None, "mine": {"objective": {"beta": 0.5}}},
        "seeds": [0, 1],
        "sweep": {"train.lr": [1e-4, 2e-4]},
    }
    words = ("ablate", *BERT, "--device", "cpu", "--recipe", "a.yaml", "--out", "out", "--dry-run")
    lists = st.sampled_from(["--arms", "--seeds", "--sweep", "--search", "--against"])
    return st.one_of(
        changed_trees(good).map(lambda made: Case("ablation recipes", made[0], words, {"a.yaml": _yaml(made[1])})),
        changed_trees(good).map(lambda made: Case("ablation recipes", made[0], words, {"a.yaml": _yaml(made[1])})),
        st.builds(
            lambda option, value: Case("ablation recipes", option, (*words, option, value), {"a.yaml": _yaml(good)}),
            lists,
            st.sampled_from(
                (*NASTY, "train.lr=", "train.lr=a,b", "train.lr=1,1", "labels,labels", "0,0", "1.5", "-1", "0")
            ),
        ),
        changed_bytes(_yaml(good)).map(lambda made: Case("ablation recipes", made[0], words, {"a.yaml": made[1]})),
    )


def plans(place: Path) -> st.SearchStrategy[Case]:
    good = json.loads((place / "plan.json").read_text())
    words = (*DRY, "--plan", "p.json")
    return st.one_of(
        changed_trees(good).map(lambda made: (made[0], json.dumps(made[1]).encode())),
        changed_trees(good).map(lambda made: (made[0], json.dumps(made[1]).encode())),
        changed_bytes((place / "plan.json").read_bytes()),
    ).map(lambda made: Case("plans", made[0], words, {"p.json": made[1]}))


def task_files(place: Path) -> st.SearchStrategy[Case]:
    good = TASK | {"data": str(place / "sst2")}
    dry = (
        "distill",
        "--teacher",
        "@bert",
        "--student",
        "layers=2",
        *SHORT,
        "--out",
        "out",
        "--dry-run",
        "--task",
        "t.yaml",
    )
    scored = ("eval", "@bert", "--task", "t.yaml", "--limit", "4", "--device", "cpu")
    return st.builds(
        lambda made, words: Case("task files", made[0], words, {"t.yaml": made[1]}),
        st.one_of(
            changed_trees(good).map(lambda made: (made[0], _yaml(made[1]))),
            changed_trees(good).map(lambda made: (made[0], _yaml(made[1]))),
            changed_bytes(_yaml(good)),
            st.sampled_from(SNIPPETS).map(lambda snippet: (snippet[:40].strip(), snippet.encode())),
        ),
        st.sampled_from([dry, scored]),
    )


def published(_place: Path) -> st.SearchStrategy[Case]:
    return st.builds(
        lambda made, words, name: Case("published rows", made[0], (*words, "--reference", name), {name: made[1]}),
        st.one_of(
            changed_trees(PUBLISHED).map(lambda made: (made[0], _yaml(made[1]))),
            changed_trees(PUBLISHED).map(lambda made: (made[0], _yaml(made[1]))),
            changed_bytes(_yaml(PUBLISHED)),
        ),
        st.sampled_from([("compare", "@run"), ("compare", "@run", "--format", "latex"), ("compare", "@eval.json")]),
        st.sampled_from(["p.yaml", "p.json"]),
    )
