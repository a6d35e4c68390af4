"""Tokenize texts for each kind of task.

A language model's rows hold ``targets``, the token to predict at each position of its output: the next token for causal
models, the masked tokens for masked ones.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.corruption import MaskTokens, PermuteOrder
from kdalign.data.input_reader import InputReader
from kdalign.data.media.inputs import MediaInputs
from kdalign.data.media.readers import MediaReader
from kdalign.data.packing import pack_documents
from kdalign.data.tasks import Examples
from kdalign.data.text_rows import take_texts
from kdalign.data.token_matching import token_spans
from kdalign.data.token_rows import TokenRows
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.errors import UsageError, shorten
from kdalign.result_cache import keep_result

CHUNK = 10_000
"""Texts that are tokenized together: a library's encodings take a hundred times the memory of their tokens."""


def tokenize_labelled(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int, spans: bool = False
) -> TokenizedSplit:
    """Tokenize a split with labels; texts over ``max_length`` (of a pair, the longer) are truncated and counted.

    With ``spans``, the columns ``start`` and ``end`` hold each token's characters.
    """
    columns = examples.texts
    # Attention masks are rebuilt from the lengths; every other column reaches each model that knows it.
    types = has_token_types(tokenizer)
    names = {"return_attention_mask": False, "return_token_type_ids": types, "return_offsets_mapping": spans}

    def tokenized(rows: Sequence[int], **cut: object) -> dict[str, list[list[int]]]:
        found = tokenizer(*[list(take_texts(column, rows)) for column in columns], verbose=False, **cut, **names)
        values = {name: list(column) for name, column in found.items() if name != "offset_mapping"}
        if spans:
            places = [
                token_spans(tokenizer, found, number, len(columns[0][row]) + 1) for number, row in enumerate(rows)
            ]
            values["start"], values["end"] = ([[place[side] for place in row] for row in places] for side in (0, 1))
        return values

    parts, truncated = list[dict[str, TokenRows]](), 0
    for start in range(0, len(examples), CHUNK):
        rows = range(start, min(start + CHUNK, len(examples)))
        encoded = tokenized(rows, truncation=False)
        long = [row for row, ids in zip(rows, encoded["input_ids"], strict=True) if len(ids) > max_length]
        truncated += len(long)
        cut = tokenized(long, truncation="longest_first", max_length=max_length) if long else {}
        for name, values in cut.items():
            for row, value in zip(long, values, strict=True):
                encoded[name][row - start] = value
        parts.append({name: TokenRows.of(values) for name, values in encoded.items()})
    joined = {name: TokenRows.concatenated([part[name] for part in parts]) for name in parts[0]}
    pad = dict.fromkeys(joined, 0)
    pad["input_ids"] = int(tokenizer.pad_token_id)
    pad["token_type_ids"] = int(tokenizer.pad_token_type_id)
    return TokenizedSplit(joined, examples.labels, pad, truncated)


def has_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a model reads token types: unless its tokenizer's files say otherwise.

    A class's default differs between versions of Transformers (ALBERT had token types before 5), and models were
    trained with them.
    """
    told = tokenizer.init_kwargs.get("model_input_names")
    return told is None or "token_type_ids" in told


def with_token_types(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Set the tokenizer to give token types wherever it is loaded, if it gives them here."""
    if has_token_types(tokenizer) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    return tokenizer


