"""What a model is asked to write, and what it is compared with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdalign.data.tasks.language import LanguageTask
from kdalign.data.tasks.loading import Examples

PREFIX_WORDS, SPAN_WORDS = 64, 16


@dataclass(frozen=True)
class GenerationCase:
    """One text to be written.

    Attributes:
        prompt: the beginning of a text, or a source.
        references: one or more that are right.
        words: of the text that is held out, where a continuation ends with as many; 0 where a model ends itself.
        stop: what ends a text, such as a line's end; empty where nothing does.
        language: of the spacing in which continuations are compared, a code.
    """

    prompt: str
    references: tuple[str, ...]
    words: int = 0
    stop: str = ""
    language: str = ""

    @property
    def whole(self) -> str:
        """The prompt with what is held out after it."""
        return f"{self.prompt} {self.references[0]}"

    @property
    def room(self) -> int:
        """Tokens that hold so many words, even a byte each; 0 where a model ends its text itself.

        In steps of 32, so that cases of one room, which are written together, are many.
        """
        needed = max(3 * self.words, len(self.references[0].encode())) + 16
        return -(-needed // 32) * 32 if self.words else 0

    def ended(self, text: str) -> bool:
        """Whether a text that is being written needs no more: two words have begun after those that are wanted.

        After one alone the last might still go on: ``all -`` becomes ``all-consuming``.
        """
        if self.stop and self.stop in text:
            return True
        return bool(self.words) and len(normalise_spacing([text], self.language)[0].split()) > self.words + 1

    def cut(self, text: str) -> str:
        """What was written, up to its end; a continuation in the spacing that texts are compared in."""
        if self.words:
            return first_words(normalise_spacing([text], self.language)[0], self.words)
        return (text.partition(self.stop)[0] if self.stop else text).strip()


def continuation_cases(
    examples: Examples, language: str = "", prefix: int = PREFIX_WORDS, span: int = SPAN_WORDS
) -> tuple[list[GenerationCase], int]:
    """The protocol ``continuation``: a text's first half is given, and the words after it are held out.

    Texts are brought to one spacing first. Of a long one, the ``prefix`` words before its middle are given, and
    ``span`` words after it held out. Returns the cases, and how many texts of one word were passed over.
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
    """A source each, with its references."""
    known = examples.references or [(target,) for target in examples.texts[1]]
    return [GenerationCase(source, tuple(right)) for source, right in zip(examples.texts[0], known, strict=True)]


def prompted_cases(cases: Sequence[GenerationCase], task: LanguageTask) -> list[GenerationCase]:
    """The same sources in the task's prompt, for models without an encoder, which answer with one line."""
    return [replace(case, prompt=task.render_prompt({task.columns[0]: case.prompt}), stop="\n") for case in cases]


def first_words(text: str, count: int) -> str:
    """A text up to so many words."""
    return " ".join(text.split()[:count])


def copy_baseline(case: GenerationCase) -> str:
    """The baseline that says the prompt again: its last words, as many as are held out, or the whole source."""
    if not case.words:
        return case.prompt
    words = case.prompt.split()
    again = words * -(-case.words // len(words))
    return " ".join(again[-case.words :])


def normalise_spacing(texts: Sequence[str], language: str = "") -> list[str]:
    """Texts with one spacing, whatever tokenizer wrote them: what was taken apart is put together by Moses' rules."""
    from sacremoses import MosesDetokenizer

    join = MosesDetokenizer(lang=language or "en")  # English's rules for apostrophes are those of most
    return [join.detokenize(_joined(text).split()) for text in texts]


def _joined(text: str) -> str:
    """What tokenizers take apart as it is written: it's, don't, well-known, 1,000, 3.5, ... and --."""
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
