"""A new model has the shape that was asked for, and a new tokenizer loses nothing of a text."""

import json
import logging
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from kdalign.data.tasks import find_task
from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.errors import UsageError
from kdalign.models.architecture import Stack, describe
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.from_scratch import ScratchSpec, build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.models.heads import LANGUAGE_HEADS, head_of
from kdalign.models.layouts import LAYOUTS
from kdalign.models.loading import load_any, load_classifier, without_storage
from kdalign.models.student import copy_layers, transfer_vocabulary
from support.covering import one_of_each
from support.tiny import sentences

POSITIONS = 24
TEXTS = [
    *sentences(200, 0)[0],
    *["def f(x):\n\treturn x + 1  # naïve, 50 % — 日本語 🙂\n\n"] * 3,
]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
TEXT_TYPES = tuple(kind for kind, layout in LAYOUTS.items() if layout.modality == "text")
TYPES = pytest.mark.parametrize("kind", TEXT_TYPES)
READERS = tuple(family for family in LANGUAGE_HEADS if family != "ctc")  # whose tokenizer is one of characters
FAMILIES = pytest.mark.parametrize("family", READERS)
TOKENIZERS = {family: train_tokenizer(TEXTS, 340, family, POSITIONS) for family in READERS}


def tokenizer_of(kind):
    return TOKENIZERS[LAYOUTS[kind].family]


def tiny(kind, more=""):
    new = parse_scratch_spec(f"new:{kind},width=32,heads=4,layers=2,positions={POSITIONS}{more}")
    return scratch_config(new, tokenizer_of(kind))


