"""Conversations: messages with their roles, and the tools that the assistant may call."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tasks.columns import check_text, column_cells, describe_cell, is_missing
from kdalign.errors import UsageError
from kdalign.files import parse_json

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("system", "developer", "user", "assistant", "tool")
TOOLS = "tools"
"""Column of the tools of a conversation."""
THINKING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a message may have its thinking apart from its content."""
SHARE_GPT = {"human": "user", "gpt": "assistant", "observation": "tool", **{role: role for role in ROLES}}
"""Roles by what a message is ``from`` in ShareGPT's form, where its content is its ``value``."""
_KEYS = ("role", "content", *THINKING, "tool_calls", "tool_call_id", "name")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A conversation, as a chat template reads it.

    Attributes:
        messages: messages in their order, with ``role``, ``content``, and where given ``THINKING``, ``tool_calls``,
            ``tool_call_id`` and ``name``.
        tools: descriptions of functions that the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()

    @property
    def answers(self) -> list[int]:
        """Numbers of the assistant's messages; one that begins the conversation is not an answer."""
        return [number for number, message in enumerate(self.messages) if number and message["role"] == "assistant"]

    def to_json(self) -> str:
        """Write the messages, or an object of messages and tools if there are some."""
        messages = [dict(message) for message in self.messages]
        tree: Any = {"messages": messages, TOOLS: list(self.tools)} if self.tools else messages
        return json.dumps(tree, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Conversation":
        """Read what ``to_json`` wrote."""
        tree = json.loads(text)
        return cls(tuple(tree["messages"]), tuple(tree[TOOLS])) if isinstance(tree, dict) else cls(tuple(tree))


def read_conversations(table: "pd.DataFrame", column: str, where: str, first: int = 0) -> tuple[str, ...]:
    """Read a column of conversations, and the column ``tools`` if there is one, as JSON.

    The number ``first`` is that of the table's first row.

    Raises:
        UsageError: the row, and what a conversation needs.
    """
    cells = list(column_cells(table, column))
    tools = list(column_cells(table, TOOLS)) if TOOLS in table.columns else [None] * len(cells)
    rows = enumerate(zip(cells, tools, strict=True), first)
    read = ((row, _conversation(cell, given, f"{where}, row {row}").to_json()) for row, (cell, given) in rows)
    return tuple(check_text(text, f"{where}: row {row}", column) for row, text in read)


def _conversation(cell: Any, tools: Any, where: str) -> Conversation:
    """Check a conversation."""
    turns = list(cell) if isinstance(cell, list | np.ndarray) else []
    messages = [_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns)]
    found = Conversation(tuple(messages), _tools(tools, where))
    if not any(message["role"] == "assistant" for message in messages):
        if not turns:
            raise UsageError(f"{where}: a conversation is a list of messages; given {describe_cell(cell)}")
        raise UsageError(f"{where}: no message of the conversation is the assistant's, so there is nothing to learn")
    if not found.answers:
        raise UsageError(
            f"{where}: the assistant begins the conversation and says nothing after it, so there is nothing to learn: "
            "an answer follows a message"
        )
    return found


def _message(turn: Any, where: str) -> Message:
    """Check a message; keys without a value are left out."""
    given = _plain(turn)
    if isinstance(given, dict) and "from" in given and not {"role", "content"} & set(given):
        given = {"role": SHARE_GPT.get(str(given["from"])), "content": given.get("value")}
    message = {key: given[key] for key in _KEYS if key in given} if isinstance(given, dict) else {}
    if message.get("role") not in ROLES or not isinstance(message.get("content", ""), str):
        raise _no_message(turn, where)
    if "content" not in message and not message.get("tool_calls"):
        raise _no_message(turn, where)
    message["content"] = check_text(message.get("content", ""), where, "content")
    return message


def _no_message(turn: Any, where: str) -> UsageError:
    row, _, message = where.rpartition(", ")
    return UsageError(
        f"{row}: a message needs content, a text, and a role of {', '.join(ROLES)} (or from and value, as in ShareGPT: "
        f"human, gpt, system, observation); {message} {_fault(turn)}"
    )


def _fault(turn: Any) -> str:
    """Describe what is wrong with a message, such as ``has from 'bing'``."""
    named = turn if isinstance(turn, dict) else {}
    for key, accepted in (("role", ROLES), ("from", SHARE_GPT)):
        if named.get(key) is not None and named[key] not in accepted:
            return f"has {key} {describe_cell(named[key])}"
    return f"is {describe_cell(turn)}"


def _tools(given: Any, where: str) -> tuple[Any, ...]:
    """Read the tools of a conversation: a list, or a text that holds one in JSON."""
    if isinstance(given, str) and given.strip():
        try:
            given = parse_json(given, TOOLS)
        except UsageError:
            raise UsageError(f"{where}: {TOOLS} is no JSON: {describe_cell(given)}") from None
    if isinstance(given, list | np.ndarray):
        return tuple(_plain(given))
    if given is None or is_missing(given) or given == "":
        return ()
    raise UsageError(f"{where}: {TOOLS} takes a list of functions' descriptions; given {describe_cell(given)}")


def _plain(value: Any) -> Any:
    """Return lists and objects of a table as JSON has them, without the keys that have no value."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return value.item() if isinstance(value, np.generic) else value
