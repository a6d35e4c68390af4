"""Models behind an API, asked at real servers: `transformers serve`, llama-cpp-python, and one with OpenAI's refusals.

OpenAI's own service cannot be asked in a test. What it refuses is documented, and `OpenAIRules` answers like that.
llama-cpp-python is asked where `KDALIGN_LLAMA_PYTHON` (or this Python) can import it with its server's parts.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.errors import RunError, UsageError
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.served import OPENAI_URL, ApiModel, Dialect, ServedSettings, Unavailable, is_served, label_in_answer
from kdalign.served.cache import AnswerCache
from kdalign.served.protocol import Refused, answer_key, cut_at_stop, next_dialect, request_body
from support.json_server import JsonHandler, json_server
from support.tiny import WORDS, sentences

KEY = "sk-a-key-that-must-not-be-found-anywhere"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with its tokenizer, as a folder; its weights are large enough to write something."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(sentences(200, 7)[0], 300, "causal", 128)
    tokenizer.chat_template = TEMPLATE
    new = parse_scratch_spec("new:llama,layers=2,width=32,heads=4,feed_forward=64,positions=128,kv_heads=2")
    model = build_from_scratch(scratch_config(new, tokenizer), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None  # writes to the last token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server's process on a port of its own."""

    def __init__(self, words, health, log):
        self.port, self.words, self.health, self.log, self.process = free_port(), words, health, log, None
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        """Start it and wait until it answers; nothing where it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        words = [*self.words, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment)
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.health}", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        pytest.fail(f"the server does not start: {self.log.read_text()[-2000:]}")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def transformers_server(llama, tmp_path_factory):
    for part in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(part) is None:
            pytest.skip(f"transformers serve needs {part}")
    serve = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", llama]
    server = Server([*serve, "--device", "cpu"], "/health", tmp_path_factory.mktemp("log") / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(transformers_server):
    transformers_server.start()  # where a test killed it
    return transformers_server


def opened(server, llama, folder, **settings):
    return ApiModel(
        f"openai:{llama}", server.url, folder, ServedSettings(**{"retries": 1, "timeout": 60.0, **settings})
    )


def answers(folder):
    lines = [json.loads(line) for line in (folder / "served.jsonl").read_text().splitlines()]
    return [line for line in lines if "key" in line]


PROMPTS = [" ".join(words) for words in zip(WORDS, WORDS[5:], WORDS[9:], strict=False)]


# Pure parts


def test_a_served_model_is_named_by_its_prefix():
    assert is_served("openai:gpt-5")
    assert not is_served("org/model")
    assert not is_served("./openai")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("entailment", 0),
        ("not_entailment", 1),
        ("Not entailment.", 1),
        ("not-entailment", 1),
        ("The answer is ENTAILMENT, not contradiction", 0),
        ("It is a contradiction; no entailment", 2),
        ("entailments", None),
        ("non-entailment", None),
        ("**Entailment**", 0),
        ("", None),
        ("neutral", None),
    ],
)
def test_the_label_named_first_is_meant_and_of_two_at_one_place_the_longer_one(text, said):
    assert label_in_answer(text, ["entailment", "not_entailment", "contradiction"]) == said


def test_labels_are_found_with_signs_blanks_and_numbers():
    assert label_in_answer("-1", ["1", "-1"]) == 1
    assert label_in_answer("10", ["1", "-1"]) is None
    assert label_in_answer("I say 1.5", ["1", "1.5"]) == 1
    assert label_in_answer("sehr GUT!", ["schlecht", "gut", "sehr gut"]) == 2
    assert label_in_answer("C++ it is", ["C", "C++"]) == 1
    assert label_in_answer("what", []) is None
    assert label_in_answer("what", [""]) is None


def test_an_answer_ends_before_the_first_stop_text():
    assert cut_at_stop("a little. Then", [".", "little"]) == "a "
    assert cut_at_stop("no end", ["."]) == "no end"
    assert cut_at_stop("all", []) == "all"


def test_the_key_of_an_answer_is_the_sha256_of_its_sorted_json():
    # printf '{"body": {"a": "\\u00e9", "b": 1}, "path": "/p", "stop": ["."], "url": "u"}' | sha256sum
    expected = "60ff5fd4f2b807369b92f4e58a3da988baa37e77c1215ffe3b74debb8096cdb7"
    assert answer_key("u", "/p", {"b": 1, "a": "é"}, ["."]) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "b"},
        {"max_tokens": 6},
        {"model": "n"},
        {"dialect": Dialect("chat")},
        {"dialect": Dialect("completions", refused=("seed",))},
        {"dialect": Dialect("chat", "json_schema")},
        {"stop": ["!"]},
    ],
)
def test_whatever_changes_a_request_changes_its_key(other):
    given = {"model": "m", "dialect": Dialect("completions"), "prompt": "a", "max_tokens": 5, "stop": []}
    first, second = request_body(**given), request_body(**{**given, **other})
    assert answer_key("u", "/p", first) != answer_key("u", "/p", second)


def test_refused_parameters_are_left_out_and_the_limit_renamed():
    dialect = Dialect("chat", refused=("max_tokens", "temperature", "seed"))
    assert request_body("m", dialect, "p", 7, ["."]) == {
        "model": "m",
        "messages": [{"role": "user", "content": "p"}],
        "max_completion_tokens": 7,
        "repeat_penalty": 1,
        "stop": ["."],
    }
    assert dialect.dropped == ("temperature", "seed")


@pytest.mark.parametrize(
    ("dialect", "refusal", "then"),
    [
        (Dialect("completions"), Refused(404, "Not Found"), Dialect("chat")),
        (Dialect("completions"), Refused(400, "no", code="OperationNotSupported"), Dialect("chat")),
        (Dialect("chat"), Refused(404, "Not Found"), None),
        (Dialect("chat"), Refused(400, "no", "temperature"), Dialect("chat", refused=("temperature",))),
        (Dialect("chat"), Refused(422, "[{'loc': ['body', 'seed']}]"), Dialect("chat", refused=("seed",))),
        (Dialect("chat", refused=("seed",)), Refused(422, "seed again"), None),
        (Dialect("chat"), Refused(400, "max_completion_tokens is too large"), None),
        (Dialect("completions"), Refused(400, "max_tokens is too large"), None),
        (Dialect("chat"), Refused(400, "reduce max_tokens", code="context_length_exceeded"), None),
        (Dialect("chat"), Refused(500, "seed"), None),
    ],
)
def test_a_refusal_changes_the_manner_only_by_what_it_names(dialect, refusal, then):
    assert next_dialect(dialect, refusal) == then


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80/v1", "ftp://a/v1", "http://", "http://a:b/v1", "http://a/v1?k=1", "http://me:pw@a/v1"]
)
def test_a_url_that_is_none_is_refused_without_a_password_in_the_line(url, tmp_path):
    with pytest.raises(UsageError, match="http") as error:
        ApiModel("openai:m", url, tmp_path)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("given", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}, {"max_tokens": -1}])
def test_settings_that_cannot_be_are_refused(given, tmp_path):
    with pytest.raises(UsageError, match="too small"):
        ApiModel("openai:m", "http://127.0.0.1:1/v1", tmp_path, ServedSettings(**given))


def test_openai_itself_needs_a_key_and_a_key_needs_plain_letters(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="OpenAI needs a key: set OPENAI_API_KEY"):
        ApiModel("openai:m", OPENAI_URL, tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nx")
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as error:
        ApiModel("openai:m", "http://127.0.0.1:1/v1", tmp_path)
    assert "secret" not in str(error.value)


def test_without_the_client_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install 'kdalign\[served\]'"):
        ApiModel("openai:m", "http://127.0.0.1:1/v1", tmp_path)


def test_opening_a_model_writes_nothing(tmp_path):
    with ApiModel("openai:m", "http://127.0.0.1:1/v1", tmp_path / "new") as model:
        assert (model.endpoint, model.dropped, model.complete([], [])) == (None, (), [])
    assert not (tmp_path / "new").exists()


def test_of_a_file_whole_lines_are_known_and_a_half_written_one_is_ended_before_the_next(tmp_path):
    file = tmp_path / "served.jsonl"
    file.write_bytes(b'{"key": "a", "text": "caf\\u00e9"}\n[1]\nnull\n{"key": "b", "text": "caf\xc3')
    kept = AnswerCache(file)
    assert set(kept.answers) == {"a"}
    kept.keep_answer("b", {"text": "café\n \ud800"})
    kept.keep_dialect("m", Dialect("chat", "json_schema", ("seed",)))
    again = AnswerCache(file)
    assert {key: answer["text"] for key, answer in again.answers.items()} == {"a": "café", "b": "café\n \ud800"}
    assert again.dialects == {"m": Dialect("chat", "json_schema", ("seed",))}


def test_a_disk_that_takes_no_answer_is_an_error_of_the_run(tmp_path):
    (tmp_path / "served.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot keep an answer"):
        AnswerCache(tmp_path / "served.jsonl").keep_answer("a", {"text": ""})


# A server that is not there


def test_where_nothing_listens_the_line_says_which_url(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with (
        ApiModel("openai:m", url, tmp_path, ServedSettings(retries=0)) as model,
        pytest.raises(RunError, match=rf"cannot reach the server at {url} \(.*refused\): is it running\?$"),
    ):
        model.complete(["a"], [1])


# `transformers serve`


def test_completions_are_what_the_model_writes_greedily_in_the_order_of_the_prompts(server, llama, tmp_path):
    model, tokenizer = loaded(llama)
    limits = [3 + n % 5 for n in range(12)]
    told = []
    with opened(server, llama, tmp_path) as asked:
        written = asked.complete(PROMPTS[:12], limits, progress=lambda *counts: told.append(counts))
        assert (asked.endpoint, asked.dropped, asked.spent.requests) == ("completions", (), 12)
        assert asked.spent.completion_tokens == sum(limits)
    for prompt, limit, text in zip(PROMPTS[:12], limits, written, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=limit, do_sample=False, pad_token_id=0)
        assert text == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert told == [(n, 12) for n in range(1, 13)]


def test_what_was_answered_costs_nothing_again_and_equal_prompts_are_asked_once(server, llama, tmp_path):
    with opened(server, llama, tmp_path) as asked:
        first = asked.complete([*PROMPTS[:3], PROMPTS[0]], [5] * 4)
        assert (first[3], asked.spent.requests) == (first[0], 3)
    with opened(server, llama, tmp_path, max_requests=1) as asked:
        assert asked.complete([*PROMPTS[:3], PROMPTS[0]], [5] * 4) == first
        assert (asked.spent.requests, asked.endpoint) == (0, "completions")
        asked.complete(PROMPTS[:1], [6])  # another limit is another request
        assert asked.spent.requests == 1


def test_an_answer_ends_before_a_stop_text_that_the_server_leaves_in(server, llama, tmp_path):
    with opened(server, llama, tmp_path) as asked:
        whole = asked.complete(PROMPTS[:1], [12])[0]
        word = whole.split()[2]
        assert asked.complete(PROMPTS[:1], [12], stop=[word]) == [whole[: whole.index(word)]]


def test_a_chat_reads_the_prompt_as_one_message(server, llama, tmp_path):
    with opened(server, llama, tmp_path, chat=True) as asked:
        chatted = asked.complete(PROMPTS[:2], [6, 6])
        assert asked.endpoint == "chat"
    with opened(server, llama, tmp_path) as asked:  # the template is the message alone
        assert asked.complete(PROMPTS[:2], [6, 6]) == chatted
        assert asked.spent.requests == 2


def test_where_response_format_is_passed_over_the_model_answers_freely_and_that_is_said(server, llama, tmp_path):
    with opened(server, llama, tmp_path) as asked:
        free = asked.complete(PROMPTS[:3], [4] * 3)
        choices = asked.choose(PROMPTS[:3], ["good", "bad"], max_tokens=4)
        assert (choices.texts, choices.constraint, choices.endpoint) == (free, "none", "completions")


def test_transformers_serve_tells_no_log_probabilities_and_that_is_said(server, llama, tmp_path):
    with opened(server, llama, tmp_path) as asked:
        told = asked.prompt_logprobs(PROMPTS[:2])
    assert told == Unavailable(
        f"the server at {server.url} ignores echo and logprobs: it returns no log-probabilities of a prompt"
    )


def test_an_unknown_model_is_a_usage_error(server, tmp_path):
    with (
        ApiModel("openai:nope", server.url, tmp_path, ServedSettings(retries=0)) as model,
        pytest.raises(UsageError, match="has no model 'nope'"),
    ):
        model.complete(["a"], [1])


def test_a_url_without_the_api_is_a_usage_error(server, tmp_path):
    with (
        ApiModel("openai:m", server.url.removesuffix("/v1"), tmp_path, ServedSettings(retries=0)) as model,
        pytest.raises(UsageError, match=r"no OpenAI-compatible API at .*mostly with /v1"),
    ):
        model.complete(["a"], [1])


def test_a_spent_budget_of_requests_says_what_is_kept_and_a_larger_one_goes_on(server, llama, tmp_path):
    with (
        opened(server, llama, tmp_path, max_requests=4) as asked,
        pytest.raises(RunError, match=r"the budget of 4 requests is used up .*4 of 10 answers are kept.*larger budget"),
    ):
        asked.complete(PROMPTS[:10], [3] * 10)
    assert len(answers(tmp_path)) == 4
    with opened(server, llama, tmp_path, max_requests=6) as asked:
        asked.complete(PROMPTS[:10], [3] * 10)
        assert asked.spent.requests == 6
    assert len({line["key"] for line in answers(tmp_path)}) == len(answers(tmp_path)) == 10


def test_a_budget_of_tokens_is_not_exceeded(server, llama, tmp_path):
    with opened(server, llama, tmp_path, max_tokens=100) as asked:
        with pytest.raises(RunError, match=r"the budget of 100 tokens is (used up|too small for the next request)"):
            asked.complete(PROMPTS[:20], [20] * 20)
        assert 60 < asked.spent.tokens <= 100
        assert asked.spent.tokens == sum(a["prompt_tokens"] + a["completion_tokens"] for a in answers(tmp_path))


@pytest.mark.slow
def test_a_server_killed_half_way_loses_and_doubles_nothing(server, llama, tmp_path):
    def kill(done, total):
        if done == 5:
            server.kill()

    with (
        opened(server, llama, tmp_path) as asked,
        pytest.raises(
            RunError,
            match=rf"(no answer from|cannot reach) the server at {server.url}.*of 20 answers are kept.*to resume",
        ),
    ):
        asked.complete(PROMPTS[:20], [30] * 20, progress=kill)
    kept = len(answers(tmp_path))
    assert 5 <= kept < 20
    with (tmp_path / "served.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    server.start()
    with opened(server, llama, tmp_path) as asked:
        written = asked.complete(PROMPTS[:20], [30] * 20)
        assert asked.spent.requests == 20 - kept
    (tmp_path / "again").mkdir()
    with opened(server, llama, tmp_path / "again") as asked:
        assert asked.complete(PROMPTS[:20], [30] * 20) == written
    whole = [line for line in (tmp_path / "served.jsonl").read_text().splitlines() if line.endswith("}")]
    keys = [json.loads(line).get("key") for line in whole]
    assert len(keys) == len(set(keys)) == 21  # with the line that keeps the dialect


def test_a_kept_answer_that_was_changed_is_asked_again(server, llama, tmp_path):
    with opened(server, llama, tmp_path) as asked:
        written = asked.complete(PROMPTS[:3], [30] * 3)
    file = tmp_path / "served.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"text": "' in line)
    lines[number] = lines[number].replace('"text": "', '"text": "x', 1)
    file.write_text("".join(lines))
    with opened(server, llama, tmp_path) as asked:
        assert asked.complete(PROMPTS[:3], [30] * 3) == written
        assert asked.spent.requests == 1


def test_the_key_is_sent_and_never_written(server, llama, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with opened(server, llama, tmp_path) as asked:
        asked.complete(PROMPTS[:2], [2, 2])
        assert KEY not in json.dumps(asked.record())
    assert all(KEY not in file.read_text() for file in tmp_path.iterdir())


# A server that refuses as OpenAI documents it


RELEASED = threading.Event()
"""What a server waits for before it answers a prompt that says hang."""


class OpenAIRules(JsonHandler):
    """Two models: one that only chats and takes no max_tokens, temperature or seed; one that only completes."""

    def refuse(self, status, message, param=None, code=None):
        self.send_json(status, {"error": {"message": message, "param": param, "code": code}})

    def do_GET(self):
        self.send_json(200, {"data": [{"id": "gpt-chat"}, {"id": "gpt-old"}]})

    def do_POST(self):
        body = self.read_json()
        self.server.asked.append((self.path, body))
        chat = self.path == "/v1/chat/completions"
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if key != KEY:
            self.refuse(401, f"Incorrect API key provided: {key[:9]}***.", code="invalid_api_key")
        elif body["model"] not in ("gpt-chat", "gpt-old"):
            self.refuse(404, f"The model `{body['model']}` does not exist", code="model_not_found")
        elif body["model"] == "gpt-chat" and not chat:
            self.refuse(404, "This is a chat model and not supported in the v1/completions endpoint.", "model")
        elif chat and "max_tokens" in body:
            self.refuse(
                400,
                "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
                "max_tokens",
                "unsupported_parameter",
            )
        elif chat and "temperature" in body:
            self.refuse(400, "Unsupported value: 'temperature' does not support 0.", "temperature", "unsupported_value")
        elif "repeat_penalty" in body:
            self.refuse(400, "Unrecognized request argument supplied: repeat_penalty")
        elif chat and "seed" in body:
            self.refuse(400, "Unknown parameter: 'seed'.", None, None)
        elif "echo" in body:
            self.refuse(400, f"You can't get logprobs of a prompt with the key {key}.")
        else:
            if "hang" in json.dumps(body):
                RELEASED.wait(60)
            text = "It is bad."
            if "response_format" in body:
                schema = body["response_format"]["json_schema"]["schema"]
                text = json.dumps({"answer": schema["properties"]["answer"]["enum"][-1]})
            choice = {"message": {"content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": 5, "completion_tokens": 3}
            self.send_json(200, {"model": f"{body['model']}-2025", "choices": [choice], "usage": usage})


@pytest.fixture
def openai_rules(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with json_server(OpenAIRules, asked=[]) as server:
        yield server


def test_a_chat_model_is_found_out_once_and_its_refusals_are_said(openai_rules, tmp_path):
    with ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked:
        assert asked.complete(["a", "b", "c"], [5] * 3) == ["It is bad."] * 3
        assert (asked.endpoint, asked.dropped) == ("chat", ("temperature", "seed"))
        assert asked.answered_by == ("gpt-chat-2025",)
        assert asked.spent.requests == 3
    assert len(openai_rules.asked) == 5 + 3  # one each for endpoint, max_tokens, temperature, seed and repeat_penalty
    with ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked:
        asked.complete(["a"], [5])
        assert (asked.dropped, asked.answered_by) == (("temperature", "seed"), ("gpt-chat-2025",))
        asked.complete(["a", "d"], [5] * 2)
    path, last = openai_rules.asked[-1]
    assert (len(openai_rules.asked), path, last["max_completion_tokens"]) == (9, "/v1/chat/completions", 5)


def test_choices_are_held_to_the_labels_by_a_schema(openai_rules, tmp_path):
    with ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked:
        choices = asked.choose(["a", "b"], ["good", "so sö"])
        assert (choices.texts, choices.constraint, choices.endpoint) == (["so sö"] * 2, "json_schema", "chat")
        assert asked.spent.requests == 2
    with ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked:
        assert asked.choose(["a", "b"], ["good", "so sö"]) == choices
        assert asked.spent.requests == 0


def test_a_wrong_key_is_a_usage_error_that_names_the_variable_and_shows_no_part_of_it(
    openai_rules, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-one")
    with (
        ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked,
        pytest.raises(UsageError, match="refuses the key in OPENAI_API_KEY") as error,
    ):
        asked.complete(["a"], [5])
    assert "sk-" not in str(error.value)


def test_an_unknown_model_is_answered_with_the_nearest_one(openai_rules, tmp_path):
    with (
        ApiModel("openai:gpt-chatt", openai_rules.url, tmp_path) as asked,
        pytest.raises(
            UsageError, match=r"no model 'gpt-chatt'; did you mean 'gpt-chat'\? \(its models: gpt-chat, gpt-old"
        ),
    ):
        asked.complete(["a"], [5])


def test_refused_log_probabilities_are_unavailable_with_the_servers_reason_but_not_the_key(openai_rules, tmp_path):
    with ApiModel("openai:gpt-old", openai_rules.url, tmp_path) as asked:
        told = asked.prompt_logprobs(["a"])
    assert isinstance(told, Unavailable)
    assert "You can't get logprobs of a prompt with the key ***." in told.reason
    with ApiModel("openai:gpt-chat", openai_rules.url, tmp_path) as asked:
        told = asked.prompt_logprobs(["a"])
    assert isinstance(told, Unavailable)
    assert "/completions" in told.reason


def test_ctrl_c_stops_at_once_and_keeps_what_was_answered(openai_rules, tmp_path):
    script = f"""
