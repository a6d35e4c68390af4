"""A served model as a reader of prompts: the likeliest tokens at each of their positions, kept in a file."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kdalign.files import check_writable
from kdalign.observer import ProgressCallback
from kdalign.served.budget import ServedSettings
from kdalign.served.client import Unavailable
from kdalign.served.connection import Connection, served_name
from kdalign.served.logprob_store import LogprobStore
from kdalign.served.negotiation import concerns_all
from kdalign.served.protocol import Refused, Unusable, answer_key
from kdalign.served.request_queue import Request
from kdalign.served.top_logprobs import (
    FORMS,
    PromptForm,
    TokenPrompt,
    TopLogprobs,
    Withheld,
    prompt_body,
    read_prompt,
    refused_parameter,
)

_PATH = "/completions"


def answers_file(folder: Path, name: str, url: str) -> Path:
    """Return the file of a model's answers at a URL, in a folder for those of all models."""
    model = re.sub(r"[^\w.]+", "-", served_name(name)).strip("-.")[-40:]
    digest = hashlib.sha256(f"{url.rstrip('/')}\n{served_name(name)}".encode()).hexdigest()[:12]
    return folder / f"{model}-{digest}.sqlite"


class PromptReader(Connection):
    """A model at a URL that returns the likeliest tokens of a prompt's positions.

    Opening it sends and writes nothing. ``negotiate`` finds the form of request that the server answers, ``read_all``
    asks for what is not in the file, and ``kept`` reads from it. Close it, or use it in ``with``.

    Attributes:
        model: the model's name at the server.
        url: URL of the API.
        top: number of tokens asked for at each position.
        form: form of request; None before ``negotiate``.
    """

    def __init__(self, name: str, base_url: str, file: Path, top: int, settings: ServedSettings) -> None:
        """Open a model.

        Args:
            name: ``openai:NAME``.
            base_url: URL of the API, mostly with ``/v1`` at its end.
            file: file of the answers, made with the first one.
            top: number of tokens at each position.
            settings: concurrency, retries and budget.

        Raises:
            UsageError: OpenAI's package is not installed, or the name, URL, a setting, the folder or key is invalid.
        """
        check_writable(file.parent)
        self._store = LogprobStore(file)
        super().__init__(name, base_url, self._store, settings)
        self.top = top
        self.form: PromptForm | None = None

    @property
    def file(self) -> Path:
        """File of the answers."""
        return self._store.file

    @property
    def answered_by(self) -> tuple[str, ...]:
        """Names under which the server answered; OpenAI names the dated version."""
        return self._store.models

    def remember_form(self) -> PromptForm | None:
        """Take the form of request that is kept with the answers; None without any."""
        self.form = self._store.form
        return self.form

    def negotiate(self, probe: TokenPrompt) -> PromptForm | Unavailable:
        """Find the form of request by which the server returns the likeliest tokens of a prompt, or why it has none.

        Raises:
            UsageError: the server does not know the model or the key, or is no such API.
            RunError: the server is gone or fails, or the budget is spent.
        """
        reasons: dict[str, None] = {}
        for form in FORMS:
            found = self._try(form, probe)
            if isinstance(found, PromptForm):
                self.form = found
                self._store.keep_form(found)
                return found
            reasons[f"it {found}"] = None
        said = "; ".join(reasons)
        return Unavailable(f"the server at {self.url} returns no log-probabilities of a prompt ({said})")

    def ask(self, prompt: TokenPrompt) -> TopLogprobs:
        """Ask for a prompt now, whatever is kept of it, and keep nothing.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone, fails, or returns no log-probabilities.
        """
        try:
            top: TopLogprobs = self._ask(self._form, prompt)["top"]
        except Exception as error:
            raise self._requests.explain(error, 0, 1) from None
        return top

    def read_all(self, prompts: Sequence[TokenPrompt], progress: ProgressCallback | None = None) -> None:
        """Ask for all prompts that are not kept yet, and keep the answers.

        Raises:
            UsageError: the server does not know the model or the key.
            RunError: the budget is spent, or the server is gone or fails; answers so far are kept.
        """
        self._requests.send_missing([self._request(self._form, prompt) for prompt in prompts], progress)

    def missing(self, prompts: Sequence[TokenPrompt]) -> int:
        """Count the prompts that are not kept, equal ones once."""
        keys = {self._request(self._form, prompt).key for prompt in prompts}
        return sum(key not in self._store for key in keys)

    def kept(self, prompt: TokenPrompt) -> TopLogprobs | None:
        """Read a prompt's answer from the file; None if there is none."""
        try:
            top: TopLogprobs = self._store[self._request(self._form, prompt).key]["top"]
        except KeyError:
            return None
        return top

    def context(self) -> int | None:
        """Return the longest prompt that the server says it takes, in tokens; None if it does not say."""
        return self._server.context(self.model)

    def record(self) -> dict[str, Any]:
        """Return how the model answered and what was paid for, for a run's record."""
        spent = self.spent
        return {
            "url": self.url,
            "model": self.model,
            "answered_by": list(self.answered_by),
            "form": str(self.form),
            "top_k": self.top,
            "requests": spent.requests,
            "prompt_tokens": spent.prompt_tokens,
        }

    @property
    def _form(self) -> PromptForm:
        assert self.form is not None, "the form of request is found first"
        return self.form

    def _try(self, form: PromptForm, probe: TokenPrompt) -> PromptForm | str:
        """Send a probe in a form, without what the server refuses; return the form, or why it does not serve."""
        while True:
            try:
                line = self._ask(form, probe)
            except Refused as refusal:
                name = refused_parameter(form, refusal)
                if name is not None:
                    form = replace(form, dropped=(*form.dropped, name))
                    continue
                unknown = self._server.unknown_model(self.model, refusal)
                if unknown is not None or concerns_all(refusal) or self._server.has_no_api(refusal):
                    raise unknown or self._requests.explain(refusal, 0, 1) from None
                return f"refuses ({refusal})"
            except Withheld as withheld:
                return str(withheld)
            except Unusable as unusable:
                return f"gives an answer that cannot be used, as {unusable}"
            except Exception as error:
                raise self._requests.explain(error, 0, 1) from None
            if _without_spaces(probe, line["top"]):
                return "writes tokens without the space before a word, so that two tokens have one name"
            if form.as_ids:
                same = _spells(probe, line["spelled"])
                return form if same else "has another tokenizer: the numbers stand for other tokens there"
            return _as_text(form, probe, line)

    def _ask(self, form: PromptForm, prompt: TokenPrompt) -> Mapping[str, Any]:
        return self._requests.ask(self._request(form, prompt))

    def _request(self, form: PromptForm, prompt: TokenPrompt) -> Request:
        body = prompt_body(self.model, form, prompt, self.top)
        read = partial(read_prompt, form=form, prompt=prompt, top=self.top)
        key = answer_key(self.url, _PATH, body)
        return Request(_PATH, body, key, len(prompt.text), 1, read)


