"""A server that means harm, a real one on a port of this machine: it is not followed, waited for or kept."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdalign.errors import RunError, UsageError
from kdalign.served import ApiModel, ServedSettings
from kdalign.served.bounded import LARGEST, run_within
from kdalign.served.protocol import Unusable, check_length, read_echo, read_text, token_usage

KEY = "sk-a-key-that-must-not-be-found-anywhere"


def answer(text="fine", **more):
    return {"model": "m", "choices": [{"text": text}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}, **more}


def raw(body, status=200, **headers):
    body = body if isinstance(body, bytes) else body.encode()
    return status, {"Content-Type": "application/json", **headers}, body


def with_usage(usage):
    return raw(
        json.dumps(answer())[:-1].replace(f'"usage": {json.dumps(answer()["usage"])}', f'"usage": {usage}') + "}"
    )


ANSWERS = {
    "broken": raw('{"choices": [{"text": '),
    "empty": raw(""),
    "deep": raw('{"choices": ' + "[" * 100_000),
    "digits": with_usage("9" * 5000),
    "huge": raw(b'{"choices": [{"text": "' + b"x" * (LARGEST + 1) + b'"}]}'),
    "bomb": raw(gzip.compress(b" " * (64 * 2**20)), **{"Content-Encoding": "gzip"}),
    "brotli": raw(b"\x0b\x02\x80abc\x03", **{"Content-Encoding": "br"}),
    "nan": raw('{"choices": [{"text": NaN}]}'),
    "null": raw('{"choices": [{"text": null}]}'),
    "list": raw('{"choices": [{"text": ["a", "b"]}]}'),
    "object": raw('{"choices": [{"message": {"content": {"a": 1}}}]}'),
    "long": raw(json.dumps(answer("word " * 200_000))),
}
SAID = {
    "broken": "not JSON",
    "empty": "not JSON",
    "deep": "nested too deeply",
    "digits": "not JSON",
    "huge": f"more than {LARGEST:,} bytes",
    "bomb": "compressed (gzip)",
    "brotli": "compressed (br)",
    "nan": "its text is a number",
    "null": "its text is missing or null",
    "list": "its text is a list",
    "object": "its text is an object",
    "long": "1,000,000 characters where at most 5 tokens were requested",
}
USAGE = [
    "-5",
    "[1]",
    '"abc"',
    "1e400",
    "true",
    '{"prompt_tokens": -7}',
    '{"prompt_tokens": 1e30}',
    '{"prompt_tokens": "9"}',
]


class Hostile(BaseHTTPRequestHandler):
    """Answers as the first word of a prompt says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, headers, body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": len(body)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece):
        try:
            while not self.server.over.wait(0.02):
                self.wfile.write(piece)
        except OSError:
            pass
        self.close_connection = True

    def do_GET(self):
        self.send(*raw(json.dumps({"data": [{"id": 5}, "x", {"id": "other\x1b[2J"}]})))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers, body))
        word = (body.get("prompt") or body["messages"][0]["content"]).split(" ")[0]
        if word.isdigit():
            self.send(raw("", int(word))[0], {"Location": self.server.elsewhere}, b"")
        elif word == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.drip(b" ")
        elif word == "drip-headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self.drip(b"x")
        elif word.startswith("usage"):
            self.send(*with_usage(USAGE[int(word[5:])]))
        elif word == "echo-key":
            self.send(*raw(json.dumps(answer(f"it is {KEY}, {' '.join(KEY)}", model=f"m {KEY}"))))
        elif word == "refuse-key":
            self.send(*raw(json.dumps({"error": {"message": f"\x1b[31mbad {KEY} and {' '.join(KEY)}\u202e"}}), 400))
        elif word == "half":
            self.send(*raw('{"model": "m\\u001b[31m\\ud800", "choices": [{"text": "a\\ud800b \\udfff"}]}'))
        elif word == "unknown":
            self.send(*raw(json.dumps({"error": {"message": "none"}}), 404))
        else:
            self.send(*ANSWERS.get(word, raw(json.dumps(answer()))))


def started(over):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads, server.block_on_close = True, False
    server.asked, server.over, server.elsewhere = [], over, ""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    return server


