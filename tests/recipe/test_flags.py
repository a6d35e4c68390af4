"""One table of flags: each sets a key of the recipe, and its help shows the field's choices and default."""

from types import NoneType
from typing import Literal, get_args, get_origin

import pytest

from kdalign.errors import UsageError
from kdalign.recipe import CHECKS, Recipe, build_recipe, term_weights
from kdalign.recipe.flags import FLAGS, pick_flags

KEYED = [flag for flag in FLAGS if flag.key is not None]


def field_of(key):
    section = Recipe
    *sections, name = key.split(".")
    for each in sections:
        section = section.model_fields[each].annotation
    return section.model_fields[name]


def test_a_key_has_one_flag_and_a_flag_one_name():
    assert len({flag.key for flag in KEYED}) == len(KEYED)
    assert len({flag.option for flag in FLAGS}) == len(FLAGS)


@pytest.mark.parametrize("flag", [flag for flag in KEYED if flag.has_inverse], ids=lambda flag: flag.option)
def test_a_flags_values_are_of_the_type_of_its_field(flag):
    annotation = field_of(flag.key).annotation
    kinds = set(get_args(annotation)) or {annotation}
    if get_origin(annotation) is Literal or get_origin(annotation) is tuple:
        assert flag.kind is str
    else:
        assert {get_args(kind)[0] if get_args(kind) else kind for kind in kinds - {NoneType}} == {flag.kind}


def test_the_help_of_a_flag_ends_with_its_fields_default():
    defaults = build_recipe(None, {"teacher": "t", "data.task": "sst2"}).flat()
    shown = {flag.key: flag.full_help for flag in KEYED if flag.has_inverse}
    with_default = {key for key in shown if defaults[key] is not None} - {"teacher", "data.task"} | {"preset"}
    assert {key for key, text in shown.items() if "Default " in text} == with_default
    assert shown["train.lr"].endswith("Default 0.0002.")
    assert shown["train.epochs"].endswith("Default 3; for tokens and for embeddings 1.")
    assert shown["objective.hard"].endswith("Default 0.3; for embeddings 0; without a teacher 1.")
    assert shown["train.select"].endswith("One of last, best. Default last.")


def test_the_help_of_allow_names_every_check():
    (allow,) = pick_flags("allow")
    assert f"{', '.join(CHECKS)}; or code" in allow.full_help


def test_switches_set_their_value_and_repeated_options_are_collected():
    multi_task, teacher, tracker, term = pick_flags("multi_task no_finetune_teacher tracker term")
    assert [flag.value(True) for flag in (multi_task, teacher)] == [True, False]
    assert [flag.value(False) for flag in (multi_task, teacher)] == [None, None]
    assert (tracker.value(["a", "b"]), tracker.value([]), tracker.value(None)) == (("a", "b"), None, None)
    assert term.value(["pkd=10", "own.py:Loss=0.5"]) == {"pkd": 10.0, "own.py:Loss": 0.5}


@pytest.mark.parametrize("word", ["pkd", "=1", "pkd=-1", "pkd=nan", "pkd=x"])
def test_a_term_takes_a_name_and_a_weight(word):
    with pytest.raises(UsageError, match="NAME=WEIGHT"):
        term_weights([word])
