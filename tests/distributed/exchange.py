"""Run on three ranks: what they tell each other. Ends with an AssertionError if that is wrong."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.distributed.world import Signals, World, joined, world


def check(ranks: World) -> None:
    me = ranks.rank
    assert (ranks.size, ranks.main, ranks.is_main) == (3, 0, me == 0)
    own = torch.tensor([1.0, me])
    assert ranks.sum(own).tolist() == [3, 3] and ranks.mean(own).tolist() == [1, 1]
    assert own.tolist() == [1, me]  # as it was

    assert ranks.from_main(lambda: ("said by", me)) == ("said by", 0)
    assert ranks.together(lambda: me) == me
    assert ranks.main_first(lambda: me) == me

    def fail() -> Any:
        raise UserError(f"rank {me} cannot")

    for refusing, by, called in (
        (ranks.from_main, 0, fail),
        (ranks.together, 2, fail if me == 2 else lambda: None),
        (ranks.together, 1, fail if me else lambda: None),
        (ranks.main_first, 0, fail),
        (ranks.main_first, 1, fail if me else lambda: None),
    ):
        with pytest.raises(UserError, match=f"^rank {by} cannot$"):
            refusing(called)

    assert ranks.first(None if me == 0 else me) == 1 and ranks.first(None) is None

    ranks.check_equal({"the text": "same"})
    with pytest.raises(UserError, match=r"the text: process 2 has others \(other\) than process 0 \(same\)"):
        ranks.check_equal({"the text": "other" if me == 2 else "same"})

    turns = [["a", "b", "c"], ["d", "e", "d"]]  # all have two, and the last one has none of its own
    assert list(ranks.shares("abcde")) == [(turns[0][me], True), (turns[1][me], me < 2)]
    assert list(ranks.shares("")) == []

    tensors = {
        "matrix": torch.arange(6.0).view(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 4),
    }
    got = dict(ranks.named_from_main(tensors if me == 0 else None))
    torch.testing.assert_close(got, tensors, rtol=0, atol=0)

    for count in (1, 2, 3, 7):
        stack = torch.arange(count * 4.0).view(count, 2, 2)
        done = ranks.each_some(stack, lambda some: some.to(torch.bfloat16) + 1)
        torch.testing.assert_close(done, (stack + 1).to(torch.bfloat16))

    signals = Signals(ranks)
    heard = [signals(15 if step == 2 and me == 1 else None) for step in range(4)]
    assert heard == [None, None, None, 15]


if __name__ == "__main__":
    with joined() as joined_world:
        assert world() is joined_world
        check(joined_world)
        os.write(1, f"rank {joined_world.rank}: right\n".encode())  # in one piece: ranks share the pipe
