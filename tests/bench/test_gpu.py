"""`make bench-gpu --dry-run` does everything on a CPU, tiny; without a GPU the whole of it is refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.harness import call_apart
from pipeline.config.errors import UserError
from pipeline.runtime.compiled import CACHE_FOLDER
from pipeline.storage.files import write_text
from tests import tiny
from tests.conftest import Ended

Stage = Callable[..., Ended]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project, with a text that is not TinyShakespeare, and no clone of nanoGPT."""
    for folder in ("pipeline", "stages", "presets", "bench"):
        shutil.copytree(tiny.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tiny.ROOT / "data/shakespeare", tmp_path / "data/shakespeare")
    write_text(tmp_path / "text.txt", tiny.text())
    monkeypatch.chdir(tmp_path)

    def none_there(peer: object, given: Path | None) -> Path:
        raise UserError("no network")

    monkeypatch.setattr(gpu, "find_clone", none_there)
    monkeypatch.setattr(gpu, "FAST_GPT2", "gpt2")
    monkeypatch.setattr(gpu, "FAST_BABY", "shakespeare-char")
    monkeypatch.delenv("PIPELINE_MIRROR", raising=False)
    monkeypatch.setenv(CACHE_FOLDER, "")  # so that what it is set to is not there for other tests
    return tmp_path


def test_a_dry_run_does_everything_and_writes_nothing(project: Path, stage: Stage) -> None:
    before = {path.name for path in project.iterdir()}
    ended = stage("gpu", "--dry-run", "--text", "text.txt")
    assert ended.status == 0, ended.err
    own = [row.title for row in gpu.ROWS if row.peer is None]
    assert all(f"| {title} " in ended.out for title in own)
    assert "Left out is nanoGPT: no network" in ended.out
    for trial in ("fast: 124M steps", "same: 124M steps", "fast: train", "eager: train", "here: sample"):
        assert trial in ended.out
    assert "a dry run: nothing is written" in ended.out
    assert {path.name for path in project.iterdir()} == before


def test_without_a_gpu_it_is_refused(project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "call_apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = stage("gpu")
    assert ended.status == 2
    assert ended.err == "error: there is no CUDA GPU here; --dry-run does all of it tiny, on a CPU\n"


def test_when_the_time_is_over_the_rest_is_left_out(
    project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SECONDS", 0)
    monkeypatch.setattr(gpu, "_prepare", lambda lab, clone, text: None)
    ended = stage("gpu", "--dry-run")
    assert ended.status == 0, ended.err
    assert ended.out.count("left out is ") == ended.out.count("Left out is ") - 1 == 5  # nanoGPT is the sixth


def test_a_program_that_fails_or_hangs_costs_the_others_nothing(
    project: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(lab: gpu.Lab, program: str) -> dict[str, float]:
        if program == "same":
            raise RuntimeError("CUDA out of memory\nhints")
        return {"step": 1.0, "mfu": 0.5, "first": 30.0}

    def hang(lab: gpu.Lab, program: str) -> dict[str, float]:
        monkeypatch.setattr(gpu, "SECONDS", 0)
        return {"tokens_per_second": call_apart(asleep)}

    monkeypatch.setattr(gpu, "SECONDS", 5)
    monkeypatch.setattr(gpu, "NEEDS", dict.fromkeys(gpu.NEEDS, 0))
    monkeypatch.setattr(gpu, "_prepare", lambda lab, clone, text: None)
    monkeypatch.setattr(gpu, "TRIALS", {**gpu.TRIALS, "step": fail, "sampling": hang})
    ended = stage("gpu", "--dry-run")
    assert ended.status == 0, ended.err
    assert "Left out is step, same: CUDA out of memory\n" in ended.out
    assert "Left out is sampling, here: no time is left of 0 s" in ended.out
    assert "50.0%" in ended.out


def asleep() -> float:
    time.sleep(60)
    return 0.0
