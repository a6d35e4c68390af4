"""Tiny real models and data; shapes of every annotated function are checked while tests run."""

import os
import sys
from pathlib import Path
from uuid import uuid4

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; so do the commands that they start
install_import_hook(
    [
        "kdalign.objective.losses",
        "kdalign.objective.losses.lm_head",
        "kdalign.models.attention",
        "kdalign.models.capture",
        "kdalign.alignment.projections",
        "kdalign.models.pruning",
    ],
    "beartype.beartype",
)

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# A busy machine is no failure, and the same tests give the same result everywhere.
hypothesis.settings.register_profile(
    "kdalign", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kdalign")

SHARED = Path(__file__).resolve().parents[2] / "shared"


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


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / uuid4().hex))


WORDS = (
    "the a film movie plot acting is was not very good bad great awful fine dull warm cold funny sad "
    "slow fast long short i you we they it loved hated liked and but with without any some every"
).split()


def sentences(n: int, seed: int) -> tuple[list[str], list[int]]:
    """Sentences of 2 to 11 words whose label depends on their words, so that a model can learn it."""
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 12))) for _ in range(n)]
    good = {"good", "great", "fine", "warm", "funny", "loved", "liked"}
    bad = {"bad", "awful", "dull", "cold", "sad", "hated", "slow"}
    labels = [int(sum(w in good for w in t.split()) >= sum(w in bad for w in t.split())) for t in texts]
    return texts, labels


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


def make_tokenizer(folder: Path, kind: str) -> None:
    """Save a WordPiece tokenizer over the words of the tests."""
    from transformers import BertTokenizer, DistilBertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*WORDS, *"abcdefghijklmnopqrstuvwxyz"})]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = {word: number for number, word in enumerate(vocabulary)}
    made = (DistilBertTokenizer if kind == "distilbert" else BertTokenizer)(vocab=words, do_lower_case=True)
    made.save_pretrained(folder)


def tiny_config(kind: str, layers: int = 4, width: int = 32, heads: int = 4, **changes: object):
    """A configuration of a few thousand parameters."""
    from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

    common = {"vocab_size": 100, "max_position_embeddings": 160, "pad_token_id": 0, **changes}
    if kind == "distilbert":
        return DistilBertConfig(n_layers=layers, dim=width, n_heads=heads, hidden_dim=2 * width, **common)
    made = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}[kind]
    extra = {"embedding_size": width} if kind == "electra" else {}
    return made(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        **extra,
        **common,
    )


def tiny_classifier(kind: str, layers: int = 4, width: int = 32, heads: int = 4, seed: int = 0, **changes: object):
    """A classifier with real, random weights of a useful size."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(kind, layers, width, heads, initializer_range=0.2, **changes)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def save_model(folder: Path, kind: str, layers: int = 4, width: int = 32, heads: int = 4, seed: int = 0, **changes):
    """Save a tiny classifier with its tokenizer."""
    make_tokenizer(folder, kind)
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(folder))
    tiny_classifier(kind, layers, width, heads, seed, vocab_size=size, **changes).save_pretrained(folder)
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


def one_line(err):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("kdalign: error: ")
    return lines[0]
