"""Tiny real models, their tokenizers and sentences that they can learn."""

from pathlib import Path

import numpy as np
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared"


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


def one_line(err):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("kdalign: error: ")
    return lines[0]
