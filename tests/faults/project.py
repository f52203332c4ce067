"""The tiny project that is hurt; its commands run in forks of a process that has imported PyTorch."""

from __future__ import annotations

import atexit
import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config.command_line import FROM_MAKE, run
from pipeline.config.presets import overlay
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_text
from tests import tiny
from tests.faults.moments import killed_after_step
from tests.faults.operations import Inject, recorded

SPEED = {"tokens_per_second", "mfu", "seconds"}
# The same in a report, and the hashes of files with them.
SPEED_ON_PAGE = re.compile(
    r'"(seconds|tokens_per_second|results/log\.csv|results/metrics\.json)":(\[[^]]*\]|[^],}]*)'
)
SECONDS = 60  # a command that runs longer hangs

SETTINGS = [
    "data.shard_tokens=2048",
    "train.max_iters=40",
    "train.decay_lr=false",
    "train.eval_interval=20",
    "runtime.checkpoint_interval=10",
    "depth.eval_iters=3",
    "log.trackers=[csv]",  # others only warn of what hurts them; tests/train/test_trackers.py hurts them
]
BASELINE = "unigram"

# Every command of the matrix: what it runs, and what it leaves behind.
COMMANDS: dict[str, tuple[str, list[str], list[str]]] = {
    "download": ("stages.download", [], ["data/tiny/raw"]),
    "tokenize": ("stages.tokenize", [], ["data/tiny/char"]),
    "train": ("stages.train", [], ["results/model", "results/log.csv", "results/metrics.json"]),
    "eval": ("stages.eval_baselines", [BASELINE], ["results/baselines"]),
    "depth": (
        "stages.depth_curve",
        [],
        ["results/depth.csv", "results/depth.png", "results/stopping.csv", "results/loss.png"],
    ),
    "sample": ("stages.sample", ["--out", "results/samples.txt"], ["results/samples.txt"]),
    "report": ("stages.report", [], ["results/report.html"]),
    "export": ("pipeline.cli.export", [], ["results/export"]),
    "scaling": ("pipeline.cli.scaling", ["--sizes", "1x8,2x8,1x16", "--tokens", "64,128,256"], []),
    "summary": ("pipeline.cli.summary", [], []),
    "verify": ("pipeline.cli.verify", [], []),
    "upload": ("pipeline.cli.upload", ["user/name"], []),
    "push-data": ("pipeline.cli.push_data", ["--remote", "../remote"], []),
    "pull-data": ("pipeline.cli.pull_data", ["--remote", "../remote"], []),
}
IMPORTED = [importlib.import_module(module) for module, _, _ in COMMANDS.values()]  # once, before any fork

Outcome = dict[str, str]


class Skip(Exception):
    """This machine cannot try the fault; the message says why."""


@dataclass
class Ended:
    """How a command ended; a status below zero is the signal that killed it."""

    status: int
    out: str
    err: str


@dataclass
class Child:
    """A command that runs."""

    pid: int
    output: Path

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Fails if it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                out, err = (
                    self.output.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")
                )
                return Ended(os.waitstatus_to_exitcode(status), out, err)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"still runs after {seconds} s")
            time.sleep(0.002)


