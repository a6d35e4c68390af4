"""Positions and entries of two tokenizers, where one is known by the texts of its tokens alone, as at a server."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from kdalign.data.token_matching import entry_bytes
from kdalign.served.top_logprobs import TokenPrompt

_LONGEST_LETTER = 8
"""Characters within which a token is looked for after tokens without a text of their own, such as halves of letters."""


class EntryTexts:
    """The texts of a tokenizer's entries, special tokens written out.

    Attributes:
        numbers: for each text the entry that it stands for; texts of several entries stand for the first, which is no
            byte.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bytes = entry_bytes(tokenizer)
        words = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in range(len(tokenizer))}
        self._special = {number: word for number, word in words.items() if number not in self._bytes}
        self._start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        first = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
        self._adds_space = bool(first) and self._bytes.get(first[0]) == b" a"
        self.numbers: dict[str, int] = {}
        is_byte = {number: words[number].startswith("<0x") for number in words}
        for number in sorted(words, key=lambda each: (is_byte[each], each)):
            try:
                text = self._special.get(number) or self._bytes[number].decode()
            except UnicodeDecodeError:
                continue  # half of a letter has no text
            self.numbers.setdefault(text, number)

    def prompt(self, ids: Sequence[int]) -> TokenPrompt:
        """Return tokens as a prompt. A space that the tokenizer adds before every text is not in it."""
        parts = [self._part(number) for number in ids]
        begun = len(ids) > 0 and ids[0] == self._start and ids[0] in self._special
        texts = [_decode(b"".join(parts[begins:]), self._adds_space) for begins in (0, int(begun))]
        if begun and self._adds_space:  # the space stands behind the token that begins the text
            texts[0] = self._special[ids[0]] + texts[1]
        pieces = tuple(part.decode(errors="replace") for part in parts)
        special = frozenset(self._special[number] for number in ids if number in self._special)
        return TokenPrompt(tuple(ids), pieces, special, texts[0], texts[1])

    def ends(self, prompt: TokenPrompt, begun: bool) -> list[int | None]:
        """Return where each token of a prompt ends in its text, in characters; None within a letter.

        Args:
            prompt: made by ``prompt``.
            begun: True for its text with the token that begins every text.
        """
        text = prompt.text if begun else prompt.unbegun
        places = {len(text[:number].encode()): number for number in range(len(text) + 1)}
        ends: list[int | None] = []
        end = 0
        skipped = not begun and prompt.begins
        for number, token in enumerate(prompt.ids):
            if number == 0 and skipped:
                ends.append(0)
                continue
            part = self._part(token)
            if self._adds_space and end == 0 and number == int(skipped) and token in self._bytes:
                part = part.removeprefix(b" ")
            elif self._adds_space and number == 1 and prompt.begins and begun:
                part = part.removeprefix(b" ")
            end += len(part)
            ends.append(places.get(end))
        return ends

    def _part(self, number: int) -> bytes:
        word = self._special.get(number)
        return self._bytes[number] if word is None else word.encode()


def _decode(data: bytes, adds_space: bool) -> str:
    """Decode bytes, up to a letter that is cut off at the end, without a space that the tokenizer adds."""
    text = data.decode(errors="replace") if _is_cut_within(data) else data.decode(errors="ignore")
    return text.removeprefix(" ") if adds_space else text


def _is_cut_within(data: bytes) -> bool:
    """True if bytes are no text at another place than their end."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


def token_starts(tokens: Sequence[str], text: str, special: frozenset[str]) -> Iterator[int | None]:
    """Find where each token of a server starts in the text, in characters; None where that cannot be told.

    A token before the text, and one without a text (a special token is not written out by llama.cpp, nor is half of a
    letter), takes no character, unless a special token stands in the text there.

    Args:
        tokens: texts of the server's tokens.
        text: what was sent.
        special: texts of special tokens in it.
    """
    joined = "".join(tokens)
    place = len(text) - len(joined) if joined.endswith(text) else 0
    for token in tokens:
        word = next((each for each in special if place >= 0 and text.startswith(each, place)), "")
        if place < 0:
            yield 0 if place + len(token) > 0 else None
            place += len(token)
        elif not token:
            yield place if word else None
            place += len(word)
        else:
            found = text.find(token, place, place + len(token) + _LONGEST_LETTER) if token.strip("\ufffd") else -1
            yield found if found >= 0 else None
            place = found + len(token) if found >= 0 else place