def tokenize_documents(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    family: str,
    max_length: int,
    left_to_right: bool = False,
) -> TokenizedSplit:
    """Tokenize documents to train a language model of a family (``masked``, ``causal`` or ``permutation``).

    A document longer than ``max_length`` becomes several rows. A causal model's documents are packed into full rows, in
    which nothing attends across documents; the end of a document is predicted, too. A permutation model predicts from
    left to right, or in random orders.
    """
    texts = examples.texts[0]
    contents = _tokenize_contents(texts, tokenizer)
    before, after = special_frame(tokenizer)
    pad = {"input_ids": int(tokenizer.pad_token_id), "targets": IGNORED, "position_ids": 0, "document": -1, "order": -1}
    words = sum(len(text.split()) for text in texts)
    if family == "causal":
        start = before or start_token(tokenizer)
        columns = pack_documents(contents, start, int(tokenizer.eos_token_id), max_length)
        return TokenizedSplit(columns, None, pad, words=words)
    room = max_length - len(before) - len(after)
    rows = [[*before, *part, *after] for content in contents for part in _parts(content, room)]
    special = np.array(sorted(tokenizer.all_special_ids))
    if family == "masked":
        corrupt = MaskTokens(int(tokenizer.mask_token_id), len(tokenizer), special)
        return TokenizedSplit({"input_ids": rows}, None, pad, corrupt=corrupt, words=words)
    return TokenizedSplit({"input_ids": rows}, None, pad, corrupt=PermuteOrder(special, left_to_right), words=words)


ROLES = {
    "start": "a token that begins a text (bos_token)",
    "end": "a token that ends a text (eos_token)",
    "mask": "a token that stands for a gap (mask_token)",
}
"""Tokens that a task may need, with their descriptions for error lines."""


def check_roles(tokenizer: PreTrainedTokenizerBase, name: str, task: str, needed: Sequence[str]) -> None:
    """Refuse a tokenizer without the tokens or the character offsets that a task needs.

    Args:
        tokenizer: tokenizer of a model.
        name: name of the model.
        task: task that needs the tokens.
        needed: names of ``ROLES``, and ``places`` for the characters of each token.

    Raises:
        UsageError: what is missing, and how to add it.
    """
    if "places" in needed and not tokenizer.is_fast:
        raise UsageError(
            f"task {task!r} needs the characters of each token, which the tokenizer of {name!r} cannot give "
            f"({type(tokenizer).__name__}, without a tokenizer.json); save it as tokenizer.json next to the model"
        )
    ids = {
        "start": (special_frame(tokenizer)[0] or [tokenizer.bos_token_id, tokenizer.eos_token_id])
        if "start" in needed
        else [],
        "end": [tokenizer.eos_token_id],
        "mask": [tokenizer.mask_token_id],
    }
    for role, what in ROLES.items():
        if role in needed and all(token is None for token in ids[role]):
            word = what.rpartition("(")[2].rstrip(")")
            raise UsageError(
                f"task {task!r} needs {what}, which the tokenizer of {name!r} lacks; "
                f"name one of its tokens {word} in tokenizer_config.json"
            )


def tokenize_pairs(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, decoder_start: int, max_length: int
) -> TokenizedSplit:
    """Tokenize sources and targets for an encoder-decoder; texts over ``max_length`` are truncated and counted.

    The target ends with the tokenizer's end token, and the decoder reads it one position later; a truncated target has
    no end token, which would teach to stop in mid-text.
    """
    sources, targets = (list(column) for column in examples.texts)
    read = tokenizer(sources, verbose=False)["input_ids"]
    asked = tokenizer(text_target=targets, verbose=False)["input_ids"]
    end = int(tokenizer.eos_token_id)
    if not special_frame(tokenizer)[1]:
        read, asked = ([[*ids, end] for ids in column] for column in (read, asked))
    truncated = sum(max(len(a), len(b)) > max_length for a, b in zip(read, asked, strict=True))
    read = [ids if len(ids) <= max_length else [*ids[: max_length - 1], end] for ids in read]
    asked = [ids[:max_length] for ids in asked]
    columns = {
        "input_ids": read,
        "decoder_input_ids": [[decoder_start, *ids[:-1]] for ids in asked],
        "targets": asked,
    }
    blank = int(tokenizer.pad_token_id)
    pad = {"input_ids": blank, "decoder_input_ids": blank, "targets": IGNORED}
    words = 0 if truncated else sum(len(text.split()) for text in targets)
    size = 0 if truncated else sum(len(text.encode("utf-8", "surrogatepass")) for text in targets)
    return TokenizedSplit(columns, None, pad, truncated, words=words, bytes=size)


