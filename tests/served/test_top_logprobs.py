"""Answers with the likeliest tokens of a prompt, as servers write them, and the file that keeps them."""

import math
import sqlite3

import numpy as np
import pytest

from kdalign.errors import RunError, UsageError
from kdalign.served.logprob_store import LogprobStore
from kdalign.served.prompt_reader import answers_file
from kdalign.served.protocol import Refused, Unusable
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

NUMBERS, ECHOED_NUMBERS, TEXT, UNBEGUN = FORMS
PROMPT = TokenPrompt((1, 7, 9), ("<s>", "a", " b"), frozenset({"<s>"}), "<s>a b", "a b")


def by_number(token, logprob, text=None):
    return {str(token): {"logprob": logprob, "rank": 1, "decoded_token": text}}


def test_vllms_answer_is_read_by_numbers_likeliest_first_without_the_prompts_token_beyond_k():
    rows = [None, {**by_number(7, -3.0, "a"), **by_number(4, -0.1), **by_number(5, -2.5)}, by_number(9, 0.0, " b")]
    read = read_prompt({"choices": [{"text": "x", "prompt_logprobs": rows}]}, NUMBERS, PROMPT, 2)
    top = read["top"]
    assert top.entries.tolist() == [[-1, -1], [4, 5], [9, -1]]
    assert top.logs[1].tolist() == pytest.approx([-0.1, -2.5])
    assert (top.tokens.tolist(), top.texts) == ([1, 7, 9], None)
    assert top.own.tolist() == pytest.approx([math.nan, -3.0, 0.0], nan_ok=True)
    assert read["spelled"] == [None, "a", " b"]


