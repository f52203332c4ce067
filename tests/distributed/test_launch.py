"""Training on several processes, as a user starts, hurts, stops and continues it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.distributed.launch import FOLDER, STOP
from pipeline.storage.lock import is_alive
from tests.distributed.ranks import environment, train, train_command

pytestmark = pytest.mark.xdist_group("ranks")

PLAIN = (
    "model.dropout=0.0",
    "train.always_save_checkpoint=true",
)  # ranks that share a micro-batch drop others
LONG = ("train.max_iters=100000", "train.eval_interval=100")


def metrics(folder: Path) -> dict[str, Any]:
    """What a training in `folder` ended with."""
    found: dict[str, Any] = json.loads((folder / "results/run.json").read_text())["finished"]
    return found


@pytest.fixture
def alone(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metrics of one process."""
    ended = train(tiny_project, 1, *PLAIN)
    assert ended.returncode == 0, ended.stderr
    found = metrics(tiny_project)
    (tiny_project / "runs").rename(tmp_path_factory.mktemp("alone") / "runs")
    return found


def test_a_run_continues_on_other_numbers_of_ranks_and_in_the_other_mode(
    tiny_project: Path, alone: dict[str, Any]
) -> None:
    for steps, ranks, mode in ((8, 2, "fsdp"), (12, 4, "ddp"), (16, 4, "fsdp"), (20, 1, "auto")):
        ended = train(tiny_project, ranks, f"train.max_iters={steps}", f"runtime.parallel={mode}", *PLAIN)
        assert ended.returncode == 0, ended.stderr
        assert ("continuing after step" in ended.stderr) == (steps > 8)
    assert metrics(tiny_project)["last_val_loss"] == pytest.approx(alone["last_val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("ranks", "overrides", "variables", "status", "line"),
    [
        ("two", [], {}, 2, "NPROC=two: set it to a whole number from 1 on"),
        ("0", [], {}, 2, "NPROC=0: set it to a whole number from 1 on"),
        ("1", [], {"NNODES": "2"}, 2, "NNODES=2: MASTER_ADDR is missing; set it to the address of node 0"),
        (
            "1",
            [],
            {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1"},
            2,
            "NODE_RANK=2: there are NNODES=2 nodes; number them from 0 to 1",
        ),
        (
            "1",
            [],
            {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "65535"},
            2,
            "MASTER_PORT=65535: set it to 65534 or less",
        ),
        ("1", ["runtime.parallel=fsdp"], {}, 2, "runtime.parallel = fsdp: needs several processes"),
        ("3", [], {}, 2, "NPROC: 3 processes cannot have equally many of the sequences"),
        ("2", ["runtime.parallel=fsdp", "train.dtype=float16"], {}, 2, "runtime.parallel = fsdp: not with"),
        ("2", ["runtime.device=cuda"], {}, 2, "runtime.device = cuda: this machine has 0 usable CUDA GPUs"),
        ("2", ["data.dataset=absent"], {}, 2, "data/absent/char"),
        ("2", ["train.learning_rate=1e30", "train.decay_lr=false"], {}, 3, "step 2: the "),
    ],
)
def test_a_mistake_is_one_line_of_one_rank(
    tiny_project: Path, ranks: str, overrides: list[str], variables: dict[str, str], status: int, line: str
) -> None:
    ended = train(tiny_project, ranks, *overrides, **variables)
    (said,) = (said for said in ended.stderr.splitlines() if not said.startswith(("runs/", "step ")))
    assert ended.returncode == status and not ended.stdout
    assert said.startswith(f"error: {line}"), said


def test_other_parameters_on_one_rank_are_refused(tiny_project: Path) -> None:
    lead = "import os, sys\nif os.environ.get('RANK') == '1': sys.argv += ['-S', 'model.dropout=0.2']\n"
    (tiny_project / "sitecustomize.py").write_text(lead)
    path = os.pathsep.join([str(tiny_project), environment(1)["PYTHONPATH"]])
    ended = train(tiny_project, 2, PYTHONPATH=path)
    (said,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and said.startswith("error: the parameters: process 1 has others"), said


def test_only_training_and_evaluation_start_on_several_processes(tiny_project: Path) -> None:
    program = [sys.executable, "-m", "stages.tokenize"]
    variables = {**environment(1), "RANK": "0", "WORLD_SIZE": "2"}
    ended = subprocess.run(program, cwd=tiny_project, env=variables, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: this command is one process, but torchrun started 2;")


def test_torchrun_starts_the_stage_too(tiny_project: Path, alone: dict[str, Any]) -> None:
    program = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *train_command(*PLAIN)[1:],
    ]
    ended = subprocess.run(
        [sys.executable, *program], cwd=tiny_project, env=environment(""), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("results/model") == 1  # one rank says so
    assert metrics(tiny_project)["last_val_loss"] == pytest.approx(alone["last_val_loss"], abs=1e-5)


class Training:
    """A training on two ranks that goes on until it is hurt."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            train_command(*overrides), cwd=folder, env=environment(2), stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.02)

    def checkpoints(self) -> list[Path]:
        return list(self.folder.glob("runs/*/step-?????????"))

    @property
    def ranks(self) -> list[int]:
        launcher = self.process.pid
        return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]

    @property
    def is_told_to_stop(self) -> bool:
        variables = Path(f"/proc/{self.ranks[0]}/environ").read_text().split("\0")
        (folder,) = (value for name, _, value in (one.partition("=") for one in variables) if name == FOLDER)
        return Path(folder, STOP).exists()

    def end(self) -> str:
        _, error = self.process.communicate(timeout=120)
        return error


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="ranks are found in /proc")


@needs_proc
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_rank_starts_again_from_the_last_checkpoint(tiny_project: Path, victim: int) -> None:
    longer = ("train.max_iters=60", "train.eval_interval=60")
    training = Training(tiny_project, *longer)
    training.wait_for(training.checkpoints)
    os.kill(training.ranks[victim], signal.SIGKILL)
    said = training.end()
    assert training.process.returncode == 0, said
    assert "a process was lost; starting again (1 of 3)" in said and "continuing after step" in said
    found = metrics(tiny_project)
    (tiny_project / "runs").rename(tiny_project / "hurt")
    assert train(tiny_project, 2, *longer).returncode == 0
    assert metrics(tiny_project)["last_val_loss"] == found["last_val_loss"]


@needs_proc
@pytest.mark.parametrize(("whom", "number"), [("launcher", signal.SIGTERM), ("rank", signal.SIGINT)])
def test_a_signal_stops_all_ranks_after_the_same_step(
    tiny_project: Path, whom: str, number: signal.Signals
) -> None:
    training = Training(tiny_project, *LONG)
    training.wait_for(training.checkpoints)
    os.kill(training.process.pid if whom == "launcher" else training.ranks[1], number)
    said = training.end()
    assert training.process.returncode == 128 + number, said
    assert "stopped after step" in said.splitlines()[-1]


@needs_proc
def test_a_second_signal_ends_even_ranks_that_hang(tiny_project: Path) -> None:
    training = Training(tiny_project, *LONG)
    training.wait_for(training.checkpoints)
    ranks = training.ranks
    os.kill(ranks[1], signal.SIGSTOP)
    training.process.send_signal(signal.SIGTERM)
    training.wait_for(lambda: training.is_told_to_stop)
    training.process.send_signal(signal.SIGTERM)
    training.end()
    assert training.process.returncode == 128 + signal.SIGTERM
    assert not any(is_alive(rank) for rank in ranks)


@needs_proc
def test_ranks_without_their_launcher_save_and_end(tiny_project: Path) -> None:
    training = Training(tiny_project, *LONG)
    training.wait_for(training.checkpoints)
    training.process.kill()
    assert "stopped after step" in training.end()  # at the end of what the ranks print
