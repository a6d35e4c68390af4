"""`kdalign cache`: what building would take, what is kept, and what is refused."""

import json

import pytest

from support.tiny import one_line

SMALL = ["--student", "layers=2", "--task", "sst2", "--precision", "fp32", "--device", "cpu", "--limit", 40]


@pytest.fixture(scope="module")
def words(teacher, data):
    return ["--teacher", teacher, "--data", data, *SMALL]


def test_a_cache_is_built_shown_verified_and_found_damaged(kdalign, words, tmp_path):
    status, out, err = kdalign("cache", "build", *words, "--out", "kept", "--dry-run", "--json")
    assert status == 0, err
    planned = json.loads(out)
    assert not (tmp_path / "kept").exists()
    status, out, err = kdalign("cache", "build", *words, "--out", "kept", "--json")
    assert status == 0, err
    built = json.loads(out)
    assert built["keep"] == planned["kept"] == [
        "classes", "hidden:encoder.1", "hidden:encoder.3", "attention:encoder.1", "attention:encoder.3",
    ]  # fmt: skip
    assert (built["rows"], built["tokens"]) == (planned["rows"], planned["tokens"])
    assert planned["bytes"] == pytest.approx(built["bytes"], rel=0.1)
    status, out, _ = kdalign("cache", "info", "kept")
    assert status == 0
    assert f"{built['bytes_a_token']:.1f} bytes a token that the teacher read" in out
    assert "not checked: `kdalign cache verify kept` does" in out
    status, out, err = kdalign("cache", "verify", "kept", *words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["rows"] == 32
    assert max(found["differences"].values()) < 0.01
    (shard,) = (tmp_path / "kept").glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    status, out, err = kdalign("cache", "verify", "kept")
    assert status == 1
    assert f"1 of 1 shards is damaged: {shard.name}; --remove removes them" in one_line(err)
    status, out, err = kdalign("cache", "verify", "kept", "--remove", "--json")
    assert (status, json.loads(out)) == (0, {"shards": 0, "damaged": 0, "removed": 1}), err
    assert f"{shard.name}: removed" in err.replace("\n", "")
    assert not shard.exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--keep", "hidden:encoder.4"], "(it has: classes; layers encoder.0 to encoder.3)"),
        (["--keep", "tokens"], "--keep 'tokens': the teacher has no such output"),
        (["--keep", "hiden:encoder.1"], "no such output; did you mean 'hidden'?"),
        (["--keep", "tokens:0"], "a temperature is a number above 0"),
        (["--top-k", 8, "--tail", 0.1], "give one of them"),
        (["--top-k", 10**6], "entries; give fewer"),
        (["--tail", 2], "cache.tail"),
        (["--states", "fp8"], "cache.states"),
        (["--teacher", "other"], "--cache keeps the outputs of one teacher"),
        (["--map", "cka"], "No such option"),
        (["--set", "align.map=cka"], "is measured before training"),
        (["--set", "objective.alpha=0", "--set", "objective.beta=0", "--set", "objective.gamma=0", "--set",
          "objective.delta=0"], "ask for nothing of the teacher"),
        (["--out", "file/inside"], "is a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_said_in_one_line_and_nothing_is_written(more, line, kdalign, words, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = kdalign("cache", "build", *words, "--out", "kept", *more)
    assert (status, out) == (2, "")
    assert line in one_line(err)
    assert not (tmp_path / "kept").exists()


def test_a_student_alone_has_nothing_to_keep(kdalign, data):
    status, _, err = kdalign("cache", "build", "--teacher", "none", "--data", data, *SMALL)
    assert status == 2
    assert "there is no teacher" in one_line(err)


def test_a_folder_without_a_cache_is_no_cache(kdalign, tmp_path):
    for command in ("info", "verify"):
        status, _, err = kdalign("cache", command, tmp_path)
        assert status == 2
        assert "holds no teacher outputs" in one_line(err)


def test_a_dry_run_of_distill_says_what_would_be_kept(kdalign, words, tmp_path):
    status, out, err = kdalign("distill", *words, "--cache", "kept", "--dry-run")
    assert status == 0, err
    assert "cached outputs" in out
    assert "hidden:encoder.1" in out
    assert not (tmp_path / "kept").exists()
