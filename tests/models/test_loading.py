"""Finding and loading checkpoints: what cannot be used is refused in one line that says which file and why."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdalign.errors import UsageError
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import describe
from kdalign.models.heads import head_of
from kdalign.models.tokenizer import load_tokenizer
from support.tiny import save_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A causal language model of two layers whose positions are rotated."""
    from kdalign.data.tokenizer_training import train_tokenizer
    from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(["a film was good", "a plot was bad"] * 20, 300, "causal", 64)
    new = parse_scratch_spec("new:llama,layers=2,width=32,heads=4,kv_heads=2,feed_forward=64,positions=64")
    build_from_scratch(scratch_config(new, tokenizer), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(teacher, llama, tmp_path, monkeypatch):
    """A copy of a good model, by the name ``copy``, to be spoilt."""
    monkeypatch.chdir(tmp_path)

    def copy(kind: str = "bert") -> Path:
        shutil.rmtree("copy", ignore_errors=True)
        return Path(shutil.copytree(teacher if kind == "bert" else llama, "copy"))

    return copy


def edit(file: Path, **keys: object) -> None:
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**tree, **keys}.items() if value is not ...}))


def used(name: str = "copy") -> None:
    """All that is looked at before a model is loaded."""
    checkpoint = checkpoint_files.find_checkpoint(name)
    describe(checkpoint.config)
    load_tokenizer(checkpoint)
    loading.check_weights(checkpoint, head_of(checkpoint.config))


def refused(*words: str, name: str = "copy") -> None:
    with pytest.raises(UsageError) as raised:
        used(name)
    line = str(raised.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_good_models_are_used(copied):
    for kind in ("bert", "llama"):
        copied(kind)
        used()
        edit(Path("copy/config.json"), vocab_size_per_layer_input=262_144)  # no number of layers
        used()


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "at most 1,000"),
        ({"num_hidden_layers": 5}, "lack 16 tensors of a bert model"),
        ({"num_hidden_layers": 3}, "have 4 layers, and its configuration 3"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 31}, "31"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"hidden_size": 64}, "has the shape (32,) there, and (64,) is asked for"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 3}, "heads (3)"),
        ({"num_attention_heads": -2}, "num_attention_heads is -2"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"max_position_embeddings": 0}, "cannot compute"),
        ({"hidden_act": "nope"}, "hidden_act"),
        ({"pad_token_id": 10**6}, "Padding_idx"),
        ({"pad_token_id": "x"}, "pad_token_id"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"dtype": "nope"}, "nope"),
        ({"id2label": [1]}, "'copy'"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "classifier"),
        ({"architectures": [5]}, "architectures is [5]"),
        ({"architectures": ...}, '"architectures": ["BertForSequenceClassification"]'),
        ({"hidden_dropout_prob": 5}, "dropout"),
        ({"chunk_size_feed_forward": 7}, "cannot compute"),
        ({"tie_word_embeddings": "x"}, "tie_word_embeddings"),
        ({"model_type": 5}, "no model_type"),
        ({"model_type": "bert9"}, "did you mean 'bert'"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "own.Config"}}, "code of its own (auto_map)"),
        ({"quantization_config": "nope"}, "quantised"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_made_is_refused_with_its_field(copied, keys, word):
    edit(copied() / "config.json", **keys)
    refused("copy", word)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 3}, "cannot compute"),
        ({"head_dim": 7}, "head_dim"),
        ({"rope_parameters": {"rope_type": "nope"}}, "nope"),
        ({"vocab_size": 200}, "is not this model's"),
        ({"vocab_size": 500}, "is asked for"),
    ],
)
def test_a_configuration_of_a_causal_model_likewise(copied, keys, word):
    edit(copied("llama") / "config.json", **keys)
    refused("copy", word)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", "compressed-tensors", "fp8", "mxfp4"])
def test_quantised_checkpoints_are_refused_by_their_method(copied, method):
    edit(copied() / "config.json", quantization_config={"quant_method": method, "bits": 4})
    refused("'copy' is quantised by", method, "take the model as it was before")


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "not JSON"), ("[" * 100_000, "nested too deeply"), ("[1]", "no object"), ('{"a": 1', "not JSON")],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_object_is_named(copied, file, text, word):
    (copied() / file).write_text(text)
    refused(file, word)


def test_a_tokenizer_of_another_version_is_refused_with_the_mend(copied):
    folder = copied()
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["type"] = "BPE2"
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    refused("'copy' has no tokenizer that can be read", "save_pretrained")
    (folder / "tokenizer.json").write_text("{}")
    refused("'copy' has no tokenizer that can be read")


def test_a_sentencepiece_without_its_package_says_what_to_install(copied, monkeypatch):
    folder = copied("llama")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"junk")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sentencepiece" else real(name, *rest)
    )
    refused("tokenizer.model without a tokenizer.json", "pip install sentencepiece")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:8],
        lambda data: b"\0" * len(data),
        lambda data: b"PK\x03\x04" + bytes(1000),
        lambda data: (2**63 - 1).to_bytes(8, "little") + data[8:],
    ],
)
def test_damaged_weights_are_found_by_their_header(copied, spoil):
    file = copied() / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    refused("copy/model.safetensors", "damaged", "copy it again")


