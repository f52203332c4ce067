"""DVC works in a folder with git, in one without, and after `git init`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import configure_dvc


def config(name: str) -> str:
    command = [sys.executable, "-m", "dvc", "config", "--local", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_dvc_knows_whether_there_is_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    Path(".dvc/config").write_text("")
    configure_dvc.main()
    assert config("core.no_scm") == "true"
    assert config("plots.html_template") == "offline-plots.html"
    page = Path(".dvc/offline-plots.html")
    assert "vegaEmbed" in page.read_text(encoding="utf-8")
    written = page.stat().st_mtime_ns

    subprocess.run(["git", "init", "-q"], check=True)
    configure_dvc.main()
    assert config("core.no_scm") == ""
    assert config("plots.html_template") == "offline-plots.html"
    assert page.stat().st_mtime_ns == written, "it is made once"
    configure_dvc.main()
    assert config("core.no_scm") == ""
