import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from kdalign.errors import UsageError, cause_of, library_errors, printable, shorten
from kdalign.files import (
    append_bounded,
    check_file,
    check_links,
    check_writable,
    decode,
    line_of,
    parse_json,
    read_bytes,
    read_json,
    read_line,
    read_text,
    remove_drafts,
    write_json,
)
from kdalign.recipe.strict_yaml import parse_yaml


@pytest.mark.parametrize("raw", ["a\x1b[31mb", "a\u202eb", "a\u2066b", "a\x9db", "a\u200eb", "a\ufeffb", "a\x00b"])
def test_what_steers_a_terminal_or_the_writing_direction_is_not_printable(raw: str) -> None:
    shown = printable(raw)
    assert shown in ("ab", "a[31mb")
    assert printable(shown) == shown


@pytest.mark.parametrize("end", ["\n", "\r\n", "\t", "\v", "\f", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_printable_text_is_one_line(end: str) -> None:
    assert printable(f"a{end}b").splitlines() == [f"a{' ' * len(end)}b"]


def test_half_a_surrogate_can_be_encoded_once_it_is_printable() -> None:
    assert printable("a\udc80b").encode() == "a\ufffdb".encode()


@pytest.mark.parametrize("text", ["naïve", "👩‍👩‍👧", "می‌خواهم", "漢字", "a b"])
def test_letters_and_joiners_of_any_script_stay(text: str) -> None:
    assert printable(text) == text


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    line = shorten("begin " + "x" * 5000 + " mend it", 100)
    assert len(line) <= 100
    assert line.startswith("begin")
    assert line.endswith("mend it")


def test_a_cause_has_its_type_where_its_text_says_nothing() -> None:
    assert cause_of(KeyError("heads")) == "KeyError: 'heads'"
    assert cause_of(ValueError("layers must be\nwhole")) == "layers must be whole"
    assert cause_of(RuntimeError()) == "RuntimeError"


def test_a_library_error_becomes_one_line_and_our_own_pass() -> None:
    with (
        pytest.raises(UsageError, match=r"^cannot read 'x': KeyError: 'a'; write it again$"),
        library_errors("cannot read 'x'", "write it again"),
    ):
        {}["a"]
    with pytest.raises(UsageError, match=r"^said$"), library_errors("cannot read 'x'"):
        raise UsageError("said")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(encoding: str) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    assert decode(mark + "naïve 漢字\n".encode(encoding), "x") == "naïve 漢字\n"


def test_another_encoding_is_refused_with_its_line(tmp_path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"good\nna\xefve\n")
    with pytest.raises(UsageError, match=r"latin.txt', line 2: not UTF-8 \(byte 0xef"):
        read_text(file)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[1e400]", "beyond what a float holds"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "not a JSON number"),
        ("9" * 5000, "a whole number of 5,000 digits"),
        ("{", "Expecting"),
        ('{"a": 1, "b": {"lr": 1, "lr": 2}}', "key 'lr' is given twice"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
    ],
)
def test_json_is_strict_and_refused_in_one_line(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        parse_json(text, "'x.json'")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[" * 3000, "nested too deeply"),
        ("seed: 0x" + "f" * 5000, "a whole number of 5,002 digits"),
        ("day: 2024-13-45", "month must be in 1..12"),
        ("a: !!python/object/apply:os.system [x]", "line 1, column 4: could not determine a constructor"),
        ("a: 1\nb: {lr: 1, 'lr': 2}", "line 2, column 12: key 'lr' is given twice"),
        ("a: &a [1, *a]", "a holds itself"),
        ("a: &a {b: {c: *a}}", "a holds itself"),
        (
            "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n"
            + "".join(f"{y}: &{y} [{', '.join(['*' + x] * 8)}]\n" for x, y in "ab bc cd de ef fg".split()),
            "aliases stand for more",
        ),
        ("\ta: 1", "cannot start any token"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x00", "not allowed"),
    ],
)
def test_yaml_is_safe_and_refused_in_one_line(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        parse_yaml(text, "'x.yaml'")


def test_a_file_is_read_within_bounds_and_only_if_it_is_one(tmp_path) -> None:
    pipe, big = tmp_path / "pipe", tmp_path / "big.json"
    os.mkfifo(pipe)
    big.write_bytes(b"[" + b" " * 100 + b"]")
    for place, cause in ((pipe, "pipe"), (tmp_path, "is a folder"), (tmp_path / ("n" * 300), "name too long")):
        with pytest.raises(UsageError, match=cause):
            read_json(place)
    with pytest.raises(UsageError, match="102 bytes; at most 10 are read"):
        read_bytes(big, 10)
    assert read_json(big) == []


@pytest.mark.parametrize("place", ["/proc/x", "/sys/x", "n" * 300, "a\0b", "/dev/null/x", "é" * 130])
def test_a_place_that_takes_no_file_is_refused_before_anything_is_written(tmp_path, monkeypatch, place) -> None:
    monkeypatch.chdir(tmp_path)
    for check, path in ((check_writable, Path(place)), (check_file, Path(place) / "x.md")):
        with pytest.raises(UsageError) as error:
            check(path)
        assert len(str(error.value)) < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_a_folder_or_has_too_long_a_name_is_refused(tmp_path) -> None:
    check_file(tmp_path / "new" / "x.md")
    for file, said in ((tmp_path, "is a folder"), (tmp_path / ("n" * 300), "too long")):
        with pytest.raises(UsageError, match=said):
            check_file(file)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_utf_8_is_written_and_read_again(tmp_path) -> None:
    write_json(tmp_path / "x.json", {"out": "runs/\udcff"})
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8")) == {"out": "runs/\udcff"}


def test_what_merges_may_be_overridden_and_aliases_may_be_used() -> None:
    text = "c: {d: &d {x: 1, y: 2}}\na: {<<: *d, x: 3}\nb: *d\n"
    assert parse_yaml(text, "x") == {"c": {"d": {"x": 1, "y": 2}}, "a": {"x": 3, "y": 2}, "b": {"x": 1, "y": 2}}
    assert parse_yaml("[" * 64 + "]" * 64, "x")


def test_a_reader_to_which_all_is_text_refuses_the_same() -> None:
    import yaml

    assert parse_yaml("{a: 0x1f, b: no, 1: 2024-13-45}", "x", yaml.BaseLoader) == {
        "a": "0x1f",
        "b": "no",
        "1": "2024-13-45",
    }
    for text in ("{a: 1, a: 2}", "a: &a [*a]", "[" * 500):
        with pytest.raises(UsageError):
            parse_yaml(text, "x", yaml.BaseLoader)


def test_a_file_that_is_a_link_is_not_written_over_nor_through(tmp_path) -> None:
    (tmp_path / "own.md").write_text("mine")
    (tmp_path / "x.md").symlink_to(tmp_path / "own.md")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    for name in ("x.md", "gone.md"):
        with pytest.raises(UsageError, match="is a link to"):
            check_file(tmp_path / name)
    assert (tmp_path / "own.md").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["record.json", "log.txt", "student", "student/model.safetensors", "checkpoints/step-1"]
)
def test_links_and_pipes_in_a_folder_that_is_written_into_are_named(tmp_path, name) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "predictions").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run)
    check_links(tmp_path / "link")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=r"is a link to '.*elsewhere'"):
        check_links(run)
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UsageError, match="pipe"):
        check_links(run)


