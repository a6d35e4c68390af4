"""Tokenize what causal models answer: targets after the prompt that a model is given to generate them.

One function decides how a source is read, in training as in generation, so that both read the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.chat_templates import RenderedAnswer, render_answer, render_prompt
from kdalign.data.tasks import Examples, LanguageTask
from kdalign.data.tasks.conversations import Conversation
from kdalign.data.tokenization import special_frame
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.errors import NoAnswers, UsageError

Tokens = list[int]

_END_OF_PROMPT = 200
"""Characters of a prompt after which an answer is tokenized; no token is as long."""


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
        """Part of a generated text that counts, for a score's signature."""
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

    def tokenize_answers(self, written: Sequence[RenderedAnswer], spans: bool = False) -> list["AnswerTokens"]:
        """Tokenize answers after the end of their prompts, which alone decides how, without the prompts' tokens."""
        ends = [replace(answer, prompt=answer.prompt[-_END_OF_PROMPT:]) for answer in written]
        return [replace(row, prompt=[]) for row in tokenize_answers(ends, self.tokenizer, spans)]

    def fit(
        self, sources: Sequence[str], answers: Sequence["AnswerTokens"], max_length: int
    ) -> tuple[list["AnswerTokens"], list[bool]]:
        """Tokenize prompts that leave room for their answers in a row of ``max_length``, the last token aside.

        An answer that is too long even without its source is truncated.

        Returns:
            The answers after these prompts, and for each whether it or its source was cut.

        Raises:
            UsageError: a prompt without its source leaves no room for an answer.
        """
        (empty,), _ = self.tokenize([""], [max_length])
        longest = max_length + 1 - len(empty)
        if longest < 1:
            raise UsageError(
                f"--max-length {max_length} leaves no room for a target: the prompt of task {self.task.name!r} has "
                f"{len(empty)} tokens without its source"
            )
        rooms = [max_length + 1 - min(longest, len(row.answer)) for row in answers]
        prompts, cut = self.tokenize(sources, rooms)
        rows = [
            AnswerTokens(prompt, row.answer[:longest], row.spans[:longest])
            for prompt, row in zip(prompts, answers, strict=True)
        ]
        return rows, cut

    def _fill(self, source: str) -> str:
        return self.task.render_prompt({self.task.columns[0]: source})

    def _asked(self, source: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._fill(source)}]

    def write(self, source: str, target: str) -> RenderedAnswer:
        """Write a target after the prompt of its source."""
        if self.by_template:
            return render_answer(self._asked(source), {"role": "assistant", "content": target}, self.tokenizer)
        prompt = self._fill(source)
        return RenderedAnswer(prompt, "", target if prompt[-1:].isspace() else f" {target}")

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


@dataclass(frozen=True)
class AnswerTokens:
    """An answer as tokens.

    Attributes:
        prompt: tokens of all that precedes it.
        answer: its own tokens, its end included.
        spans: start and end of each of its tokens, in characters of its text; empty if they were not asked for.
    """

    prompt: Tokens
    answer: Tokens
    spans: tuple[tuple[int, int], ...] = ()


