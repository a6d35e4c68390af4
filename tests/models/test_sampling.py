"""Samples: drawn by numbers of their own, with a cache that changes nothing."""

import numpy as np
import pytest
import torch

from kdalign.models.architecture import layout_of
from kdalign.models.capture import enable_capture
from kdalign.models.sampling import Sampling, draw_tokens, sample_continuations, uniform_numbers
from support.covering import one_of_each
from support.family_setting import KINDS, model

LEFT_TO_RIGHT = [kind for kind in KINDS if kind not in ("bert", "albert", "modernbert", "deberta-v2", "xlnet")]


def numbers(count, tokens):
    return [uniform_numbers(f"row {row}", tokens) for row in range(count)]


def settings(made, new_tokens=9, ends=(), temperature=1.0, top_p=1.0, positions=64):
    return Sampling(new_tokens, temperature, top_p, frozenset(ends), int(made.config.vocab_size), positions)


def one_by_one(made, prompt, draws, sampling, start):
    """A sample without cache, padding or batch: the whole text is read again for each token."""
    sample = []
    while len(sample) < sampling.new_tokens and not (sample and sample[-1] in sampling.ends):
        with torch.no_grad():
            if made.config.is_encoder_decoder:
                inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *sample]])}
            else:
                inputs = {"input_ids": torch.tensor([[*prompt, *sample]])}
            logits = made(**inputs).logits[0, -1].double()
        cumulative = torch.softmax(logits / sampling.temperature, dim=0).cumsum(0)
        sample.append(int((cumulative <= draws[len(sample)]).sum()))
    return sample


@pytest.mark.parametrize("kind", one_of_each(LEFT_TO_RIGHT, ("llama", "t5")))
def test_a_batch_with_cache_and_padding_samples_what_each_prompt_samples_alone(kind):
    made = enable_capture(model(kind))
    prompts = [[7, 9, 11, 13, 15, 17], [8], [21, 22, 23], [30, 31, 32, 33, 34], [9, 9, 9, 9]]
    start = made.config.decoder_start_token_id if made.config.is_encoder_decoder else 0
    draws = numbers(5, 9)
    free = [one_by_one(made, *each, settings(made), start) for each in zip(prompts, draws, strict=True)]
    assert sample_continuations(made, prompts, draws, settings(made), start) == free
    # Tokens that these samples hold now end them, at different places: the others go on.
    ends = (free[0][1], free[1][3], free[3][2])
    ended = [one_by_one(made, *each, settings(made, ends=ends), start) for each in zip(prompts, draws, strict=True)]
    assert sample_continuations(made, prompts, draws, settings(made, ends=ends), start) == ended
    assert min(map(len, ended)) < max(map(len, ended))
    assert layout_of(made.config).family in ("causal", "seq2seq")
    assert not made.training


def test_a_sample_depends_neither_on_its_batch_nor_on_dropout_and_training_goes_on():
    made = enable_capture(model("gpt2")).train()
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    prompts, draws = [[7, 9, 11], [8], [21, 22, 23, 24, 25]], numbers(3, 9)
    together = sample_continuations(made, prompts, draws, settings(made))
    alone = [sample_continuations(made, [p], [d], settings(made))[0] for p, d in zip(prompts, draws, strict=True)]
    assert together == alone
    assert made.training


def test_samples_stop_where_positions_end():
    made = enable_capture(model("gpt2"))
    # The model has 64 positions, and the last token of a text is not read.
    prompts = [[7] * 62, [8] * 64, [9] * 20, [9] * 30, [9] * 40]
    samples = sample_continuations(made, prompts, numbers(5, 9), settings(made))
    assert [len(sample) for sample in samples] == [3, 1, 9, 9, 9]


def test_a_token_is_drawn_from_the_cumulative_distribution_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.0999, 0.1001, 0.31, 0.59, 0.999], dtype=torch.float64)
    assert draw_tokens(logits, uniform, 1.0).tolist() == [0, 0, 1, 2, 2, 3]
    # At temperature 1/2 the squares count: 1, 4, 9 and 16 of 30.
    assert draw_tokens(logits, torch.tensor([0.03, 0.04, 0.16, 0.17, 0.46, 0.47]), 0.5).tolist() == [0, 1, 1, 2, 2, 3]
    # The nucleus of 0.6 is 0.4 and 0.3, the fewest of the likeliest that reach it: 3/7 and 4/7.
    assert draw_tokens(logits[:2], torch.tensor([0.42, 0.43]), 1.0, 0.6).tolist() == [2, 3]


def test_draws_follow_the_models_probabilities():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(4000, 1)
    tokens = draw_tokens(logits, torch.tensor(uniform_numbers("many", 4000)), 1.0)
    assert np.bincount(tokens) / 4000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)


def test_draws_are_a_function_of_their_text_alone():
    assert (uniform_numbers("0 5 7 9", 4) == uniform_numbers("0 5 7 9", 9)[:4]).all()
    assert not (uniform_numbers("0 5 7 9", 4) == uniform_numbers("0 6 7 9", 4)).any()
