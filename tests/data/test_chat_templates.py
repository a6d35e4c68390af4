"""Answers as chat templates of every kind write them: prompt, answer, end."""

import pytest

from kdalign.data.chat_templates import render_answer, render_chat, render_prompt
from kdalign.errors import UsageError
from support.chats import TEMPLATES, chat_tokenizer, said

PLAIN = said(("assistant", "dull"))[0]
THOUGHT = {"role": "assistant", "content": "dull", "reasoning_content": "it is long", "thinking": "it is long"}
INSIDE = {"role": "assistant", "content": "<think>\nit is long\n</think>\n\ndull"}

TURNS = (("system", "be warm"), ("user", "a film"), ("assistant", "great"), ("user", "plot"))
BEFORE = said(*TURNS)
HISTORY = "".join(f"[start]{role}\n{content}[stop]\n" for role, content in TURNS)
CHANNELED = "".join(
    f"[start]{role}{'[channel]final' * (role == 'assistant')}[text]{content}[stop]" for role, content in TURNS
)
BRACKETS = "[system]\nbe warm{0}[user]\na film{0}[assistant]\ngreat{0}[user]\nplot{0}"

WRITTEN = {
    "plain": (HISTORY + "[start]assistant\n", "", "dull[stop]"),
    "rewrites": (HISTORY + "[start]assistant\n<think>\n\n</think>\n\n", "", "dull[stop]"),
    "rewrites unasked": (HISTORY + "[start]assistant\n<think>\n\n</think>\n\n", "", "dull[stop]"),
    "channels": (CHANNELED + "[start]assistant", "[channel]final[text]", "dull[done]"),
    "closes": (BRACKETS.format("[stop]\n") + "[assistant]\n", "", "dull[stop]"),
    "strips": (
        "[system]be warm[user]a film[assistant]great<|endoftext|>[user]plot[assistant]<think>\n\n</think>\n\n",
        "",
        "dull<|endoftext|>",
    ),
    "no end": (BRACKETS.format("") + "[assistant]", "\n", "dull"),
    "bare": ("be warm\n\na film\n\ngreat\n\nplot\n\n", "", "dull"),
}
"""Prompt, what stands before the answer, and the answer with its end, without thinking in the conversation."""

THINKING = {
    "rewrites": (HISTORY + "[start]assistant\n", "<think>\nit is long\n</think>\n\n"),
    "rewrites unasked": (HISTORY + "[start]assistant\n", "<think>\nit is long\n</think>\n\n"),
    "strips": (
        "[system]be warm[user]a film[assistant]great<|endoftext|>[user]plot[assistant]<think>\n",
        "it is long\n</think>\n\n",
    ),
}
"""Prompt and what stands before the answer, with thinking in it."""


@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_answer_follows_its_prompt_and_has_its_end_as_the_template_writes_them(kind):
    tokenizer = chat_tokenizer(kind)
    found = render_answer(BEFORE, PLAIN, tokenizer)
    assert (found.prompt, found.lead, found.text + found.end) == WRITTEN[kind]
    assert found.ends is (kind not in ("no end", "bare"))
    assert render_prompt(BEFORE, tokenizer) == WRITTEN[kind][:2]


@pytest.mark.parametrize("kind", THINKING)
@pytest.mark.parametrize("answer", [INSIDE, THOUGHT])
def test_thinking_in_a_conversation_is_part_of_the_answer_whatever_the_template_does_with_it(kind, answer):
    found = render_answer(BEFORE, answer, chat_tokenizer(kind))
    assert (found.prompt, found.lead, found.text + found.end) == (*THINKING[kind], WRITTEN[kind][2])


def test_thinking_has_a_channel_of_its_own_where_the_template_has_one():
    found = render_answer(BEFORE, THOUGHT, chat_tokenizer("channels"))
    assert found.prompt == CHANNELED + "[start]assistant"
    assert found.lead == "[channel]analysis[text]it is long[stop][start]assistant[channel]final[text]"
    assert found.text + found.end == "dull[done]"


@pytest.mark.parametrize("kind", sorted(set(TEMPLATES) - {"channels", "strips", "no end", "bare"}))
def test_an_answer_after_its_prompt_is_the_templates_own_rendering(kind):
    tokenizer = chat_tokenizer(kind)
    whole = render_chat([*BEFORE, PLAIN], tokenizer)
    found = render_answer(BEFORE, PLAIN, tokenizer)
    assert whole.startswith(found.context + found.text + found.end)


def test_an_answer_that_spells_the_end_of_another_is_told_from_it():
    found = render_answer(BEFORE, said(("assistant", "stop"))[0], chat_tokenizer("plain"))
    assert found.text + found.end == "stop[stop]"
    found = render_answer(BEFORE, said(("assistant", "plot"))[0], chat_tokenizer("bare"))
    assert (found.prompt, found.text) == ("be warm\n\na film\n\ngreat\n\nplot\n\n", "plot")


def test_tools_and_their_calls_pass_to_the_template():
    tokenizer = chat_tokenizer("plain")
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "find", "arguments": {"q": "plot"}}}],
    }
    found = render_answer(BEFORE, call, tokenizer, [{"name": "find"}])
    assert found.prompt == '[start]tools\n[{"name": "find"}][stop]\n' + HISTORY + "[start]assistant\n"
    assert (
        found.lead + found.text + found.end == '(call) {"function": {"name": "find", "arguments": {"q": "plot"}}}[stop]'
    )
    after = render_answer([*BEFORE, call, {"role": "tool", "content": "dull"}], PLAIN, tokenizer)
    assert after.prompt.endswith("[start]tool\ndull[stop]\n[start]assistant\n")


def test_a_template_that_hides_the_answer_is_refused():
    tokenizer = chat_tokenizer("none")
    for template, line in {
        "{% for m in messages %}{{ m.role }}{% endfor %}": "otherwise than it is",
        "{% for m in messages %}{{ m.content + m.content }}{% endfor %}": "twice",
        "{% for m in messages %}{{ m.content + 5 }}{% endfor %}": "refuses a conversation",
        "{{ 1 // 0 }}": r"refuses a conversation \(ZeroDivisionError",
        "{{ [messages] | sort | sum(attribute='x') }}": "refuses a conversation",
        "{{ messages.__class__.__mro__ }}": "access to attribute '__class__' .* is unsafe",
        "{{ messages.append.__globals__ }}": "is unsafe",
    }.items():
        tokenizer.chat_template = template
        try:
            with pytest.raises(UsageError, match=line):
                render_answer(BEFORE, PLAIN, tokenizer)
        finally:
            tokenizer.chat_template = None
