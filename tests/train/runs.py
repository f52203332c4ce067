"""Tiny training runs, and ways to interrupt them."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.storage.checksums import sha256_file
from pipeline.train.fit import FittedRun, fit
from pipeline.train.loop import Interrupted, Trainer
from tests import tiny

SPEED = {"tokens_per_second", "mfu", "seconds", "device"}


def quiet(text: str) -> None:
    pass


@dataclass
class Runs:
    """Trains on the tiny corpus, keeping the runs in one folder."""

    tokens: Path
    folder: Path

    def __call__(self, *overrides: str, say: Callable[[str], None] = quiet) -> FittedRun:
        return fit(tiny.params(*overrides), self.tokens, self.folder, say)

    def elsewhere(self, name: str) -> Runs:
        return Runs(self.tokens, self.folder.parent / name)

    def only(self) -> Path:
        (run,) = self.folder.iterdir()
        return run


def rows(fitted: FittedRun) -> list[dict[str, str]]:
    with fitted.run.log.open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(fitted: FittedRun) -> dict[str, torch.Tensor]:
    """The last model's."""
    last = fitted.run.newest()
    assert last is not None
    return load_file(last / "model.safetensors")


def log_of(fitted: FittedRun) -> list[dict[str, float | None]]:
    return [{name: float(value) if value else None for name, value in row.items()} for row in rows(fitted)]


def without_speed(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: without_speed(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in SPEED
    }


def outcome(fitted: FittedRun) -> dict[str, Any]:
    """Everything that a run leaves behind, but for how fast it went."""
    last = fitted.run.newest()
    assert last is not None
    return {
        "model": sha256_file(last / "model.safetensors"),
        "optimizer": sha256_file(last / "optimizer.safetensors"),
        "best": sha256_file(fitted.run.best / "model.safetensors"),
        "state": without_speed(json.loads((last / "state.json").read_text())),
        "metrics": without_speed(fitted.metrics),
        "log": [without_speed(row) for row in rows(fitted)],
    }


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, what: signal.Signals) -> None:
    """Send this process a signal once `step` steps are taken."""
    periodic_work = Trainer._evaluate_log_and_save

    def then_stop(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        periodic_work(trainer, *args, **kwargs)
        if trainer.state.step == step:
            signal.raise_signal(what)

    monkeypatch.setattr(Trainer, "_evaluate_log_and_save", then_stop)


def stopped_at_each(runs: Runs, steps: list[int], *overrides: str) -> FittedRun:
    """The run that `overrides` describe, stopped after each of `steps` by Ctrl-C and SIGTERM in turn."""
    for number, step in enumerate(steps):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(patched, step, [signal.SIGINT, signal.SIGTERM][number % 2])
            with pytest.raises(Interrupted):
                runs(*overrides)
        newest = sorted(runs.only().glob("step-*"))[-1]
        assert newest.name == f"step-{step:09d}"
    return runs(*overrides)


def flip_a_bit(path: Path) -> None:
    """Damage a file where its content ends: in a tensor, not in a header."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
