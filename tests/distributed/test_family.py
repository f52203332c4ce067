"""Every member of the family trains on two ranks, by DDP and by FSDP, to the losses of one process."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.family import MEMBERS, MODES, losses
from tests.distributed.ranks import launch_module

pytestmark = pytest.mark.xdist_group("ranks")  # one process starts them

SPEED = ("seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def on_two_ranks(tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ended = launch_module(2, "tests.distributed.family", str(tiny_tokens), str(folder))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("member", MEMBERS)
def test_two_ranks_end_as_one(
    member: str, on_two_ranks: Path, tiny_tokens: Path, tmp_path: Path, without_fsync: None
) -> None:
    alone = losses(member, tiny_tokens, tmp_path)
    expected = _rows(alone.pop("log"))
    for mode in MODES:
        found: dict[str, Any] = json.loads((on_two_ranks / mode / f"{member}.json").read_text())
        assert _rows(found.pop("log")) == pytest.approx(expected, abs=2e-5), mode  # of six digits
        assert found == pytest.approx(alone, abs=1e-5), mode


def _rows(log: str) -> dict[str, float]:
    """Every figure of a log but for the speed: losses, gradient norms, loads of experts, depths."""
    return {
        f"{row['step']} {name}": float(value)
        for row in csv.DictReader(log.splitlines())
        for name, value in row.items()
        if value and name not in SPEED
    }