def read_images(examples: Examples, reader: MediaReader) -> TokenizedSplit:
    """Prepare images with labels, which are decoded when a batch reads them."""
    assert examples.media is not None, "a task of images has a column of them"
    return TokenizedSplit({}, examples.labels, {}, media=MediaInputs.of(examples.media, reader))


def tokenize_captions(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, reader: MediaReader, max_length: int, padded: int = 0
) -> TokenizedSplit:
    """Tokenize the texts of images, which are decoded when a batch reads them; longer texts are truncated and counted.

    A truncated text keeps its end token, at which a dual encoder takes its embedding.

    Args:
        examples: images and their texts.
        tokenizer: the model's.
        reader: what prepares images for it.
        max_length: most tokens of a text.
        padded: length to which texts are padded by tokens that the model reads like others; 0 for none.
    """
    assert examples.media is not None, "captions are of images"
    split = tokenize_labelled(replace(examples, texts=examples.texts[1:]), tokenizer, max_length)
    ids = split.columns["input_ids"]
    if padded:
        ids = tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=padded, verbose=False)["input_ids"]
    columns = {"input_ids": ids}
    return replace(split, columns=columns, media=MediaInputs.of(examples.media, reader))


def tokenize_speech(examples: Examples, reader: InputReader, max_length: int, language: str = "") -> TokenizedSplit:
    """Tokenize transcripts for a model that reads sounds, which are decoded when a batch reads them.

    A transcript begins with its prompt (language, task, no timestamps): the decoder reads it, and its tokens are no
    targets, as they are given when it transcribes. Its first word follows a space, as Whisper writes it (Radford et
    al. 2022, arXiv:2212.04356, and ``whisper.tokenizer`` of its code). Transcripts over ``max_length`` are truncated
    and counted. Sounds that are longer than the model reads are passed over: their transcripts tell more than it hears.

    Args:
        examples: sounds and their transcripts.
        reader: the model's.
        max_length: most tokens of the decoder.
        language: code of the spoken language, which a multilingual Whisper is told; others ignore it.

    Raises:
        UsageError: all sounds are longer, or the model does not know the language.
    """
    assert examples.media is not None, "a task of speech has a column of sounds"
    assert reader.media is not None, "a model of speech reads sounds"
    tokenizer, media, texts = reader.tokenizer, MediaInputs.of(examples.media, reader.media), examples.texts[1]
    heard = np.flatnonzero(media.lengths <= (reader.media.most or media.lengths.max()))
    if not len(heard):
        raise UsageError(f"{examples.split}: all {len(texts):,} sounds are longer than the model reads")
    targets, media = [texts[row].strip() for row in heard.tolist()], media.take(heard)
    given, (_, after) = transcript_prompt(reader, language), special_frame(tokenizer)
    end = after[:1] or [int(tokenizer.eos_token_id)]
    spaced = [f" {text}" for text in targets]
    asked = [[*ids, *end] for ids in tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]]
    room = max_length - len(given) + 1
    truncated = sum(len(ids) > room for ids in asked)
    asked = [ids[:room] for ids in asked]
    columns = {
        "decoder_input_ids": [[*given, *ids[:-1]] for ids in asked],
        "targets": [[*[IGNORED] * (len(given) - 1), *ids] for ids in asked],
    }
    blank = int(tokenizer.pad_token_id)
    words = 0 if truncated else sum(len(text.split()) for text in targets)
    size = 0 if truncated else sum(len(text.encode("utf-8", "surrogatepass")) for text in targets)
    pad, passed_over = {"decoder_input_ids": blank, "targets": IGNORED}, len(texts) - len(heard)
    split = TokenizedSplit(columns, None, pad, truncated, words=words, bytes=size, media=media)
    split = replace(split, passed_over=passed_over)
    return split if reader.transcripts is None else reader.transcripts.add_to(split, targets)


