"""Experiments, from one changed parameter to a sweep, and what they leave behind: nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.test_dvc import command, dvc, new_project

pytestmark = pytest.mark.xdist_group("experiments")  # one process makes the project

PUT_BACK = ("params.yaml", "dvc.lock", "results/log.csv", "results/run.json", "results/model/config.json")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def experiments(folder: Path) -> list[dict[str, str]]:
    """The rows of results/experiments.csv, just written."""
    ended = command(folder, "experiments", **GIT)
    assert ended.returncode == 0, ended.stderr + git(folder, "for-each-ref") + git(folder, "log", "--oneline")
    with (folder / "results/experiments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A git repository whose pipeline ran on the tiny corpus."""
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in GIT.items():
            patched.setenv(name, value)
        new_project(folder)
        (folder / ".dvc/config.local").unlink()
        git(folder, "init", "--quiet", "--initial-branch=main")
        git(folder, "config", "user.name", "Tester")
        git(folder, "config", "user.email", "tester@example.org")
        (folder / ".gitignore").write_text(
            "/runs/\n/results/\n/data/*/raw/\n/data/*/char/\n/.cache/\n__pycache__/\n"
        )
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", "baseline")
        assert dvc(folder, "repro").returncode == 0
        yield folder


def test_without_an_experiment_it_says_how_to_make_one(project: Path) -> None:
    ended = command(project, "experiments", **GIT)
    assert ended.returncode == 2 and not ended.stdout
    assert ended.stderr == (
        "error: no experiment of this commit yet; make one: make experiment SET='model.n_layer=2'\n"
    )


def test_an_experiment_leaves_nothing_behind_and_is_compared(project: Path) -> None:
    before = {name: (project / name).read_bytes() for name in PUT_BACK}
    ended = command(project, "experiment", "model.activation=relu2", "--name", "relu2", **GIT)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stdout + ended.stderr
    assert {name: (project / name).read_bytes() for name in PUT_BACK} == before
    assert git(project, "branch", "--show-current") == "main\n"
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""
    table = ended.stdout[ended.stdout.index("experiment  ") :].splitlines()
    changed = {line.split()[0]: line.split()[-1] for line in table[1:3]}
    assert changed["relu2"] == "model.activation=relu2" and "baseline" in changed
    assert (project / "results/experiments.png").read_bytes().startswith(b"\x89PNG")
    (row,) = (row for row in experiments(project) if row["experiment"] == "relu2")
    assert float(row["val_loss_difference"]) != 0
    baseline = json.loads((project / "results/run.json").read_text())["run"]
    ended = command(project, "report", "relu2", baseline[:6], **GIT)
    assert ended.returncode == 0, ended.stderr
    page = (project / "results/report-runs.html").read_text()
    assert '"name":"relu2"' in page and f'"key":"{baseline}"' in page
    assert "relu2" in page and page.count('"val_loss":') > 2


def test_an_experiment_that_fails_leaves_nothing_behind_either(project: Path) -> None:
    before = {name: (project / name).read_bytes() for name in PUT_BACK}
    ended = command(project, "experiment", "train.learning_rate=1e30", "train.decay_lr=false", **GIT)
    assert ended.returncode == 3 and "exited with 3" in ended.stderr
    assert {name: (project / name).read_bytes() for name in PUT_BACK} == before
    assert git(project, "branch", "--show-current") == "main\n"


def test_an_experiment_that_is_terminated_leaves_nothing_behind_either(project: Path) -> None:
    """DVC dies and the training saves; the branch, which DVC left, is there again."""
    before = {name: (project / name).read_bytes() for name in PUT_BACK}
    program = [sys.executable, "-m", "pipeline.cli.main", "experiment", "train.max_iters=1000000"]
    # DVC starts stages by this shell. It may stay between the two, unless the stage is told to replace it.
    environment = {
        "PATH": os.defpath,
        "HOME": str(project),
        "PYTHONPATH": str(project),
        "SHELL": "/bin/sh",
        **GIT,
    }
    with subprocess.Popen(
        program, cwd=project, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("step ") for line in process.stderr)
        process.terminate()
        assert "stopped after step" in process.stderr.read()
    assert process.returncode == 143
    assert {name: (project / name).read_bytes() for name in PUT_BACK} == before
    assert git(project, "branch", "--show-current") == "main\n"
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""


def test_a_sweep_is_queued_run_shown_and_removed(project: Path) -> None:
    known = {row["experiment"] for row in experiments(project)}
    sweep = ("-S", "model.n_layer=1,3", "-S", "train.seed=range(1,2)")
    assert dvc(project, "exp", "run", "--queue", *sweep).returncode == 0
    rows = [row for row in experiments(project) if row["experiment"] not in known]
    assert {row["state"] for row in rows} == {"queued"} and len(rows) == 2
    ended = dvc(project, "exp", "run", "--run-all")
    assert ended.returncode == 0, ended.stderr
    rows = [row for row in experiments(project) if row["experiment"] not in known]
    changed = {(row["model.n_layer"], row["train.seed"], row["model.activation"]) for row in rows}
    assert changed == {("1", "1", "gelu"), ("3", "1", "gelu")}
    assert all(row["state"] == "" and float(row["val_loss"]) > 0 for row in rows)
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""
    assert dvc(project, "exp", "remove", *(row["experiment"] for row in rows)).returncode == 0
    assert {row["experiment"] for row in experiments(project)} == known


def test_experiments_need_git(tmp_path: Path) -> None:
    new_project(tmp_path)
    for arguments in (("experiments",), ("experiment", "model.n_layer=1")):
        ended = command(tmp_path, *arguments)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert "no git repository" in ended.stderr
