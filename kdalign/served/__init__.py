"""Models behind an OpenAI-compatible API: they write, choose among labels, and tell the likelihood of a text.

::

    Served ── one model at one URL
      complete          text that goes on from each prompt, greedily
      choose            one of some labels for each prompt, constrained to them where the server can
      prompt_logprobs   the log-probability of each token of a text, or why there is none

Every answer is appended to ``served.jsonl`` at once, under the SHA-256 of all that decides it: what is asked again is
read there. How a server wants to be asked is found out by the first request, and kept in the same file.
"""

from kdalign.served.budget import ServedSettings, Usage
from kdalign.served.client import (
    OPENAI_URL,
    ApiModel,
    Choices,
    Progress,
    TokenLogprob,
    Unavailable,
    is_served,
)
from kdalign.served.protocol import Constraint, Dialect, Way, label_in_answer

__all__ = [
    "OPENAI_URL",
    "ApiModel",
    "Choices",
    "Constraint",
    "Dialect",
    "Progress",
    "ServedSettings",
    "TokenLogprob",
    "Unavailable",
    "Usage",
    "Way",
    "is_served",
    "label_in_answer",
]