MULTILINGUAL_ENTRIES = 51_865
"""Fewest entries of the vocabulary of a multilingual Whisper (``whisper.model`` of its code)."""


def transcript_prompt(reader: InputReader, language: str) -> list[int]:
    """Return the tokens that a decoder reads before a transcript: those with which it is asked to transcribe.

    A multilingual Whisper is told the language and the task after its start, one of English alone is not.

    Raises:
        UsageError: a multilingual model is not told the language, or does not know it.
    """
    start, tokenizer = int(reader.config.decoder_start_token_id), reader.tokenizer
    before, _ = special_frame(tokenizer)
    given = [start, *(token for token in before if token != start)]
    if reader.config.model_type != "whisper" or reader.config.vocab_size < MULTILINGUAL_ENTRIES:
        return given
    known = tokenizer.get_vocab()
    if f"<|{language}|>" not in known:
        what = f"does not know the language {language!r}" if language else "must be told what language is spoken"
        raise UsageError(f"this Whisper is multilingual and {what}: give a task file with a code, such as language: en")
    names = (f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
    return [start, *(known[name] for name in names)]


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text.

    They are found by what it reads without them: a tokenizer may not call all of them special (Whisper's).
    """
    ids, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if not inner:  # "a" is not in its vocabulary
        ids, inner = tokenizer.build_inputs_with_special_tokens([-1]), [-1]
    start = next(place for place in range(len(ids)) if ids[place : place + len(inner)] == inner)
    return ids[:start], ids[start + len(inner) :]


def start_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that a causal model reads before a document, so that the first token is predicted, too."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [int(start)]


def special_token_note(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> str:
    """Warn of texts that spell out special tokens, such as ``</s>``, which are not read as ordinary text.

    Empty if no text does, or if the tokenizer takes them for ordinary words. What was found in a large split is kept.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    known = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    words = [word for word in known if word.strip() and _is_special(word, tokenizer)]
    if not words:
        return ""
    if not examples.mapped:
        return _note_words(examples, words)
    content = {"words": words, "split": examples.split, "texts": examples.fingerprint()}
    kept, _ = keep_result(
        "passes", {"special words": content}, lambda: {"note": _as_bytes(_note_words(examples, words))}
    )
    return bytes(kept["note"]).decode()


def _as_bytes(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _note_words(examples: Examples, words: Sequence[str]) -> str:
    """Warn of texts with one of these words; empty if none has one."""
    first, pattern = {word[0] for word in words}, re.compile("|".join(map(re.escape, words)))
    seen: dict[str, None] = {}
    rows: set[int] = set()
    for column in examples.texts:
        for row, text in enumerate(column):
            found = pattern.findall(text) if any(one in text for one in first) else ()
            seen |= dict.fromkeys(found)
            rows |= {row} if found else set()
    if not rows:
        return ""
    return (
        f"{examples.split}: {len(rows):,} of {len(examples):,} texts have words that the tokenizer reads as special "
        f"tokens, not as they are spelled ({shorten(', '.join(map(repr, seen)), 80)})"
    )


def _is_special(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if a text that spells a token out becomes that token."""
    return tokenizer.convert_tokens_to_ids(word) in tokenizer(word, add_special_tokens=False)["input_ids"]


def _tokenize_contents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TokenRows:
    """Tokenize texts without special tokens, ``CHUNK`` at a time."""
    chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
    parts = [TokenRows.of(tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]) for chunk in chunks]
    return TokenRows.concatenated(parts or [TokenRows.of([])])


def _parts(content: list[int], room: int) -> Iterator[list[int]]:
    for start in range(0, len(content), room):
        yield content[start : start + room]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer: equal for tokenizers that give the same tokens for every text.

    Truncation and padding, which its library stores in the same file, are left out.
    """
    if tokenizer.is_fast:
        tree = json.loads(tokenizer.backend_tokenizer.to_str())
        kept = {key: value for key, value in tree.items() if key not in ("truncation", "padding")}
    else:
        kept = {"kind": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
