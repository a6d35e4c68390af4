"""Sizes of narrower students: those that follow from others, and those that a family cannot have."""

import pytest
from transformers import AutoConfig

from kdalign.errors import UsageError
from kdalign.models.pruning_sizes import WidthSpec, prune_config
from support.pruning_setting import config_of


def test_a_width_alone_takes_heads_with_it_where_they_are_tied():
    config = prune_config(config_of("bert"), WidthSpec(width=24))
    assert (config.hidden_size, config.num_attention_heads) == (24, 3)
    config = prune_config(config_of("llama"), WidthSpec(width=24))
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (24, 4, 8)


@pytest.mark.parametrize(
    ("kind", "wanted", "words"),
    [
        ("bert", WidthSpec(width=64), r"width=64 \(accepted: 1 to 32, its teacher's\)"),
        ("bert", WidthSpec(feed_forward=0), r"feed_forward=0 \(accepted: 1 to 48"),
        ("bert", WidthSpec(width=20), r"width=20 \(accepted: width = 8 x heads"),
        ("distilbert", WidthSpec(heads=2), r"width=32 and heads=2 \(accepted: width = 8 x heads"),
        ("bert", WidthSpec(width=16, kv_heads=1), r"heads=2 and kv_heads=1 \(accepted: as many of each"),
        ("llama", WidthSpec(heads=3), r"heads=3 and kv_heads=2 \(accepted: kv_heads that divide heads and the"),
        ("gpt2", WidthSpec(width=16), r"'gpt2' cannot be narrowed \(accepted: bert, roberta"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind, wanted, words):
    config = AutoConfig.for_model("gpt2") if kind == "gpt2" else config_of(kind)
    with pytest.raises(UsageError, match=words):
        prune_config(config, wanted)


def test_a_llama_whose_heads_do_not_divide_its_width_is_refused_since_it_could_not_be_saved():
    with pytest.raises(UsageError, match="a width that heads divide, such as width=16"):
        prune_config(config_of("llama"), WidthSpec(width=18))
    prune_config(config_of("llama"), WidthSpec(width=20)).to_json_string()
