"""Environments of peers."""

import json
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.environments import MADE, PACKAGES, NotInstalled, Packages, _install, python_of
from benchmarks.settings import PEERS


def test_a_peer_without_packages_runs_in_this_environment(tmp_path):
    assert python_of("trainer", tmp_path) == Path(sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_every_version_is_pinned_for_a_peer_that_is_compared():
    assert set(PACKAGES) <= set(PEERS)
    assert all("==" in package for packages in PACKAGES.values() for package in packages.pinned)


def test_an_environment_that_is_as_wanted_is_not_made_again(tmp_path):
    wanted = {
        "pinned": list(PACKAGES["trl"].pinned), "torch": version("torch"), "shared": sysconfig.get_path("purelib"),
    }  # fmt: skip
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / MADE).write_text(json.dumps(wanted))
    assert python_of("trl", tmp_path) == tmp_path / "trl" / "bin" / "python"
    assert [path.name for path in (tmp_path / "trl").iterdir()] == [MADE]


def test_what_pip_cannot_install_is_named(tmp_path):
    with pytest.raises(NotInstalled, match=r"nothing-1-py3"):
        _install(Path(sys.executable), [f"{tmp_path}/nothing-1-py3-none-any.whl"])


@pytest.mark.slow
def test_a_package_that_cannot_be_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "trl", Packages((f"{tmp_path}/nothing.whl",)))
    with pytest.raises(NotInstalled, match=r"nothing\.whl"):
        python_of("trl", tmp_path)
