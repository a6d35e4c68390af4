"""Notes on texts that a metric's way of finding words does not fit."""

import re
from collections.abc import Callable, Iterable, Sequence

from kdalign.metrics.bleu import bleu_finds_words
from kdalign.metrics.counts import References
from kdalign.metrics.languages import WITHOUT_BLANKS, language_code
from kdalign.metrics.words import is_lost_to_english, is_unspaced


def notes_on_words(
    names: Sequence[str], predictions: Sequence[str], references: References, language: str = ""
) -> tuple[str, ...]:
    """Write a note for each metric whose tokenizer finds few words or none in the texts.

    Args:
        names: metrics.
        predictions: one text an example.
        references: one or more texts an example.
        language: code of the texts' language, as in ``score_texts``.
    """
    language = language_code(language) if language else ""
    rows = [(text, *known) for text, known in zip(predictions, references, strict=True)]
    rouge = ", ".join(name for name in names if name.startswith("rouge"))
    counting = [name for name in names if name in _OF_WORDS or (name == "bleu" and language not in _OF_LETTERS)]
    lost = _where(is_lost_to_english, rows) if rouge and language == "en" else ""
    bare = _where(_has_no_words, [known for _, *known in rows], all) if rouge else ""
    joined = _where(is_unspaced, rows) if counting else ""
    short = "bleu" in names and not any(bleu_finds_words(predictions, language, 4))
    whole = "rougeLsum" in names and not any("\n" in text.strip() for texts in rows for text in texts)
    notes = {
        f"{rouge}: rules for English drop most letters of texts{lost}; for another language give --language CODE": lost,
        f"{rouge}: the references have no letters or digits{bare}, so every answer scores 0 there": bare,
        f"{', '.join(counting)}: texts have no spaces between words{joined}, so a whole clause counts as one; "
        "cer and chrf count characters": joined,
        "bleu: no prediction has four words, so it is 0 by definition, even for equal texts": short,
        "rougeLsum: a sentence is a line, and no text has two": whole,
    }
    return tuple(note for note, applies in notes.items() if applies)


def _where(
    fits: Callable[[str], bool], rows: Sequence[Sequence[str]], of: Callable[[Iterable[bool]], bool] = any
) -> str:
    """Count rows in which any text, or all, fit, and name the first; empty if there is none."""
    found = [number for number, texts in enumerate(rows) if of(map(fits, texts))]
    return f" in {len(found):,} of {len(rows):,} rows, the first in row {found[0]}" if found else ""


def _has_no_words(text: str) -> bool:
    return re.search(r"[^\W_]", text) is None


_OF_WORDS = ("ter", "wer", "wer_normalized", "distinct1", "distinct2")


_OF_LETTERS = frozenset({"", "ko"}) | WITHOUT_BLANKS
"""Languages whose BLEU tokenizer needs no spaces."""
