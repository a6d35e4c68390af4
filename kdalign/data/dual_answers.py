"""Tokenize answers of causal models by two tokenizers, each after the prompt that its own model reads.

Prompts may differ: each model has its own chat template, beginning and end. What both predict is the answer's text, by
whose characters positions are matched: the one before it, and each after which the same characters have been read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.chat_templates import RenderedAnswer
from kdalign.data.conversations import AnswerTokens, SourcePrompts, Tokens, render_answers, tokenize_answers
from kdalign.data.dual_tokenization import Tokenizers
from kdalign.data.tasks import Examples
from kdalign.data.tasks.conversations import Conversation
from kdalign.data.token_matching import coverage
from kdalign.data.tokenized_split import IGNORED, TEACHER, TokenizedSplit
from kdalign.errors import NoAnswers

_NOWHERE = (0, 0)
"""Span of a token that is matched with none."""


@dataclass(frozen=True)
class _Side:
    """An answer as one of the models reads it.

    Attributes:
        written: the answer.
        tokens: its tokens, with the characters of each from the beginning of what is learnt.
        lead: characters of what is learnt before the answer's text.
    """

    written: RenderedAnswer
    tokens: AnswerTokens
    lead: int


@dataclass(frozen=True)
class _Row:
    """A row of one side: its tokens, those that are predicted, and the characters by which each is matched."""

    ids: Tokens
    asked: Tokens
    spans: list[tuple[int, int]]

    def after(self, earlier: "_Row") -> "_Row":
        """Return the row with the answers of an earlier one, which is its beginning."""
        size = len(earlier.ids)
        known = [old if new == _NOWHERE else new for old, new in zip(earlier.spans, self.spans, strict=False)]
        return _Row(self.ids, [*earlier.asked, *self.asked[size:]], [*known, *self.spans[size:]])


@dataclass(frozen=True)
class _Matched:
    """A conversation or a pair as both models read it.

    Attributes:
        rows: rows of the student with those of the teacher.
        covered: characters of its answers in tokens of both, and all of them.
        ends: tokens by which the student's last answer ends and the teacher's.
    """

    rows: list[tuple[_Row, _Row]]
    covered: tuple[int, int]
    ends: tuple[int, int]


def tokenize_chats_dual(examples: Examples, tokenizers: Tokenizers, max_length: int) -> TokenizedSplit:
    """Tokenize conversations by both tokenizers' templates: a row for each answer, or for several where both allow it.

    Rows over ``max_length`` tokens of either are truncated and counted; those left without a token to predict are
    skipped and counted.

    Raises:
        UsageError: a template refuses a conversation, or no answer is within ``max_length``.
    """

    def sides(chat: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[_Side]:
        written = render_answers(chat, tokenizer)
        tokens = tokenize_answers([answer.learnt_whole() for answer in written], tokenizer, spans=True)
        return [_Side(answer, ids, len(answer.lead)) for answer, ids in zip(written, tokens, strict=True)]

    chats = map(Conversation.from_json, examples.texts[0])
    matched = [_match(*(sides(chat, tokenizer) for tokenizer in tokenizers)) for chat in chats]
    return _split(examples, matched, tokenizers, max_length)


def tokenize_prompted_dual(
    examples: Examples, prompts: tuple[SourcePrompts, SourcePrompts], max_length: int
) -> TokenizedSplit:
    """Tokenize pairs by both tokenizers, each target after its source in the prompt of its own model.

    As in ``tokenize_prompted``, a source that is too long loses its end, for each model by its own tokens.

    Raises:
        UsageError: a prompt without its source leaves no room for a target.
    """
    sides, ends, truncated = [], [], np.zeros(len(examples), dtype=bool)
    for each in prompts:
        written = [each.write(*pair) for pair in zip(*examples.texts, strict=True)]
        tokens = each.tokenize_answers(written, spans=True)
        ends.append(tokens[0].answer[-1])
        fitted, cut = each.fit(examples.texts[0], tokens, max_length)
        truncated |= np.array(cut, dtype=bool)
        sides.append([_Side(answer, ids, 0) for answer, ids in zip(written, fitted, strict=True)])
    matched = [_match([ours], [theirs]) for ours, theirs in zip(*sides, strict=True)]
    split = _split(examples, matched, (prompts[0].tokenizer, prompts[1].tokenizer), max_length)
    words = sum(len(text.split()) for text in examples.texts[1])
    rows = int(truncated.sum())
    return replace(split, truncated=rows, words=words, ends=(ends[0], ends[1]), form=str(prompts[0]))


def _match(ours: Sequence[_Side], theirs: Sequence[_Side]) -> _Matched:
    """Match the answers of a conversation; they share a row if that of both sides is the beginning of the next one."""
    rows: list[tuple[_Row, _Row]] = []
    known, total, base = 0, 0, 0
    for both in zip(ours, theirs, strict=True):
        text, begins = _shared_text(*both)
        places = [_places(side.tokens, begin, len(text)) for side, begin in zip(both, begins, strict=True)]
        found = coverage(text, *(_starts_and_ends(side) for side in places))
        known, total = known + found[0], total + found[1]
        one, other = (_row(side.tokens, place, base) for side, place in zip(both, places, strict=True))
        if rows and all(
            side.tokens.prompt[: len(row.ids)] == row.ids for side, row in zip(both, rows[-1], strict=True)
        ):
            earlier = rows.pop()
            one, other = one.after(earlier[0]), other.after(earlier[1])
        rows.append((one, other))
        base += len(text) + 1
    return _Matched(rows, (known, total), (ours[-1].tokens.answer[-1], theirs[-1].tokens.answer[-1]))


def _shared_text(ours: _Side, theirs: _Side) -> tuple[str, tuple[int, int]]:
    """Return the text that both learn, and the character of what each learns at which it begins; empty without any.

    It is all that is learnt but the end, or the answer's text alone where templates write other words before it.
    """
    sides = (ours, theirs)
    for from_lead in (True, False):
        texts = [side.written.lead * (from_lead and side.lead > 0) + side.written.text for side in sides]
        before = (0, 0) if from_lead else (ours.lead, theirs.lead)
        if texts[0] == texts[1]:
            return texts[0], before
        if texts[0].strip() == texts[1].strip():  # one of the templates removes blanks
            blank = [len(text) - len(text.lstrip()) for text in texts]
            return texts[0].strip(), (before[0] + blank[0], before[1] + blank[1])
    return "", (0, 0)


def _places(tokens: AnswerTokens, begin: int, length: int) -> list[tuple[int, int] | None]:
    """Return the characters of a text that each token of an answer stands for; None for a token outside of it."""
    inside = [(max(0, start - begin), min(length, end - begin)) for start, end in tokens.spans]
    return [place if place[0] < place[1] else None for place in inside]


def _starts_and_ends(places: Sequence[tuple[int, int] | None]) -> tuple[list[int], list[int]]:
    there = [place for place in places if place is not None]
    return [start for start, _ in there], [end for _, end in there]


def _row(tokens: AnswerTokens, places: Sequence[tuple[int, int] | None], base: int) -> _Row:
    """Lay out an answer after its prompt; its text takes up the characters from ``base`` + 1 on.

    The token before the text stands for the character before it: after it, both models predict the first character.
    """
    spans = [_NOWHERE] * len(tokens.prompt)
    spans += [_NOWHERE if place is None else (base + 1 + place[0], base + 1 + place[1]) for place in places]
    first = next((number for number, place in enumerate(places) if place is not None), None)
    if first is not None:
        spans[len(tokens.prompt) + first - 1] = (base, base + 1)
    return _Row([*tokens.prompt, *tokens.answer], [*[IGNORED] * len(tokens.prompt), *tokens.answer], spans)


def _split(examples: Examples, matched: Sequence[_Matched], tokenizers: Tokenizers, max_length: int) -> TokenizedSplit:
    """Put rows together; a row's last token is predicted, and not read."""
    names = ("input_ids", "start", "end")
    columns: dict[str, list[Tokens]] = {f"{side}{name}": [] for side in ("", TEACHER) for name in names}
    columns["targets"] = []
    groups, truncated, unanswered = [], 0, 0
    for number, each in enumerate(matched):
        for row in each.rows:
            targets = row[0].asked[1:][:max_length]
            if all(target == IGNORED for target in targets):
                unanswered += 1
                continue
            truncated += max(len(side.ids) for side in row) - 1 > max_length
            groups.append(number)
            columns["targets"].append(targets)
            for prefix, side in zip(("", TEACHER), row, strict=True):
                kept = min(len(side.ids) - 1, max_length)
                values = side.ids, [start for start, _ in side.spans], [end for _, end in side.spans]
                for name, value in zip(names, values, strict=True):
                    columns[prefix + name].append(value[:kept])
    if not groups:
        raise NoAnswers(f"{examples.split}: no answer is within the first {max_length} tokens (--max-length)")
    pad = {name: IGNORED if name == "targets" else 0 for name in columns}
    for prefix, tokenizer in zip(("", TEACHER), tokenizers, strict=True):
        pad[f"{prefix}input_ids"] = int(tokenizer.pad_token_id)
    known, total = (sum(each.covered[side] for each in matched) for side in (0, 1))
    return TokenizedSplit(
        columns,
        None,
        pad,
        truncated,
        passed_over=unanswered,
        left_to_right=True,
        covered=(known, total),
        groups=np.array(groups) if len(set(groups)) < len(groups) else None,
        ends=matched[0].ends,
    )