@pytest.fixture(scope="module")
def servers():
    """A hostile server, and another origin that it would send requests on to."""
    over = threading.Event()
    pair = started(over), started(over)
    pair[0].elsewhere = pair[1].url
    yield pair
    over.set()
    for server in pair:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hostile(servers, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers[0].asked.clear()
    return servers[0]


def opened(server, folder, **settings):
    return ApiModel("openai:m", server.url, folder, ServedSettings(**{"retries": 0, "timeout": 60.0, **settings}))


def refused(server, folder, prompt, kind, **settings):
    with opened(server, folder, **settings) as model, pytest.raises(kind) as error:
        model.complete([prompt], [5])
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 1000
    return line


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_said_and_the_texts_go_nowhere_else(servers, hostile, tmp_path, status):
    line = refused(hostile, tmp_path / "kept", f"{status} a secret text", UsageError)
    assert servers[1].url in line
    assert "not followed" in line
    assert servers[1].asked == []
    assert not (tmp_path / "kept").exists()
    with opened(hostile, tmp_path / "kept") as model, pytest.raises(UsageError, match="not followed"):
        model.choose([f"{status} a secret text"], ["good", "bad"])
    assert servers[1].asked == []


@pytest.mark.parametrize("way", ["drip", "drip-headers"])
def test_an_answer_that_drips_is_waited_for_no_longer_than_was_said(hostile, tmp_path, way):
    line = refused(hostile, tmp_path, way, RunError, timeout=0.4)
    assert f"no answer from the server at {hostile.url}" in line
    assert "0.4 seconds" in line


@pytest.mark.parametrize("word", SAID)
def test_an_answer_that_is_none_is_one_line_and_nothing_is_kept_of_it(hostile, tmp_path, word):
    line = refused(hostile, tmp_path / "kept", word, RunError)
    assert "gives an answer that cannot be used" in line
    assert SAID[word] in line
    assert not (tmp_path / "kept").exists()


def test_nothing_compressed_is_asked_for(hostile, tmp_path):
    with opened(hostile, tmp_path) as model:
        model.complete(["a"], [5])
    assert hostile.asked[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("number", range(len(USAGE)))
def test_what_is_no_count_of_tokens_fills_no_budget(hostile, tmp_path, number):
    with opened(hostile, tmp_path) as model:
        assert model.complete([f"usage{number}"], [5]) == ["fine"]
        assert model.miscounted
        assert model.spent.tokens > 0
    with opened(hostile, tmp_path / "again", max_tokens=200) as model:
        with pytest.raises(RunError, match="does not count tokens"):
            model.complete([f"usage{number}"], [5])
        assert model.spent.tokens > 0


def test_the_key_is_masked_in_answers_and_errors_also_with_blanks_between_its_letters(hostile, tmp_path):
    with opened(hostile, tmp_path) as model:
        (text,) = model.complete(["echo-key"], [50])
        assert text == "it is ***, ***"
        assert model.answered_by == ("m ***",)
    kept = (tmp_path / "served.jsonl").read_text()
    assert KEY not in kept
    assert " ".join(KEY) not in kept
    line = refused(hostile, tmp_path / "b", "refuse-key", RunError)
    assert "bad *** and ***" in line
    assert "\x1b" not in line
    assert "\u202e" not in line


def test_halves_of_letters_and_terminal_commands_end_in_no_text_and_no_name(hostile, tmp_path):
    with opened(hostile, tmp_path) as model:
        assert model.complete(["half"], [5]) == ["a\ufffdb \ufffd"]
        assert model.answered_by == ("m[31m\ufffd",)
    with opened(hostile, tmp_path) as model:
        assert model.complete(["half"], [5]) == ["a\ufffdb \ufffd"], "as it is kept"


def test_a_server_that_refuses_the_first_request_leaves_no_file(hostile, tmp_path):
    line = refused(hostile, tmp_path / "kept", "unknown", UsageError)
    assert "other[2J" in line
    with opened(hostile, tmp_path / "kept") as model, pytest.raises(UsageError):
        model.choose(["unknown"], ["good", "bad"])
    assert not (tmp_path / "kept").exists()
    with opened(hostile, tmp_path / "kept") as model:
        model.complete(["a"], [5])
    lines = [json.loads(line) for line in (tmp_path / "kept" / "served.jsonl").read_text().splitlines()]
    assert [sorted({"manner", "key"} & set(line)) for line in lines] == [["key"], ["manner"]]


def test_a_hostile_server_is_one_line_of_the_command(kdalign, hostile, tmp_path):
    (tmp_path / "data").mkdir()
    words = ("--task", "lm:text", "--data", "data", "--split", "test", "--metrics", "bleu", "--base-url", hostile.url)
    (tmp_path / "data" / "test.jsonl").write_text('{"text": "307 a b c d e f g h i j k l m n o p"}\n')
    status, out, err = kdalign("eval", "openai:m", *words, "--out", "e/e.json")
    assert (status, out) == (2, "")
    assert "not followed" in [line for line in err.splitlines() if line.strip()][-1]


# Pure parts


def test_only_counts_are_counts():
    assert token_usage({}) == token_usage({"usage": None}) == token_usage({"usage": {"prompt_tokens": None}}) == (0, 0)
    assert token_usage({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": -1}}) == (3, 4)
    for usage in (5, [], "x", {"prompt_tokens": True}, {"completion_tokens": -1}, {"prompt_tokens": 10**9}):
        assert token_usage({"usage": usage}) is None


def test_a_message_without_text_is_empty_and_marked_and_other_kinds_are_refused():
    null = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    assert read_text(null, ()) == {"text": "", "finish": "length", "null": True}
    for choice in ({}, {"text": 5}, {"text": None}, {"message": {"content": []}}, {"message": {"content": False}}):
        with pytest.raises(Unusable):
            read_text({"choices": [choice]}, ())


ECHO = {
    "tokens": ["a", "b"],
    "token_logprobs": [None, -1.0],
    "top_logprobs": [None, {"b": -1.0}],
    "text_offset": [0, 1],
}


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "ab"},
        {"tokens": ["a", 5]},
        {"tokens": None},
        {"token_logprobs": [-1.0]},
        {"token_logprobs": ["x", -1.0]},
        {"token_logprobs": [float("nan"), -1.0]},
        {"token_logprobs": [None, 3.0]},
        {"top_logprobs": [{"b": "x"}, None]},
        {"top_logprobs": 5},
        {"top_logprobs": [None]},
        {"text_offset": ["0", "1"]},
    ],
)
def test_log_probabilities_of_other_kinds_are_refused(change):
    assert read_echo({"choices": [{"text": "ab", "logprobs": ECHO}]}, "ab")["tokens"] == ["a", "b"]
    with pytest.raises(Unusable):
        read_echo({"choices": [{"text": "ab", "logprobs": ECHO | change}]}, "ab")


def test_more_tokens_than_a_text_has_bytes_are_refused():
    check_length({"tokens": ["a"] * 20}, 5, 1)
    with pytest.raises(Unusable, match="1,000 tokens"):
        check_length({"tokens": ["a"] * 1000}, 5, 1)


def test_what_takes_too_long_is_left_alone_and_errors_come_through():
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
        run_within(0.05, lambda: release.wait(60))
    release.set()
    assert run_within(60, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        run_within(60, lambda: 1 // 0)