def test_a_line_with_a_checksum_is_read_as_it_was_written_or_refused():
    tree = {"prompt": "a1", "draw": 0, "text": 'gr\u00fcn \ud800 "x"', "ended": None, "share": 0.1}
    line = line_of(tree).encode()
    assert line.endswith(b"}\n")
    assert read_line(line) == tree
    assert read_line(b'{"text": "of an older version"}') == {"text": "of an older version"}
    for place in range(len(line) - 1):
        for bit in range(8):
            changed = bytearray(line)
            changed[place] ^= 1 << bit
            with suppress(ValueError):
                found = read_line(bytes(changed))
                assert {key: found[key] for key in tree} == tree, "the name of the checksum was changed"


def test_a_full_log_is_kept_until_the_next_is_full(tmp_path):
    log = tmp_path / "log.txt"
    for number in range(10):
        append_bounded(log, f"line {number}\n", most=21)
    assert log.read_text() == "line 9\n"
    assert (tmp_path / "log.1.txt").read_text() == "line 6\nline 7\nline 8\n"


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    for name in (".a.json.7.0123abcd.tmp", ".b.json.7.0123abcd.tmp", ".hidden", ".mine.tmp", "a.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".step-3.tmp").mkdir()
    remove_drafts(tmp_path, "a.*")
    assert not (tmp_path / ".a.json.7.0123abcd.tmp").exists()
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".mine.tmp", "a.tmp"]
    remove_drafts(tmp_path / "gone")
