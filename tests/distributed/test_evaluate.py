"""Evaluations on two ranks give the figures of one process."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import environment, train
from tests.zeroshot import write_rows

pytestmark = pytest.mark.xdist_group("ranks")


def run(folder: Path, ranks: int, *arguments: str) -> str:
    program = [sys.executable, "-m", *arguments]
    ended = subprocess.run(
        program, cwd=folder, env=environment(ranks), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def figures(folder: Path, ranks: int) -> dict[str, Any]:
    """What the stages find out about the model in results/model, with learned stopping, and what they say."""
    said = [
        run(folder, ranks, "stages.eval_baselines", "saved/other"),
        run(folder, ranks, "stages.depth_curve"),
        run(folder, ranks, "stages.eval_zeroshot", "lambada", "--file", "lambada.jsonl"),
    ]
    results = folder / "results"
    numbers: dict[str, Any] = {
        name: [list(map(float, row)) for row in list(csv.reader((results / name).open()))[1:]]
        for name in ("depth.csv", "stopping.csv")
    }
    for path in ("baselines/saved/other.json", "zeroshot/results/model/lambada-trial.json"):
        values = json.loads((results / path).read_text())
        numbers[path] = [value for value in values.values() if isinstance(value, float)]
    return {"said": said, **numbers}


def test_two_ranks_find_what_one_process_finds(tiny_project: Path) -> None:
    stopping = ("model.recurrent_shared_weights=true", "model.learned_stopping=true", "train.max_iters=4")
    assert train(tiny_project, 1, *stopping, "sample.start=a").returncode == 0
    shutil.copytree(tiny_project / "results/model", tiny_project / "saved/other")
    samples = [{"text": "the small red bird " * number + "sings over the sea"} for number in range(5)]
    write_rows(tiny_project / "lambada.jsonl", samples)
    alone = figures(tiny_project, 1)
    assert all(numbers for numbers in alone.values())
    together = figures(tiny_project, 2)
    assert together.pop("said") == alone.pop("said")
    for name, numbers in alone.items():
        for row, other in zip(numbers, together[name], strict=True):
            assert other == pytest.approx(row, abs=1e-6), name
