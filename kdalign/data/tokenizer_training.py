"""Train a tokenizer of a given size on the training text."""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer

from kdalign.errors import UsageError

_SPECIAL_TOKENS: Mapping[str, Mapping[str, str]] = {
    "masked": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "permutation": {"pad_token": "<pad>", "sep_token": "<sep>", "cls_token": "<cls>", "mask_token": "<mask>"},
    "causal": {"pad_token": "<pad>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "seq2seq": {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    # Number 2 as the end would let Transformers' CLIP take a text's embedding at its largest number instead.
    "dual": {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"},
}


_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "masked": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "permutation": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
    "causal": ("$A", "$A $B"),
    "seq2seq": ("$A </s>", "$A </s> $B </s>"),
    "dual": ("<s> $A </s>", "<s> $A $B </s>"),
}
"""Templates of a text and of a pair for each family; ``:1`` is a token type."""


# Transformers rebuilds a tokenizer in the folder of a "qwen2" configuration with this pattern, whatever its file says:
# any other would give other ids after loading. It also composes accents there (NFC), which cannot be prevented here.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_vocabulary_size(size: int, family: str) -> None:
    """Refuse a tokenizer without room for all bytes and a family's special tokens."""
    if family == "ctc":
        raise UsageError(f"--tokenizer train:{size}: accepted for a ctc model is {CHARACTERS}, a hub id or a folder")
    least = 256 + len(set(_SPECIAL_TOKENS[family].values()))
    if size < least:
        raise UsageError(f"train:{size} has no room for 256 bytes and special tokens (accepted: train:{least} or more)")


def train_tokenizer(
    texts: Iterable[str], size: int, family: str, positions: int, *, masks: bool = True
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer: no token is unknown, and every text decodes back to itself.

    The same texts give the same vocabulary. Merges that occur once are left out, so a short text gives fewer entries.
    A special token that a text spells out is that token, as users of ``[MASK]`` expect.

    Args:
        texts: training texts; read once.
        size: largest number of entries, special tokens included.
        family: ``masked``, ``causal``, ``permutation``, ``seq2seq`` or ``dual``, which decides special tokens and
            template; for ``ctc`` it is a ``character_tokenizer``.
        positions: the longest input, in tokens.
        masks: false for a model that reads padding, too.

    Raises:
        UsageError: no text, or a size without room for all bytes and special tokens.
    """
    if family == "ctc":
        return character_tokenizer(texts)
    check_vocabulary_size(size, family)
    roles = _SPECIAL_TOKENS[family]
    special_tokens = list(dict.fromkeys(roles.values()))
    texts = iter(texts)
    first = next((text for text in texts if text), None)
    if first is None:
        raise UsageError(f"train:{size} found no text to train a tokenizer on (accepted: at least one text)")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(chain([first], texts), trainer)
    single, pair = _TEMPLATES[family]
    ids = [(token, made.token_to_id(token)) for token in special_tokens]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    types = ["token_type_ids"] if family in ("masked", "permutation") else []  # GPT-2 would add them to the words
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=positions,
        model_input_names=["input_ids", *types, *(["attention_mask"] if masks else [])],
        padding_side="left" if family == "permutation" else "right",  # XLNet sums a text up in its last token
        clean_up_tokenization_spaces=False,
        unk_token=None,  # explicit, so that it is saved: otherwise a loading class sets its own
        **roles,
    )


CHARACTERS = "train:chars"
"""Tokenizer of the characters of the training transcripts."""
MOST_CHARACTERS = 1024
"""Limit of entries of a tokenizer of characters."""


def character_tokenizer(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """Make a tokenizer whose entries are the characters of texts as they are written, for a model trained by CTC.

    The entry 0 is the blank, and the padding token; 1 stands for unknown characters, and 2 for the space between words.

    Raises:
        UsageError: no character, or more than ``MOST_CHARACTERS`` entries.
    """
    characters = sorted({character for text in texts for character in text if not character.isspace()})
    special = ["<pad>", "<unk>", "|"]
    entries = [*special, *(character for character in characters if character not in special)]
    if len(entries) == len(special) or len(entries) > MOST_CHARACTERS:
        raise UsageError(
            f"{CHARACTERS} found {len(characters):,} different characters (accepted: 1 to {MOST_CHARACTERS - 3:,})"
        )
    with TemporaryDirectory() as folder:
        file = Path(folder, "vocab.json")
        file.write_text(json.dumps({entry: number for number, entry in enumerate(entries)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)


def requested_vocabulary_size(tokenizer: str) -> int | None:
    """Parse the number of entries of ``train:SIZE``; None for an existing tokenizer.

    Raises:
        UsageError: not a number.
    """
    if not tokenizer.startswith("train:"):
        return None
    size = tokenizer.removeprefix("train:")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", size):
        raise UsageError(
            f"--tokenizer {tokenizer!r}: accepted is train:SIZE, such as train:8000, or {CHARACTERS} for CTC"
        )
    return int(size)
