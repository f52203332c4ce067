"""launch/slurm.sbatch starts one launcher on each node, and puts the job back into the queue after a save."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.launch.stand_ins import GPT_PIPELINE, SCONTROL, SRUN, Cluster

SCRIPT = tiny.ROOT / "launch/slurm.sbatch"
# What Slurm sets in a job of two nodes with eight GPUs each.
JOB = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
}
TOLD = "143 when told"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A project in which the job runs, on two nodes."""
    cluster = Cluster(tmp_path)
    cluster.install(".venv/bin/gpt-pipeline", GPT_PIPELINE)
    cluster.install("bin/srun", SRUN)
    cluster.install("bin/scontrol", SCONTROL)
    return cluster


def requeued(cluster: Cluster) -> list[str]:
    """The jobs that were put back into the queue."""
    return [call["called"][2] for call in cluster.calls("scontrol") if call["called"][1] == "requeue"]


def test_each_node_starts_one_launcher_that_knows_the_others(cluster: Cluster) -> None:
    ended = cluster.bash(str(SCRIPT), "gpt2", **JOB)
    assert (ended.returncode, ended.stderr) == (0, "")
    preset, *launchers = cluster.calls("gpt-pipeline")
    assert preset["called"][1:] == ["preset", "gpt2"] and preset["NODE_RANK"] is None
    by_rank = {call["NODE_RANK"]: call for call in launchers}
    assert len(launchers) == 2
    assert by_rank["0"]["called"][1:] == ["run"] and by_rank["1"]["called"][1:] == ["join"]
    shared = ["NPROC", "NNODES", "MASTER_ADDR", "MASTER_PORT"]
    assert [[call[name] for name in shared] for call in launchers] == 2 * [["8", "2", "node07", "26912"]]
    (srun,) = cluster.calls("srun")
    assert srun["SRUN_CPUS_PER_TASK"] == "64" and "--wait=0" in srun["called"]
    assert not requeued(cluster)


def test_without_a_preset_params_yaml_stays(cluster: Cluster) -> None:
    assert cluster.bash(str(SCRIPT), **JOB).returncode == 0
    assert sorted(call["called"][1] for call in cluster.calls("gpt-pipeline")) == ["join", "run"]


@pytest.mark.parametrize(
    ("run", "join", "limit", "status", "again"),
    [
        (TOLD, TOLD, True, 143, True),  # both save at the time limit; node 0 needs longer
        (TOLD, "0", True, 143, True),
        ("0", "0", False, 0, False),
        ("2", TOLD, False, 2, False),  # node 0 refuses
        ("1", TOLD, False, 1, False),
        ("3", "3", False, 3, False),  # all nodes see that the loss is not finite
        (TOLD, "2", False, 255, False),  # another node refuses: not again and again
        (TOLD, "137", False, 255, False),
    ],
)
def test_node_0_says_how_it_ended(
    cluster: Cluster, run: str, join: str, limit: bool, status: int, again: bool
) -> None:
    limited = {"TIME_LIMIT": "1"} if limit else {}
    ended = cluster.bash(str(SCRIPT), **JOB, **limited, ENDS_RUN=run, ENDS_JOIN=join)
    assert (ended.returncode, requeued(cluster)) == (status, ["123456"] if again else [])


def test_a_refused_preset_ends_the_job(cluster: Cluster) -> None:
    assert cluster.bash(str(SCRIPT), "gpt3", **JOB, ENDS_PRESET="2").returncode == 2
    assert not cluster.calls("srun")


def test_a_job_without_gpus_is_told_so_unless_it_names_its_processes(cluster: Cluster) -> None:
    without = {name: value for name, value in JOB.items() if name != "SLURM_GPUS_ON_NODE"}
    ended = cluster.bash(str(SCRIPT), **without)
    assert ended.returncode and "no GPUs: add --gpus-per-node" in ended.stderr
    assert not cluster.calls("srun")
    assert cluster.bash(str(SCRIPT), **without, NPROC="2").returncode == 0
    assert {call["NPROC"] for call in cluster.calls("gpt-pipeline")} == {"2"}


def test_slurm_itself_takes_the_job() -> None:
    """Where there is a cluster: its own parser, and its scheduler."""
    if not shutil.which("sbatch"):
        pytest.skip("no sbatch here")
    if subprocess.run(["timeout", "5", "scontrol", "ping"], capture_output=True).returncode:
        pytest.skip("no cluster answers here")
    small = ["--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
    command = ["sbatch", "--test-only", *small, str(SCRIPT)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NPROC": "1"})
    assert ended.returncode == 0 and re.search(r"Job \d+ to start at", ended.stderr), ended.stderr
