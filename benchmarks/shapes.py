"""Write models of the shapes of MiniLM-L6 and SmolLM2-135M with random weights, and random texts, for measuring speed.

    python -m benchmarks.shapes FOLDER [--small]

writes FOLDER/minilm, FOLDER/smollm2, FOLDER/sst2 and a recipe for each: what a machine without checkpoints and network
needs to measure. ``--small`` writes tiny models, to try the commands.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
ROWS = 8192


def write_model(model: torch.nn.Module, entries: int, folder: Path) -> None:
    """Save a model with a tokenizer of as many words."""
    words = [*dict.fromkeys(SPECIAL.values())]
    words += [f"w{number}" for number in range(entries - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)


def write_texts(entries: int, folder: Path) -> None:
    """Save labelled texts, about as long as those of SST-2: 13 tokens in the mean."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, rows in (("train", ROWS), ("validation", 256)):
        lengths = 2 + generator.geometric(1 / 11, rows).clip(max=60)
        texts = [" ".join(f"w{word}" for word in generator.integers(0, entries - 5, length)) for length in lengths]
        labels = generator.integers(0, 2, rows)
        pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(folder / f"{split}.parquet")


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    encoder = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        id2label={0: "negative", 1: "positive"}, pad_token_id=0,
    )  # fmt: skip
    decoder = LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, max_position_embeddings=8192, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    if given.small:
        encoder.hidden_size, encoder.intermediate_size, encoder.vocab_size = 48, 96, 1000
        decoder.num_hidden_layers, decoder.vocab_size = 2, 1000
    write_model(BertForSequenceClassification(encoder), encoder.vocab_size, given.folder / "minilm")
    write_model(LlamaForCausalLM(decoder), decoder.vocab_size, given.folder / "smollm2")
    write_texts(encoder.vocab_size, given.folder / "sst2")
    (given.folder / "sst2.yaml").write_text(
        "teacher: minilm\nstudent: layers=half\nallow: [weak-teacher]\n"
        "data: {task: [sst2], folder: sst2, max_length: 64}\ntrain: {batch_size: 64}\n"
    )


if __name__ == "__main__":
    main()
