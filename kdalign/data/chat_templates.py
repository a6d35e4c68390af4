"""Render conversations by a tokenizer's chat template: the prompt of an answer, and the answer with its end.

Templates differ in more than their marks. Some rewrite earlier turns (Qwen3 and DeepSeek remove their thinking), write
another end after the last answer than after earlier ones (gpt-oss, Phi-3), open a block of thinking in the prompt
(DeepSeek-R1), put an empty one before the answer (Qwen3), or write no end at all (GLM-4). So an answer is rendered as
the last turn of its conversation, after the prompt that a model is given to generate it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from kdalign.data.tasks.conversations import THINKING, Message
from kdalign.errors import UsageError, cause_of

_MARK = "\ue000answer\ue001"
"""Text in place of an answer, to tell it from what the template writes around it."""
_IN_CONTENT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
_OPEN = re.compile(r"<think>\s*\Z")
_BLOCK_AT_END = re.compile(r"(<think>\s*)?(</think>\s*)?\Z")
_EMPTY_BLOCK = re.compile(r"\s*(<think>\s*)?</think>\s*")


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer as a chat template writes it.

    Attributes:
        prompt: all before it, as a model is prompted to generate it.
        lead: what is between the prompt and the answer's text: thinking of the conversation, a channel's name.
        text: text of the answer.
        end: what the template writes after it, up to the token that ends the turn.
        ends: False if the template writes no special token after it.
    """

    prompt: str
    lead: str
    text: str
    end: str = ""
    ends: bool = False

    @property
    def context(self) -> str:
        """All that precedes the answer's text."""
        return self.prompt + self.lead

    def learnt_whole(self) -> "RenderedAnswer":
        """Return the answer with what is between it and the prompt as a part of its text."""
        return replace(self, lead="", text=self.lead + self.text)


def check_template(tokenizer: PreTrainedTokenizerBase, name: str = "the tokenizer") -> None:
    """Refuse a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise UsageError(f"{name} has no chat template; save one next to it as chat_template.jinja")


def render_chat(
    chat: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    ask: bool = False,
    thinks: bool = False,
    tools: Sequence[Any] | None = None,
) -> str:
    """Render a conversation by the tokenizer's chat template.

    Args:
        chat: messages with ``role`` and ``content``.
        tokenizer: tokenizer with a template.
        ask: end with the beginning of an answer.
        thinks: the answer begins with thinking; templates that know ``enable_thinking`` or ``thinking`` are told.
        tools: descriptions of functions that the assistant may call.

    Raises:
        UsageError: there is no template, or it refuses the conversation.
    """
    check_template(tokenizer)
    options = {"enable_thinking": thinks, "thinking": thinks, "tools": list(tools) if tools else None}
    messages = [dict(message) for message in chat]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **options))
    except Exception as error:  # a template is a stranger's program: it divides by 0, or joins content that is null
        begins = " ".join(json.dumps(messages, ensure_ascii=False).split())[:80]
        cause = str(error) if isinstance(error, TemplateError | TypeError) else cause_of(error)
        raise UsageError(f"the tokenizer's chat template refuses a conversation ({cause}): {begins}") from None


def render_prompt(
    before: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any] | None = None
) -> tuple[str, str]:
    """Render the prompt of an answer without thinking.

    A block of thinking that the template opens, or writes before such an answer, is closed and part of the prompt.

    Returns:
        The prompt, and what the template writes between it and the answer's text, such as a channel's name.

    Raises:
        UsageError: there is no template, or it refuses the conversation.
    """
    return _around(before, {"role": "assistant", "content": _MARK}, tokenizer, False, tools)[:2]


def render_answer(
    before: Sequence[Message],
    answer: Message,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Any] | None = None,
) -> RenderedAnswer:
    """Render an answer and the prompt before it.

    Thinking that the template adds is part of the prompt; thinking in the conversation is part of the answer, even if
    the template leaves it out.

    Args:
        before: the conversation up to the answer.
        answer: the assistant's message.
        tokenizer: tokenizer with a template.
        tools: descriptions of functions that the assistant may call.

    Raises:
        UsageError: the template refuses the conversation, or the answer cannot be told apart in what it writes.
    """
    thinking, prefix, body = _thinking_of(answer)
    marked = {name: value for name, value in answer.items() if name != "tool_calls"} | {"content": prefix + _MARK}
    prompt, lead, rest = _around(before, marked, tokenizer, bool(thinking), tools)
    whole = render_chat([*before, answer], tokenizer, thinks=bool(thinking), tools=tools)
    said = _after(whole, prompt, before, tokenizer, tools)
    end, special = _end_of_turn(rest, tokenizer), tuple(_special(tokenizer))
    if answer.get("tool_calls"):
        stop = end.strip()
        text = said.partition(stop)[0] if stop and stop in said else said.rstrip()
        stop = stop if stop and stop in said else ""
        return RenderedAnswer(prompt, "", text, stop, (text + stop).endswith(special))
    if said.startswith(lead) and said.endswith(rest) and len(said) >= len(lead) + len(rest):
        body = said[len(lead) : len(said) - len(rest)]
    if thinking and thinking not in lead:  # the template leaves it out
        opening = "" if _OPEN.search(prompt) else "<think>\n"
        lead = f"{opening}{thinking}\n</think>\n\n{_EMPTY_BLOCK.sub('', lead, count=1)}"
    return RenderedAnswer(prompt, lead, body, end, end.endswith(special))


def _thinking_of(answer: Message) -> tuple[str, str, str]:
    """Return an answer's thinking, the beginning of its content that holds it, and the rest of its content."""
    content = answer.get("content") or ""
    found = _IN_CONTENT.match(content)
    if found:
        return found[1].strip(), found[0], content[found.end() :]
    return next((str(answer[key]).strip() for key in THINKING if answer.get(key)), ""), "", content


