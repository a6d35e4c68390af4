"""Tokenize what causal models answer: targets after the prompt that a model is given to generate them.

One function decides how a source is read, in training as in generation, so that both read the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kdalign.data.batches import IGNORED, TokenizedSplit
from kdalign.data.chat_templates import RenderedAnswer, render_answer, render_prompt
from kdalign.data.tasks import Examples, LanguageTask
from kdalign.data.tokenization import special_frame
from kdalign.errors import UsageError

Tokens = list[int]


@dataclass(frozen=True)
class SourcePrompts:
    """The prompts in which a causal model reads the sources of a task of pairs, in training and in generation.

    A source stands in the task's prompt. If the tokenizer has a chat template, that prompt is a user's message, and the
    answer ends as the template writes it; else the answer follows after a space, and ends with the end token.

    Attributes:
        task: a task of pairs.
        tokenizer: the model's tokenizer.
    """

    task: LanguageTask
    tokenizer: PreTrainedTokenizerBase

    @property
    def by_template(self) -> bool:
        """True if prompts are messages in the tokenizer's chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def stop(self) -> str:
        """String that ends a generated answer: the line's end; none with a template, whose answers end by a token."""
        return "" if self.by_template else "\n"

    @property
    def extent(self) -> str:
        """What is taken of a generated text, for a score's signature."""
        return "all" if self.by_template else "one line"

    def __str__(self) -> str:
        """Describe the prompts, for a score's signature."""
        form = f"the prompt {self._fill('...')!r}"
        return f"{form} as a user's message in the chat template" if self.by_template else form

    def render(self, source: str) -> str:
        """Write the prompt of a source."""
        return "".join(render_prompt(self._asked(source), self.tokenizer)) if self.by_template else self._fill(source)

    def tokenize(self, sources: Sequence[str], rooms: Sequence[int]) -> tuple[list[Tokens], list[bool]]:
        """Tokenize prompts, with special tokens before them; a source that leaves too little room loses its end.

        Args:
            sources: sources, as they are in the data.
            rooms: most tokens of each prompt; one that is too long without any of its source stays so.

        Returns:
            The prompts' tokens, and for each whether it was cut.
        """
        prompts = self._read([self.render(source) for source in sources])
        cut = [len(ids) > room for ids, room in zip(prompts, rooms, strict=True)]
        for number in (number for number, is_cut in enumerate(cut) if is_cut):
            prompts[number] = self._cut(sources[number], len(prompts[number]) - rooms[number], rooms[number])
        return prompts, cut

    def tokenize_answers(self, sources: Sequence[str], targets: Sequence[str]) -> list[Tokens]:
        """Tokenize the answers after their prompts, each with the token that ends it."""
        pairs = zip(sources, targets, strict=True)
        return [answer for _, answer in tokenize_answers([self._write(*pair) for pair in pairs], self.tokenizer)]

    def _fill(self, source: str) -> str:
        return self.task.render_prompt({self.task.columns[0]: source})

    def _asked(self, source: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._fill(source)}]

    def _write(self, source: str, target: str) -> RenderedAnswer:
        if self.by_template:
            return render_answer(self._asked(source), {"role": "assistant", "content": target}, self.tokenizer)
        prompt = self._fill(source)
        return RenderedAnswer(prompt, "", target if prompt[-1:].isspace() else f" {target}", ends=False)

    def _read(self, prompts: Sequence[str]) -> list[Tokens]:
        """Tokenize rendered prompts as a model reads them; a template writes special tokens itself."""
        ids: list[Tokens] = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
        before = [] if self.by_template else special_frame(self.tokenizer)[0]
        return [[*before, *prompt] or [int(self.tokenizer.eos_token_id)] for prompt in ids]

    def _cut(self, source: str, excess: int, room: int) -> Tokens:
        """Tokenize the prompt of as much of a source as leaves room."""
        ends = token_ends(source, self.tokenizer)
        kept = len(ends)
        while True:
            kept = max(0, kept - excess)
            (prompt,) = self._read([self.render(source[: ends[kept - 1]] if kept else "")])
            excess = len(prompt) - room
            if excess <= 0 or not kept:
                return prompt


def token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the character at which each token of a text ends; of a slow tokenizer, as its tokens are written."""
    if tokenizer.is_fast:
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [end for _, end in places]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [len(tokenizer.decode(ids[: number + 1])) for number in range(len(ids))]


def tokenize_answers(
    answers: Sequence[RenderedAnswer], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Tokens, Tokens]]:
    """Tokenize prompts, and the answers after them: what follows the prompt's own tokens in both as one text.

    Where an answer joins its prompt's last token, it is tokenized by itself. An answer without an end gets the
    tokenizer's end token.
    """
    if not answers:
        return []
    texts = [answer.prompt + answer.lead for answer in answers]
    wholes = [text + answer.text for text, answer in zip(texts, answers, strict=True)]
    read, joined, alone = (
        tokenizer(column, add_special_tokens=False, verbose=False)["input_ids"]
        for column in (texts, wholes, [answer.text for answer in answers])
    )
    rows = []
    for answer, prompt, whole, itself in zip(answers, read, joined, alone, strict=True):
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else itself
        rows.append((prompt, ids if answer.ends else [*ids, int(tokenizer.eos_token_id)]))
    return rows


def tokenize_prompted(examples: Examples, prompts: SourcePrompts, max_length: int) -> TokenizedSplit:
    """Tokenize pairs for a causal model: the target and its end are predicted, given the source in its prompt.

    A pair of more than ``max_length`` tokens loses the end of its source. A target that is too long even so is
    truncated, and has no end token, which would teach to stop in mid-text. Both are counted.

    Raises:
        UsageError: a prompt without its source leaves no room for a target.
    """
    sources, targets = examples.texts
    answers = prompts.tokenize_answers(sources, targets)
    (empty,), _ = prompts.tokenize([""], [max_length])
    longest = max_length + 1 - len(empty)
    if longest < 1:
        raise UsageError(
            f"--max-length {max_length} leaves no room for a target: the prompt of task {prompts.task.name!r} has "
            f"{len(empty)} tokens without its source"
        )
    known = all(len(answer) <= longest for answer in answers)
    answers = [answer[:longest] for answer in answers]
    read, cut = prompts.tokenize(sources, [max_length + 1 - len(answer) for answer in answers])
    columns: dict[str, list[Tokens]] = {"input_ids": [], "targets": []}
    for prompt, answer in zip(read, answers, strict=True):
        # The last token of the row is predicted, and not read.
        columns["input_ids"].append([*prompt, *answer][:-1])
        columns["targets"].append([*[IGNORED] * (len(prompt) - 1), *answer])
    return TokenizedSplit(
        columns,
        None,
        {"input_ids": int(prompts.tokenizer.pad_token_id), "targets": IGNORED},
        truncated=sum(cut),
        words=sum(len(text.split()) for text in targets) if known else 0,
        bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in targets) if known else 0,
        form=str(prompts),
    )
