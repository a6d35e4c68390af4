"""A server of the OpenAI-compatible protocol whose answers are changed as a case says."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from support.answering_server import _Handler as Answering
from support.json_server import json_server
from support.logprob_server import Habits
from support.logprob_server import _Handler as Scoring
from tests.bad_input.case import set_in


class _Hostile:
    """Mixin that changes what is sent: ``status``, ``set`` (values by path), ``raw`` (text) or ``headers``."""

    def send_json(self, status: int, tree: Any) -> None:
        how: Mapping[str, Any] = self.server.how  # type: ignore[attr-defined]
        for path, value in how.get("set", ()):
            with suppress(KeyError, IndexError, TypeError):
                set_in(tree, path, value)
        if "raw" not in how and "headers" not in how:
            super().send_json(how.get("status", status), tree)  # type: ignore[misc]
            return
        body = how.get("raw", "{}").encode("latin-1", "replace")
        with suppress(ConnectionError, ValueError):
            self.send_response(how.get("status", status))  # type: ignore[attr-defined]
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **how.get("headers", {})}
            for name, value in headers.items():
                self.send_header(name, value)  # type: ignore[attr-defined]
            self.end_headers()  # type: ignore[attr-defined]
            self.wfile.write(body)  # type: ignore[attr-defined]
            self.close_connection = True


class _HostileAnswering(_Hostile, Answering):
    pass


class _HostileScoring(_Hostile, Scoring):
    pass


@contextmanager
def hostile_server(how: Mapping[str, Any] | None) -> Iterator[str]:
    """Serve answers changed as ``how`` says, by a model where it names one; yields the address, empty without one."""
    if how is None:
        yield ""
        return
    if "model" not in how:
        with json_server(
            _HostileAnswering, asked=[], answer=lambda body: ("a good film", "stop"), refused=(), how=how
        ) as server:
            yield server.url
        return
    import threading

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(how["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(how["model"])
    with json_server(
        _HostileScoring, model=model, tokenizer=tokenizer, habits=Habits(), lock=threading.Lock(), how=how
    ) as server:
        yield server.url
