"""The facts that a bug report needs about a machine and its copy of the project, and what to mend there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.cli.troubles import TROUBLES, at_work, runs_in_short, unfinished_runs
from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.config.paths import DATA, RESULTS, runs_folder
from pipeline.config.validation import read_yaml
from pipeline.storage.machine import binary, disk, memory

PACKAGES = ("torch", "numpy", "dvc", "tokenizers", "tiktoken", "datasets", "transformers", "huggingface_hub")
DTYPES = ("float32", "bfloat16", "float16")
VARIABLES = ("PIPELINE_MIRROR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE")


def main() -> None:
    """Print versions, devices, room, changed parameters, runs, and what is not well with its remedy.

    The output has nothing private: no names of yours, no text, no values of environment variables.
    """
    for name, value in facts():
        print(f"{name:<12} {value}")
    found = [trouble for troubles in TROUBLES for trouble in troubles()]
    for trouble in found or ["nothing"]:
        print(f"{'to mend':<12} {trouble}")


def facts() -> Iterator[tuple[str, str]]:
    """Yield each fact to report as (name, value)."""
    yield "project", f"{_version('gpt-pipeline')}, {_commit()}"
    yield "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "device", _device()
    yield "dtypes", "; ".join(_dtypes())
    yield "memory", "{1} free of {0}".format(*map(binary, memory()))
    yield "disk", _disk()
    yield "environment", ", ".join(name for name in VARIABLES if name in os.environ) or "nothing special"
    yield "parameters", _parameters()
    yield "runs", runs_in_short()
    for run in unfinished_runs():
        yield "unfinished", run
    for process in at_work():
        yield "at work", process


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not Path(".git").exists():
            return "not a git repository"
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", "pipeline", "stages", "dvc.yaml")
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {commit}{' with changes' if changed else ''}"


def _device() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus += ["Metal"] if torch.backends.mps.is_available() else []
    return f"{', '.join(gpus) or 'no GPU'}; {torch.get_num_threads()} CPU threads"


def _dtypes() -> Iterator[str]:
    """The types of numbers in which each device can multiply, found by doing it."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    for device in devices:
        works = [name for name in DTYPES if _multiplies(device, name)]
        yield f"{device}: {', '.join(works) or 'none, so the device or its driver is not well'}"


def _multiplies(device: str, dtype: str) -> bool:
    import torch

    try:
        ones = torch.ones(8, 8, device=device, dtype=getattr(torch, dtype))
        return bool((ones @ ones == 8).all())
    except (RuntimeError, TypeError):  # not for this device
        return False


def _disk() -> str:
    """The free space for each of the folders that grow; on one disk it is the same."""
    folders: dict[str, list[str]] = {}
    places = {"data/": DATA, "runs/": runs_folder(), "results/": RESULTS, ".dvc/cache/": Path(".dvc/cache")}
    for name, path in places.items():
        folders.setdefault(binary(disk(path).free), []).append(name)
    return "; ".join(f"{free} free for {', '.join(names)}" for free, names in folders.items())


def _parameters() -> str:
    if not PARAMS_FILE.exists():
        return f"there is no {PARAMS_FILE}"
    try:
        load_params()
        if not presets.names():
            return "there are no presets to compare with"
        nearest, edits = presets.nearest(read_yaml(PARAMS_FILE))
    except UserError:  # its text may quote what the user wrote
        return "invalid; `python -m stages.check` says why"
    changed = ", ".join(f"{name}={_public(now)}" for name, (_, now) in edits.items())
    return f"preset {nearest}{f' with {changed}' if changed else ''}"


def _public(value: object) -> str:
    """A parameter's value for publication; `...` if it may be one of the user's names or prompts."""
    return "..." if isinstance(value, str | list) else presets.show(value)
