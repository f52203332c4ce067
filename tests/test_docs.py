"""The docs name files that exist, commands that there are, and the ruff that make check runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS
from pipeline.cli.commands import commands
from pipeline.config.presets import names
from pipeline.config.validation import read_yaml
from tests import tiny

DOCS = [*tiny.ROOT.glob("*.md"), *tiny.ROOT.glob("docs/*.md")]


def anchors(path: Path) -> set[str]:
    """The names that headings have in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def test_the_tour_names_files_and_folders_that_exist() -> None:
    rows = (tiny.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    named = [
        name for row in rows if row.startswith("| ") for name in re.findall(r"`([\w./-]+/[\w.-]*)`", row)
    ]
    assert len(named) > 60
    assert [name for name in named if not (tiny.ROOT / name).exists()] == []


def test_the_tour_knows_every_room() -> None:
    text = (tiny.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (tiny.ROOT / "pipeline").glob("*/__init__.py")]
    assert [room for room in rooms if f"| `pipeline/{room}/` |" not in text] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_docs_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return  # it names what commands were called before
    text = path.read_text(encoding="utf-8")
    targets = {(command.make or command.name) for command in commands() if command.make is not None}
    targets |= {f"train-{name}" for name in names(tiny.ROOT / "presets")}
    targets |= {f"preset-{name}" for name in names(tiny.ROOT / "presets")}
    targets |= {f"bench-{name}" for name in BENCHMARKS}
    for target in re.findall(r"(?:`|^|&& )make ([a-z][\w<>-]*)", text, re.MULTILINE):
        assert target in targets, target
    named = {command.name for command in commands() if command.module is not None}
    for command in re.findall(r"gpt-pipeline ([a-z][a-z-]*)", text):
        assert command in named, command


def test_a_commit_is_checked_by_the_ruff_of_make_check() -> None:
    (repo,) = read_yaml(tiny.ROOT / ".pre-commit-config.yaml")["repos"]
    makefile = (tiny.ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(PYTHON) -m ruff check" in makefile and "PYTHON  := .venv/bin/python" in makefile
    assert all(hook["entry"].startswith(".venv/bin/python -m ruff ") for hook in repo["hooks"])


def test_continuous_integration_runs_what_is_run_here() -> None:
    job = read_yaml(tiny.ROOT / ".github/workflows/ci.yml")["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    matrix = job["strategy"]["matrix"]
    assert len(matrix["python"]) == 2 and {name.partition("-")[0] for name in matrix["os"]} == {
        "ubuntu",
        "macos",
    }