def _around(
    before: Sequence[Message],
    marked: Message,
    tokenizer: PreTrainedTokenizerBase,
    thinks: bool,
    tools: Sequence[Any] | None,
) -> tuple[str, str, str]:
    """Return the prompt of an answer, what the template writes between it and the answer's text, and after that."""
    prompt = render_chat(before, tokenizer, ask=True, thinks=thinks, tools=tools)
    whole = render_chat([*before, marked], tokenizer, thinks=thinks, tools=tools)
    head, mark, rest = whole.partition(_MARK)
    if not mark or _MARK in rest:
        raise UsageError(
            f"the tokenizer's chat template writes an answer's text {'twice' if mark else 'otherwise than it is'}, so "
            "the assistant's words cannot be told apart"
        )
    lead = _after(head, prompt, before, tokenizer, tools)
    if thinks:
        return prompt, lead, rest
    block = _EMPTY_BLOCK.match(lead)
    if block:
        return prompt + block[0], lead[block.end() :], rest
    return (prompt + "\n</think>\n\n" if _OPEN.search(prompt) else prompt), lead, rest


def _after(
    text: str,
    prompt: str,
    before: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Any] | None,
) -> str:
    """Return what follows the prompt of an answer in a rendering of the conversation with that answer.

    Raises:
        UsageError: the rendering has neither the prompt nor the beginning of the assistant's turn.
    """
    for beginning in (prompt, _BLOCK_AT_END.sub("", prompt)):
        if text.startswith(beginning):
            return text[len(beginning) :]
    # The conversation is rewritten: look for the beginning of the turn.
    unasked = render_chat(before, tokenizer, tools=tools)
    pairs = enumerate(zip(beginning, unasked, strict=False))
    turn = beginning[next((n for n, (ours, theirs) in pairs if ours != theirs), min(len(beginning), len(unasked))) :]
    if not turn.strip() or turn not in text:
        raise UsageError(
            "the tokenizer's chat template renders a conversation's beginning otherwise than the whole, so the "
            "assistant's words cannot be told apart"
        )
    return text.rpartition(turn)[2]


def _end_of_turn(rest: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a template writes after an answer, up to the first special token; without one, its last word."""
    ends = [rest.index(token) + len(token) for token in _special(tokenizer) if token in rest]
    return rest[: min(ends)] if ends else rest.rstrip()


def _special(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the special tokens as text."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {token for token in (*tokenizer.all_special_tokens, *added) if token.strip()}
