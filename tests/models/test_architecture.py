"""A model's shape is read from its configuration: numbers by hand, and no weights."""

import psutil
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    FNetConfig,
    Gemma3Config,
    PegasusConfig,
    PretrainedConfig,
)

from kdalign.errors import UsageError
from kdalign.models.architecture import (
    Layer,
    Stack,
    attention_modules,
    attention_of,
    blocks,
    count_parameters,
    describe,
    layout_of,
    meta_model,
    vocabulary_size,
    with_layers,
    with_tokenizer,
)
from kdalign.models.capture import CaptureSpec, capture, enable_capture
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import LAYOUTS
from kdalign.models.read_check import check_read
from kdalign.models.size_checks import check_sizes
from kdalign.models.student_spec import check_cut
from support.covering import first_only
from support.dual_setting import byte_fallback, byte_level
from support.tiny import tiny_classifier, tiny_config

KINDS = pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])


def config_of(kind: str):
    return tiny_config(kind, max_position_embeddings=64)


# Width 32, feed-forward 64: four matrices with biases for attention, two for the feed-forward, two layer norms.
LAYER = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 2 * 32
WORDS_AND_POSITIONS = (100 + 64) * 32 + 2 * 32  # and the layer norm
DENSE, HEAD = 32 * 32 + 32, 32 * 2 + 2
BODY = {
    "bert": WORDS_AND_POSITIONS + 2 * 32 + 4 * LAYER + DENSE,  # two token types, and the pooler
    "roberta": WORDS_AND_POSITIONS + 2 * 32 + 4 * LAYER + DENSE,
    "distilbert": WORDS_AND_POSITIONS + 4 * LAYER,
    "electra": WORDS_AND_POSITIONS + 2 * 32 + 4 * LAYER,
}


@KINDS
def test_a_configuration_says_what_the_model_is_made_of(kind):
    found = describe(config_of(kind))
    assert (found.model_type, found.family, found.vocabulary, found.tied) == (kind, "masked", 100, True)
    assert found.stacks == (Stack("encoder", 4, 32, 4, 4, 8, 64),)
    assert found.stack("encoder").head_width == 8
    assert found.parameters == BODY[kind]


def test_the_vocabulary_of_a_model_of_several_parts_is_that_of_its_text_model():
    composed = Gemma3Config(text_config={"vocab_size": 77, "num_hidden_layers": 1})
    assert not hasattr(composed, "vocab_size")
    assert vocabulary_size(composed) == 77
    for kind in ("bert", "t5", "bart", "xlnet"):
        assert vocabulary_size(CONFIG_MAPPING[kind](vocab_size=55)) == 55


def test_bert_base_is_described_by_its_published_numbers():
    found = describe(BertConfig())
    assert found.stacks == (Stack("encoder", 12, 768, 12, 12, 64, 3072),)
    assert found.vocabulary == 30522
    assert found.parameters == 109_482_240  # bert-base-uncased's encoder


@KINDS
def test_parameters_are_those_of_the_real_model(kind):
    assert describe(config_of(kind)).parameters == count_parameters(AutoModel.from_config(config_of(kind)))
    model = tiny_classifier(kind, max_position_embeddings=64)
    model.config.architectures = [type(model).__name__]
    assert describe(model.config).parameters == sum(weight.numel() for weight in model.state_dict().values())
    # RoBERTa's head has a dense layer in the pooler's place; DistilBERT's and ELECTRA's bring one.
    assert describe(model.config).parameters == BODY[kind] + HEAD + (DENSE if kind in ("distilbert", "electra") else 0)


def test_tied_parameters_count_once():
    model = BertForMaskedLM(config_of("bert"))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    transform = DENSE + 2 * 32 + 100  # dense, layer norm, and one bias a word; no second matrix of words
    assert count_parameters(model) == BODY["bert"] - DENSE + transform


def test_no_weights_are_needed_however_large_the_model():
    config = BertConfig(
        num_hidden_layers=250, hidden_size=4096, num_attention_heads=32, intermediate_size=16384, vocab_size=1000
    )
    before = psutil.Process().memory_info().rss
    found = describe(config)
    assert psutil.Process().memory_info().rss - before < 1e9
    layer = 4 * (4096 * 4096 + 4096) + 2 * 4096 * 16384 + 16384 + 4096 + 4 * 4096
    rest = (1000 + 512 + 2 + 2) * 4096 + 4096 * 4096 + 4096
    assert found.parameters == 250 * layer + rest > 50e9  # 200 GB, were they real