def _spells(prompt: TokenPrompt, spelled: str | Sequence[str | None] | None) -> bool:
    """Return whether a server's spelling of the numbers is that of the prompt, as far as it can be told.

    The spelling of one token may lack the space before a word, and halves of letters are not spelled.
    """
    if spelled is None:
        return True
    if isinstance(spelled, str):
        return "\ufffd" in prompt.text or spelled.strip().startswith(prompt.text.strip())
    pairs = zip(prompt.pieces, spelled, strict=True)
    return all(
        theirs is None or "\ufffd" in theirs + ours or theirs.strip() in ("", ours.strip()) for ours, theirs in pairs
    )


def _without_spaces(prompt: TokenPrompt, top: TopLogprobs) -> bool:
    """Return whether a server's texts of tokens lack the spaces that stand between words of the prompt."""
    if top.texts is None:
        return False
    spelled = "".join(top.texts[number] for number in top.tokens.tolist())
    return " " in prompt.unbegun.strip() and " " not in spelled.strip()


def _as_text(form: PromptForm, prompt: TokenPrompt, line: Mapping[str, Any]) -> PromptForm | str:
    """Decide whether a server reads a prompt's text as training does, from its tokens and its count of them.

    A token that begins every text is not among the tokens that servers return, but counted.
    """
    top: TopLogprobs = line["top"]
    if top.texts is None:
        return "names tokens by numbers of its own"
    theirs = [top.texts[number] for number in top.tokens.tolist()]
    plain = [
        [piece.strip() for piece in pieces if piece and piece not in prompt.special and "\ufffd" not in piece]
        for pieces in (theirs, prompt.pieces)
    ]
    if plain[0] != plain[1]:
        return "divides the text into other tokens" if form.begun else replace(form, other_tokenizer=True)
    counted = line["prompt_tokens"] or len(theirs)
    if counted != len(prompt.ids):
        return f"reads {counted:,} tokens where training reads {len(prompt.ids):,}"
    return form