def tokenize_answers(
    answers: Sequence[RenderedAnswer], tokenizer: PreTrainedTokenizerBase, spans: bool = False
) -> list[AnswerTokens]:
    """Tokenize prompts, and the answers after them: what follows the prompt's own tokens in both as one text.

    Where an answer joins its prompt's last token, it is tokenized by itself. An answer without an end gets the
    tokenizer's end token.

    Args:
        answers: answers with their prompts.
        tokenizer: the model's.
        spans: give the characters of the tokens.

    Raises:
        UsageError: an answer has no end, and the tokenizer has none, either.
    """
    if tokenizer.eos_token_id is None and not all(answer.ends for answer in answers):
        raise UsageError(
            "the chat template writes no special token after an answer, and the tokenizer has no end token, so that no "
            "model would learn to stop; name one of its tokens eos_token in tokenizer_config.json"
        )
    contexts, texts = [answer.context for answer in answers], [answer.text + answer.end for answer in answers]
    wholes = [context + text for context, text in zip(contexts, texts, strict=True)]
    read, joined, alone = (
        tokenizer(column, add_special_tokens=False, return_offsets_mapping=spans, verbose=False)
        for column in (contexts, wholes, texts)
    )
    rows = []
    for number, (answer, context) in enumerate(zip(answers, contexts, strict=True)):
        prompt, whole = read["input_ids"][number], joined["input_ids"][number]
        follows = whole[: len(prompt)] == prompt
        ids = whole[len(prompt) :] if follows else alone["input_ids"][number]
        places: list[tuple[int, int]] = []
        if spans:
            of_whole = joined["offset_mapping"][number][len(prompt) :]
            shift = len(context) if follows else 0
            places = [(s - shift, e - shift) for s, e in (of_whole if follows else alone["offset_mapping"][number])]
        if not answer.ends:
            ids = [*ids, int(tokenizer.eos_token_id)]
            places = [*places, (len(answer.text), len(answer.text))] if spans else []
        rows.append(AnswerTokens(prompt, ids, tuple(places)))
    return rows


def tokenize_prompted(examples: Examples, prompts: SourcePrompts, max_length: int) -> TokenizedSplit:
    """Tokenize pairs for a causal model: the target and its end are predicted, given the source in its prompt.

    A pair of more than ``max_length`` tokens loses the end of its source. A target that is too long even so is
    truncated, and has no end token, which would teach to stop in mid-text. Both are counted.

    Raises:
        UsageError: a prompt without its source leaves no room for a target.
    """
    sources, targets = examples.texts
    written = [prompts.write(*pair) for pair in zip(sources, targets, strict=True)]
    answers = prompts.tokenize_answers(written)
    rows, cut = prompts.fit(sources, answers, max_length)
    known = all(len(row.answer) == len(answer.answer) for row, answer in zip(rows, answers, strict=True))
    columns: dict[str, list[Tokens]] = {"input_ids": [], "targets": []}
    for row in rows:
        # The last token of the row is predicted, and not read.
        columns["input_ids"].append([*row.prompt, *row.answer][:-1])
        columns["targets"].append([*[IGNORED] * (len(row.prompt) - 1), *row.answer])
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
        raise NoAnswers(f"{examples.split}: no answer is within the first {max_length} tokens (--max-length)")
    pad = {"input_ids": int(tokenizer.pad_token_id), "targets": IGNORED}
    several = np.array(groups) if len(set(groups)) < len(groups) else None
    return TokenizedSplit(columns, None, pad, truncated, passed_over=unanswered, groups=several)


def render_answers(chat: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[RenderedAnswer]:
    """Render each answer of a conversation after the prompt of its generation."""
    turns = chat.messages
    return [render_answer(turns[:number], turns[number], tokenizer, chat.tools) for number in chat.answers]


def answer_rows(chat: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[AnswerTokens]:
    """Tokenize each answer of a conversation: its prompt, and what is learnt after it."""
    return tokenize_answers([answer.learnt_whole() for answer in render_answers(chat, tokenizer)], tokenizer)


def merge_rows(answers: Sequence[AnswerTokens]) -> list[tuple[Tokens, Tokens]]:
    """Lay out answers as rows of inputs and targets; one that begins the next one's prompt is joined to it."""
    rows: list[tuple[Tokens, Tokens]] = []
    for row in answers:
        before: Tokens = []
        if rows and row.prompt[: len(rows[-1][0])] == rows[-1][0]:
            before = rows.pop()[1]
        asked = [*before, *[IGNORED] * (len(row.prompt) - len(before)), *row.answer]
        rows.append(([*row.prompt, *row.answer], asked))
    return [(ids[:-1], asked[1:]) for ids, asked in rows]