def forward(model, ids, mask=None):
    """Logits, with the input as the decoder's, too."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    if LAYOUTS[model.config.model_type].family == "seq2seq":
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": inputs["attention_mask"]}
    return model(**inputs).logits


def some_ids(kind, *shape):
    return torch.randint(10, len(tokenizer_of(kind)), shape)


def test_what_is_not_said_has_a_default():
    assert parse_scratch_spec("new:bert") == ScratchSpec("bert", (4,), 256, 4, 4, 1024, 512, 0.1)
    assert parse_scratch_spec("new:llama,width=16") == ScratchSpec("llama", (4,), 16, 1, 1, 64, 512, 0.0)


def test_an_encoder_decoder_has_its_layers_named_together_or_one_by_one():
    for kind in ("t5", "bart", "marian"):
        assert parse_scratch_spec(f"new:{kind},layers=3").layers == (3, 3)
        assert parse_scratch_spec(f"new:{kind},encoder_layers=6,decoder_layers=2").layers == (6, 2)
        assert parse_scratch_spec(f"new:{kind},decoder_layers=1,layers=3").layers == (3, 1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bert", "'bert'"),
        ("new:", "''"),
        ("new:debertav2", "'debertav2'; did you mean 'deberta-v2'?"),
        ("new:bert,", "''"),
        ("new:bert,layer=2", "'layer'; did you mean 'layers'?"),
        ("new:bert,kv_heads=2", "'kv_heads'"),
        ("new:bert,encoder_layers=2", "'encoder_layers'"),
        ("new:gpt2,decoder_layers=2", "'decoder_layers'"),
        ("new:llama,dropout=0.1", "'dropout'"),
        ("new:bert,layers=2,layers=3", "layers twice"),
        ("new:bert,layers", "layers="),
        ("new:bert,layers=0", "layers=0"),
        ("new:bert,width=-32", "width=-32"),
        ("new:bert,width=1.5", "width=1.5"),
        ("new:bert,width=٣٢", "width=٣٢"),
        ("new:bert,positions=half", "positions=half"),
        ("new:bert,feed_forward=1e3", "feed_forward=1e3"),
        ("new:bert,heads=" + "9" * 5000, "heads=999"),
        ("new:bert,dropout=1", "dropout=1"),
        ("new:bert,dropout=-0.1", "dropout=-0.1"),
        ("new:bert,dropout=nan", "dropout=nan"),
        ("new:bert,width=100,heads=3", "width=100 and heads=3"),
        ("new:bert,width=200", "width=200 and heads=3"),
        ("new:llama,heads=4,kv_heads=3", "heads=4 and kv_heads=3"),
        ("new:qwen3,width=12,heads=4", "width=12 and heads=4"),
        ("new:xlnet,width=15", "width=15"),
        ("new:deberta-v2,positions=3", "positions=3"),
    ],
)
def test_a_mistake_is_named_in_one_line_with_what_is_accepted(text, named):
    with pytest.raises(UsageError) as error:
        parse_scratch_spec(text)
    line = str(error.value)
    assert named in line
    assert "accepted" in line
    assert "\n" not in line


@TYPES
def test_a_new_model_has_the_shape_that_was_asked_for(kind):
    shared = ",kv_heads=2" if kind in LLAMAS else ""
    layers = ",decoder_layers=1" if LAYOUTS[kind].family == "seq2seq" else ""
    found = describe(tiny(kind, f",feed_forward=48{shared}{layers}"))
    kv_heads = 2 if shared else 4
    wanted = {stack.name: 1 if layers and stack.name == "decoder" else 2 for stack in LAYOUTS[kind].stacks}
    assert found.stacks == tuple(Stack(name, number, 32, 4, kv_heads, 8, 48) for name, number in wanted.items())
    assert found.vocabulary == len(tokenizer_of(kind))
    assert found.tied


@TYPES
def test_a_new_model_is_the_language_model_that_its_configuration_names(kind):
    config = tiny(kind)
    model = build_from_scratch(config, 0)
    assert config.architectures == [type(model).__name__]
    assert head_of(config) is LANGUAGE_HEADS[LAYOUTS[kind].family]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in model.parameters()) == describe(config).parameters


@TYPES
def test_every_id_in_a_configuration_is_the_tokenizers(kind):
    config, tokenizer = tiny(kind), tokenizer_of(kind)
    roles = ("pad", "bos", "eos", "mask", *(("cls", "sep") if kind == "modernbert" else ()))
    expected = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    if LAYOUTS[kind].family == "seq2seq":
        expected["decoder_start_token_id"] = tokenizer.eos_token_id if kind == "bart" else tokenizer.pad_token_id
    if kind in ("bart", "marian"):
        expected["forced_eos_token_id"] = tokenizer.eos_token_id
    assert ids_in(config) == {name: number for name, number in expected.items() if number is not None}
    model = build_from_scratch(config, 0)
    if model.can_generate():
        assert ids_in(model.generation_config).items() <= ids_in(config).items()


def ids_in(config):
    return {
        name: number for name, number in config.to_dict().items() if name.endswith("_token_id") and number is not None
    }


@TYPES
def test_a_configuration_is_the_same_after_saving(kind, tmp_path):
    config = tiny(kind)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@TYPES
def test_transformers_has_nothing_to_complain_about(kind, tmp_path):
    transformers.utils.logging.warning_once.cache_clear()
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        model = build_from_scratch(tiny(kind), 0)
        model.save_pretrained(tmp_path)
        tokenizer_of(kind).save_pretrained(tmp_path)
        type(model).from_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(handler)
    assert said == []


@TYPES
def test_a_new_model_learns_from_a_padded_batch_as_long_as_its_positions(kind):
    model = build_from_scratch(tiny(kind), 0).train()
    ids, mask = some_ids(kind, 2, POSITIONS), torch.ones(2, POSITIONS, dtype=torch.long)
    ids[1, 15:], mask[1, 15:] = model.config.pad_token_id, 0
    logits = forward(model, ids, mask)
    assert logits.shape == (2, POSITIONS, len(tokenizer_of(kind)))
    loss = torch.nn.functional.cross_entropy(logits[mask.bool()], ids[mask.bool()])
    loss.backward()
    assert torch.isfinite(loss)
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


@TYPES
@torch.no_grad()
def test_padding_changes_no_answer(kind):
    model = build_from_scratch(tiny(kind), 0).eval()
    ids = some_ids(kind, 1, 9)
    padded = torch.nn.functional.pad(ids, (0, 5), value=model.config.pad_token_id)
    mask = torch.tensor([[1] * 9 + [0] * 5])
    torch.testing.assert_close(forward(model, padded, mask)[:, :9], forward(model, ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in TEXT_TYPES if kind not in LLAMAS])
@torch.no_grad()
def test_without_dropout_training_answers_twice_the_same(kind):
    ids = some_ids(kind, 2, 12)
    none, default = (build_from_scratch(tiny(kind, more), 0).train() for more in (",dropout=0", ""))
    assert torch.equal(forward(none, ids), forward(none, ids))
    assert not torch.equal(forward(default, ids), forward(default, ids))


@TYPES
def test_a_seed_decides_every_weight_and_touches_no_other_generator(kind):
    config = tiny(kind)
    before = torch.get_rng_state()
    first, again, other = (build_from_scratch(config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    assert config.to_dict() == tiny(kind).to_dict()


@pytest.mark.parametrize("kind", [kind for kind in TEXT_TYPES if kind not in ("t5", "modernbert")])
def test_weights_start_with_the_spread_that_fits_the_width(kind):
    made = build_from_scratch(
        scratch_config(parse_scratch_spec(f"new:{kind},layers=1,width=128,heads=2"), tokenizer_of(kind)), 0
    )
    drawn = [each for name, each in made.named_parameters() if each.ndim > 1 and "position" not in name]
    largest = max(drawn, key=torch.numel)
    assert largest.std().item() == pytest.approx(math.sqrt(2 / (5 * 128)), rel=0.05)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "gpt2", "bart"])
def test_learnt_positions_start_as_waves_in_which_every_step_along_is_the_same_turn(kind):
    model = build_from_scratch(
        scratch_config(parse_scratch_spec(f"new:{kind},layers=1,width=64,positions=40"), tokenizer_of(kind)), 0
    )
    tables = [each for name, each in model.named_parameters() if "position" in name or "wpe" in name]
    assert len(tables) == (2 if kind == "bart" else 1)
    for table in tables:
        assert table.square().mean().sqrt().item() == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.1)
        likeness = table @ table.T  # depends on the distance alone, and is largest at none
        for distance in range(20):
            along = likeness.diagonal(distance)
            torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-5)
        assert likeness[0, 0] > likeness[0, 1] > likeness[0, 2] > likeness[0, 3]


def test_a_new_deberta_is_built_as_version_3():
    config = scratch_config(parse_scratch_spec("new:deberta-v2,width=768"), tokenizer_of("deberta-v2"))
    published = {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "max_relative_positions": -1,
        "type_vocab_size": 0,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
    }
    assert {name: getattr(config, name) for name in published} == published
    names = build_from_scratch(tiny("deberta-v2"), 0).state_dict()
    assert not any("pos_key" in name or "position_embeddings" in name for name in names)


def test_a_new_electra_has_embeddings_of_its_width():
    assert not any("embeddings_project" in name for name in build_from_scratch(tiny("electra"), 0).state_dict())


def test_a_new_marian_scales_its_words_up_to_its_positions():
    assert build_from_scratch(tiny("marian"), 0).model.encoder.embed_scale == pytest.approx(32**0.5)


def test_positions_that_are_not_learnt_stay_as_the_type_has_them():
    made = build_from_scratch(tiny("marian"), 0).model.encoder.embed_positions
    assert not made.weight.requires_grad
    stock = transformers.MarianModel(tiny("marian")).encoder.embed_positions
    assert torch.equal(made.weight, stock.weight)


def test_a_new_xlnet_remembers_nothing():
    config = tiny("xlnet")
    assert (config.mem_len, config.bi_data) == (None, False)


def test_gemma_scales_its_scores_by_the_width_of_a_head():
    assert build_from_scratch(tiny("gemma3_text"), 0).model.layers[0].self_attn.scaling == pytest.approx(8**-0.5)


@pytest.mark.parametrize("kind", ["bart", "t5", "marian"])
def test_an_encoder_decoder_needs_an_end_token(kind):
    with pytest.raises(UsageError, match=f"new:{kind} needs a tokenizer with eos_token_id"):
        scratch_config(parse_scratch_spec(f"new:{kind}"), TOKENIZERS["masked"])


def test_an_encoder_decoder_ends_with_its_tokenizers_end_whatever_its_number():
    config = scratch_config(parse_scratch_spec("new:bart"), TOKENIZERS["causal"])
    assert (config.eos_token_id, config.forced_eos_token_id, config.decoder_start_token_id) == (1, 1, 1)


FRAMES = {"masked": ("[CLS]", "[SEP]"), "permutation": ("", "<sep><cls>"), "causal": ("", ""), "seq2seq": ("", "</s>")}


@FAMILIES
@given(text=st.text())
def test_every_text_comes_back(family, text):
    tokenizer = TOKENIZERS[family]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    before, after = FRAMES[family]
    assert tokenizer.decode(tokenizer(text).input_ids) == before + text + after


@FAMILIES
def test_a_special_token_that_a_text_spells_out_is_that_token(family):
    tokenizer = TOKENIZERS[family]
    for number, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True):
        assert number in tokenizer(f"a {token} b", add_special_tokens=False).input_ids


@FAMILIES
@pytest.mark.parametrize(
    "text", [*TEXTS[-1:], " a  b ,\n\n\n c .\r\n\t", "it 's , n't", "e\u0301 ﬁ \x00", "12345", "x" * 300]
)
def test_spaces_and_lines_and_rare_characters_come_back(family, text):
    tokenizer = TOKENIZERS[family]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("family", "single", "pair", "types"),
    [
        ("masked", "[CLS]a[SEP]", "[CLS]a[SEP]b[SEP]", [0, 0, 0, 1, 1]),
        ("permutation", "a<sep><cls>", "a<sep>b<sep><cls>", [0, 0, 1, 1, 2]),
        ("causal", "a", "ab", None),
        ("seq2seq", "a</s>", "a</s>b</s>", None),
    ],
)
def test_special_tokens_stand_where_the_family_has_them(family, single, pair, types):
    tokenizer = TOKENIZERS[family]
    assert tokenizer.decode(tokenizer("a").input_ids) == single
    both = tokenizer("a", "b")
    assert tokenizer.decode(both.input_ids) == pair
    assert both.get("token_type_ids") == types
    assert tokenizer.pad_token_id == 0
    assert tokenizer.unk_token is None
    assert sorted(tokenizer.all_special_ids) == list(range(len(tokenizer.all_special_ids)))
    assert tokenizer.padding_side == ("left" if family == "permutation" else "right")


@FAMILIES
def test_a_vocabulary_is_no_larger_than_asked_for(family):
    assert len(TOKENIZERS[family]) == 340
    assert len(train_tokenizer(["abc xyz"], 5000, family, 8)) == 256 + len(TOKENIZERS[family].all_special_ids)


@FAMILIES
def test_a_vocabulary_has_room_for_every_byte(family):
    least = 256 + len(TOKENIZERS[family].all_special_ids)
    assert len(train_tokenizer(TEXTS, least, family, 8)) == least
    with pytest.raises(UsageError, match=f"train:{least - 1} has no room .* train:{least} or more"):
        train_tokenizer(TEXTS, least - 1, family, 8)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_teaches_no_tokenizer(texts):
    with pytest.raises(UsageError, match="train:300 found no text"):
        train_tokenizer(iter(texts), 300, "masked", 8)


def test_a_text_is_read_once_and_its_first_line_counts():
    often = train_tokenizer((text for text in ["", "zzqqzzqq", "zzqqzzqq"]), 400, "causal", 8)
    assert often.tokenize("zzqqzzqq") == ["zzqqzzqq"]


def ids_and_limits(tokenizer):
    texts = [*TEXTS[-30:], "the  film   was\n\n good, don't  DON'T 2024 été\n\n x", ""]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    roles = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    pairs = tokenizer("a", "b")
    rest = tokenizer.model_max_length, tokenizer.padding_side, tokenizer.clean_up_tokenization_spaces
    return [tokenizer(texts)["input_ids"], dict(pairs), roles, *rest]


@TYPES
def test_a_saved_tokenizer_is_the_same_beside_every_model(kind, tmp_path):
    tokenizer_of(kind).save_pretrained(tmp_path)
    tiny(kind).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_and_limits(loaded) == ids_and_limits(tokenizer_of(kind))
    assert loaded.get_vocab() == tokenizer_of(kind).get_vocab()
    assert loaded.model_max_length == POSITIONS
    assert loaded.clean_up_tokenization_spaces is False


def test_beside_qwen2_alone_transformers_composes_accents(tmp_path):
    composed = {}
    for kind in ("qwen2", "qwen3", "llama"):
        TOKENIZERS["causal"].save_pretrained(tmp_path / kind)
        tiny(kind).save_pretrained(tmp_path / kind)
        loaded = AutoTokenizer.from_pretrained(tmp_path / kind)
        composed[kind] = loaded.decode(loaded("e\u0301").input_ids) == "\u00e9"
    assert composed == {"qwen2": True, "qwen3": False, "llama": False}


ELSEWHERE = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert "kdalign" not in sys.modules
print(json.dumps([tokenizer(json.loads(sys.argv[2]))["input_ids"], tokenizer.model_max_length]))
"""


