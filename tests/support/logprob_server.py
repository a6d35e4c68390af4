"""A server of the OpenAI-compatible protocol that returns log-probabilities of prompts, with Transformers inside."""

import threading
from dataclasses import dataclass, field

import torch

from support.json_server import JsonHandler, json_server


@dataclass
class Habits:
    """Ways in which servers differ.

    Attributes:
        protocols: parameters that are heeded.
        takes_ids: prompts may be token numbers.
        numbers: ``return_tokens_as_token_ids`` is heeded.
        start: token that is put before every text.
        hides_start: that token is not among those that are returned, as in llama-cpp-python.
        temperature: temperature of the log-probabilities.
        late: tokens by which log-probabilities stand too late.
        silent: position of a token that is returned without log-probabilities; None for none.
        noise: size of a random change of each log-probability.
        most: most tokens named at a position.
        context: longest prompt and answer, in tokens.
        dies_after: answers after which every request fails; None for never.
    """

    protocols: tuple[str, ...] = ("prompt_logprobs", "echo")
    takes_ids: bool = True
    numbers: bool = True
    start: int | None = None
    hides_start: bool = False
    temperature: float = 1.0
    late: int = 0
    silent: int | None = None
    noise: float = 0.0
    most: int = 10**6
    context: int = 4096
    dies_after: int | None = None
    asked: list[dict] = field(default_factory=list)


class _Handler(JsonHandler):
    def do_GET(self):
        self.send_json(200, {"data": [{"id": "tiny", "max_model_len": self.server.habits.context}]})

    def do_POST(self):
        body = self.read_json()
        habits = self.server.habits
        with self.server.lock:
            habits.asked.append(body)
            gone = habits.dies_after is not None and len(habits.asked) > habits.dies_after
            if gone:
                self.send_json(503, {"error": {"message": "overloaded"}})
            elif body["model"] != "tiny":
                self.send_json(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            elif not self.path.endswith("/v1/completions"):
                self.send_json(404, {"error": {"message": "Not Found"}})
            elif isinstance(body["prompt"], list) and not habits.takes_ids:
                self.send_json(422, {"detail": [{"loc": ["body", "prompt"], "msg": "Input should be a valid string"}]})
            else:
                self.send_json(200, self._answer(body))

    def _answer(self, body):
        habits, tokenizer = self.server.habits, self.server.tokenizer
        prompt = body["prompt"]
        ids = list(prompt) if isinstance(prompt, list) else tokenizer(prompt, add_special_tokens=False).input_ids
        if isinstance(prompt, str) and habits.start is not None:
            ids = [habits.start, *ids]
        with torch.no_grad():
            logits = self.server.model(torch.tensor([ids])).logits[0].float()
        logs = (logits / habits.temperature).log_softmax(-1)
        logs = logs - habits.noise * torch.randn_like(logs).abs()
        given = [None] * (1 + habits.late) + list(logs)
        if habits.silent is not None and habits.silent < len(given):
            given[habits.silent] = None
        choice = {"text": "", "index": 0, "finish_reason": "length"}
        new = int(logits[-1].argmax())
        if body.get("prompt_logprobs") and "prompt_logprobs" in habits.protocols:
            k = min(body["prompt_logprobs"], habits.most)
            choice["prompt_logprobs"] = [
                None if row is None else self._by_number(row, token, k) for row, token in zip(given, ids, strict=False)
            ]
        if body.get("echo") and "echo" in habits.protocols:
            text = tokenizer.decode(ids) if isinstance(prompt, list) else prompt
            choice["text"] = text + tokenizer.decode([new])
            hidden = int(habits.hides_start and isinstance(prompt, str) and ids[0] == habits.start)
            shown = given if not hidden else [None, *given[2:]]
            choice["logprobs"] = self._echo([*ids, new][hidden:], shown, min(body["logprobs"], habits.most), body)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"model": "tiny-1", "choices": [choice], "usage": usage}

    def _by_number(self, row, token, k):
        top = row.topk(min(k, len(row))).indices.tolist()
        return {
            str(number): {"logprob": float(row[number]), "decoded_token": self.server.tokenizer.decode([number])}
            for number in dict.fromkeys([token, *top])
        }

    def _echo(self, ids, given, k, body):
        tokenizer = self.server.tokenizer
        by_number = body.get("return_tokens_as_token_ids") and self.server.habits.numbers

        def name(number):
            return f"token_id:{number}" if by_number else tokenizer.decode([number])

        told = {"tokens": [name(token) for token in ids], "token_logprobs": [], "top_logprobs": []}
        for token, row in zip(ids, given, strict=False):
            top = None if row is None else row.topk(min(k, len(row))).indices.tolist()
            told["token_logprobs"].append(None if row is None else float(row[token]))
            told["top_logprobs"].append(
                None if row is None else {name(number): float(row[number]) for number in [*reversed(top), token]}
            )
        return told


def logprob_server(model, tokenizer, **habits):
    """Serve a causal model under the name ``tiny``; yields the server, with its ``url`` and ``habits``."""
    return json_server(
        _Handler, model=model.eval(), tokenizer=tokenizer, habits=Habits(**habits), lock=threading.Lock()
    )
