"""Chat templates of every kind that models have, written for these tests, and a tokenizer that knows their marks."""

from functools import cache

from kdalign.data.tokenizer_training import train_tokenizer
from support.tiny import sentences

_ASKED = "{% if add_generation_prompt %}{{ '[start]assistant\n' }}{% endif %}"

PLAIN = (
    "{% for m in messages %}{{ '[start]' + m.role + '\n' + m.content + '[stop]\n' }}{% endfor %}" + _ASKED
)  # every turn is written alike

TEMPLATES = {"plain": PLAIN}
"""Templates by the way in which they write answers."""

MARKS = ["[start]", "[stop]", "[done]", "[channel]", "[text]", "[user]", "[assistant]", "[system]"]


@cache
def chat_tokenizer(kind="plain", end="<|endoftext|>", pad="<pad>"):
    """A tokenizer with the template of a kind; None for no template."""
    made = train_tokenizer(sentences(200, 0)[0], 320, "causal", 64)
    made.add_special_tokens({"extra_special_tokens": MARKS})
    made.chat_template = TEMPLATES.get(kind)
    made.eos_token, made.pad_token = end, pad
    return made


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]