def resaved(folder: Path, change, form: str = "pt") -> None:
    file = folder / "model.safetensors"
    save_file({**dict(change(load_file(file).items()))}, file, metadata={"format": form})


def test_weights_of_other_names_kinds_or_layouts_are_refused_with_the_cause(copied):
    resaved(copied(), lambda items: [("_orig_mod." + name, value) for name, value in items])
    refused("'_orig_mod.' before every name (saved from a compiled model)")
    resaved(copied(), lambda items: [("module." + name, value) for name, value in items])
    refused("'module.' before every name")
    resaved(copied(), lambda items: [(name, value) for name, value in items if "classifier" not in name])
    refused("lack 2 tensors", "classifier.bias")
    resaved(copied(), lambda items: items, "tf")
    refused("laid out for 'tf'")
    eight = torch.float8_e4m3fn
    resaved(copied(), lambda items: [(n, v.to(eight) if n.endswith("query.weight") else v) for n, v in items])
    refused("is quantised", "F8_E4M3")


def test_an_index_may_name_safetensors_files_of_its_own_folder_alone(copied):
    def index(file, names=None, **more):
        folder = copied()
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        tree = {"metadata": {}, "weight_map": dict.fromkeys(names or weights, file), **more}
        (folder / "model.safetensors.index.json").write_text(json.dumps(tree))
        return folder

    index("part.safetensors")
    used()
    for file in ("../copy/part.safetensors", str(Path("copy/part.safetensors").resolve()), "pytorch_model.bin", 5):
        index(file)
        refused("model.safetensors.index.json", "names of .safetensors files in the same folder")
    index("other.safetensors")
    refused("lacks 1 of its 1 files of weights", "'other.safetensors'")
    index("part.safetensors", weight_map={})
    refused("no 'weight_map'")
    (Path("copy") / "model.safetensors.index.json").write_text("{}")
    refused("is not an index of weights")


def test_a_pickle_is_not_read_and_is_named(copied):
    folder = copied()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("has no model.safetensors", "(it has 'pytorch_model.bin')")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_code_beside_weights_is_not_loaded(copied, kind, tmp_path):
    folder, ran = copied(kind), tmp_path / "ran"
    for name in ("own", "modeling_bert", "custom_generate/generate"):
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\ngenerate = Own\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    edit(folder / "config.json", auto_map=dict.fromkeys(classes, "own.Own"))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    used()
    model = loading.load_any(checkpoint_files.find_checkpoint("copy"))
    if kind == "llama":
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=1, pad_token_id=0)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", " ", "~nobody-at-all/x", "/dev/null", "org/" + "x" * 300])
def test_names_that_can_be_no_model_s_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        checkpoint_files.find_checkpoint(name)


def test_an_adapter_is_refused_alone_and_beside_a_model(copied):
    folder = copied("llama")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')
    refused("has an adapter beside its own weights (adapter_config.json)", "merge_and_unload()", "take the adapter out")
    for weights in (True, False):
        with pytest.raises(UsageError, match="adapter"):
            checkpoint_files.find_checkpoint("copy", weights=weights)
    (folder / "config.json").unlink()
    refused("is an adapter without its model", "merge_and_unload()")


def test_a_model_one_folder_further_down_is_named(copied, tmp_path):
    copied().rename(tmp_path / "inner")
    (tmp_path / "old").mkdir()
    shutil.move(tmp_path / "inner", tmp_path / "old" / "0_Transformer")
    refused("the model is in 'old/0_Transformer': give that folder", name="old")


def test_a_configuration_alone_is_found_where_weights_are_not_asked_for(copied):
    folder = copied()
    (folder / "model.safetensors").unlink()
    assert describe(checkpoint_files.find_checkpoint("copy", weights=False).config).stacks[0].layers == 4
    refused("has no model.safetensors")


def test_weights_are_looked_at_without_reading_them(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "m", "bert")
    found = checkpoint_files.find_checkpoint(str(folder))
    loaded = loading._load(
        loading.auto_class(head_of(found.config), found.config.model_type), found, found.config, device="meta"
    )
    assert {each.device.type for each in loaded.model.parameters()} == {"meta"}


def test_outputs_of_other_names_but_as_many_are_refused_with_the_way_on(copied):
    from kdalign.data.tasks import find_task

    edit(copied() / "config.json", id2label={"0": "neg", "1": "pos"}, label2id={"neg": 0, "pos": 1})
    with pytest.raises(UsageError, match=r"neg, pos; .*negative, positive; .*name id2label in config\.json"):
        loading.check_head(checkpoint_files.find_checkpoint("copy"), find_task("sst2"))


@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_computed_positions_are_not_trained_though_loading_makes_parameters_of_them(kind, tmp_path):
    from support.family_setting import model, tokenizer

    net = model(kind)
    net.save_pretrained(tmp_path)
    tokenizer("seq2seq").save_pretrained(tmp_path)
    loaded = loading.load_language_model(checkpoint_files.find_checkpoint(str(tmp_path)))
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == fixed
    assert bool(fixed) == (kind == "marian")
