"""`gpt-pipeline scaling` trains a sweep, and writes what it found with hashes that `verify` compares."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

COMMAND = ("pipeline.cli.scaling", "--sizes", "1x8,1x16,2x16", "--tokens", "64,128 0.256k", "--hours", "0.5")
FILES = [Path(f"results/scaling.{kind}") for kind in ("csv", "json", "png")]


def test_a_sweep_is_trained_fitted_and_recorded(
    tiny_project: Path, stage: Callable[..., Ended], without_fsync: None
) -> None:
    ended = stage(*COMMAND)
    assert ended.status == 0, ended.err
    counts = [line.split(";")[0] for line in ended.err.splitlines() if " of 9 runs" in line]
    assert counts == [f"{number} of 9 runs are there" for number in range(10)]
    assert "fitted to 9 runs" in ended.out and "0.5 h here" in ended.out
    with FILES[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["n_layer"], row["n_embd"], row["tokens"]) for row in rows] == [
        (*size, tokens) for size in (("1", "8"), ("1", "16"), ("2", "16")) for tokens in ("64", "128", "256")
    ]
    for row in rows:
        metrics = json.loads(Path("runs", row["run"], "finished", "metrics.json").read_text())
        assert float(row["val_loss"]) == metrics["val_loss"]
        assert int(row["6ND"]) == 6 * metrics["params"] * int(row["tokens"])
    assert len(json.loads(FILES[1].read_text())["predictions"]) == 3
    assert FILES[2].read_bytes().startswith(b"\x89PNG")
    assert not Path("results/model").exists(), "the trained model is that of `train` alone"

    again = stage(*COMMAND)
    assert again.status == 0 and again.out == ended.out and "training " not in again.err

    assert stage("verify").status == 0
    for path in FILES:
        content = path.read_bytes()
        path.write_bytes(content.replace(content[-20:-19], bytes([content[-20] ^ 1])))
        found = stage("verify")
        assert found.status == 2 and str(path) in found.out and "gpt-pipeline scaling" in found.out
        path.write_bytes(content)


@pytest.mark.parametrize(
    "option", ["--sizes=1x8,2x16,3", "--sizes=0x8,1x16,2x16", "--tokens=10k,ten", "--tokens=-1,2,3"]
)
def test_sizes_and_tokens_are_read_before_anything_is_trained(
    option: str, tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    ended = stage("pipeline.cli.scaling", option)
    assert ended.status == 2 and ended.err.startswith(f"error: {option.replace('=', ' ')}: write ")