def test_a_skeleton_has_shapes_without_storage_and_keeps_its_configuration():
    config = tiny_config("bert")
    before = config.to_dict()
    assert {parameter.device for parameter in meta_model(config).parameters()} == {torch.device("meta")}
    assert config.to_dict() == before


class BerdLike(PretrainedConfig):
    model_type = "berd"


def test_a_model_that_cannot_be_read_is_refused_with_what_is_missing_and_the_nearest():
    with pytest.raises(UsageError, match=r"'berd' is not supported: .*; did you mean 'bert'") as error:
        describe(BerdLike())
    assert all(kind in str(error.value) for kind in LAYOUTS)
    with pytest.raises(UsageError, match="'fnet' is not supported: its configuration has no num_attention_heads"):
        describe(FNetConfig())
    with pytest.raises(UsageError, match="'pegasus' is not supported: it is made of several models"):
        describe(PegasusConfig())
    with pytest.raises(UsageError, match="albert with groups of layers is not supported"):
        describe(AlbertConfig(num_hidden_groups=2))


OTHERS = {
    "ernie": {},
    "eurobert": {"num_key_value_heads": 2},
    "phi": {"partial_rotary_factor": 1.0},
    "olmo2": {"num_key_value_heads": 2},
    "biogpt": {},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_type_without_a_row_is_read_by_its_usual_names_and_its_signals_are_the_models(kind):
    shape = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=0, **shape, **OTHERS[kind])
    masked = kind in ("ernie", "eurobert")
    found = describe(config)
    name = "encoder" if masked else "decoder"
    kv_heads = 2 if kind in ("eurobert", "olmo2") else 4
    assert (found.family, found.attention) == ("masked" if masked else "causal", "interface")
    width_of_head = config.head_dim if kind == "eurobert" else 8
    assert found.stacks == (Stack(name, 3, 32, 4, kv_heads, width_of_head, 64),)
    body = AutoModel.from_config(config, attn_implementation="eager").eval()
    ids, layers = torch.tensor([[2, 5, 6, 3]]), [Layer(name, number) for number in range(3)]
    with torch.no_grad():
        plain = body(input_ids=ids, output_hidden_states=True, output_attentions=True)
        enable_capture(body)
        with capture(body, CaptureSpec(frozenset(layers), frozenset(layers))) as signals:
            body(input_ids=ids)
    for number, layer in enumerate(layers):
        torch.testing.assert_close(signals.attention[layer], plain.attentions[number], atol=1e-5, rtol=1e-4)
        if number < 2:  # the last has the final norm in it
            torch.testing.assert_close(signals.hidden[layer], plain.hidden_states[number + 1], atol=1e-5, rtol=1e-4)


def other_model(kind, **changes):
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(
        kind, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape, **changes
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention_of(config)).eval()


def test_a_type_without_a_row_is_refused_where_what_is_read_is_not_what_it_computes():
    check_read(other_model("granite"))
    with pytest.raises(UsageError, match="'granite' is not supported: its logits are not its features times"):
        check_read(other_model("granite", logits_scaling=8.0))
    with pytest.raises(UsageError, match="'falcon' is not supported: not every layer can be seen"):
        check_read(other_model("falcon"))
    with pytest.raises(UsageError, match="'gptj' is not supported: its attention is code of its own"):
        attention_of(AutoConfig.for_model("gptj"))  # eager, it would add the masks of packed documents to its scores
    with pytest.raises(UsageError, match="deberta-v2 with a convolution after its first layer"):
        describe(AutoConfig.for_model("deberta-v2", conv_kernel_size=3))


def test_a_layer_that_cannot_take_anothers_place_is_refused_before_weights_load():
    small = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50, "pad_token_id": 0}
    config = AutoConfig.for_model("modernbert", **small)
    with pytest.raises(UsageError, match=r"encoder.1 of modernbert cannot become the student's layer 0: .*attn_norm"):
        check_cut(config, {"encoder": (1, 3)})
    check_cut(config, {"encoder": (0, 2)})
    t5 = AutoConfig.for_model("t5", num_layers=4, d_model=32, vocab_size=50, pad_token_id=0)
    check_cut(t5, {"encoder": (1, 3), "decoder": (1, 3)})


