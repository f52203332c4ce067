"""Programs that record how they are called, in place of those of a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = f"""#!{sys.executable} -ES
import json, os, signal, subprocess, sys, time
from pathlib import Path

def record():
    names = ["NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SRUN_CPUS_PER_TASK"]
    call = {{name: os.environ.get(name) for name in names}}
    call["called"] = [Path(sys.argv[0]).name, *sys.argv[1:]]
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
"""

# ENDS_RUN and ENDS_JOIN say how they end: `2`, or `143 when told`, after a moment in which they save.
GPT_PIPELINE = """
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
record()  # from here on it can be told
status, _, when = os.environ.get("ENDS_" + sys.argv[1].upper(), "0").partition(" ")
waits_until = time.monotonic() + 20
while when and not told and time.monotonic() < waits_until:
    time.sleep(0.02)
if when:
    time.sleep(0.6 if sys.argv[1] == "run" else 0.1)
sys.exit(int(status))
"""

# A task on each node. Each process of a task gets the signal, as from Slurm; the highest status is returned.
SRUN = """
record()
command = sys.argv[1:]
kill = "--kill-on-bad-exit=1" in command
while command[0].startswith("-"):
    command.pop(0)
nodes = range(int(os.environ["SLURM_JOB_NUM_NODES"]))
of_node = [{**os.environ, "SLURM_NODEID": str(node)} for node in nodes]
tasks = [subprocess.Popen(command, env=env, start_new_session=True) for env in of_node]
calls, signalled = Path(os.environ["CALLS"]), False
while None in [task.poll() for task in tasks]:
    time.sleep(0.02)
    started = [json.loads(line) for line in calls.read_text().splitlines()]
    all_run = len([call for call in started if call["called"][1] in ("run", "join")]) == len(nodes)
    limit = "TIME_LIMIT" in os.environ and all_run
    if not signalled and (limit or kill and any(task.returncode for task in tasks)):
        signalled = True
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGTERM)
statuses = [task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks]
sys.exit(max(statuses))
"""

SCONTROL = """
record()
if sys.argv[1:3] == ["show", "hostnames"]:
    print("node07\\nnode08")
"""

RECORDS = "record()\n"


@dataclass
class Cluster:
    """A folder with stand-ins, and what was called in it."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "calls"

    def install(self, path: str, behavior: str) -> None:
        """Put a program there that records its calls, and then behaves like that."""
        program = self.folder / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(RECORD + behavior, encoding="utf-8")
        program.chmod(0o755)

    def bash(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run bash in the folder with these variables, the stand-ins of bin/ first in PATH."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        known = {"PATH": path, "HOME": str(self.folder / "home"), "CALLS": str(self.log)}
        return subprocess.run(
            ["bash", *arguments],
            cwd=self.folder,
            env=known | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, program: str) -> list[dict[str, Any]]:
        """The arguments and variables of each call of a program: `called` is its words."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [call for call in map(json.loads, lines) if call["called"][0] == program]
