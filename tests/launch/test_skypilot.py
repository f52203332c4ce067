"""launch/skypilot.yaml: what its commands do on each node, and that SkyPilot itself reads it.

SkyPilot cannot be installed beside this project, because it needs an older click. Where there is a `sky` in
PATH, as `uv tool install skypilot` puts it there, the Python of that command reads the file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # as SkyPilot reads it

from tests import tiny
from tests.launch.stand_ins import GPT_PIPELINE, RECORDS, Cluster

TASK = tiny.ROOT / "launch/skypilot.yaml"
# What SkyPilot adds to `run`: with the status of the last command, it waits for the bucket.
AFTER_RUN = '\nstatus=$?\ntouch "$HOME/waited"\nexit $status'


@pytest.fixture
def task() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def node(tmp_path: Path) -> Cluster:
    """A machine with the project's folder, and a bucket in its home."""
    node = Cluster(tmp_path)
    node.install(".venv/bin/gpt-pipeline", GPT_PIPELINE)
    node.install(
        ".venv/bin/dvc",
        f"import subprocess\nsubprocess.check_call(['{sys.executable}', '-m', 'dvc', *sys.argv[1:]])\n",
    )
    node.install("bin/make", RECORDS)
    node.install("bin/flock", RECORDS)
    (tmp_path / "home/bucket").mkdir(parents=True)
    return node


def run(node: Cluster, task: dict[str, Any], rank: int, **variables: str) -> int:
    """Do what a node of two does, and return its exit status."""
    given = {
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    }
    return node.bash("-c", task["run"] + AFTER_RUN, **given, **variables).returncode


@pytest.mark.parametrize(("rank", "command"), [(0, "run"), (1, "join")])
def test_each_node_starts_one_launcher_that_knows_the_others(
    node: Cluster, task: dict[str, Any], rank: int, command: str
) -> None:
    (node.folder / "results").mkdir()
    assert run(node, task, rank) == 0
    (call,) = node.calls("gpt-pipeline")
    assert call["called"][1:] == [command]
    names = ["NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR"]
    assert [call[name] for name in names] == ["8", "2", str(rank), "10.0.0.7"]
    assert call["MASTER_PORT"].isdigit()


@pytest.mark.parametrize(
    ("rank", "ends", "status"),
    [
        (0, "143", 143),
        (0, "2", 2),
        (0, "3", 3),
        (0, "1", 1),
        (1, "0", 0),
        (1, "3", 0),
        (1, "143", 0),
        (1, "2", 1),
    ],
)
def test_node_0_says_how_it_ended_and_the_bucket_gets_all(
    node: Cluster, task: dict[str, Any], rank: int, ends: str, status: int
) -> None:
    """Status 143 of any node would start the job again, and a status of another node would end node 0."""
    assert run(node, task, rank, ENDS_RUN=ends, ENDS_JOIN=ends) == status
    assert (node.folder / "home/waited").exists()
    assert 143 in task["resources"]["job_recovery"]["recover_on_exit_codes"]


def test_results_are_copied_to_the_bucket_when_the_pipeline_is_done(
    node: Cluster, task: dict[str, Any]
) -> None:
    results, bucket = node.folder / "results", node.folder / "home/bucket"
    results.mkdir()
    (results / "live.csv").symlink_to(node.folder / "calls")
    assert run(node, task, 0, ENDS_RUN="1") == 1
    assert not (bucket / "results").exists()
    assert run(node, task, 0) == 0
    assert (bucket / "results/live.csv").is_file() and not (bucket / "results/live.csv").is_symlink()


def test_checkpoints_and_the_cache_of_dvc_are_in_the_bucket(node: Cluster, task: dict[str, Any]) -> None:
    """Also for a second start on the same machine."""
    (mount,) = task["file_mounts"]
    assert mount == "~/bucket" and task["file_mounts"][mount]["mode"] == "MOUNT_CACHED"
    shutil.copytree(
        tiny.ROOT / ".dvc", node.folder / ".dvc", ignore=shutil.ignore_patterns("*.local", "tmp", "cache")
    )
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.check_call([*dvc, "config", "--local", "core.no_scm", "true"], cwd=node.folder)
    bucket = node.folder / "home/bucket"
    for preset, nodes in (("gpt2", "1"), ("", "2")):
        ended = node.bash("-c", task["setup"], PRESET=preset, SKYPILOT_NUM_NODES=nodes)
        assert ended.returncode == 0, ended.stderr
    assert [call["called"][1:] for call in node.calls("make")] == [["install"], ["install"]]
    assert [call["called"][1:] for call in node.calls("gpt-pipeline")] == [["preset", "gpt2"], ["pull-data"]]
    assert (node.folder / "runs").resolve() == bucket / "runs"
    (node.folder / "text").write_text("a text", encoding="utf-8")
    subprocess.check_call([*dvc, "add", "--quiet", "text"], cwd=node.folder)
    assert [path.read_text() for path in (bucket / "cache/files").rglob("*") if path.is_file()] == ["a text"]
    assert not (node.folder / "text").is_symlink()  # training reads it from the machine's disk
    (node.folder / "text").unlink()
    subprocess.check_call([*dvc, "pull", "--quiet"], cwd=node.folder)  # from the same place
    assert (node.folder / "text").read_text(encoding="utf-8") == "a text"


def test_a_failed_preparation_ends_the_setup(node: Cluster, task: dict[str, Any]) -> None:
    node.install("bin/make", "sys.exit(2)\n")
    assert node.bash("-c", task["setup"], PRESET="", SKYPILOT_NUM_NODES="1").returncode == 2
    assert not (node.folder / "runs").is_symlink()


READ = """
import json, sys
import sky, yaml
task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])), env_overrides=[("BUCKET", "some-bucket")])
(bucket,) = task.storage_mounts.values()
recovers = [one.job_recovery["recover_on_exit_codes"] for one in task.resources]
kinds = {str(one.cloud): [one.use_spot, one.accelerators] for one in task.resources}
read = {"nodes": task.num_nodes, "bucket": [bucket.name, bucket.mode.value], "kinds": kinds}
print(json.dumps({**read, "recovers": recovers}))
"""


def test_skypilot_itself_reads_the_task(tmp_path: Path) -> None:
    command = shutil.which("sky")
    if not command:
        pytest.skip("no sky in PATH (uv tool install skypilot)")
    python = Path(command).read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    ended = subprocess.run(
        [python, "-c", READ, str(TASK)],
        cwd=tiny.ROOT,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    read = json.loads(ended.stdout.splitlines()[-1])
    assert read["nodes"] == 2 and read["bucket"] == ["some-bucket", "MOUNT_CACHED"]
    gpus = {"A100": 8}
    assert read["kinds"] == {"Slurm": [False, gpus], "Kubernetes": [False, gpus], "None": [True, gpus]}
    assert read["recovers"] == 3 * [[143]]