def test_what_a_configuration_says_of_each_layer_is_cut_with_them():
    small = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50, "pad_token_id": 0}
    config = AutoConfig.for_model("smollm3", **small)
    kept = with_layers(config, {"decoder": (1, 3)})
    assert kept.no_rope_layers == [config.no_rope_layers[1], config.no_rope_layers[3]]
    assert kept.layer_types == [config.layer_types[1], config.layer_types[3]]


def test_seventy_billion_parameters_are_described_without_memory():
    config = AutoConfig.for_model(
        "llama",
        **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        **{"num_key_value_heads": 8, "vocab_size": 128256},
        architectures=["LlamaForCausalLM"],
    )
    before = psutil.Process().memory_info().rss
    found = describe(config)
    assert psutil.Process().memory_info().rss - before < 1e9
    assert found.parameters == 70_553_706_496  # Llama 3 70B's


def test_an_unknown_stack_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"a bert model has no stack 'decoder' \(it has: encoder\)"):
        describe(tiny_config("bert")).stack("decoder")


@KINDS
def test_there_is_a_block_and_an_attention_module_for_every_layer(kind):
    model = tiny_classifier(kind, layers=3)
    assert len(blocks(model)) == 3
    found = attention_modules(model)
    assert len({id(module) for module in found.values()}) == 3
    assert list(blocks(model)) == list(found) == [Layer("encoder", number) for number in range(3)]
    for block, attention in zip(blocks(model).values(), found.values(), strict=True):
        assert any(attention is module for module in block.modules())
        weights = [name for name, _ in attention.named_parameters() if name.endswith("weight")]
        assert len(weights) >= 3, "queries, keys and values are computed in it"


@KINDS
def test_layers_run_in_the_order_of_the_blocks(kind):
    model, called = tiny_classifier(kind, layers=3).eval(), []
    for (_, number), block in blocks(model).items():
        block.register_forward_hook(lambda *_, number=number: called.append(number))
    model(input_ids=torch.tensor([[2, 5, 3]]))
    assert called == [0, 1, 2]


@KINDS
def test_another_number_of_layers_leaves_the_original_as_it_was(kind):
    config = tiny_config(kind)
    before = config.to_dict()
    changed = with_layers(config, {"encoder": (0, 1)})
    assert describe(changed).stacks[0].layers == 2
    assert describe(config).stacks[0].layers == 4
    assert config.to_dict() == before
    assert describe(config).parameters - describe(changed).parameters == 2 * LAYER


@KINDS
def test_a_model_gets_the_inputs_that_it_knows(kind):
    model = tiny_classifier(kind).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.tensor([[0, 0, 1, 1]])}
    kept = accepted_inputs(model, {**given, "special_tokens_mask": ids})
    assert list(kept) == [name for name in given if name != "token_type_ids" or kind != "distilbert"]
    assert all(kept[name] is given[name] for name in kept)
    model(**kept)


def test_token_types_that_reach_a_bert_change_its_answer():
    model = tiny_classifier("bert").eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    kinds = {"input_ids": ids, "token_type_ids": torch.tensor([[0, 0, 1, 1]])}
    with_types = model(**accepted_inputs(model, kinds)).logits
    assert not torch.allclose(with_types, model(input_ids=ids).logits)


@pytest.mark.parametrize("every", first_only([16, 1]))
def test_the_sizes_of_every_type_that_is_laid_out_are_read_or_refused_in_one_line(every):
    refused = {}
    for kind in sorted(CONFIG_MAPPING)[::every]:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # whatever its defaults lack
            continue
        try:
            layout_of(config)
        except UsageError:
            continue  # it is none of text, or of several models
        try:
            check_sizes(config)
        except UsageError as error:
            refused[kind] = str(error)
    assert set(refused) <= {"gemma3n_text", "gemma4_text", "gemma4_unified_text"}, "whose layers differ in size"


def test_targets_begin_and_end_by_the_tokens_of_the_same_roles_in_another_tokenizer():
    theirs = byte_level()
    config = AutoConfig.for_model("bart", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    config.forced_eos_token_id = 2
    changed = with_tokenizer(config, byte_fallback())
    assert (theirs.bos_token_id, byte_fallback().bos_token_id) == (0, 1)
    assert (changed.decoder_start_token_id, changed.forced_eos_token_id, changed.vocab_size) == (
        1,
        2,
        len(byte_fallback()),
    )
    config.forced_bos_token_id = 77
    with pytest.raises(
        UsageError, match="the bart model's forced_bos_token_id is 77, which is none of its special tokens"
    ):
        with_tokenizer(config, byte_fallback())