def test_an_echo_is_read_without_the_new_token_and_by_numbers_where_they_are_given():
    told = {
        "tokens": ["token_id:1", "token_id:7", "token_id:9", "token_id:2"],
        "token_logprobs": [None, -3.0, -1.0, -0.5],
        "top_logprobs": [None, {"token_id:4": -0.1}, {"token_id:9": -1.0}, {"token_id:2": -0.5}],
    }
    answer = {"choices": [{"text": "<s>a bc", "logprobs": told}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    top = read_prompt(answer, ECHOED_NUMBERS, PROMPT, 5)["top"]
    assert (top.tokens.tolist(), top.entries.tolist()) == ([1, 7, 9], [[-1], [4], [9]])


def test_an_echo_of_text_is_read_by_the_texts_of_tokens():
    told = {
        "tokens": ["a", " b", "c"],
        "token_logprobs": [None, -1.0, -0.5],
        "top_logprobs": [None, {" b": -1.0, " x": -0.6}, {"c": -0.5}],
    }
    answer = {"choices": [{"text": "a bc", "logprobs": told}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    top = read_prompt(answer, UNBEGUN, PROMPT, 5)["top"]
    assert [top.texts[number] for number in top.tokens] == ["a", " b"]
    assert [top.texts[number] for number in top.entries[1]] == [" x", " b"]


def test_a_log_probability_that_no_float_holds_is_that_of_what_is_impossible():
    answer = {"choices": [{"prompt_logprobs": [None, by_number(7, -(10**400)), by_number(8, -1)]}]}
    assert read_prompt(answer, NUMBERS, PROMPT, 5)["top"].logs[1, 0] == -1e4


@pytest.mark.parametrize(
    ("form", "choice", "error"),
    [
        (NUMBERS, {"text": "x"}, Withheld),
        (NUMBERS, {"prompt_logprobs": [None]}, Unusable),
        (NUMBERS, {"prompt_logprobs": [None, by_number(7, 0.5), None]}, Unusable),
        (NUMBERS, {"prompt_logprobs": [None, {"seven": {"logprob": -1}}, None]}, Unusable),
        (TEXT, {"text": "c", "logprobs": None}, Withheld),
        (
            TEXT,
            {"text": "c", "logprobs": {"tokens": ["c"], "token_logprobs": [-1], "top_logprobs": [{}]}},
            Withheld,
        ),
        (
            TEXT,
            {"text": "<s>a b", "logprobs": {"tokens": ["c"], "token_logprobs": [-1, -1], "top_logprobs": [{}, {}]}},
            Unusable,
        ),
        (
            TEXT,
            {"text": "else", "logprobs": {"tokens": ["c"] * 2, "token_logprobs": [-1] * 2, "top_logprobs": [{}] * 2}},
            Withheld,
        ),
    ],
)
def test_an_answer_about_something_else_is_no_answer(form, choice, error):
    with pytest.raises(error):
        read_prompt({"choices": [choice]}, form, PROMPT, 5)


def test_a_prompt_is_sent_at_temperature_one_with_one_new_token():
    body = prompt_body("m", NUMBERS, PROMPT, 5)
    assert (body["prompt"], body["prompt_logprobs"], body["temperature"], body["max_tokens"]) == ([1, 7, 9], 5, 1, 1)
    assert prompt_body("m", TEXT, PROMPT, 5)["prompt"] == "<s>a b"
    assert prompt_body("m", UNBEGUN, PROMPT, 5)["prompt"] == "a b"
    assert "seed" not in prompt_body("m", PromptForm("echo", True, dropped=("seed",)), PROMPT, 5)


def test_a_refusal_is_met_by_leaving_out_what_it_names_once():
    named = Refused(400, "Unknown parameter: 'repeat_penalty'", "repeat_penalty")
    assert refused_parameter(NUMBERS, named) == "repeat_penalty"
    assert refused_parameter(PromptForm("echo", True, dropped=("repeat_penalty",)), named) is None
    assert refused_parameter(NUMBERS, Refused(400, "prompt_logprobs of 50 is more than 20")) is None
    assert refused_parameter(NUMBERS, Refused(500, "seed")) is None


def some(texts=None):
    ones = np.ones((2, 1), dtype=np.float32)
    return TopLogprobs(np.array([1, 2], np.int32), -ones[:, 0], np.array([[-1], [3]], np.int32), -ones, texts)


@pytest.mark.parametrize("texts", [None, ("a", 'é"\n', "", "\ufffd")])
def test_answers_outlast_the_process_and_the_form_with_them(tmp_path, texts):
    file = tmp_path / "new" / "answers.sqlite"
    store = LogprobStore(file)
    assert ("a" in store, len(store), store.form, store.models) == (False, 0, None, ())
    assert not file.parent.exists()
    store.keep_answer("a", {"top": some(texts), "model": "m-1", "prompt_tokens": 2, "completion_tokens": 1})
    store.keep_form(UNBEGUN)
    again = LogprobStore(file)
    top = again["a"]["top"]
    assert (top.texts, top.entries.tolist(), top.tokens.tolist()) == (texts, [[-1], [3]], [1, 2])
    assert (list(again), again.form, again.models) == (["a"], UNBEGUN, ("m-1",))
    with pytest.raises(KeyError):
        again["b"]


def test_a_damaged_file_is_said_with_the_mend(tmp_path):
    file = tmp_path / "answers.sqlite"
    store = LogprobStore(file)
    store.keep_answer("a", {"top": some()})
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE answers SET checksum = 1")
    connection.close()
    with pytest.raises(UsageError, match=r"is damaged .*checksum.*: remove the file"):
        store["a"]
    file.write_bytes(b"no such thing" * 100)
    with pytest.raises(UsageError, match="is not a file of answers"):
        len(store)
    file.unlink()
    file.mkdir()
    with pytest.raises(RunError, match="cannot keep an answer"):
        store.keep_answer("a", {"top": some()})


def test_a_model_at_another_url_has_another_file(tmp_path):
    one = answers_file(tmp_path, "openai:org/m", "http://a/v1")
    assert one == answers_file(tmp_path, "openai:org/m", "http://a/v1/")
    assert one != answers_file(tmp_path, "openai:org/m", "http://b/v1")
    assert one.name.startswith("org-m-")
