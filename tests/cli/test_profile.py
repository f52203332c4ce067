"""`gpt-pipeline profile` says where the time goes, advises a dtype, and writes what it finds that fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.profile import advice
from pipeline.config.command_line import FROM_MAKE
from pipeline.config.params import load_params
from tests.conftest import Ended

Stage = Callable[..., Ended]


@pytest.mark.parametrize(
    ("dtype", "seconds", "expected"),
    [
        (
            "float32",
            {"float32": 0.1, "bfloat16": 0.062},
            "bfloat16 takes 0.62 of float32's step here: set train.dtype=bfloat16",
        ),
        (
            "float32",
            {"float32": 0.1, "bfloat16": 0.098},
            "bfloat16 takes 0.98 of float32's step here: train.dtype=float32 is right",
        ),
        (
            "bfloat16",
            {"bfloat16": 0.1, "float32": 0.2},
            "float32 takes 2.00 of bfloat16's step here: train.dtype=bfloat16 is right",
        ),
    ],
)
def test_the_faster_dtype_is_advised(dtype: str, seconds: dict[str, float], expected: str) -> None:
    assert advice(dtype, seconds) == expected


def test_a_step_is_taken_apart(tiny_project: Path, stage: Stage, with_known_peak: None) -> None:
    before = Path("params.yaml").read_text()
    ended = stage("pipeline.cli.profile", "--steps", "4", "--trace", "-S", "log.trackers=[csv]")
    assert ended.status == 0, ended.err
    assert ended.out.startswith("data/tiny/char: 4 x 8 tokens x 2, ")
    for part in ("data", "forward", "backward", "optimizer", "logging", "rest", "a step"):
        assert re.search(rf"^{part} +[\d.]+ +[\d.]+%$", ended.out, re.MULTILINE), part
    assert "median of 4 steps: " in ended.out and "\nlimit " in ended.out
    assert "bfloat16 takes " in ended.out and "results/profile-trace.json: the trace" in ended.out
    assert Path("params.yaml").read_text() == before
    assert not Path("runs").exists() and not Path("results/model").exists()


def test_what_fits_is_put_into_params_yaml(tiny_project: Path, stage: Stage, with_known_peak: None) -> None:
    comments = [line for line in Path("params.yaml").read_text().splitlines() if "#" in line]
    ended = stage("pipeline.cli.profile", "--fit", "--steps", "1")
    assert ended.status == 0, ended.err
    changes = "train.batch_size: 4 -> 8, train.gradient_accumulation_steps: 2 -> 1"
    assert ended.out.startswith(f"params.yaml: {changes}\n") and ": 8 x 8 tokens, " in ended.out
    train = load_params().train
    assert (train.batch_size, train.gradient_accumulation_steps) == (8, 1)
    now = Path("params.yaml").read_text().splitlines()
    assert len([line for line in now if "#" in line]) == len(comments)
    assert stage("pipeline.cli.profile", "--fit", "--steps", "1").out.startswith(
        "train.batch_size = 8 is the largest"
    )


def test_what_fits_is_that_of_params_yaml(tiny_project: Path, stage: Stage) -> None:
    ended = stage("pipeline.cli.profile", "--fit", "-S", "model.n_layer=1")
    assert ended.status == 2 and ended.err.startswith("error: --fit: is for the parameters in params.yaml")


def test_variables_of_make_choose_what_is_measured(
    tiny_project: Path, with_known_peak: None, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    monkeypatch.setenv("SET", "model.n_layer=1 train.batch_size=2")
    monkeypatch.setenv("STEPS", "1")
    monkeypatch.setenv(FROM_MAKE, "1")
    ended = stage("pipeline.cli.profile")
    assert ended.status == 0, ended.err
    assert ": 2 x 8 tokens x 2, " in ended.out and "median of 1 steps" in ended.out
