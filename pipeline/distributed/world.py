"""The processes that work together: which of them this one is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.config.errors import UserError

T = TypeVar("T")

# Ranks wait while the main one waits for a lock or writes a checkpoint. Connections tell of one that dies.
TIMEOUT = timedelta(days=7)


class World:
    """The ranks, numbered 0 … size - 1, of which this process is one. `main` is the one that writes files.

    Every rank has to call the methods that exchange something, in the same order. A process that works alone
    is a world of size 1, for which they cost nothing.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        """`local_rank` and `local_size` count the processes on this machine."""
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.main = 0

    @property
    def is_main(self) -> bool:
        return self.rank == self.main

    @property
    def nodes(self) -> int:
        """The number of machines."""
        return self.size // self.local_size

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' tensors, on each rank."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of the ranks' tensors, on each rank."""
        return tensor if self.size == 1 else self.sum(tensor) / self.size

    def each_some(self, stack: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`work(stack)` for a stack (N, …) that is equal on all ranks; each computes some of the N.

        `work` maps (n, …) to the same shape.
        """
        if self.size == 1:
            return work(stack)
        each = -(-len(stack) // self.size)
        own = stack[self.rank * each : (self.rank + 1) * each]
        done = work(own) if len(own) else own
        dtype = done.dtype if len(own) else work(stack[:1]).dtype
        piece = torch.zeros(each, *stack.shape[1:], dtype=dtype, device=stack.device)
        piece[: len(own)] = done
        whole = torch.empty(self.size * each, *stack.shape[1:], dtype=dtype, device=stack.device)
        dist.all_gather(list(whole.view(torch.uint8).chunk(self.size)), piece.view(torch.uint8))
        return whole[: len(stack)]

    def shares(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """This rank's share of `items`, which all ranks have: every `size`-th one.

        All ranks get equally many, because what they do with them may need all ranks. One that has run out
        gets another rank's item, with False.
        """
        rest = iter(items)
        while turn := list(islice(rest, self.size)):
            yield (turn[self.rank], True) if self.rank < len(turn) else (turn[0], False)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns on the main rank, on every rank. If it raises UserError, all ranks do."""
        if self.size == 1:
            return make()
        made: tuple[T | None, Exception | None] = None, None
        if self.is_main:
            try:
                made = make(), None
            except (UserError, OSError) as error:
                made = None, error
        found = [made]
        dist.broadcast_object_list(found, self.main, device=torch.device("cpu"))
        value, problem = found[0]
        if problem is not None:
            raise problem
        return value  # type: ignore[return-value]

    def together(self, do: Callable[[], T]) -> T:
        """What `do` returns here. If it raises UserError on any rank, all ranks raise the first one's."""
        if self.size == 1:
            return do()
        value, problem = None, None
        try:
            value = do()
        except UserError as error:
            problem = error
        problems: list[Any] = [None] * self.size
        dist.all_gather_object(problems, problem)
        for problem in problems:
            if problem is not None:
                raise problem
        return value  # type: ignore[return-value]

    def first(self, value: T | None) -> T | None:
        """The first rank's value that is not None, on every rank; None if all are."""
        if self.size == 1:
            return value
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return next((one for one in values if one is not None), None)

    def main_first(self, do: Callable[[], T]) -> T:
        """What `do` returns here; other ranks begin when the main one is done, so that it alone downloads.

        If it raises UserError on any rank, all ranks raise it.
        """
        if self.size == 1:
            return do()
        done: list[T] = []
        self.from_main(lambda: done.append(do()))
        return self.together(lambda: done[0] if self.is_main else do())

    def check_equal(self, what: Mapping[str, str]) -> None:
        """Raise UserError unless all ranks have the values that the main one has of `what`, by name."""
        expected = self.from_main(lambda: dict(what))

        def compare() -> None:
            for name, value in what.items():
                if value != expected[name]:
                    raise UserError(
                        f"{name}: process {self.rank} has others ({value[:12]}) than process {self.main} "
                        f"({expected[name][:12]}); copy them from there to all machines"
                    )

        self.together(compare)

    def named_from_main(
        self, tensors: Mapping[str, torch.Tensor] | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The main rank's named tensors on the CPU, one after the other; other ranks pass None."""
        if self.size == 1:
            yield from (tensors or {}).items()
            return
        about = self.from_main(lambda: [(name, t.shape, t.dtype) for name, t in (tensors or {}).items()])
        for name, shape, dtype in about:
            tensor = torch.empty(shape, dtype=dtype)
            if self.is_main and tensors is not None:
                tensor.copy_(tensors[name])
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), self.main)
            yield name, tensor


class Signals:
    """Lets all ranks stop after the same step, whichever of them were told to.

    Each step tells the others without waiting, and learns what they said a step before.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: tuple[Any, torch.Tensor] | None = None

    def __call__(self, own: int | None) -> int | None:
        """The number of a signal that some rank has got, the same on all ranks; None if none has."""
        if self._world.size == 1:
            return own
        heard = None
        if self._told is not None:
            work, number = self._told
            work.wait()
            heard = int(number) or None
        number = torch.tensor(own or 0)
        self._told = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True), number
        return heard


_world = World()


def world() -> World:
    """The world that this process is in."""
    return _world


@contextmanager
def joined() -> Iterator[World]:
    """Be the rank that torchrun's environment variables say, within the `with` block."""
    global _world
    numbers = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    before, _world = _world, World(*numbers)
    node = int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or 0)
    places: list[Any] = [None] * _world.size
    dist.all_gather_object(places, (node, _world.local_rank))
    _world.main = places.index((0, 0))
    try:
        yield _world
    finally:
        _world = before
        dist.destroy_process_group()
