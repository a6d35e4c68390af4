"""Chat templates of every kind that models have, written for these tests, and a tokenizer that knows their marks."""

from functools import cache

from kdalign.data.tokenizer_training import train_tokenizer
from support.dual_setting import byte_fallback
from support.tiny import sentences

_ASKED = "{% if add_generation_prompt %}{{ '[start]assistant\n' }}{% endif %}"

# Every turn is written alike.
PLAIN = (
    "{% if tools %}{{ '[start]tools\n' + tools | tojson + '[stop]\n' }}{% endif %}"
    "{% for m in messages %}{{ '[start]' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '(call) ' + call | tojson }}{% endfor %}{{ '[stop]\n' }}{% endfor %}"
    + _ASKED
)

# As Qwen3's: thinking of the answer after the last question alone, an empty block if it has none, and a switch.
_AFTER_THINKING = "(m.content.split('</think>') | last).lstrip('\n')"
_THOUGHT = (
    "m.reasoning_content if m.reasoning_content else "
    "(m.content.split('</think>')[0].split('<think>') | last).strip('\n') if '</think>' in m.content else ''"
)
REWRITES = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '[start]' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (" + _THOUGHT + ") + '\n</think>\n\n' }}{% endif %}"
    "{{ " + _AFTER_THINKING + " + '[stop]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[start]assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)

# The same in few tokens, none of them a mark.
REWRITES_SHORT = (
    "{% for m in messages %}{{ m.role[0] + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a\n' }}{% endif %}"
)

# The same without a switch, whose prompt leaves the empty block to the model.
REWRITES_UNASKED = REWRITES.partition("{% if enable_thinking is defined")[0] + "{% endif %}"

# As gpt-oss': thinking in a channel of its own before the last answer, which has an end of its own.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}"
    "{{ '[start]assistant[channel]analysis[text]' + m.thinking + '[stop]' }}{% endif %}"
    "{{ '[start]assistant[channel]final[text]' + m.content + ('[done]' if loop.last else '[stop]') }}"
    "{% else %}{{ '[start]' + m.role + '[text]' + m.content + '[stop]' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[start]assistant' }}{% endif %}"
)

# As Phi-3's: the end of text after all turns.
CLOSES = (
    "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + '[stop]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# As DeepSeek-R1's: thinking is removed, and opened in the prompt.
STRIPS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '[assistant]' + (m.content.split('</think>') | last).lstrip() + eos_token }}"
    "{% else %}{{ '[' + m.role + ']' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]<think>\n' }}{% endif %}"
)

# As GLM-4's: a turn ends where the next one begins.
NO_END = (
    "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

# A text in which only the order of turns tells who speaks.
BARE = "{% for m in messages %}{{ m.content.strip() + '\n\n' }}{% endfor %}"

TEMPLATES = {
    "plain": PLAIN,
    "rewrites": REWRITES,
    "rewrites unasked": REWRITES_UNASKED,
    "channels": CHANNELS,
    "closes": CLOSES,
    "strips": STRIPS,
    "no end": NO_END,
    "bare": BARE,
}
"""Templates by the way in which they write answers."""

MARKS = ["[start]", "[stop]", "[done]", "[channel]", "[text]", "[user]", "[assistant]", "[system]"]


@cache
def chat_tokenizer(kind="plain", end="<|endoftext|>", pad="<pad>"):
    """A tokenizer with the template of a kind; of another kind, without a template."""
    made = train_tokenizer(sentences(200, 0)[0], 320, "causal", 512)
    made.add_special_tokens({"extra_special_tokens": MARKS})
    made.chat_template = TEMPLATES.get(kind)
    made.eos_token, made.pad_token = end, pad
    return made


@cache
def other_chat_tokenizer(kind="channels"):
    """A tokenizer of other pieces, with a template of its own and marks of other numbers."""
    made = byte_fallback.__wrapped__(500)
    made.add_special_tokens({"extra_special_tokens": MARKS[::-1]})
    made.chat_template = TEMPLATES.get(kind)
    return made


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]
