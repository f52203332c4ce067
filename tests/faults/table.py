"""The rows of the fault matrix: `@fault` registers one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.faults.project import World

Trial = tuple[str, Callable[[World], None]]  # a label, and a function that fails if the promise does not hold


@dataclass(frozen=True)
class Fault:
    """One row. `trials` gets the world to look up the places where something can go wrong."""

    name: str
    how: str
    promise: str
    trials: Callable[[World], Iterable[Trial]]
    dvc: bool = False  # its trials run the true `dvc repro`
    quick: int = 0  # so many of its trials, drawn with a seed, run in continuous integration


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, how: str, promise: str, dvc: bool = False, quick: int = 0
) -> Callable[[Callable[[World], Iterable[Trial]]], Callable[[World], Iterable[Trial]]]:
    """Register a generator of trials as the row `name`."""

    def register(trials: Callable[[World], Iterable[Trial]]) -> Callable[[World], Iterable[Trial]]:
        assert name not in FAULTS
        FAULTS[name] = Fault(name, how, promise, trials, dvc, quick)
        return trials

    return register
