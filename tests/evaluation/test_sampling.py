"""Samples: tokens by hand, frequencies, and texts that are a function of seed and prompt alone."""

import math

import numpy as np
import pytest
import torch

from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import generate_batches
from kdalign.evaluation.sampling import DrawTokens, uniform_draws
from support.family_setting import model, tokenizer
from support.tiny import sentences

TEXTS = sentences(9, 4)[0]
CASES = [GenerationCase(text, ("x",), draw=draw) for text in TEXTS for draw in range(2)]


def drawn(logits, numbers, temperature=1.0, top_p=1.0):
    """The token that each number picks from one distribution."""
    rows = torch.tensor([logits] * len(numbers), dtype=torch.float32)
    picks = DrawTokens([np.array([number]) for number in numbers], 3, temperature, top_p)
    scores = picks(torch.zeros((len(numbers), 3), dtype=torch.long), rows)
    assert (scores.isfinite().sum(dim=-1) == 1).all()
    return scores.argmax(dim=-1).tolist()


HALF = [math.log(part) for part in (0.2, 0.5, 0.3)]


def test_a_number_picks_the_first_token_whose_cumulative_probability_exceeds_it():
    assert drawn(HALF, [0.0, 0.199, 0.2001, 0.699, 0.701, 0.9999]) == [0, 0, 1, 1, 2, 2]


def test_the_nucleus_is_the_likeliest_tokens_whose_sum_reaches_its_share():
    # 0.5 and 0.3 reach 0.7, so that they are drawn with 0.625 and 0.375; 0.5 alone reaches 0.5.
    assert drawn(HALF, [0.0, 0.62, 0.63, 0.9999], top_p=0.7) == [1, 1, 2, 2]
    assert drawn(HALF, [0.0, 0.9999], top_p=0.5) == [1, 1]


def test_a_temperature_divides_the_logits():
    # Squared probabilities at temperature 1/2: 0.04, 0.25 and 0.09 of 0.38.
    assert drawn(HALF, [0.104, 0.106, 0.762, 0.764], temperature=0.5) == [0, 1, 1, 2]


def test_draws_depend_on_seed_prompt_and_number_and_are_uniform():
    ours = uniform_draws(0, "a film", 1, 20_000)
    assert (ours == uniform_draws(0, "a film", 1, 20_000)).all()
    assert (ours[:7] == uniform_draws(0, "a film", 1, 7)).all()
    for other in (uniform_draws(1, "a film", 1, 5), uniform_draws(0, "a film", 2, 5), uniform_draws(0, "film", 1, 5)):
        assert (ours[:5] != other).all()
    assert np.histogram(ours, 10, (0, 1))[0] == pytest.approx(2_000, abs=200)


def answered(kind, cases, **settings):
    """Answers in the order of the cases."""
    net, reads = model(kind), tokenizer("seq2seq" if kind in ("marian", "t5") else "causal")
    given = GenerationSettings(**{"new_tokens": 8, "temperature": 1.0, "top_p": 0.9, **settings})
    found = {}
    for batch in generate_batches(net, reads, cases, given):
        found |= batch
    return [found[number] for number in range(len(cases))]


@pytest.mark.parametrize("kind", ["gpt2", "marian"])
def test_a_sample_is_the_same_in_any_batch_and_another_for_each_draw_and_seed(kind):
    together = [answer.text for answer in answered(kind, CASES)]
    assert together == [answer.text for answer in answered(kind, CASES, rows=1)]
    assert together[::-1] == [answer.text for answer in answered(kind, CASES[::-1], rows=5)]
    assert sum(first != second for first, second in zip(together[::2], together[1::2], strict=True)) >= 7
    assert sum(a != b.text for a, b in zip(together, answered(kind, CASES, seed=1), strict=True)) >= 14


def test_batches_that_are_known_are_left_out_and_the_others_stay_as_they_are():
    net, reads = model("gpt2"), tokenizer("causal")
    settings = GenerationSettings(new_tokens=8, temperature=1.0, rows=4)
    whole = list(generate_batches(net, reads, CASES, settings))
    known = {*whole[0], *whole[1], next(iter(whole[2]))}  # the third batch is known in part, so it comes again
    assert list(generate_batches(net, reads, CASES, settings, known)) == whole[2:]


@pytest.mark.parametrize(("kind", "seed"), [("gpt2", 0), ("t5", 2)])
def test_an_answer_says_whether_the_model_ended_it_and_counts_its_tokens(kind, seed):
    net, reads = model(kind, seed=seed), tokenizer("causal" if kind == "gpt2" else "seq2seq")
    case = GenerationCase(TEXTS[3], ("x",))
    prompt = reads(case.prompt, return_tensors="pt")
    inputs = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    net.generation_config.forced_eos_token_id = net.generation_config.eos_token_id = None
    new = net.generate(**inputs, do_sample=False, max_new_tokens=6)[0].tolist()
    new = new[inputs["input_ids"].size(1) if kind == "gpt2" else 1 :]

    def answer(limit=6, **config):
        net.generation_config.update(**config)
        [batch] = generate_batches(net, reads, [case], GenerationSettings(new_tokens=limit))
        return batch[0]

    free = answer()
    assert (free.ended, free.new_tokens, free.prompt_tokens) == (False, 6, inputs["input_ids"].size(1))
    end = next(token for token in new[1:] if token != new[0])
    place = new.index(end)
    ended = answer(eos_token_id=[end, 1])
    assert (ended.ended, ended.new_tokens) == (True, place + 1)
    assert answer(limit=place, eos_token_id=[end, 1]).ended is False
    forced = answer(limit=place + 1, eos_token_id=[end, 1], forced_eos_token_id=end)
    assert (forced.ended, forced.new_tokens) == (False, place + 1)


def test_a_stop_text_ends_an_answer():
    [free] = answered("gpt2", CASES[:1], new_tokens=8, temperature=0.0)
    stop = free.text[2]
    [answer] = answered("gpt2", [GenerationCase(TEXTS[0], ("x",), stop=stop)], new_tokens=8, temperature=0.0)
    assert (answer.text, answer.ended) == (free.text.partition(stop)[0].strip(), True)
    assert answer.new_tokens < free.new_tokens
