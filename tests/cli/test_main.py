"""The last boundary of the command line: whatever is raised is one line with its cause, and the right status."""

import errno

import pytest

from kdalign.errors import RunError, UsageError
from support.tiny import one_line


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.fixture
def failing(kdalign, monkeypatch):
    """Run a command that raises: (status, its line on stderr)."""

    def run(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("kdalign.recipe.presets.preset_names", fail)
        status, out, err = kdalign("recipe", "show")
        assert out == ""
        return status, one_line(err)

    return run


CASES = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    "large": (OSError(errno.EFBIG, "File too large", "x.bin"), 1, "File too large: x.bin"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "r/log.txt"), 1, "Read-only file system: r/log.txt"),
    "too many": (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
    "broken disk": (OSError(errno.EIO, "Input/output error", b"x\xff"), 1, "Input/output error"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 5000), 2, "File name too long: nnn"),
    "without a cause": (OSError("unexpected end of the archive"), 1, "unexpected end of the archive"),
    "nothing said": (OSError(), 1, "OSError"),
    "refused": (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied: x"),
    "memory": (MemoryError(), 1, "out of memory"),
    "a card's memory": (
        OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
        1,
        "out of memory: OutOfMemoryError: CUDA",
    ),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    "nested": (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply at kdalign/"),
    "rust": (RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'), 1, "no space left on"),
    "module": (ModuleNotFoundError("No module named 'x'", name="x"), 1, "cannot import x"),
    "a rank": (
        RuntimeError("[/x/gloo/tcp/pair.cc:537] Read error [::1]:2: Connection reset by peer. This is typically x. GL"),
        1,
        "another process of this command has ended (RuntimeError: Read error [::1]:2: Connection reset by peer)",
    ),
    "ended input": (EOFError(), 1, "ended before it had answered"),
    "ours": (ValueError("bad \x1b[31mthing\nhere"), 1, "unexpected ValueError: bad [31mthing here at kdalign/cli/"),
    "key": (KeyError("student"), 1, "unexpected KeyError: 'student' at kdalign/cli/recipe.py:"),
    "run": (RunError("failed " * 10_000), 1, "failed failed"),
    "usage": (UsageError("0" * 69_000), 2, "000"),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_raised_is_one_short_line_with_its_cause(failing, case):
    error, status, said = CASES[case]
    found, line = failing(error)
    assert found == status
    assert said in line
    assert len(line) <= 500
    assert line.isprintable()
    assert "None" not in line


def test_a_fault_of_kdaligns_own_says_where_it_is_and_shows_its_trace_on_request(failing, kdalign, monkeypatch):
    _, line = failing(AssertionError())
    assert "a fault of kdalign, not yours" in line
    assert "KDALIGN_TRACEBACK=1" in line
    monkeypatch.setenv("KDALIGN_TRACEBACK", "1")
    status, _, err = kdalign("recipe", "show")
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert "unexpected AssertionError at kdalign/cli/recipe.py" in err.splitlines()[-1]


def test_ctrl_c_is_130_and_one_line(kdalign, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("kdalign.recipe.presets.preset_names", stop)
    assert kdalign("recipe", "show") == (130, "", "kdalign: stopped\n")


@pytest.mark.parametrize(
    "words", [("recipe", "show", "x" * 9000), ("compare", "x" * 9000), ("compare", "--" + "y" * 9000)]
)
def test_a_mistake_of_thousands_of_letters_is_a_line_of_at_most_500(kdalign, words):
    status, out, err = kdalign(*words)
    assert (status, out) == (2, "")
    assert len(one_line(err)) <= 500
