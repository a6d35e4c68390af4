"""Transcripts as labels of a model that is trained by CTC: spelled by the entries of its tokenizer, and read back."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
from transformers import Wav2Vec2CTCTokenizer

from kdalign.data.input_reader import InputReader
from kdalign.data.media.inputs import MediaInputs
from kdalign.data.media.waves import WaveReader
from kdalign.data.tasks import Examples
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.data.transcript_rows import Transcripts
from kdalign.errors import UsageError, shorten

_PADDED = (
    "the model has a group norm over the time of a padded batch, so that its frames depend on the sounds beside them: "
    "a step is not the same in other micro-batches (it is scored sound by sound)"
)
_SHOWN = 20
"""Most characters without an entry that are shown."""


def tokenize_transcripts(
    examples: Examples, tokenizer: Wav2Vec2CTCTokenizer, reader: InputReader, *, scored: bool
) -> TokenizedSplit:
    """Spell transcripts for a model that is trained by CTC on sounds, which are decoded when a batch reads them.

    White space becomes one space between words. A character without an entry is spelled by its upper or lower case if
    that has one, and left out if not; the split's ``remarks`` count them. A transcript needs a frame for each character
    and one more between equal neighbours, as ``ctc_loss`` is infinite with fewer: to train, rows whose sound has fewer
    are left out and counted, and so are those of which no character is left.

    Args:
        examples: pairs of sound and transcript.
        tokenizer: the model's.
        reader: how the model reads sounds.
        scored: keep all rows.

    Raises:
        UsageError: no row is left to train on.
    """
    assert examples.media is not None, "a task of speech has a column of sounds"
    assert reader.media is not None, "a model of speech reads sounds"
    media, texts = MediaInputs.of(examples.media, reader.media), examples.texts[1]
    speller = Speller.of(tokenizer)
    missing = Counter[str]()
    targets = [speller.spell(text, missing) for text in texts]
    references = examples.references or tuple((text,) for text in texts)
    transcripts = Transcripts(references, speller.writes, int(tokenizer.pad_token_id))
    remarks = _missing_characters(missing, sum(map(len, texts)))
    split = TokenizedSplit(
        {"targets": targets}, None, {"targets": IGNORED}, media=media, transcripts=transcripts, remarks=remarks
    )
    if scored:
        return split
    if reader.transcripts is not None:
        split = reader.transcripts.add_to(split, texts)
        remarks = split.remarks
    needed = np.array([frames_needed(ids) for ids in targets])
    kept = np.flatnonzero((needed > 0) & (needed <= media.lengths))
    if not len(kept):
        raise UsageError(
            f"{examples.split}: no sound has as many frames as its transcript has characters of the tokenizer"
        )
    if isinstance(reader.media, WaveReader) and not reader.media.masks:
        remarks = "; ".join(filter(None, [remarks, _PADDED]))
    return replace(split.take(kept.tolist()), passed_over=len(split) - len(kept), remarks=remarks)


def frames_needed(ids: Sequence[int]) -> int:
    """Return the fewest frames that can be labelled with these entries: equal neighbours need a blank between them."""
    return len(ids) + sum(one == other for one, other in pairwise(ids))


def collapse(frames: Iterable[int], blank: int) -> list[int]:
    """Return the labels of a path over frames: equal neighbours are one, and blanks none (see ``ctc_loss``)."""
    return [label for label, _ in groupby(frames) if label != blank]


@dataclass(frozen=True)
class Speller:
    """Spells texts by the entries of a tokenizer of characters.

    Attributes:
        entries: number of each entry of one character.
        space: number of the entry between words.
        writes: what each entry writes; nothing for special tokens.
    """

    entries: dict[str, int]
    space: int
    writes: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Wav2Vec2CTCTokenizer) -> "Speller":
        """Take the entries of a tokenizer."""
        vocabulary, delimiter = tokenizer.get_vocab(), tokenizer.word_delimiter_token
        special = {*tokenizer.all_special_tokens, delimiter}
        lower = str.lower if tokenizer.do_lower_case else str
        writes = [""] * (max(vocabulary.values()) + 1)
        for entry, number in vocabulary.items():
            writes[number] = "" if entry in special else lower(entry)
        space = int(vocabulary[delimiter])
        writes[space] = tokenizer.replace_word_delimiter_char
        own = {entry: number for entry, number in vocabulary.items() if len(entry) == 1 and entry not in special}
        return cls(own, space, tuple(writes))

    def spell(self, text: str, missing: Counter[str]) -> list[int]:
        """Return the entries of a text, and count its characters without one."""
        words = [ids for word in text.split() if (ids := self._spell_word(word, missing))]
        return [number for place, ids in enumerate(words) for number in ([self.space] * (place > 0) + ids)]

    def _spell_word(self, word: str, missing: Counter[str]) -> list[int]:
        ids = list[int]()
        for character in word:
            known = next((form for form in (character, character.upper(), character.lower()) if self._has(form)), None)
            if known is None:
                missing[character] += 1
            else:
                ids += [self.entries[each] for each in known]
        return ids

    def _has(self, text: str) -> bool:
        """Return whether all characters of a text have entries; in upper case a letter may be two."""
        return all(each in self.entries for each in text)


def _missing_characters(missing: Counter[str], characters: int) -> str:
    if not missing:
        return ""
    shown = " ".join(character for character, _ in missing.most_common(_SHOWN))
    return (
        f"{missing.total():,} of {characters:,} characters of the transcripts are not in the tokenizer, and were left "
        f"out of the labels ({shorten(shown, 60)})"
    )
