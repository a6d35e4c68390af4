"""Settings of sequence-level data: the command that a resumed run is told has all of them."""

import shlex
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdalign.cli import generate as command
from kdalign.cli import main
from kdalign.distillation.sequence_level.filters import NAMES
from kdalign.distillation.sequence_level.settings import build_settings
from kdalign.errors import UsageError

GIVEN = st.fixed_dictionaries(
    {"teacher": st.just("./my model"), "task": st.sampled_from(["multi30k", "translation:en-de"]), "out": st.just("o")},
    optional={
        "folder": st.just("a 'b"),
        "limit": st.integers(1, 99),
        "samples": st.integers(1, 9),
        "temperature": st.sampled_from([0.5, 2.0]),
        "seed": st.integers(0, 9),
        "new_tokens": st.integers(1, 99),
        "max_length": st.integers(8, 99),
        "keep": st.lists(st.sampled_from([f"{name}>=3" for name in NAMES]), unique=True, max_size=3).map(tuple),
        "best_of": st.sampled_from(["rougeL", "wer"]),
        "language": st.just("de"),
        "batch_size": st.integers(1, 9),
        "precision": st.just("bf16"),
        "device": st.just("cpu"),
        "revision": st.just("main"),
    },
)


@settings(max_examples=20)
@given(GIVEN)
def test_the_command_of_settings_gives_these_settings_again(values):
    built = build_settings(values)
    with pytest.MonkeyPatch.context() as patched:
        found = []
        patched.setattr(command.PromptOptions, "check", lambda *_: None)
        patched.setattr(command, "_show_plan", lambda given, _: found.append(given))
        patched.setattr(sys, "argv", [*shlex.split(built.command), "--dry-run"])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert (exit_.value.code, found) == (0, [built])


def test_samples_have_temperature_one_unless_told_otherwise():
    given = {"teacher": "t", "task": "multi30k", "out": "o"}
    assert build_settings(given).heat == 0
    assert build_settings({**given, "samples": 2}).heat == 1
    assert build_settings({**given, "temperature": 0.5, "top_p": 0.9}).heat == 0.5


def test_the_command_of_settings_is_for_as_many_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert build_settings({"teacher": "t", "task": "chat", "out": "o"}).command == (
        "torchrun --nproc_per_node 3 -m kdalign generate --teacher t --task chat --out o"
    )


def test_settings_of_a_server_have_their_place_in_the_command():
    given = {"teacher": "openai:m", "task": "chat", "out": "o", "base_url": "http://h/v1", "chat": True}
    assert build_settings(given).command == (
        "kdalign generate --teacher openai:m --task chat --out o --base-url http://h/v1 --chat"
    )
    with pytest.raises(UsageError, match="--beams does not apply to a served teacher"):
        build_settings({**given, "beams": 2})


def test_a_wrong_value_is_named_by_its_option():
    with pytest.raises(UsageError, match="--limit 0: must be greater than or equal to 1"):
        build_settings({"teacher": "t", "task": "lm", "out": "o", "limit": 0})
