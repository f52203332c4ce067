"""`make bench WHAT=ablation` trains recipes for several seeds and compares them in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.ablation import CHANGES, markdown
from pipeline.config.params import DEFAULTS_FILE, load_params
from tests.conftest import Ended

SHORT = ["-S", "train.max_iters=6", "--seeds", "2"]


def test_differences_are_paired_by_seed() -> None:
    def runs(*losses: float) -> list[dict[str, float]]:
        return [{"val_loss": loss, "tokens_per_second": 10 * loss, "params": 7} for loss in losses]

    table = markdown({"the recipe": runs(1.0, 2.0), "without": runs(1.5, 2.7)})
    last = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    # Differences of 0.5 and 0.7: mean 0.6, standard error 0.1. Speeds are 1.5 and 1.35 times as high.
    assert last == ["without", "2.1000", "+0.6000", "0.2000", "0.70", "7"]


def test_a_recipe_and_a_change_are_trained(
    tiny_project: Path, stage: Callable[..., Ended], without_fsync: None
) -> None:
    ended = stage("ablation", "--only", "GELU", *SHORT)
    assert ended.status == 2 and "no change has this" in ended.err  # the tiny model has it
    ended = stage("ablation", "--only", "SwiGLU", *SHORT)
    assert ended.status == 0
    figures = json.loads(Path("results/bench-ablation-tiny.json").read_text())
    assert list(figures["runs"]) == ["the recipe", "SwiGLU"] and figures["seeds"] == [1, 2]
    assert len(list(Path("runs").glob("*/finished"))) == 4
    assert ended.out.startswith(Path("results/bench-ablation-tiny.md").read_text())


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_valid(name: str) -> None:
    assert load_params(CHANGES[name], DEFAULTS_FILE)
