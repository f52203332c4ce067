"""Two machines of a cluster, as two folders: node 0 runs the pipeline, the other joins its training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.ranks import environment
from tests.stages.test_dvc import new_project

pytestmark = pytest.mark.xdist_group("ranks")


def two_free_ports() -> int:
    """A port that is free, as is the one after it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            try:
                with socket.create_server(("", port + 1)):
                    return port
            except (OSError, OverflowError):
                continue


class Cluster:
    """A project on two machines; the second has the shards, but neither runs nor results."""

    def __init__(self, folder: Path) -> None:
        self.first, self.second = folder / "first", folder / "second"
        self.first.mkdir()
        new_project(self.first)
        self.port = two_free_ports()
        assert self.start(self.first, "repro", NNODES="1").wait() == 0
        shutil.copytree(self.first, self.second, ignore=shutil.ignore_patterns("results", ".dvc", "runs"))

    def start(self, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        node = "0" if folder == self.first else "1"
        cluster = {
            "NNODES": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "NODE_RANK": node,
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", *arguments],
            cwd=folder,
            env=environment(1, PYTHONPATH=str(folder), PATH=path, SHELL="/bin/sh", **(cluster | variables)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def losses(self) -> tuple[float, ...]:
        found = json.loads((self.first / "results/run.json").read_text())["finished"]
        return found["last_val_loss"], found["train_loss"]

    @contextmanager
    def changed(self, **train: object) -> Iterator[None]:
        """Within the block, both params.yaml have other values of the train or the model section."""
        before = (self.first / "params.yaml").read_text()
        lines = before.splitlines()
        for name, value in train.items():
            lines = [f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in lines]
        try:
            self._put("\n".join(lines) + "\n")
            yield
        finally:
            self._put(before)

    def _put(self, params: str) -> None:
        for folder in (self.first, self.second):
            (folder / "params.yaml").write_text(params)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


def test_another_machine_joins_the_training(cluster: Cluster) -> None:
    alone = cluster.losses()
    shutil.rmtree(cluster.first / "runs")
    shutil.rmtree(cluster.first / ".dvc/cache/runs")
    (cluster.first / "dvc.lock").unlink()  # so that it trains again
    joining = cluster.start(cluster.second, "join")
    running = cluster.start(cluster.first, "run")
    said, joined = running.communicate(timeout=300)[0], joining.communicate(timeout=300)[0]
    assert (running.returncode, joining.returncode) == (0, 0), said + joined
    assert "on 2 x cpu (ddp)" in said
    assert "waiting for" in joined and "step" not in joined
    assert cluster.losses() == pytest.approx(alone, abs=1e-5)
    assert not (cluster.second / "runs").exists() and not (cluster.second / "results").exists()


def test_a_node_that_joins_ends_where_nothing_is_left_to_train(cluster: Cluster) -> None:
    assert cluster.start(cluster.first, "repro", NNODES="1").wait() == 0
    joining, running = cluster.start(cluster.second, "join"), cluster.start(cluster.first, "run")
    assert (running.wait(300), joining.wait(300)) == (0, 0)
    assert joining.stdout is not None and "node 0 ended without training" in joining.stdout.read()


def test_a_node_is_told_if_node_0_is_lost(cluster: Cluster) -> None:
    joining = cluster.start(cluster.second, "join")
    with socket.create_server(("127.0.0.1", cluster.port + 1)) as node_0:
        connection, _ = node_0.accept()
        connection.close()
    said = joining.communicate(timeout=60)[0]
    assert joining.returncode == 1 and "error: node 0 at" in said and "was lost before it trained" in said


@pytest.mark.parametrize(
    ("change", "status"), [({"learning_rate": "1.0e+30", "decay_lr": "false"}, 3), ({"n_head": 3}, 2)]
)
def test_run_ends_with_the_status_of_the_stage(
    cluster: Cluster, change: dict[str, object], status: int
) -> None:
    with cluster.changed(**change):
        running = cluster.start(cluster.first, "run", NNODES="1")
        said = running.communicate(timeout=300)[0]
    assert running.returncode == status, said


def test_run_waits_until_a_stopped_training_is_saved(cluster: Cluster) -> None:
    shutil.rmtree(cluster.first / "runs")
    with cluster.changed(max_iters=100000):
        running = cluster.start(cluster.first, "run", NNODES="1")
        until = time.monotonic() + 120
        while not list(cluster.first.glob("runs/*/step-?????????")):
            assert time.monotonic() < until and running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=120)[0]
    assert running.returncode == 143 and "stopped after step" in said


@pytest.mark.parametrize(
    ("command", "variables", "line"),
    [
        ("join", {"NODE_RANK": "0"}, "NNODES=2 NODE_RANK=0: join is for the other nodes"),
        ("join", {"NNODES": "1"}, "NNODES=1 NODE_RANK=1: join is for the other nodes"),
        ("join", {"MASTER_ADDR": ""}, "NNODES=2: MASTER_ADDR is missing"),
        ("run", {}, "NODE_RANK=1: node 0 runs the pipeline; here: gpt-pipeline join"),
    ],
)
def test_a_node_in_the_wrong_place_is_told_so(
    cluster: Cluster, command: str, variables: dict[str, str], line: str
) -> None:
    ended = cluster.start(cluster.second, command, **variables)
    said = ended.communicate(timeout=60)[0]
    assert ended.returncode == 2 and said.startswith(f"error: {line}"), said


def test_a_node_without_shards_is_told_where_they_come_from(cluster: Cluster) -> None:
    shards = cluster.second / "data/tiny/char"
    shards.rename(shards.with_name("away"))
    try:
        ended = cluster.start(cluster.second, "join")
        said = ended.communicate(timeout=60)[0]
    finally:
        shards.with_name("away").rename(shards)
    assert ended.returncode == 2 and "gpt-pipeline pull-data" in said