class Project:
    """A project in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder.with_name(folder.name + ".output")

    def start(self, command: str, *arguments: str, inject: Inject | None = None) -> Child:
        """Start a command in a forked process, after `inject` has prepared that process."""
        self.outputs.mkdir(exist_ok=True)
        output = self.outputs / f"{len(list(self.outputs.iterdir())):04d}"
        for end in (".out", ".err"):
            output.with_suffix(end).touch()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = self._in_child(command, arguments, output, inject)
            finally:
                os._exit(status)  # whatever is raised must not go on in a copy of the trial
        return Child(pid, output)

    def __call__(self, command: str, *arguments: str, inject: Inject | None = None) -> Ended:
        """Run a command to its end."""
        return self.start(command, *arguments, inject=inject).wait()

    def process(self, shell: str, **environment: str) -> Ended:
        """Run a line of shell in the project, with `python` and `dvc` of this environment."""
        ended = subprocess.run(
            ["sh", "-c", shell], cwd=self.folder, env=self.environment | environment, capture_output=True,
            text=True, check=False, timeout=4 * SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    @property
    def environment(self) -> dict[str, str]:
        """For true processes: the code is the copy in the project, if there is one."""
        root = self.folder if (self.folder / "pipeline").exists() else tiny.ROOT
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "SHELL": "/bin/sh",  # of DVC's stages
            "DVC_SITE_CACHE_DIR": str(self.folder.with_name(self.folder.name + ".site")),
            "DVC_NO_ANALYTICS": "1",
        }

    def runs(self) -> list[Path]:
        return sorted(path for path in (self.folder / "runs").glob("*") if path.is_dir())

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*/step-?????????"))

    def files(self, *below: str) -> list[str]:
        """The files in some folders, relative to the project, also behind links; without locks."""
        found = [
            os.path.relpath(os.path.join(folder, name), self.folder)
            for root in below
            for folder, _, names in os.walk(self.folder / root, followlinks=True)
            for name in names
        ]
        return sorted(name for name in found if not name.endswith("lock"))

    def tree(self) -> Outcome:
        """Every file and its content."""
        return {name: sha256_file(self.folder / name) for name in self.files(".")}

    def outcome(self) -> Outcome:
        """What the pipeline made, without what differs between two runs: times and how fast it went."""
        found = {name: self._content(self.folder / name) for name in self.files("data/tiny", "results")}
        for name in ("data/tiny/dataset.yaml", "results/run.json", "results/live.csv"):
            found.pop(name, None)
        return found

    def _content(self, path: Path) -> str:
        try:
            if path.name == "log.csv":
                with path.open(newline="") as file:
                    rows = [{k: v for k, v in row.items() if k not in SPEED} for row in csv.DictReader(file)]
                return json.dumps(rows)
            if path.name == "metrics.json":
                return json.dumps({k: v for k, v in json.loads(path.read_bytes()).items() if k not in SPEED})
            if path.name == "report.html":
                return SPEED_ON_PAGE.sub("", path.read_text())
            if path.name == "README.md":
                return re.sub(r"[\d,]+ seconds", "", path.read_text())
            if path.name == "manifest.json" and path.with_name("README.md").exists():
                return json.dumps(
                    {k: v for k, v in json.loads(path.read_bytes()).items() if k != "README.md"}
                )
        except (ValueError, AttributeError):
            pass  # damaged: its bytes tell
        return sha256_file(path)

    def _in_child(self, command: str, arguments: tuple[str, ...], output: Path, inject: Inject | None) -> int:
        """The status that a Python of its own would exit with."""
        for number, end in ((1, ".out"), (2, ".err")):
            descriptor = os.open(output.with_suffix(end), os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(other, signal.SIG_DFL)
        signal.alarm(0)
        os.chdir(self.folder)
        for name in ("DVC_ROOT", FROM_MAKE, "PIPELINE_MIRROR"):
            os.environ.pop(name, None)
        module, own, _ = COMMANDS[command]
        sys.argv = [module, *own, *arguments]
        try:
            if inject:
                inject(self.folder)
            run(sys.modules[module].main)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        threading._shutdown()  # type: ignore[attr-defined]  # what the end of Python does
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        return status


class World:
    """The states that trials start from, each made once, and what an undisturbed project ends with."""

    def __init__(self, base: Path, folder: Path) -> None:
        """`base` keeps the states; a trial may use `folder` as it likes."""
        self._base = base
        self.folder = folder
        self._known_places: dict[str, list[str]] = {}

    def prepare(self, with_dvc: bool) -> None:
        """Make all states."""
        text = self._base / "text/tiny.txt"
        write_text(text, tiny.text(1500))
        raw = self._new("raw")
        values = tiny.params(*SETTINGS).model_dump()
        values["baselines"] |= {"models": [BASELINE], "pretrained": []}
        write_text(raw.folder / "params.yaml", overlay(tiny.params_yaml("nanogpt"), values))
        write_spec(spec_for_text(str(text)), raw.folder / "data/tiny/dataset.yaml")
        self._derive("raw", "downloaded", "download")
        self._derive("downloaded", "tokens", "tokenize")
        self._derive("tokens", "trained", "train", "eval", "depth", "sample", "report", "export")
        half = self._derive("tokens", "interrupted")
        ended = half("train", inject=killed_after_step(35))
        assert ended.status == -signal.SIGKILL and len(half.checkpoints()) == 2, ended
        if with_dvc:
            self._prepare_dvc()

    def state(self, name: str) -> Project:
        """A project in this state, to look at only."""
        return Project(self._base / name)

    def project(self, state: str, folder: Path | None = None) -> Project:
        """A fresh copy of a project in this state."""
        folder = folder or self.folder / f"project{len(list(self.folder.iterdir()))}"
        _copy(self._base / state, folder)
        return Project(folder)

    @cached_property
    def reference(self) -> Outcome:
        return Project(self._base / "trained").outcome()

    @cached_property
    def dvc_reference(self) -> Outcome:
        return Project(self._base / "dvc-trained").outcome()

    def places(self, command: str) -> list[str]:
        """The operations of a command, in order, such as `fsync runs/0123/step-000000010`."""
        if command not in self._known_places:
            self._known_places[command] = self._places(command, BEFORE.get(command, "tokens"))
        return self._known_places[command]

    def for_trial(self, folder: Path) -> World:
        """The same states, and a folder for one trial."""
        return World(self._base, folder)

    def _places(self, command: str, state: str) -> list[str]:
        folder = self._base / f"places-{command}"
        _copy(self._base / state, folder)
        names: list[str] = []
        result = folder.with_suffix(".json")

        def inject(root: Path) -> None:
            recorded(names)(root)
            atexit.register(
                lambda: os.write(os.open(result, os.O_CREAT | os.O_WRONLY), json.dumps(names).encode())
            )

        ended = Project(folder)(command, inject=inject)
        assert ended.status == 0, ended.err
        places: list[str] = json.loads(result.read_text())
        return places

    def _new(self, name: str) -> Project:
        folder = self._base / name
        folder.mkdir(parents=True)
        return Project(folder)

    def _derive(self, state: str, name: str, *commands: str) -> Project:
        _copy(self._base / state, self._base / name)
        project = Project(self._base / name)
        for command in commands:
            ended = project(command)
            assert ended.status == 0, f"{command}: {ended.err}"
        return project

    def _prepare_dvc(self) -> None:
        """A project with its own copy of the code, under DVC and outside of git; 400 steps take a while."""
        project = self._derive("raw", "dvc")
        for name in ("pipeline", "stages", "presets"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(tiny.ROOT / name, project.folder / name, ignore=ignore)
        for name in ("dvc.yaml", ".dvcignore", ".dvc/config"):
            (project.folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(tiny.ROOT / name, project.folder / name)
        write_text(project.folder / ".dvc/config.local", "[core]\n    no_scm = true\n")
        params = project.folder / "params.yaml"
        write_text(params, params.read_text().replace("max_iters: 40", "max_iters: 400"))
        ended = project.process("dvc repro check_tokens")
        assert ended.status == 0, ended.err
        whole = self._derive("dvc", "dvc-trained")
        ended = whole.process("dvc repro")
        assert ended.status == 0, ended.err


BEFORE = {
    "download": "raw",
    "tokenize": "downloaded",
    "train": "tokens",
    "eval": "trained",
    "depth": "trained",
    "sample": "trained",
    "report": "trained",
    "export": "trained",
}


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with its hard links, which DVC makes into its cache, and its times."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def same(project: Project, reference: Outcome, *names: str) -> None:
    """Fail unless what is below `names` is as in the reference; without names, everything is compared."""
    outcome = project.outcome()
    where = tuple(names) or ("",)
    expected = {name: content for name, content in reference.items() if name.startswith(where)}
    found = {name: content for name, content in outcome.items() if name.startswith(where)}
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert not differ, f"differs from an undisturbed run: {', '.join(differ)}"


def again(project: Project, command: str, reference: Outcome) -> Ended:
    """Run a command once more; it must end well, with the result of an undisturbed run."""
    ended = project(command)
    assert ended.status == 0, f"the same command again: status {ended.status}: {last_line(ended)}"
    same(project, reference, *COMMANDS[command][2])
    return ended


def refused(ended: Ended, status: int = 2) -> None:
    """Fail unless the command ended with this status and one line that says why."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.err, f"a traceback: {last_line(ended)}"
    assert ended.status == status, f"status {ended.status}, not {status}: {last_line(ended)}"
    assert len(lines) == 1, f"{len(lines)} lines of error: {last_line(ended)}"


def last_line(ended: Ended) -> str:
    lines = [line for line in ended.err.splitlines() if line.strip()] or ["nothing on stderr"]
    return lines[-1].strip()[:300]
