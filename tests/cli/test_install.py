"""What cannot be installed is said in one line, by whatever Python there is."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import install
from tests import tiny


def test_an_old_python_is_named_with_the_way_out() -> None:
    assert install.what_is_missing((3, 11)) == install.what_is_missing((3, 14)) == ""
    problem = install.what_is_missing((3, 9))
    assert "is Python 3.9, older than 3.11; name another: make PYTHON3=" in problem


def test_a_python_without_venv_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install.main(tmp_path / ".installed") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "apt install python3-venv" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["install", "commands"])
def test_what_make_runs_first_is_read_by_an_old_python(name: str) -> None:
    source = (tiny.ROOT / "pipeline" / "cli" / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [ast.unparse(node) for node in imported if "pipeline" in ast.unparse(node)]


def test_make_says_which_python_is_not_there() -> None:
    command = [
        "make",
        "-s",
        "--no-print-directory",
        "PYTHON3=no-such-python",
        "-W",
        "pyproject.toml",
        ".venv/.installed",
    ]
    ended = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no no-such-python; name another: make PYTHON3=")
