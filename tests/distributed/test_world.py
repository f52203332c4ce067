"""Ranks tell each other what they have, and agree on what is wrong."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.distributed.world import Signals, World
from tests.distributed.ranks import launch_module


def test_three_ranks_exchange_what_they_have() -> None:
    ended = launch_module(3, "tests.distributed.exchange")
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == [f"rank {rank}: right" for rank in range(3)]


def test_a_process_alone_is_a_world() -> None:
    alone, tensor = World(), torch.ones(2)
    assert alone.is_main and alone.sum(tensor) is tensor and alone.mean(tensor) is tensor
    assert alone.each_some(tensor, torch.neg).tolist() == [-1, -1]
    assert list(alone.shares("ab")) == [("a", True), ("b", True)]
    assert alone.from_main(lambda: 3) == alone.together(lambda: 3) == 3
    assert Signals(alone)(15) == 15
    assert dict(alone.named_from_main({"a": tensor})) == {"a": tensor}

    def fail() -> None:
        raise UserError("no")

    for ask in (alone.from_main, alone.together):
        with pytest.raises(UserError, match="no"):
            ask(fail)
