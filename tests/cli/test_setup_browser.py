"""Chromium comes from whatever package manager there is, or it is said in one line how to get it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cli import setup_browser


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs. Each writes its arguments to `called`, beside the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(setup_browser, "ON_MACOS", ())
    return folder


def add(folder: Path, name: str, then: str = "") -> None:
    program = folder / name
    program.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder.parent}/called\n{then}\n')
    program.chmod(0o755)


def called(folder: Path) -> list[str]:
    path = folder.parent / "called"
    return path.read_text().splitlines() if path.exists() else []


def makes_chromium(folder: Path) -> str:
    return f'case "$*" in *install*) echo > {folder}/chromium; /bin/chmod 755 {folder}/chromium;; esac'


def test_what_is_there_is_kept(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(programs, "google-chrome")
    add(programs, "apt-get")
    assert setup_browser.main() == 0 and called(programs) == []
    assert capsys.readouterr().out.startswith(f"{programs}/google-chrome")


@pytest.mark.parametrize(("manager", "commands"), [("apt-get", 2), ("dnf", 1), ("brew", 1)])
def test_it_is_installed_by_the_systems_package_manager(
    programs: Path, monkeypatch: pytest.MonkeyPatch, manager: str, commands: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    add(programs, manager, makes_chromium(programs))
    assert setup_browser.main() == 0
    assert len(called(programs)) == commands and called(programs)[-1].endswith("chromium")
    assert setup_browser.chromium() == str(programs / "chromium")


def test_who_is_not_root_asks_sudo_which_must_not_ask_back(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    add(programs, "dnf")
    assert setup_browser.main() == 2 and called(programs) == []
    assert "needs root; ask for `dnf install -y chromium`" in capsys.readouterr().err
    add(programs, "sudo", 'shift; "$@"')
    assert setup_browser.main() == 2, "it installs nothing"
    assert called(programs) == ["sudo -n dnf install -y chromium", "dnf install -y chromium"]


@pytest.mark.parametrize("status", [1, 100])
def test_a_failure_is_one_line(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert setup_browser.main() == 2
    assert "none of apt-get, dnf, brew is here" in capsys.readouterr().err
    add(programs, "apt-get", f"exit {status}")
    assert setup_browser.main() == 2 and len(called(programs)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no browser: `apt-get") and error.count("\n") == 1
