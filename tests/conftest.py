"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from pipeline.config.command_line import FROM_MAKE, run
from pipeline.config.presets import overlay
from pipeline.corpus.sources import TailSplit
from pipeline.storage.files import write_text
from pipeline.tokens.write_shards import tokenize
from tests import tiny
from tests.browser import browser as browser
from tests.train.runs import Runs

torch.set_num_threads(1)

# Those that start several processes set these themselves.
for name in ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

# The same examples each time, and no files of past failures. HYPOTHESIS_EXAMPLES=5000 looks further.
hypothesis.settings.register_profile(
    "seeded",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", 60)),
)
hypothesis.settings.load_profile("seeded")


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus as shards of characters; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny")
    write_text(folder / "raw" / "tiny.txt", tiny.text())
    tokenize(folder / "raw", TailSplit(by="tail", fraction=0.2), "char", 257, 10**6, folder / "char")
    return folder / "char"


@pytest.fixture
def tiny_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokens: Path) -> Path:
    """The current folder is a project whose active dataset, the tiny one, is tokenized."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    values = {section: dict(keys) for section, keys in tiny.params().model_dump().items()}
    write_text(Path("params.yaml"), overlay(tiny.params_yaml("nanogpt"), values))
    shutil.copytree(tiny_tokens, "data/tiny/char")
    return tmp_path


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a stage or command in this process as `python -m stages.<name> ARGUMENTS` would."""

    monkeypatch.delenv(FROM_MAKE, raising=False)

    def call(name: str, *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"stages.{name}", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(_module(name).main)
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


def _module(name: str) -> Any:
    if "." in name:
        return importlib.import_module(name)
    for package in ("stages", "pipeline.cli", "bench"):
        if importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
    raise LookupError(name)


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Where PIPELINE_MIRROR keeps a URL's file, for a user who has downloaded nothing; skips without it."""

    def find(url: str) -> Path:
        mirror = os.environ.get("PIPELINE_MIRROR", "")
        path = Path(mirror, url.removeprefix("https://")).resolve()
        if not mirror or not path.is_file():
            pytest.skip(f"PIPELINE_MIRROR is not a folder with {url}")
        monkeypatch.setenv("PIPELINE_MIRROR", str(Path(mirror).resolve()))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return path

    return find


@pytest.fixture(scope="session", autouse=True)
def _machine_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the compiler keeps is not in the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # none has to survive a power cut


@pytest.fixture
def with_known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.loop.peak_flops", lambda device, dtype: 1e12)


@pytest.fixture
def runs(tiny_tokens: Path, tmp_path: Path, without_fsync: None, with_known_peak: None) -> Runs:
    return Runs(tiny_tokens, tmp_path / "runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
