"""Read the files of sentence-transformers: pooling, modules and prompts of a model."""

import re
from collections.abc import Mapping
from typing import Any

from kdalign.errors import UsageError, printable, shorten
from kdalign.files import read_json
from kdalign.models.checkpoint_files import Checkpoint, further_file
from kdalign.models.tokenizer import load_tokenizer

_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING = "1_Pooling"
"""File of the pooling, if no list of modules names one."""


def sentence_modules(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Read the modules of ``modules.json`` that a text passes through: words such as ``Pooling``.

    Raises:
        UsageError: the file is not one of sentence-transformers'.
    """
    return tuple(kind for kind, _ in _modules(checkpoint))


def check_sentences(checkpoint: Checkpoint) -> None:
    """Refuse a model whose vectors are not the mean over its tokens in sentence-transformers.

    Raises:
        UsageError: another pooling, one without its file, other modules, a prompt before every text, or lower case that
            the tokenizer does not apply.
    """
    name = checkpoint.name
    pooling = read_pooling(checkpoint)
    if pooling not in ("mean", None):
        raise UsageError(f"{name!r} pools its tokens by {pooling}; accepted is the mean")
    further = [kind for kind in sentence_modules(checkpoint) if kind not in _KNOWN_MODULES]
    if further:
        raise UsageError(
            f"{name!r} puts its vectors through {further[0]} (modules.json), which kdalign does not: "
            f"they would be others (accepted: {', '.join(_KNOWN_MODULES)})"
        )
    file, told = _object(checkpoint, "config_sentence_transformers.json")
    default, prompts = told.get("default_prompt_name"), read_prompts(checkpoint)
    if isinstance(default, str) and prompts.get(default):
        raise UsageError(
            f"{name!r} puts the prompt {_shown(prompts[default])} before every text ({file}: default_prompt_name "
            f"{default!r}), which kdalign does not: its vectors would be others; write it into the texts and take it "
            "out there"
        )
    file, told = _object(checkpoint, "sentence_bert_config.json")
    if told.get("do_lower_case") is True:
        tokenizer = load_tokenizer(checkpoint)
        if tokenizer("A B").input_ids != tokenizer("a b").input_ids:
            raise UsageError(
                f"{name!r} reads texts in lower case ({file}: do_lower_case), and its tokenizer does not make them so: "
                "its vectors would be others; let tokenizer.json lower them"
            )


def prompts_note(checkpoint: Checkpoint) -> str:
    """Write a note on a model's prompts that were not requested; empty if it has none."""
    told = ", ".join(f"{name} {_shown(text)}" for name, text in read_prompts(checkpoint).items() if text)
    return f"{checkpoint.name} knows prompts, and texts are read without them: {told}" if told else ""


def read_prompts(checkpoint: Checkpoint) -> dict[str, str]:
    """Read the prompts to put before texts of each use, such as ``query``, on request."""
    told = _object(checkpoint, "config_sentence_transformers.json")[1].get("prompts")
    if not isinstance(told, dict):
        return {}
    return {str(name): text for name, text in told.items() if isinstance(text, str)}


def read_pooling(checkpoint: Checkpoint) -> str | None:
    """Read the pooling of tokens, such as ``mean`` or ``mean and max``; None if no file names it.

    Raises:
        UsageError: ``modules.json`` names several poolings, or one that has no file.
    """
    places = [place for kind, place in _modules(checkpoint) if kind == "Pooling"]
    if len(places) > 1:
        raise UsageError(f"{checkpoint.name!r} pools its tokens {len(places)} times (modules.json); accepted is once")
    file, told = _object(checkpoint, f"{places[0] if places else _POOLING}/config.json")
    if not file:
        if places:
            raise UsageError(
                f"{checkpoint.name!r} pools its tokens as {places[0]}/config.json says (modules.json), and has no such "
                "file: copy it from where the model came"
            )
        return None
    mode = told.get("pooling_mode")
    if mode is not None:  # newer files have one word, or several
        return " and ".join(map(str, mode if isinstance(mode, list) else [mode])) or "nothing"
    word = re.compile(r"pooling_mode_(\w+?)(_tokens?)?")
    told = {"pooling_mode_mean_tokens": True, **told}  # the default of sentence-transformers
    matches = [word.fullmatch(key) for key, value in told.items() if value is True]
    return " and ".join(match[1] for match in matches if match) or "nothing"


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Read the kinds and folders of ``modules.json``."""
    file = further_file(checkpoint, "modules.json")
    if file is None:
        return []
    tree = read_json(file)
    if not isinstance(tree, list) or not all(_is_module(each) for each in tree):
        raise UsageError(f"{str(file)!r} is not a list of sentence-transformers' modules")
    return [(each["type"].rpartition(".")[2], each.get("path", "")) for each in tree]


def _is_module(each: Any) -> bool:
    """Return whether a module has a type, and a folder inside the model's own."""
    if not (isinstance(each, dict) and isinstance(each.get("type"), str) and isinstance(each.get("path", ""), str)):
        return False
    return re.fullmatch(r"(?:\w[\w.\-]*)?", each.get("path", "")) is not None


def _object(checkpoint: Checkpoint, name: str) -> tuple[str, Mapping[str, Any]]:
    """Read a JSON object: the file's name and content, both empty if there is no such file."""
    file = further_file(checkpoint, name)
    if file is None:
        return "", {}
    told = read_json(file)
    if not isinstance(told, dict):
        what = "pooling's configuration" if name.endswith("/config.json") else "settings of sentence-transformers"
        raise UsageError(f"{str(file)!r} is no {what}: it holds no object ({{...}})")
    return name, told


def _shown(text: str) -> str:
    return shorten(printable(repr(text)), 60)
