"""`presets` lists, `preset` applies, and neither overwrites what it should not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.preset import list_presets
from pipeline.config import presets
from tests import tiny
from tests.conftest import Ended


def test_presets_are_listed_applied_and_refused(
    tmp_path: Path,
    stage: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(tiny.ROOT / "presets")
    list_presets()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == presets.names(Path("presets"))
    assert stage("preset", "default").status == 0
    applied = stage("preset", "gpt2")
    assert "params.yaml is now preset gpt2" in applied.out and "data.dataset: " in applied.out
    refused = stage("preset", "gpt3")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("error: unknown preset gpt3") and refused.err.count("\n") == 1
