"""Environments of peers: each has its own packages, on top of those of the Python that makes it.

So all of them measure with the same torch and Transformers. One that cannot (its compiled part is built for the torch
of PyPI, and this one is a build for CPUs alone) gets PyPI's build of the same version, and its row says so.
"""

import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MADE = "made.json"


@dataclass(frozen=True)
class Packages:
    """What a peer needs beside the running environment.

    Attributes:
        pinned: packages by version, installed without their dependencies.
        compiled: module whose import shows whether the shared torch will do; empty if nothing is compiled for torch.
    """

    pinned: tuple[str, ...]
    compiled: str = ""


PACKAGES = {
    "textbrewer": Packages(("textbrewer==0.2.1.post1", "tensorboardX==2.6.5", "protobuf==7.36.2")),
    "torchdistill": Packages(("torchdistill==1.1.5", "torchvision==0.28.0"), compiled="torchvision"),
    "sentence-transformers": Packages(("sentence-transformers==6.2.0",)),
    "trl": Packages(("trl==1.16.0",)),
}
"""Peers with an environment of their own; the others run in the one that measures."""


class NotInstalled(Exception):
    """A peer's environment cannot be made; the message is the last line of venv or pip."""


def python_of(peer: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there.

    Raises:
        NotInstalled: pip cannot install its packages.
    """
    packages = PACKAGES.get(peer)
    if packages is None:
        return Path(sys.executable)
    home = folder / peer
    python, made = home / "bin" / "python", home / MADE
    wanted = {"pinned": list(packages.pinned), "torch": version("torch"), "shared": sysconfig.get_path("purelib")}
    if made.is_file() and json.loads(made.read_text()) == wanted:
        return python
    _make(home, packages)
    made.write_text(json.dumps(wanted))
    return python


def _make(home: Path, packages: Packages) -> None:
    python = home / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--clear", str(home)])
    _install(python, ["--no-deps", *packages.pinned])
    (site,) = home.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if packages.compiled and not _imports(python, packages.compiled):
        # Its own torch comes before the shared one on the path. "===" takes no local build such as 2.13.0+cpu.
        _install(python, [f"torch==={version('torch').split('+')[0]}"])


def _install(python: Path, words: list[str]) -> None:
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.splitlines() or done.stdout.splitlines() or [f"ended with status {done.returncode}"]
        raise NotInstalled(([line for line in said if line.startswith("ERROR")] or said)[-1])


def _imports(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode == 0
