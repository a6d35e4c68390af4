"""Generation cases: prompts with their reference texts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdalign.data.media.rows import MediaItem
from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.language import LanguageTask

PREFIX_WORDS, SPAN_WORDS = 64, 16


@dataclass(frozen=True)
class GenerationCase:
    """One text to generate.

    Attributes:
        prompt: the beginning of a text, or a source.
        references: one or more correct texts.
        words: number of words of a continuation, as many as its reference has; 0 if the model ends the text.
        stop: string that ends a text, such as a line end; empty for none.
        language: code of the language whose spacing rules continuations are normalised by.
        draw: number of a sample among those of the same prompt.
        continues: True if the text is the rest of the prompt's, and keeps the spacing before its first word.
        rendered: True if the prompt holds the special tokens before it, as one that a chat template wrote.
        media: sound or image that is read instead of the prompt, which then names it; None for texts.
    """

    prompt: str
    references: tuple[str, ...]
    words: int = 0
    stop: str = ""
    language: str = ""
    draw: int = 0
    continues: bool = False
    rendered: bool = False
    media: MediaItem | None = None

    @property
    def full_text(self) -> str:
        """The prompt and the reference after it."""
        return f"{self.prompt} {self.references[0]}"

    @property
    def token_budget(self) -> int:
        """Token budget that holds ``words`` words even at a byte per token; 0 if the model ends the text.

        In steps of 32, so that many cases have the same budget and are generated together.
        """
        needed = max(3 * self.words, len(self.references[0].encode())) + 16
        return -(-needed // 32) * 32 if self.words else 0

    def is_complete(self, text: str) -> bool:
        """Return whether a text is long enough: two words have begun after the wanted ones.

        After only one, the last wanted word might still grow: ``all -`` becomes ``all-consuming``.
        """
        if self.stop and self.stop in text:
            return True
        return bool(self.words) and len(normalise_spacing([text], self.language)[0].split()) > self.words + 1

    def trim(self, text: str) -> str:
        """Cut a generated text at its end; where ``words`` are counted, its spacing is normalised first."""
        if self.continues:
            return text.rstrip()
        if self.words:
            return first_words(normalise_spacing([text], self.language)[0], self.words)
        return (text.partition(self.stop)[0] if self.stop else text).strip()


def continuation_cases(
    examples: Examples, language: str = "", prefix: int = PREFIX_WORDS, span: int = SPAN_WORDS
) -> tuple[list[GenerationCase], int]:
    """Build cases of the protocol ``continuation``: the first half of a text is the prompt, the rest the reference.

    Spacing is normalised first. Of a long text, the prompt is the ``prefix`` words before its middle, and the reference
    the ``span`` words after it. Returns the cases, and the number of skipped texts of one word.
    """
    cases = []
    for text in normalise_spacing(examples.texts[0], language):
        words = text.split()
        middle = -(-len(words) // 2)
        if middle == len(words):
            continue
        held = words[middle : middle + span]
        prompt = " ".join(words[max(0, middle - prefix) : middle])
        cases.append(GenerationCase(prompt, (" ".join(held),), len(held), language=language))
    return cases, len(examples) - len(cases)


def source_cases(examples: Examples) -> list[GenerationCase]:
    """Build a case from each source and its references."""
    known, media = examples.references or [(target,) for target in examples.texts[1]], examples.media
    if media is not None:
        items = [MediaItem(media, row) for row in range(len(media))]
        return [GenerationCase(one.name, tuple(right), media=one) for one, right in zip(items, known, strict=True)]
    return [GenerationCase(source, tuple(right)) for source, right in zip(examples.texts[0], known, strict=True)]


def prompted_cases(cases: Sequence[GenerationCase], task: LanguageTask) -> list[GenerationCase]:
    """Put sources into the task's prompt, for models without an encoder, whose answer is one line."""
    return [replace(case, prompt=task.render_prompt({task.columns[0]: case.prompt}), stop="\n") for case in cases]


def first_words(text: str, count: int) -> str:
    """Cut a text after a number of words."""
    return " ".join(text.split()[:count])


def copy_baseline(case: GenerationCase) -> str:
    """Copy the prompt as a baseline: as many of its last words as the reference has, or the whole source."""
    if not case.words:
        return case.prompt
    words = case.prompt.split()
    again = words * -(-case.words // len(words))
    return " ".join(again[-case.words :])


def normalise_spacing(texts: Sequence[str], language: str = "") -> list[str]:
    """Normalise the spacing of tokenized and plain texts by the rules of Moses' detokenizer."""
    from sacremoses import MosesDetokenizer

    join = MosesDetokenizer(lang=language or "en")  # English's rules for apostrophes are those of most
    return [join.detokenize(_join_tokens(text).split()) for text in texts]


def _join_tokens(text: str) -> str:
    """Join what tokenizers split: it's, don't, well-known, 1,000, 3.5, ... and --."""
    for apart, together in _APART:
        text = apart.sub(together, text)
    return text


_APART: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\s*@([-,.])@\s*"), r"\1"),  # WikiText's marks
    (re.compile(r"([.-])(?:\s+\1)+"), lambda found: re.sub(r"\s", "", found[0])),
    (re.compile(r"\s*(?<!-)--(?!-)\s*"), " -- "),
    (re.compile(r"(?<=\w)\s+n\s*(['’])\s*t\b"), r"n\1t"),
    (re.compile(r"(?<=\w)\s*(['’])\s*(?=(?:s|t|re|ve|ll|d|m)\b)", re.IGNORECASE), r"\1"),
    (re.compile(r"(?<=\w)\s+-\s+(?=\w)"), "-"),
    (re.compile(r"(?<=\d)\s*,\s*(?=\d{3}\b)"), ","),
    (re.compile(r"(?<=\d)\s*\.\s+(?=\d)"), "."),
)
