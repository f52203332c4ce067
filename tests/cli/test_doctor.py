"""A bug report says what matters, and nothing private."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.storage.files import write_text
from tests import tiny
from tests.conftest import Ended


def test_a_report_has_versions_and_changed_parameters_and_no_names(
    tmp_path: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_MIRROR", "/secret/folder")
    Path("presets").symlink_to(tiny.ROOT / "presets")
    text = tiny.params_yaml().replace("n_layer: 3 ", "n_layer: 7 ").replace('start: "\\n"', "start: secret")
    write_text(Path("params.yaml"), text)
    ended = stage("doctor")
    assert ended.status == 0
    for expected in (
        platform.python_version(),
        f"torch {torch.__version__}",
        "not a git repository",
        "PIPELINE_MIRROR",
        "preset default with model.n_layer=7, sample.start=...",
    ):
        assert expected in ended.out
    assert "secret" not in ended.out and str(tmp_path) not in ended.out
    assert len(ended.out.splitlines()) == 6


def test_broken_parameters_are_reported_too(
    tmp_path: Path, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stage("doctor")
    assert ended.status == 0 and "there is no params.yaml" in ended.out
    write_text(Path("params.yaml"), tiny.params_yaml().replace('start: "\\n"', "start: [my secret]"))
    ended = stage("doctor")
    assert ended.status == 0 and "invalid; " in ended.out and "secret" not in ended.out
