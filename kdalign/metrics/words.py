"""Divide texts of any script into words, and detect texts that a tokenizer does not fit."""

import unicodedata

import regex

from kdalign.metrics.languages import DOTLESS

_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\uff70\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
"""Scripts without spaces between words."""
_ALONE = rf"(?=[\p{{L}}\p{{Nl}}])[{_SCRIPTS}]"
_LETTER_ALONE = regex.compile(rf"{_ALONE}\p{{M}}*")
_WORD = regex.compile(rf"{_ALONE}\p{{M}}*|(?!{_ALONE})[^\W_](?:(?!{_ALONE})[^\W_]|\p{{M}})*")
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_LETTER = regex.compile(r"\p{L}")


class UnicodeWords:
    """Tokenizer into case-folded words of Unicode letters, digits and marks; letters alone in scripts without spaces.

    Texts are brought to NFKC, and invisible characters (soft hyphens, joiners, direction marks) are dropped, after the
    Unicode Standard, section 3.13 (toNFKC_Casefold). A zero width space divides words.
    """

    def __init__(self, language: str = "") -> None:
        """Set the language: only Turkish and similar ones differ, whose I has no dot in lower case."""
        self._dotless = language in DOTLESS
        self.name = "unicode words, dotless i" if self._dotless else "unicode words"

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, in order."""
        text = unicodedata.normalize("NFKC", text.replace("\u200b", " "))
        if self._dotless:
            text = text.replace("I", "ı").replace("İ", "i")
        if not text.isascii():
            text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text).casefold())
        return list(_WORD.findall(text.casefold()))


def space_letters(text: str) -> str:
    """Put spaces around each letter (with its marks) of a script that has no spaces between words."""
    return text if text.isascii() else str(_LETTER_ALONE.sub(r" \g<0> ", text))


def is_lost_to_english(text: str) -> bool:
    """Return whether rules for English, which know the letters a to z alone, drop most letters of a text."""
    if text.isascii():
        return False
    letters = _LETTER.findall(text.lower())
    return 2 * sum(map(str.isascii, letters)) < len(letters)


def is_unspaced(text: str) -> bool:
    """Return whether most letters of a text are of a script without spaces between words, and few spaces divide it.

    Chinese that was divided into words beforehand has one blank for about two letters.
    """
    if text.isascii():
        return False
    apart = len(_LETTER_ALONE.findall(text))
    return 2 * apart > len(_LETTER.findall(text)) and 4 * len(text.split()) < apart