@pytest.mark.slow
def test_another_program_loads_a_saved_tokenizer_without_kdalign(tmp_path):
    tokenizer = TOKENIZERS["masked"]
    tokenizer.save_pretrained(tmp_path)
    tiny("deberta-v2").save_pretrained(tmp_path)
    texts = TEXTS[-5:]
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), json.dumps(texts)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(ran.stdout) == [tokenizer(texts)["input_ids"], POSITIONS]


AGAIN = """
import json, sys
from kdalign.data.tokenizer_training import train_tokenizer
print(json.dumps(train_tokenizer(json.loads(sys.argv[1]), 340, "causal", 8).backend_tokenizer.to_str()))
"""


@pytest.mark.slow
def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    here = TOKENIZERS["causal"].backend_tokenizer.to_str()
    command = [sys.executable, "-c", AGAIN, json.dumps(TEXTS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == here


@pytest.mark.parametrize("kind", one_of_each(list(TEXT_TYPES), ("bert", "gpt2", "xlnet")))
def test_shapes_alone_are_those_of_the_models_that_have_weights(kind, tmp_path):
    """As ranks other than the first have them: a new model, one cut out of it, and one with a new head."""
    family = LAYOUTS[kind].family
    build_from_scratch(tiny(kind), 0).save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    smaller = train_tokenizer(TEXTS, 320, family, POSITIONS)

    def cut():
        return copy_layers(load_any(checkpoint), {each.name: (1,) for each in describe(checkpoint.config).stacks})

    made = [partial(build_from_scratch, tiny(kind), 0), cut,
            lambda: transfer_vocabulary(load_any(checkpoint), smaller, tokenizer_of(kind))]  # fmt: skip
    if family != "seq2seq":
        made.append(lambda: load_classifier(checkpoint, find_task("sst2"), fresh_head=True, seed=0))
    for make in made:
        whole = make()
        with without_storage():
            shapes = make()
        for ours, theirs in ((shapes.named_parameters(), whole.named_parameters()),
                             (shapes.named_buffers(), whole.named_buffers())):  # fmt: skip
            ours, theirs = list(ours), list(theirs)
            assert [(name, each.shape, each.dtype) for name, each in ours] == [
                (name, each.shape, each.dtype) for name, each in theirs
            ]
            assert all(each.is_meta for _, each in ours)
