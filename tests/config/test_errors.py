"""What the machine refuses is one line with a remedy and the status 2; a mistake of the program is not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.config.errors import REMEDIES, machine_refusal, one_line
from tests import tiny

REFUSED = {
    errno.ENOSPC: "No space left on device; free some space",
    errno.EDQUOT: "Disk quota exceeded; free some space, or ask for a larger quota",
    errno.EFBIG: "File too large; raise the limit: ulimit -f unlimited",
    errno.EMFILE: "Too many open files; raise the limit: ulimit -n 4096",
    errno.EACCES: "Permission denied; change its permissions, or use another folder",
    errno.EPERM: "Operation not permitted; change its permissions, or use another folder",
    errno.EROFS: "Read-only file system; use a folder that can be written to",
    errno.EPIPE: "Broken pipe; its reader has closed it; send the output to a file",
    errno.ENOMEM: "Cannot allocate memory; close other programs, or make the model or the batch smaller",
    errno.EIO: "Input/output error; correct that",  # one that it has no remedy for
}
AGAIN = " and run the same command again"
NO_MEMORY = REFUSED[errno.ENOMEM] + AGAIN


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
def test_a_refusal_names_the_file_the_reason_and_the_remedy(number: int) -> None:
    reason = os.strerror(number)
    expected = f"{reason};{REFUSED[number].partition(';')[2]}{AGAIN}"
    assert machine_refusal(OSError(number, reason)) == expected
    for name in ("results/é", os.fsencode("results/é"), Path("results/é")):
        assert machine_refusal(OSError(number, reason, name)) == f"results/é: {expected}"
    in_rust = RuntimeError(f"Error while serializing: I/O error: {reason} (os error {number})")
    assert machine_refusal(in_rust) == expected


def test_every_remedy_is_tested() -> None:
    assert REMEDIES.keys() <= REFUSED.keys()


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as error:
        call()
    assert isinstance(error.value, Exception)
    return error.value


def test_libraries_that_are_refused_memory_or_a_file(tmp_path: Path) -> None:
    """Their true errors: they have no class of their own, only a message."""
    for call in (lambda: torch.empty(1 << 59), lambda: bytearray(1 << 62)):
        line = machine_refusal(raised(call))
        assert line and line.endswith(
            f"; close other programs, or make the model or the batch smaller{AGAIN}"
        )
    missing = raised(lambda: safetensors.torch.save_file({}, tmp_path / "nowhere" / "file"))
    assert machine_refusal(missing) == f"{os.strerror(errno.ENOENT)}; correct that{AGAIN}"
    assert machine_refusal(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")) == NO_MEMORY


def test_a_refusal_without_a_number() -> None:
    said = OSError("the hub is down")
    assert machine_refusal(said) == f"the hub is down; correct that{AGAIN}"
    assert machine_refusal(RecursionError("maximum recursion depth exceeded")) == (
        "something that was read is nested too deep; flatten it"
    )


@pytest.mark.parametrize(
    "error", [ValueError("1"), KeyError("errno"), AssertionError(), RuntimeError("size mismatch (error 28)")]
)
def test_a_mistake_of_the_program_is_no_refusal(error: Exception) -> None:
    assert machine_refusal(error) is None


def test_a_line_has_no_password_and_nothing_that_a_terminal_acts_on() -> None:
    message = "https://me:secret@host/x:\n  bad \x1b[31m\u2028name\ud800"
    assert one_line(message) == r"https://host/x: bad \x1b[31m name\ud800"


# True commands, under limits of a shell's making. `make faults` tries the stages.

PRESET = '"$PYTHON" -m pipeline.cli.main preset gpt2'
PRESETS = '"$PYTHON" -m pipeline.cli.main presets'


def shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in a project; CLOSED is the descriptor of a pipe that nobody reads."""
    if "/dev/full" in script and not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    shutil.copytree(tiny.ROOT / "presets", folder / "presets")
    (folder / "dvc.yaml").touch()
    reader, closed = os.pipe()
    os.close(reader)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tiny.ROOT),
        "CLOSED": str(closed),
    }
    try:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            pass_fds=[closed],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(closed)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"ulimit -f 4; {PRESET}", REFUSED[errno.EFBIG]),
        (f"{PRESETS} > /dev/full", REFUSED[errno.ENOSPC]),
        (f"{PRESETS} --help > /dev/full", REFUSED[errno.ENOSPC]),
        (f"{PRESETS} >&$CLOSED", f"standard output: {REFUSED[errno.EPIPE]}"),
    ],
    ids=["file-size limit", "full disk", "help on a full disk", "closed pipe"],
)
def test_a_command_that_is_refused_ends_with_one_line(tmp_path: Path, script: str, expected: str) -> None:
    ended = shell(tmp_path, script)
    assert (ended.returncode, ended.stderr) == (2, f"error: {expected}{AGAIN}\n")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["dvc.yaml", "presets"], "nothing half written is left"


@pytest.mark.parametrize(
    "stderr", ["2> /dev/full", "2>&-", "2>&$CLOSED"], ids=["full", "closed", "closed pipe"]
)
def test_a_mistake_has_its_status_where_no_line_can_be_shown(tmp_path: Path, stderr: str) -> None:
    ended = shell(tmp_path, f"{PRESETS} --nothing {stderr}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "presets"]
