"""Create .venv with the pinned dependencies.

`make` runs this with the system's Python, which may be old: standard library only, and no new syntax.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)


def main(stamp: Path) -> int:
    """Install into the folder of `stamp`, create that file on success, and return an exit status."""
    problem = what_is_missing()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    folder = stamp.parent
    print(f"installing into {folder}/ (once; a few minutes, most of it PyTorch)", flush=True)
    python = folder / "bin" / "python"
    if not _has_pip(python):
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    status = subprocess.call([*pip, "-c", "constraints.txt", "-e", ".[dev]"])
    if status == 0:
        stamp.touch()
    return status


def what_is_missing(version: tuple[int, ...] = sys.version_info[:2]) -> str:
    """Why this Python cannot create the environment, and what to do; empty if it can."""
    if version < OLDEST:
        found, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST))
        return (
            f"{sys.executable} is Python {found}, older than {oldest}; name another: make PYTHON3=python3.12"
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        return (
            f"{sys.executable} has no venv module; install it (on Debian or Ubuntu: apt install python3-venv)"
        )
    return ""


def _has_pip(python: Path) -> bool:
    command = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.call(command, stdout=subprocess.DEVNULL) == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
