"""Train a tokenizer of a given size on the training text."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdalign.errors import UsageError

_SPECIAL_TOKENS: Mapping[str, Mapping[str, str]] = {
    "masked": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "permutation": {"pad_token": "<pad>", "sep_token": "<sep>", "cls_token": "<cls>", "mask_token": "<mask>"},
    "causal": {"pad_token": "<pad>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "seq2seq": {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
}


_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "masked": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "permutation": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
    "causal": ("$A", "$A $B"),
    "seq2seq": ("$A </s>", "$A </s> $B </s>"),
}
"""Templates of a text and of a pair for each family; ``:1`` is a token type."""


# Transformers rebuilds a tokenizer in the folder of a "qwen2" configuration with this pattern, whatever its file says:
# any other would give other ids after loading. It also composes accents there (NFC), which cannot be prevented here.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_vocabulary_size(size: int, family: str) -> None:
    """Refuse a tokenizer without room for all bytes and a family's special tokens."""
    least = 256 + len(set(_SPECIAL_TOKENS[family].values()))
    if size < least:
        raise UsageError(f"train:{size} has no room for 256 bytes and special tokens (accepted: train:{least} or more)")


def train_tokenizer(texts: Iterable[str], size: int, family: str, positions: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: no token is unknown, and every text decodes back to itself.

    The same texts give the same vocabulary. Merges that occur once are left out, so a short text gives fewer entries.
    A special token that a text spells out is that token, as users of ``[MASK]`` expect.

    Args:
        texts: training texts; read once.
        size: largest number of entries, special tokens included.
        family: ``masked``, ``causal``, ``permutation`` or ``seq2seq``, which decides special tokens and template.
        positions: the longest input, in tokens.

    Raises:
        UsageError: no text, or a size without room for all bytes and special tokens.
    """
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
        model_input_names=["input_ids", *types, "attention_mask"],
        padding_side="left" if family == "permutation" else "right",  # XLNet sums a text up in its last token
        clean_up_tokenization_spaces=False,
        unk_token=None,  # explicit, so that it is saved: otherwise a loading class sets its own
        **roles,
    )


def requested_vocabulary_size(tokenizer: str) -> int | None:
    """Parse the number of entries of ``train:SIZE``; None for an existing tokenizer.

    Raises:
        UsageError: not a number.
    """
    if not tokenizer.startswith("train:"):
        return None
    size = tokenizer.removeprefix("train:")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", size):
        raise UsageError(f"--tokenizer {tokenizer!r}: accepted is train:SIZE, such as train:8000")
    return int(size)
