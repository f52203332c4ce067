"""Create .venv with the pinned dependencies, or add one of the extras to it.

`make` runs this with the system's Python, which may be old: standard library only, and no new syntax.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
STAMP = ".installed"  # .venv/.installed names the build of PyTorch; .venv/.installed-dev is the extra dev
PYTORCH = "https://download.pytorch.org/whl/"  # one index of packages for each build
BUILDS = re.compile(r"cpu|xpu|cu[0-9]{3}|rocm[0-9]+(\.[0-9]+){1,2}")


def main(stamp: Path, build: str = "") -> int:
    """Install into the folder of `stamp`, create that file on success, and return an exit status.

    `build` is that of PyTorch, such as cpu or cu128. Without one it is that of the last installation, or what
    the package index has for this machine.
    """
    extra = stamp.name[len(f"{STAMP}-") :]
    build = build or _last_build(stamp.parent)
    problem = what_is_missing() or wrong_build(build) or unknown_extra(extra)
    if problem:
        return _refuse(problem)
    folder = stamp.parent
    print(f"installing {f'extra {extra} ' if extra else ''}into {folder}/ (once; a few minutes)", flush=True)
    python = folder / "bin" / "python"
    if not _has_pip(python):
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", str(folder)])
    constraints = Path("constraints.txt").read_text(encoding="utf-8")
    status = subprocess.call([str(python), "-m", "pip", *pip_arguments(constraints, build, extra)])
    if status == 0:
        stamp.write_text("" if extra else build, encoding="utf-8")
    elif build:
        return _refuse(f"TORCH={build}: was not installed; {PYTORCH}torch/ lists the builds that there are")
    return status


def add_if_missing(module: str, extra: str) -> None:
    """Install an extra that is needed now, in what `make install` made; elsewhere that is for the user."""
    if Path(sys.prefix, STAMP).exists() and importlib.util.find_spec(module) is None:
        status = main(Path(sys.prefix, f"{STAMP}-{extra}"))
        if status:
            sys.exit(status)
        importlib.invalidate_caches()


def pip_arguments(constraints: str, build: str, extra: str) -> list[str]:
    """What pip is called with; `constraints` is the text of constraints.txt.

    Python compiles what it imports by itself, if it may; compiling everything would take a tenth of the disk.
    """
    uncompiled = [] if sys.dont_write_bytecode else ["--no-compile"]
    arguments = ["install", "--disable-pip-version-check", *uncompiled, "-c", "constraints.txt"]
    if build:
        version = re.search(r"^torch==(\S+)$", constraints, re.MULTILINE)
        assert version, "constraints.txt pins torch"
        # By its full name, because the usual index has the same version in another build.
        arguments += ["--extra-index-url", PYTORCH + build, f"torch=={version[1]}+{build}"]
    return [*arguments, "-e", f".[{extra}]" if extra else "."]


def what_is_missing(version: tuple[int, ...] = sys.version_info[:2], system: str = os.name) -> str:
    """Why this Python cannot create the environment, and what to do; empty if it can."""
    if system == "nt":
        return "Windows itself is not supported; run this in WSL, which has Linux (wsl --install)"
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


def wrong_build(build: str, system: str = sys.platform) -> str:
    """Why there is no such build of PyTorch, and what to do; empty if there may be."""
    if build and system == "darwin":
        return f"TORCH={build}: a Mac has one build of PyTorch, with Metal; leave TORCH out"
    if build and not BUILDS.fullmatch(build):
        return (
            f"TORCH={build}: no build of PyTorch; write cpu, cu128 for CUDA 12.8, rocm6.4 for ROCm 6.4, "
            "or leave it out"
        )
    return ""


def unknown_extra(extra: str) -> str:
    """Why there is no such extra, and what to do; empty if there is."""
    import tomllib

    extras = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = sorted(extras["optional-dependencies"])
    return f"EXTRAS={extra}: no such extra; there are {', '.join(known)}" if extra not in ["", *known] else ""


def _last_build(folder: Path) -> str:
    stamp = folder / STAMP
    return stamp.read_text(encoding="utf-8").strip() if stamp.exists() else ""


def _refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def _has_pip(python: Path) -> bool:
    command = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.call(command, stdout=subprocess.DEVNULL) == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))
