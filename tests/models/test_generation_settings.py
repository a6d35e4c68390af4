"""End tokens: of the settings for generation first, then of the tokenizer, for a model that is loaded or not."""

import json

import pytest

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.models.generation_settings import end_tokens, find_generation_settings
from kdalign.models.loading import load_language_model
from kdalign.models.tokenizer import load_tokenizer
from support.tiny import sentences


def save_language_model(folder):
    """A tiny GPT-2 whose tokenizer has the end token 1."""
    pieces = train_tokenizer(sentences(200, 0)[0], 300, "causal", 96)
    spec = parse_scratch_spec("new:gpt2,layers=1,width=16,heads=2,feed_forward=16,positions=96")
    build_from_scratch(scratch_config(spec, pieces), 0).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("written", "expected"),
    [({"eos_token_id": 7}, [7]), ({"eos_token_id": [0, 7]}, [0, 7]), ({}, [1]), (None, [1])],
    ids=["a token", "two tokens", "settings without an end", "no settings"],
)
def test_end_tokens_without_loading_are_those_of_the_loaded_model(tmp_path, written, expected):
    folder = save_language_model(tmp_path / "model")
    file = folder / "generation_config.json"
    file.unlink() if written is None else file.write_text(json.dumps(written))
    checkpoint = find_checkpoint(str(folder))
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.eos_token_id == 1
    found = end_tokens(find_generation_settings(checkpoint, checkpoint.config), tokenizer)
    assert found == end_tokens(load_language_model(checkpoint).generation_config, tokenizer) == expected


def test_a_model_that_is_not_on_disk_ends_texts_as_its_configuration_says(tmp_path):
    checkpoint = find_checkpoint(str(save_language_model(tmp_path / "model")))
    checkpoint.config.eos_token_id = 5
    assert end_tokens(find_generation_settings(None, checkpoint.config), load_tokenizer(checkpoint)) == [5]
