"""Tiny real models and data; shapes of every annotated function are checked while tests run."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
from jaxtyping import install_import_hook

from kdalign.environment import set_thread_defaults

pytest.register_assert_rewrite("support")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; so do the commands that they start
set_thread_defaults()  # as the command line does, before torch is loaded: threads that wait sleep
gc.set_threshold(50_000, 20, 20)  # collections take a tenth of the time otherwise, most of it while tests are imported
install_import_hook(
    [
        "kdalign.objective.losses",
        "kdalign.models.lm_head",
        "kdalign.models.attention",
        "kdalign.models.capture",
        "kdalign.alignment.projections",
        "kdalign.models.pruning",
    ],
    "beartype.beartype",
)

import hypothesis  # noqa: E402
import torch  # noqa: E402

from support.tiny import SHARED, save_model, sentences  # noqa: E402

# A busy machine is no failure, and the same tests give the same result everywhere.
hypothesis.settings.register_profile(
    "kdalign", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kdalign")


def pytest_collection_finish() -> None:
    """Leave libraries and tests, which stay, out of garbage collections: every run makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real checkpoints and data beside a developer's checkout."""
    if not (SHARED / "models" / "minilm-l6-sst2").is_dir():
        pytest.skip("real checkpoints and data are not beside this checkout (../shared)")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # which tests that save models would show


_MEASURED: dict[tuple[ModuleType, str], object] = {}


@pytest.fixture(autouse=True, scope="session")
def _short_measurements(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where slow tests are left out, shorten what is measured around a run, which takes longer than its few steps.

    Memory is predicted by the formula for what cannot be counted, and models are timed as seldom as slow ones.
    """
    if request.config.option.markexpr != "not slow":
        yield
        return
    from kdalign.distillation import memory
    from kdalign.models import profiling

    def refuse(*_: object) -> None:
        raise LookupError("not counted in this test")

    seconds = {(profiling, name): 0.0 for name in ("WARM_UP_SECONDS", "TURN_SECONDS")}
    shorter = {(memory, "_trace"): refuse, **seconds, (profiling, "LEAST_TURNS"): 1}
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in shorter.items():
            _MEASURED[module, name] = getattr(module, name)
            patch.setattr(module, name, value)
        yield


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count memory and time models in this test as for a user."""
    for (module, name), value in _MEASURED.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    if torch.cuda.is_initialized():
        torch.manual_seed(0)
    torch.default_generator.manual_seed(0)  # which is quicker


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / uuid4().hex))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SST-2 in parquet: train, validation, and a test split without labels."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("sst2")
    for number, (split, n) in enumerate({"train": 256, "validation": 64, "test": 16}.items()):
        texts, labels = sentences(n, number)
        labels = [-1] * n if split == "test" else labels
        pd.DataFrame({"sentence": texts, "label": labels, "idx": range(n)}).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4 layers and width 32 with a head for two labels."""
    return save_model(tmp_path_factory.mktemp("teacher"), "bert", id2label={0: "negative", 1: "positive"})


@pytest.fixture
def kdalign(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder: (status, stdout, stderr)."""
    from kdalign.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kdalign", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return run


@pytest.fixture
def stopped(kdalign, monkeypatch):
    """Run a command that ends with its first checkpoint, as if it were killed then: the same as ``kdalign``."""
    from kdalign.training import loop

    kept = loop.save_checkpoint

    def stop(folder, *rest):
        kept(folder, *rest)
        raise SystemExit(9)

    def run(*words):
        with monkeypatch.context() as patched:
            patched.setattr(loop, "save_checkpoint", stop)
            return kdalign(*words)

    return run