import signal
from pathlib import Path
from kdalign.served import ApiModel
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a command in the background is started without
asked = ApiModel("openai:gpt-old", {openai_rules.url!r}, Path({str(tmp_path)!r}))
asked.complete(["a", "b", "hang", "hang on", "c", "d"], [5] * 6, progress=lambda *n: print(*n, flush=True))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "4 6\n":
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    RELEASED.set()  # an answer that was waited for would have been kept, too
    assert "KeyboardInterrupt" in err
    assert KEY not in err
    assert len(answers(tmp_path)) == 4


# llama-cpp-python's server


def write_gguf(folder, file, bos):
    """A folder's Llama as a GGUF file; llama.cpp turns neighbours, Transformers halves: rows are put in that order."""
    gguf = pytest.importorskip("gguf")
    model, tokenizer = loaded(folder)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tree["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(bos)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None:
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if name != "lm_head.weight":  # tied to the embeddings
            writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_python():
    given = os.environ.get("KDALIGN_LLAMA_PYTHON")
    if given is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed, and KDALIGN_LLAMA_PYTHON names no Python that has it")
    return given or sys.executable


def llama_server(llama, folder, bos):
    python = llama_python()
    write_gguf(llama, folder / "model.gguf", bos)
    words = [python, "-m", "llama_cpp.server", "--model", folder / "model.gguf", "--n_ctx", "128", "--n_threads", "1"]
    server = Server(words, "/v1/models", folder / "log")
    server.start()
    return server


@pytest.fixture(scope="module")
def with_bos(llama, tmp_path_factory):
    server = llama_server(llama, tmp_path_factory.mktemp("with"), True)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def without_bos(llama, tmp_path_factory):
    server = llama_server(llama, tmp_path_factory.mktemp("without"), False)
    yield server
    server.kill()


def test_log_probabilities_of_llama_cpp_are_those_of_the_same_model_here_in_nats(with_bos, llama, tmp_path):
    model, tokenizer = loaded(llama)
    texts = [*PROMPTS[:5], "the good film", ""]
    with ApiModel("openai:any", with_bos.url, tmp_path) as asked:
        told = asked.prompt_logprobs(texts)
        assert asked.spent.requests == 3 + 6
        assert asked.prompt_logprobs(texts) == told
        assert asked.spent.requests == 3 + 6
    assert isinstance(told, list)
    assert told[-1] == []
    for text, tokens in zip(texts[:-1], told, strict=False):
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits
        expected = logits.log_softmax(-1)[0, range(len(ids)), ids].tolist()
        assert [token.token for token in tokens] == [tokenizer.decode([number]) for number in ids]
        assert tokens[0].logprob is None
        assert [token.logprob for token in tokens[1:]] == pytest.approx(
            expected[1:], abs=0.03
        )  # keys and values are kept in 16 bits
        assert [token.offset for token in tokens] == [len(tokenizer.decode(ids[:number])) for number in range(len(ids))]


def test_log_probabilities_at_the_place_of_the_next_token_are_refused(without_bos, tmp_path):
    with ApiModel("openai:any", without_bos.url, tmp_path) as asked:
        told = asked.prompt_logprobs(PROMPTS[:2])
    assert isinstance(told, Unavailable)
    assert "one token late" in told.reason


def test_llama_cpp_completes_greedily_without_the_penalty_for_repeated_words_that_it_has_by_default(
    without_bos, llama, tmp_path
):
    model, tokenizer = loaded(llama)
    here, limits = [], []
    for prompt in PROMPTS[:8]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        # llama.cpp leaves halves of letters out, and writes on where the last token is one
        limits.append(max(n for n in range(30) if tokenizer.decode(made[n - 1 : n]).isascii()))
        here.append(tokenizer.decode(made[: limits[-1]]).replace("\ufffd", ""))
    with ApiModel("openai:any", without_bos.url, tmp_path) as asked:
        written = asked.complete(PROMPTS[:8], limits)
    assert written == here
    assert sum(limits) > 160


def test_llama_cpp_chooses_within_the_labels(without_bos, tmp_path):
    with ApiModel("openai:any", without_bos.url, tmp_path, ServedSettings(retries=1)) as asked:
        choices = asked.choose(PROMPTS[:4], ["good", "bad"])
    assert (choices.constraint, choices.endpoint) == ("json_object", "chat")
    assert set(choices.texts) <= {"good", "bad"}


# The command


@pytest.fixture
def texts(tmp_path):
    import pandas as pd

    folder = tmp_path / "texts"
    folder.mkdir()
    written = sentences(10, 31)[0]
    pd.DataFrame({"text": written}).to_parquet(folder / "validation.parquet")
    labelled = pd.DataFrame({"sentence": written, "label": [number % 2 for number in range(10)]})
    (tmp_path / "sst2").mkdir()
    labelled.to_parquet(tmp_path / "sst2" / "validation.parquet")
    return folder


def evaluated(kdalign, *words):
    status, out, err = kdalign("eval", *words, "--max-length", 64, "--json")
    assert status == 0, err
    return {result["model"]: result for result in json.loads(out)}


@pytest.fixture
def endless(llama, tmp_path):
    """The tiny Llama, with a token beyond its vocabulary as the end of its texts: like at the server, none ends."""
    folder = shutil.copytree(llama, tmp_path / "endless")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 10_000}))
    return folder


