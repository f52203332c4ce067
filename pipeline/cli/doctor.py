"""The facts that a bug report needs about a machine and its copy of the project."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.config.validation import read_yaml

PACKAGES = ("torch", "numpy", "dvc", "tokenizers", "tiktoken", "datasets", "transformers", "huggingface_hub")
VARIABLES = ("PIPELINE_MIRROR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE")


def main() -> None:
    """Print versions, the device and the parameters that differ from the nearest preset.

    The output has nothing private: no paths, no text, no values of environment variables.
    """
    for name, value in facts():
        print(f"{name:<12} {value}")


def facts() -> Iterator[tuple[str, str]]:
    """Yield each fact to report as (name, value)."""
    yield "project", f"{_version('gpt-pipeline')}, {_commit()}"
    yield "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPUs"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "device", _device()
    yield "environment", ", ".join(name for name in VARIABLES if name in os.environ) or "nothing special"
    yield "parameters", _parameters()


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


def _parameters() -> str:
    if not PARAMS_FILE.exists():
        return f"there is no {PARAMS_FILE}"
    try:
        load_params()
        nearest, edits = presets.nearest(read_yaml(PARAMS_FILE))
    except UserError:  # its text may quote what the user wrote
        return "invalid; `python -m stages.check` says why"
    changed = ", ".join(f"{name}={_public(now)}" for name, (_, now) in edits.items())
    return f"preset {nearest}{f' with {changed}' if changed else ''}"


def _public(value: object) -> str:
    """A parameter's value for publication; `...` if it may be one of the user's names or prompts."""
    return "..." if isinstance(value, str | list) else presets.show(value)
