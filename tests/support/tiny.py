"""Tiny real models, their tokenizers and sentences that they can learn."""

from pathlib import Path

import numpy as np
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared"


WORDS = (
    "the a film movie plot acting is was not very good bad great awful fine dull warm cold funny sad "
    "slow fast long short i you we they it loved hated liked and but with without any some every"
).split()


GOOD = frozenset("good great fine warm funny loved liked".split())
BAD = frozenset("bad awful dull cold sad hated slow".split())


def sentences(n: int, seed: int) -> tuple[list[str], list[int]]:
    """Sentences of 2 to 11 words whose label depends on their words, so that a model can learn it."""
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 12))) for _ in range(n)]
    labels = [int(sum(w in GOOD for w in t.split()) >= sum(w in BAD for w in t.split())) for t in texts]
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


def fit_head(model, tokenizer) -> None:
    """Let a classifier of two labels know something of ``sentences``, so that it may teach.

    The embeddings of good and bad words are moved apart, and the last layer is fitted by least squares.
    """
    texts, labels = sentences(256, 0)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for words, side in ((GOOD, 1.0), (BAD, -1.0)):
            embeddings[tokenizer.convert_tokens_to_ids(sorted(words)), ::2] += side
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 2][-1]
    read: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(1)))
    with torch.no_grad():
        model.eval()(**tokenizer(texts, padding=True, return_tensors="pt"))
        hook.remove()
        features = torch.cat([read[0], torch.ones(len(texts), 1)], dim=1)
        wanted = 4.0 * torch.nn.functional.one_hot(torch.tensor(labels), 2) - 2
        if model.config.id2label[0] == "positive":
            wanted = wanted.flip(1)
        solved = torch.linalg.lstsq(features, wanted).solution
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])


def save_model(folder: Path, kind: str, layers=4, width=32, heads=4, seed=0, knows=True, **changes: object) -> Path:
    """Save a tiny classifier with its tokenizer; one of two labels knows something of ``sentences`` unless told not."""
    make_tokenizer(folder, kind)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = tiny_classifier(kind, layers, width, heads, seed, vocab_size=len(tokenizer), **changes)
    if knows and model.config.num_labels == 2:
        fit_head(model, tokenizer)
    model.save_pretrained(folder)
    return folder


def one_line(err):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("kdalign: error: ")
    return lines[0]
