"""Samples of a model, and where its texts end."""

import pytest
import torch

from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import generate_batches
from kdalign.evaluation.samples import Prompt, complete
from support.family_setting import model, tokenizer

TEXT = "a great film"


@pytest.mark.parametrize("also", [True, False])
def test_samples_and_evaluation_stop_at_every_end_token_of_the_settings_for_generation(also):
    net, pieces = model("llama"), tokenizer("causal")
    prompt = Prompt(TEXT, tuple(pieces(TEXT)["input_ids"]))
    settings = GenerationSettings(new_tokens=12)
    net.generation_config.eos_token_id = pieces.eos_token_id
    read = torch.tensor([prompt.ids])
    new = net.generate(read, do_sample=False, max_new_tokens=12)[0, len(prompt.ids) :].tolist()
    written = pieces.decode(new, skip_special_tokens=True)
    second = next(token for token in new if token != new[0])  # greedy: the same tokens again, up to this one
    net.generation_config.eos_token_id = [pieces.eos_token_id, second] if also else pieces.eos_token_id
    ended = pieces.decode(new[: new.index(second) + 1])  # which is no special token, and shown
    assert complete(net, pieces, [prompt], 12) == [ended if also else written]
    (batch,) = generate_batches(net, pieces, [GenerationCase(TEXT, ("x",))], settings)
    assert batch[0].text.startswith(ended.strip())
    assert (batch[0].ended, batch[0].text == ended.strip()) == (also, also)
