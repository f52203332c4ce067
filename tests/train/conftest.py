"""What keeps hundreds of tiny training runs fast."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # none has to survive a power cut


@pytest.fixture(autouse=True)
def with_known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.loop.peak_flops", lambda device, dtype: 1e12)