def test_a_served_model_writes_what_the_same_model_writes_here(kdalign, server, llama, endless, texts):
    served = f"openai:{llama}"
    words = ["--task", "lm", "--data", texts, "--base-url", server.url, "--metrics", "ppl,bleu,cer"]
    found = evaluated(kdalign, endless, served, *words)
    assert list(found) == [str(endless), served, "copy", "unigram"]
    ours, theirs = ({s["metric"]: s["value"] for s in found[name]["scores"]} for name in (str(endless), served))
    assert list(theirs) == ["bleu", "cer"]
    assert {name: ours[name] for name in theirs} == theirs
    assert {one["metric"] for one in found[served]["absent"]} == {"ppl", "word_ppl"}
    assert "returns no log-probabilities of a prompt" in found[served]["absent"][0]["reason"]
    assert found[served]["served"]["way"] == "completions"
    again = evaluated(kdalign, endless, served, *words)
    assert again[served]["served"]["requests"] == 0
    assert again[served]["scores"] == found[served]["scores"]


@pytest.mark.parametrize(("task", "more"), [("lm", []), ("translation:text-other", ["--chat"])])
def test_a_served_teacher_gives_the_data_that_the_same_model_gives_here(kdalign, server, llama, tmp_path, task, more):
    import pandas as pd

    (tmp_path / "data").mkdir()
    for split, seed in (("train", 31), ("validation", 32)):
        rows = {"text": sentences(6, seed)[0], "other": ["x"] * 6}
        pd.DataFrame(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    words = ["--task", task.replace("lm", "lm:text"), "--data", "data", "--new-tokens", 8, "--keep", "any-end"]
    served = ["--teacher", f"openai:{llama}", "--base-url", server.url, *more]
    for out, teacher in (("here", ["--teacher", llama, "--device", "cpu"]), ("there", served)):
        status, _, err = kdalign("generate", *teacher, *words, "--out", out)
        assert status == 0, err
    ours, theirs = (pd.read_parquet(tmp_path / name / "train.parquet") for name in ("here", "there"))
    pd.testing.assert_frame_equal(ours, theirs)
    assert len(ours) >= 5
    assert not ours.equals(pd.read_parquet(tmp_path / "data/train.parquet"))


@pytest.mark.slow
def test_an_evaluation_whose_server_dies_half_way_goes_on_with_the_same_command(kdalign, server, llama, texts):
    words = ["--task", "lm", "--data", texts, "--base-url", server.url, "--metrics", "cer", "--max-length", 64]
    status, _, err = kdalign("eval", f"openai:{llama}", *words, "--max-requests", 4)
    assert (status, "4" in err.splitlines()[-1]) == (1, True)
    server.kill()
    status, _, err = kdalign("eval", f"openai:{llama}", *words)
    assert status == 1
    assert server.url in err.splitlines()[-1]
    server.start()
    found = evaluated(kdalign, f"openai:{llama}", *words[:-2])
    assert found[f"openai:{llama}"]["served"]["requests"] == 10 - 4


def test_a_model_that_only_chats_is_asked_to_continue_in_words(kdalign, server, llama, texts):
    words = ["--task", "lm", "--data", texts, "--base-url", server.url, "--metrics", "cer"]
    found = evaluated(kdalign, f"openai:{llama}", *words, "--chat")[f"openai:{llama}"]
    assert found["served"]["way"] == "chat"
    assert any("prompted by 'Continue this text with the next {words} words." in note for note in found["notes"])


def test_a_served_model_that_names_no_label_is_wrong(kdalign, server, llama, texts):
    words = ["--task", "sst2", "--data", texts.parent, "--base-url", server.url]
    found = evaluated(kdalign, f"openai:{llama}", *words)[f"openai:{llama}"]
    (score,) = found["scores"]
    assert any("10 of 10 name no label and count as wrong" in note for note in found["notes"])
    assert score["value"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "embedding:stsb"], "a served model cannot be scored on task"),
        ([], "say what to score"),
        (["--task", "lm", "--base-url", "htp://x"], "htp://x"),
        (["--task", "lm", "--metrics", "masked_ppl"], "nothing was scored"),
    ],
)
def test_what_a_served_model_is_not_asked_gets_one_line(kdalign, texts, words, said):
    given = ["--data", texts, *(["--base-url", "http://127.0.0.1:9/v1"] if "--base-url" not in words else [])]
    status, _, err = kdalign("eval", "openai:x", *words, *given)
    assert (status, said in err.splitlines()[-1]) == (2, True), err
    assert not (texts.parent / "runs").exists()


