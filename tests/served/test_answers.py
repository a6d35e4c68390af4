"""Answers of served models: samples, conversations, and how an answer ended."""

import pytest

from kdalign.served import ApiModel, Completion, RequestSampling, ServedSettings
from support.answering_server import answering_server


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def by_seed(body):
    return f"{body['prompt']} {body.get('seed')}", "stop"


def warm(seed):
    return RequestSampling(0.5, 0.9, seed)


def test_samples_of_a_prompt_are_requests_of_their_own_with_a_seed_each(tmp_path):
    with answering_server(by_seed) as server, ApiModel("openai:m", server.url, tmp_path) as model:
        given = [warm(3), warm(4), warm(3)]
        answers = model.answer(["a", "a", "b"], [5] * 3, sampling=given)
        assert [answer.text for answer in answers] == ["a 3", "a 4", "b 3"]
        assert answers[0] == Completion("a 3", True, 7, 2)
        assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(0.5, 0.9)}
        assert model.answer(["a", "a", "b"], [5] * 3, sampling=given) == answers
        assert len(server.asked) == 3


def test_samples_are_told_apart_where_a_server_refuses_seeds(tmp_path):
    numbers = iter(range(10))
    with (
        answering_server(lambda body: (f"{next(numbers)}", "stop"), refused=("seed",)) as server,
        ApiModel("openai:m", server.url, tmp_path, ServedSettings(concurrency=1)) as model,
    ):
        answers = model.answer(["a", "a"], [5] * 2, sampling=[warm(1), warm(2)])
        assert (sorted(answer.text for answer in answers), model.dropped) == (["0", "1"], ("seed",))


def test_greedy_answers_have_the_body_and_the_key_of_completions(tmp_path):
    with answering_server(by_seed) as server, ApiModel("openai:m", server.url, tmp_path) as model:
        assert model.complete(["a"], [5]) == [model.answer(["a"], [5])[0].text] == ["a 0"]
        [body] = server.asked
        assert "top_p" not in body
        assert (body["temperature"], body["seed"]) == (0, 0)


def test_a_conversation_is_sent_with_its_roles(tmp_path):
    chat = [{"role": "system", "content": "be warm"}, {"role": "user", "content": "a film"}]
    with (
        answering_server(lambda body: (str(len(body["messages"])), "stop")) as server,
        ApiModel("openai:m", server.url, tmp_path, ServedSettings(chat=True)) as model,
    ):
        assert [answer.text for answer in model.answer([chat, "a film"], [5] * 2)] == ["2", "1"]
        assert server.asked[0]["messages"] == chat


@pytest.mark.parametrize(
    ("text", "finish", "ended"),
    [
        ("a b", "stop", True),
        ("a b", "length", False),
        ("a b", None, None),
        ("a b", "content_filter", False),
        ("a.b", "length", True),  # the stop text was left in, and ends the answer
    ],
)
def test_an_answer_says_how_it_ended(tmp_path, text, finish, ended):
    with (
        answering_server(lambda body: (text, finish)) as server,
        ApiModel("openai:m", server.url, tmp_path) as model,
    ):
        [answer] = model.answer(["x"], [5], ["."])
        assert (answer.text, answer.ended) == (text.partition(".")[0], ended)
