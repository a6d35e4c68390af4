"""Models behind an OpenAI-compatible API: they complete text, choose among labels and return log-probabilities.

::

    ApiModel            one model at one URL (client, connection)
      complete          a greedy completion of each prompt
      answer            a completion of each prompt or conversation, greedy or sampled, with its end and its tokens
      choose            one of some labels for each prompt, constrained to them where the server can
      prompt_logprobs   the log-probability of each token of a text, or why there is none
    Negotiator          endpoint, parameters and constraints that the server takes (negotiation)
    RequestQueue        threads, budget, cache of answers (request_queue, budget, cache)
    Server              HTTP with time limits, retries and a masked key (transport, bounded)

Every answer is appended to ``served.jsonl`` as it arrives, under the SHA-256 of all that determines it: the same
request is answered from there. The first requests find out the server's dialect, which is kept in the same file.
"""

from kdalign.served.budget import ServedSettings, Usage
from kdalign.served.client import ApiModel, Choices, Completion, TokenLogprob, Unavailable
from kdalign.served.connection import is_served
from kdalign.served.protocol import Constraint, Dialect, Endpoint, Prompt, RequestSampling, label_in_answer
from kdalign.served.transport import OPENAI_URL

__all__ = [
    "OPENAI_URL",
    "ApiModel",
    "Choices",
    "Completion",
    "Constraint",
    "Dialect",
    "Endpoint",
    "Prompt",
    "RequestSampling",
    "ServedSettings",
    "TokenLogprob",
    "Unavailable",
    "Usage",
    "is_served",
    "label_in_answer",
]