def test_likelihoods_that_a_server_tells_are_those_of_the_same_model_here(kdalign, with_bos, llama, texts):
    from kdalign.data.windows import tokenize_causal_windows
    from kdalign.evaluation.likelihood import predict_tokens

    words = ["--task", "lm", "--data", texts, "--base-url", with_bos.url, "--metrics", "ppl,bits_per_byte"]
    found = evaluated(kdalign, "openai:tiny", *words)["openai:tiny"]
    theirs = {score["metric"]: score for score in found["scores"]}
    model, tokenizer = loaded(llama)
    nll = size = tokens = 0
    for text in sentences(10, 31)[0]:
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        encoded = tokenize_causal_windows([text], tokenizer, 128)
        encoded.columns["targets"][0][0] = -100  # the first token is given
        answers = predict_tokens(model, encoded)
        nll, tokens = nll + answers.nll.sum(), tokens + int(answers.tokens.sum())
        size += len(text[ids["offset_mapping"][0][1] :].encode())
    assert theirs["ppl"]["n"] == tokens
    assert theirs["bits_per_byte"]["n"] == size
    import math

    assert theirs["bits_per_byte"]["value"] == pytest.approx(nll / size / math.log(2), rel=5e-3)


def test_a_server_that_tells_likelihoods_chooses_classes_by_them(kdalign, with_bos, llama, texts):
    words = ["--task", "sst2", "--data", texts.parent, "--base-url", with_bos.url]
    found = evaluated(kdalign, "openai:tiny", *words)["openai:tiny"]
    here = evaluated(kdalign, llama, "--task", "sst2", "--data", texts.parent)[str(llama)]
    import pandas as pd

    ours, theirs = (pd.read_parquet(one["predictions"])["prediction"].tolist() for one in (here, found))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 9  # keys and values in 16 bits may turn one
    assert any("likeliest answer" in note for note in found["notes"])
