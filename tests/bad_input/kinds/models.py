"""Model folders: configurations, tokenizers and headers of weights."""

import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.bad_input.case import Case
from tests.bad_input.draw import changed_bytes, changed_trees
from tests.bad_input.place import SHORT

_DATA = ("--task", "sst2", "--data", "@sst2")
COMMANDS: dict[str, tuple[str, ...]] = {
    "eval": ("eval", "m", *_DATA, "--limit", "4", "--device", "cpu"),
    "teacher": ("distill", "--teacher", "m", "--student", "layers=2", *_DATA, *SHORT, "--out", "out", "--dry-run"),
    "teacher of a run": ("distill", "--teacher", "m", "--student", "layers=2", *_DATA, *SHORT, "--out", "out"),
    "student": ("distill", "--teacher", "@bert", "--student", "m", *_DATA, *SHORT, "--out", "out", "--dry-run"),
    "profile": ("profile", "m", "--no-weights"),
    "map-layers": ("map-layers", "--teacher", "m", "--student", "layers=2"),
}
NUMBERS = (0, -1, 1, 2, 3, 31, 2.5, 10**6, 10**9, 2**63, "two", None, True, [4], {})
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "type_vocab_size", "pad_token_id", "layer_norm_eps", "hidden_dropout_prob",
    "initializer_range",
)  # fmt: skip
OTHERS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2", "nope", "", None, 5, "t5", "llama", "vit"),
    "architectures": ([], [5], "BertModel", ["BertModel"], ["Evil"], None),
    "hidden_act": ("nope", None, 5, "relu"),
    "id2label": (
        {},
        {"0": "a"},
        {"0": "a", "1": "a"},
        [1],
        {"x": "y"},
        {"0": None, "1": None},
        {"0": "\x1b[31m", "1": "b"},
    ),
    "label2id": ({}, {"a": "x"}, []),
    "dtype": ("float8", "nope", 5, "float64", "int8", None),
    "auto_map": ({"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}, "x", 5),
    "quantization_config": ("nope", {"quant_method": "gptq", "bits": 4}, {}, {"quant_method": "\x1b[31m"}),
    "problem_type": ("multi_label_classification", "regression", "nope", 5),
    "tie_word_embeddings": ("yes", 5),
    "torch_dtype": ("bfloat16", "x"),
    "transformers_version": ("99.0", 5),
    "pruned_heads": ({"0": [0]}, {"9": [99]}, "x"),
    "tokenizer_class": ("Evil", 5, "GPT2Tokenizer"),
    "attn_implementation": ("flash_attention_2", "nope"),
    "_name_or_path": ("/etc/passwd", 5, "\x1b[2J"),
}


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _headers(content: bytes) -> st.SearchStrategy[tuple[str, bytes]]:
    """Weights whose header was changed, or is of another length."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = sorted(name for name in header if name != "__metadata__")

    def packed(made: tuple[str, Any]) -> tuple[str, bytes]:
        text = _json(made[1])
        return f"header: {made[0]}", struct.pack("<Q", len(text)) + text + data

    def change(name: str, how: tuple[str, Any]) -> tuple[str, bytes]:
        return packed((f"{name} {how}", {**header, name: {**header[name], how[0]: how[1]}}))

    ways = st.sampled_from(
        [
            *[("dtype", value) for value in ("F16", "I64", "F8_E4M3", "nope", 5, None)],
            *[("shape", value) for value in ([], [0], [-1], [10**12], [2**62, 4], "x", [1, 1])],
            *[("data_offsets", value) for value in ([0, 0], [0, 10**15], [4, 0], [-4, 4], "x", [0, 4])],
        ]
    )
    lengths = st.sampled_from([0, 1, size - 1, size + 1, len(content), 10**8, 2**63, 2**64 - 1])
    return st.one_of(
        st.builds(change, st.sampled_from(names), ways),
        lengths.map(lambda lie: (f"header of {lie} bytes", struct.pack("<Q", lie) + content[8:])),
        changed_trees(header).map(packed),
        st.sampled_from(names).map(
            lambda name: packed((f"without {name}", {k: v for k, v in header.items() if k != name}))
        ),
        st.sampled_from([{"format": "tf"}, {"format": "x" * 5000}, {"x": "\x1b[31m"}, 5]).map(
            lambda facts: packed((f"metadata {str(facts)[:30]}", {**header, "__metadata__": facts}))
        ),
        changed_bytes(content),
    )


def model_folders(place: Path) -> st.SearchStrategy[Case]:
    folder = place / "bert"
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())

    def keyed(key: str, value: Any) -> tuple[str, str, bytes]:
        return f"config.json {key}={str(value)[:40]}", "config.json", _json({**config, key: value})

    def named(name: str, made: tuple[str, bytes]) -> tuple[str, str, bytes]:
        return f"{name}: {made[0]}", name, made[1]

    def case(made: tuple[str, str, bytes], command: str) -> Case:
        why, name, content = made
        evil = {"m/evil.py": b"open('RAN', 'w').close()\n"} if "auto_map" in why else {}
        return Case(
            "model folders", f"{command}, {why}", COMMANDS[command], {f"m/{name}": content, **evil}, {"m": "bert"}
        )

    pairs = [(key, value) for key, values in OTHERS.items() for value in values]
    return st.builds(
        case,
        st.one_of(
            st.builds(keyed, st.sampled_from(SIZES), st.sampled_from(NUMBERS)),
            st.sampled_from(pairs).map(lambda pair: keyed(*pair)),
            changed_trees(config).map(lambda made: named("config.json", (made[0], _json(made[1])))),
            changed_trees(tokenizer).map(lambda made: named("tokenizer.json", (made[0], _json(made[1])))),
            changed_trees(settings).map(lambda made: named("tokenizer_config.json", (made[0], _json(made[1])))),
            changed_bytes((folder / "tokenizer.json").read_bytes()).map(lambda made: named("tokenizer.json", made)),
            changed_bytes((folder / "config.json").read_bytes()).map(lambda made: named("config.json", made)),
            _headers((folder / "model.safetensors").read_bytes()).map(lambda made: named("model.safetensors", made)),
            _headers((folder / "model.safetensors").read_bytes()).map(lambda made: named("model.safetensors", made)),
        ),
        st.sampled_from(sorted(COMMANDS)),
    )
