"""Tokenize what causal models answer: targets after the prompt that a model is given to generate them.

One function decides how a source is read, in training as in generation, so that both read the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.batches import IGNORED, TokenizedSplit
from kdalign.data.chat_templates import RenderedAnswer, render_answer, render_prompt
from kdalign.data.tasks import Examples, LanguageTask
from kdalign.data.tasks.conversations import Conversation
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

    Raises:
        UsageError: an answer has no end, and the tokenizer has none, either.
    """
    if tokenizer.eos_token_id is None and not all(answer.ends for answer in answers):
        raise UsageError(
            "the chat template writes no special token after an answer, and the tokenizer has no end token, so that no "
            "model would learn to stop; name one of its tokens eos_token in tokenizer_config.json"
        )
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


def tokenize_chats(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSplit:
    """Tokenize conversations by the tokenizer's template: a row for each answer, after the prompt of its generation.

    The answer and its end are targets. An answer whose row is the beginning of the next one's, as of templates that
    write every turn once and for all, shares that row. Rows over ``max_length`` are truncated and counted; those left
    without an answer are skipped and counted.

    Raises:
        UsageError: no template, one that refuses a conversation or in which an answer cannot be told apart, or no
            answer at all within ``max_length``.
    """
    columns: dict[str, list[Tokens]] = {"input_ids": [], "targets": []}
    groups, truncated, unanswered = [], 0, 0
    for number, text in enumerate(examples.texts[0]):
        for ids, targets in merge_rows(answer_rows(Conversation.from_json(text), tokenizer)):
            if all(target == IGNORED for target in targets[:max_length]):
                unanswered += 1
                continue
            truncated += len(targets) > max_length
            groups.append(number)
            columns["input_ids"].append(ids[:max_length])
            columns["targets"].append(targets[:max_length])
    if not groups:
        raise UsageError(f"{examples.split}: no answer is within the first {max_length} tokens (--max-length)")
    pad = {"input_ids": int(tokenizer.pad_token_id), "targets": IGNORED}
    several = np.array(groups) if len(set(groups)) < len(groups) else None
    return TokenizedSplit(columns, None, pad, truncated, passed_over=unanswered, groups=several)


def answer_rows(chat: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Tokens, Tokens]]:
    """Tokenize each answer of a conversation: its prompt, and the answer with its end."""
    answers = [
        render_answer(chat.messages[:number], chat.messages[number], tokenizer, chat.tools) for number in chat.answers
    ]
    return tokenize_answers([replace(answer, lead="", text=answer.lead + answer.text) for answer in answers], tokenizer)


def merge_rows(answers: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[Tokens, Tokens]]:
    """Lay out answers as rows of inputs and targets; one that begins the next one's prompt is joined to it."""
    rows: list[tuple[Tokens, Tokens]] = []
    for prompt, answer in answers:
        before: Tokens = []
        if rows and prompt[: len(rows[-1][0])] == rows[-1][0]:
            before = rows.pop()[1]
        asked = [*before, *[IGNORED] * (len(prompt) - len(before)), *answer]
        rows.append(([*prompt, *answer], asked))
    return [(ids[:-1], asked[1:]) for ids, asked in rows]
