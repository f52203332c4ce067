"""Training on several processes and nodes: one is lost, or all are, and it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from tests.faults.kills import EQUAL, STATUS
from tests.faults.project import COMMANDS, Ended, Outcome, Project, World, last_line, refused, same
from tests.faults.rank import HARM
from tests.faults.table import Trial, fault

CLOSE = 1e-5  # losses of FSDP and of one process
SECONDS = 120  # what takes longer hangs


def train(project: Project, ranks: int, mode: str, harm: str = "", **environment: str) -> Ended:
    """Train on so many processes, of which one may do harm (see `rank`)."""
    line = f"exec python -m tests.faults.rank -S runtime.parallel={mode}"
    return project.process(line, NPROC=str(ranks), **{HARM: harm}, **environment)


@cache
def undisturbed(world: World, mode: str) -> Outcome:
    """The results on two processes: with DDP those of one."""
    if mode == "ddp":
        return world.reference
    project = world.project("tokens")
    assert train(project, 2, mode).status == 0
    return project.outcome()


def goes_on(project: Project, ranks: int, mode: str, reference: Outcome | None) -> None:
    """Train again, to the end; unless `reference` is None, the results must be those."""
    ended = train(project, ranks, mode)
    assert ended.status == 0, f"again: status {ended.status}: {last_line(ended)}"
    assert "continuing after step" in ended.err, "it begins from the start"
    if reference is not None:
        same(project, reference, *COMMANDS["train"][2])


def losses(project: Project) -> list[float]:
    """What a run ends with."""
    finished = json.loads((project.folder / "results/run.json").read_bytes())["finished"]
    return [finished[name] for name in ("last_val_loss", "train_loss")]


@fault(
    "kill-rank",
    "`kill -9` of one of two processes that train, with DDP and FSDP: in a step, in an evaluation, while a "
    "checkpoint is gathered from both and while it is written",
    "both start again after the last checkpoint, and the call ends with the result of an undisturbed one, "
    "bit for bit",
)
def kill_rank(world: World) -> Iterator[Trial]:
    for mode, rank, moment in (
        ("ddp", 1, "step"),
        ("ddp", 1, "evaluation"),
        ("ddp", 0, "writing"),
        ("fsdp", 0, "step"),
        ("fsdp", 1, "gathering"),
        ("fsdp", 0, "writing"),
    ):
        harm, reference = f"{rank} kill {moment}", undisturbed(world, mode)
        yield f"{mode}-{moment}", partial(_lose_rank, mode, harm, reference)


def _lose_rank(mode: str, harm: str, reference: Outcome, world: World) -> None:
    project = world.project("tokens")
    ended = train(project, 2, mode, harm)
    assert ended.status == 0, f"status {ended.status}: {last_line(ended)}"
    assert "starting again (1 of 3)" in ended.err, "no process was lost"
    assert "continuing after step" in ended.err, "it begins from the start"
    assert "Traceback" not in ended.err, "a traceback"
    same(project, reference, *COMMANDS["train"][2])


@fault(
    "kill-all-ranks",
    "`kill -9` of two processes and their launcher at once, or of the launcher alone; then training again on "
    "two processes, on one, and with FSDP after DDP",
    "it goes on after the last checkpoint, and ends with the result of an undisturbed run, bit for bit; "
    "after a change to or from FSDP with its losses, up to 0.00001",
)
def kill_all_ranks(world: World) -> Iterator[Trial]:
    for mode, act, moment, ranks, then in (
        ("ddp", "kill-all", "step", 2, "ddp"),
        ("ddp", "kill-all", "writing", 1, "auto"),
        ("ddp", "kill-all", "step", 2, "fsdp"),
        ("ddp", "kill-launcher", "step", 2, "ddp"),
        ("fsdp", "kill-all", "writing", 2, "fsdp"),
        ("fsdp", "kill-all", "gathering", 1, "auto"),
    ):
        exact = (mode == "fsdp") == (then == "fsdp")
        reference = undisturbed(world, mode) if exact else None
        harm = f"0 {act} {moment}"
        yield f"{mode}-{act}-{moment}-{ranks}-{then}", partial(_lose_all, mode, harm, ranks, then, reference)


def _lose_all(mode: str, harm: str, ranks: int, then: str, reference: Outcome | None, world: World) -> None:
    project = world.project("tokens")
    ended = train(project, 2, mode, harm)
    assert ended.status == -signal.SIGKILL, f"status {ended.status}: {last_line(ended)}"
    goes_on(project, ranks, then, reference)
    for found, expected in zip(losses(project), losses(world.state("trained")), strict=True):
        assert abs(found - expected) < CLOSE, f"a loss of {found}, not {expected}"


@fault(
    "signal-launcher",
    "SIGTERM, once and twice, and SIGINT to the launcher of two processes, in a step and in a save; SIGTERM "
    "while it waits for another node",
    f"the state is saved, the status is {STATUS[signal.SIGTERM]} or {STATUS[signal.SIGINT]}, and {EQUAL}",
)
def signal_launcher(world: World) -> Iterator[Trial]:
    for mode, act, moment in (
        ("ddp", "term", "writing"),
        ("ddp", "term-twice", "step"),
        ("ddp", "int", "step"),
        ("fsdp", "term", "step"),
    ):
        yield f"{mode}-{act}-{moment}", partial(_tell_launcher, mode, act, moment, undisturbed(world, mode))
    yield "alone", _tell_alone


def _tell_launcher(mode: str, act: str, moment: str, reference: Outcome, world: World) -> None:
    project = world.project("tokens")
    number = signal.SIGINT if act == "int" else signal.SIGTERM
    ended = train(project, 2, mode, f"1 {act} step" if moment == "step" else f"0 {act} {moment}")
    assert "Traceback" not in ended.err, f"a traceback: {last_line(ended)}"
    assert ended.status == STATUS[number], f"status {ended.status}: {last_line(ended)}"
    goes_on(project, 2, mode, reference)


def _tell_alone(world: World) -> None:
    project = world.project("tokens")
    cluster = Cluster(project, project)
    node = cluster.start(0, "-m", "stages.train")
    wait_for(lambda: listening(cluster.port), node)
    node.terminate()
    status = node.wait(20)
    assert status == STATUS[signal.SIGTERM], f"status {status}: {cluster.said(0)}"


@fault(
    "kill-node",
    "`kill -9` of all processes of node 0, or of node 1, while both train (`gpt-pipeline run` and `join`, in "
    "two folders of one machine)",
    "without node 0, node 1 ends in one line; node 0 waits for node 1; the commands that ended again end "
    "with the result of an undisturbed run",
    dvc=True,
)
def kill_node(world: World) -> Iterator[Trial]:
    for lost in (0, 1):
        yield str(lost), partial(_lose_node, lost)


class Cluster:
    """Two nodes with a process each, on this machine: two folders."""

    def __init__(self, *nodes: Project) -> None:
        self.nodes = nodes
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    def start(self, number: int, *arguments: str) -> subprocess.Popen[bytes]:
        project = self.nodes[number]
        variables = {"NPROC": "1", "NNODES": "2", "NODE_RANK": str(number), "MASTER_ADDR": "127.0.0.1"}
        environment = project.environment | variables | {"MASTER_PORT": str(self.port)}
        with self.output(number).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *arguments], cwd=project.folder, env=environment, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def output(self, number: int) -> Path:
        return self.nodes[number].folder.with_name(f"node{number}.txt")

    def said(self, number: int) -> str:
        return self.output(number).read_text(errors="replace")


def _lose_node(lost: int, world: World) -> None:
    cluster = Cluster(world.project("dvc"), world.project("dvc"))
    shutil.rmtree(cluster.nodes[1].folder / ".dvc/cache")
    commands = [("-m", "pipeline.cli.main", name) for name in ("run", "join")]
    running = [cluster.start(number, *commands[number]) for number in (0, 1)]
    checkpoints = cluster.nodes[0].checkpoints
    wait_for(lambda: any(path.name >= "step-000000100" for path in checkpoints()), running[0])
    end_family(running[lost])
    if lost == 0:
        status = running[1].wait(SECONDS)
        refused(Ended(status, "", cluster.said(1)), status=1)
        running[1] = cluster.start(1, *commands[1])
    running[lost] = cluster.start(lost, *commands[lost])
    for number, process in enumerate(running):
        status = process.wait(SECONDS)
        assert status == 0, f"node {number}: status {status}: {cluster.said(number)[-300:]}"
    # Sums over two processes round otherwise: a loss in the log may differ in its last digit.
    same(cluster.nodes[0], world.dvc_reference, *(world.dvc_reference.keys() - {"results/log.csv"}))


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Return when the condition is true; fails if the process ends before, or after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it never came so far"
        time.sleep(0.01)


def listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def end_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, as if the machine went away: none has the time to notice."""
    stopped: list[int] = []
    found = [process.pid]
    while found:
        one = found.pop()
        os.kill(one, signal.SIGSTOP)
        stopped.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    for one in stopped:
        os.kill(one, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{one}").exists() for one in stopped):  # until then DVC takes them for alive
        assert time.monotonic() < deadline, "a process that was killed is still there"
        time.sleep(0.01)
