"""Runs the fault matrix and writes docs/reliability.md; `make faults ONLY=kill-in-save` runs one row."""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})  # a process with threads cannot fork

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests import tiny
from tests.faults import rows
from tests.faults.project import Skip, World
from tests.faults.table import FAULTS, Fault, Trial

PAGE = tiny.ROOT / "docs/reliability.md"
AT_ONCE = 2
SECONDS = 300  # a trial that takes longer hangs

HEAD = """\
# Reliability

What was done to a small run, and what held. `make faults` does it again and writes this page;
`make faults ONLY=NAME` tries one row. The commands are the true ones. They run in processes that are forked
from one that has imported PyTorch, because a thousand of them then take minutes; where a row says so, they
run under `dvc repro` or in a shell.

| fault | how it is injected | promise | trials | result |
| --- | --- | --- | --- | --- |
"""


@dataclass
class Results:
    """How the trials of the rows ended."""

    held: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, fault: Fault, label: str, ended: str) -> None:
        """`ended` is empty if the promise held."""
        kind, _, reason = ended.partition(" ")
        if kind == "skipped":
            self.skipped[fault.name] = reason
        elif kind == "failed":
            self.failed.setdefault(fault.name, {})[label] = reason
        else:
            self.held[fault.name] += 1

    def row(self, fault: Fault) -> str:
        failed = len(self.failed.get(fault.name, {}))
        tried = self.held[fault.name] + failed
        result = f"{failed} failed" if failed else "held"
        if not tried:
            result = f"not tried: {self.skipped.get(fault.name, 'no place for it')}"
        return f"| `{fault.name}` | {fault.how} | {fault.promise} | {tried} | {result} |\n"


def main(arguments: Sequence[str]) -> int:
    """Run the trials; the status is 1 if a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default=os.environ.get("ONLY", ""), help="a row, or ROW/TRIAL")
    parser.add_argument("--quick", action="store_true", help="a few trials, drawn with a seed")
    parser.add_argument("--list", action="store_true", help="show the rows and do nothing")
    options = parser.parse_args(arguments)
    name, _, label = options.only.partition("/")
    if options.list or (name and name not in FAULTS):
        print("\n".join(FAULTS))
        return 0 if options.list else 2
    chosen = [one for one in rows.ALL if (not name or one.name == name) and (one.quick or not options.quick)]
    torch.set_num_threads(1)
    assert threading.active_count() == 1, "a process with threads cannot fork safely"
    base = Path(tempfile.mkdtemp(prefix="faults-"))
    base.chmod(0o755)  # a trial without rights reads it too
    try:
        world = World(base, base)
        print("making the project that is hurt", flush=True)
        world.prepare(with_dvc=any(fault.dvc for fault in chosen))
        trials = [(fault, trial) for fault in chosen for trial in _trials(fault, world, options.quick)]
        if label:
            trials = [(fault, trial) for fault, trial in trials if trial[0] == label]
        results = _run(trials, world)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if not options.only and not options.quick:
        PAGE.write_text(HEAD + "".join(results.row(fault) for fault in rows.ALL), encoding="utf-8")
    return _report(results)


def _trials(fault: Fault, world: World, quick: bool) -> list[Trial]:
    trials = list(fault.trials(world))
    return random.Random(fault.name).sample(trials, min(fault.quick, len(trials))) if quick else trials


def _run(trials: list[tuple[Fault, Trial]], world: World) -> Results:
    """Run the trials, each in a process of its own; the slow ones, under DVC, begin first."""
    waiting = sorted(trials, key=lambda one: not one[0].dvc)
    running: dict[int, tuple[Fault, str, Path, float]] = {}
    results, begin, total = Results(), time.monotonic(), len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                fault, (label, run) = waiting.pop(0)
                folder = Path(tempfile.mkdtemp(dir=world.folder))
                folder.chmod(0o755)
                running[_fork(run, world, folder)] = (fault, label, folder, time.monotonic())
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                fault, label, folder, _ = running.pop(pid)
                _kill(pid)
                verdict = folder / "verdict"
                ended = verdict.read_text() if verdict.exists() else f"failed the trial died: {status}"
                results.add(fault, label, ended)
                shutil.rmtree(folder, ignore_errors=True)
                _progress(total - len(waiting) - len(running), total, begin, fault, label, ended)
            elif not pid:
                time.sleep(0.005)
            for pid, (_, _, folder, started) in running.items():
                if time.monotonic() - started > SECONDS:
                    (folder / "verdict").write_text(f"failed the trial hangs after {SECONDS} s")
                    _kill(pid)
    finally:
        for pid in running:
            _kill(pid)
    return results


def _fork(run: Callable[[World], None], world: World, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    verdict = ""
    try:
        (folder / "trial").mkdir()
        run(world.for_trial(folder / "trial"))
    except Skip as reason:
        verdict = f"skipped {reason}"
    except AssertionError as failure:
        verdict = f"failed {failure}"
    except BaseException:
        verdict = f"failed the trial itself: {traceback.format_exc()}"
    finally:
        with suppress(OSError):
            (folder / "verdict").write_text(verdict)
        os._exit(0)  # nothing may be raised in a copy of the whole


def _kill(group: int) -> None:
    """End what a trial left running."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _progress(done: int, total: int, begin: float, fault: Fault, label: str, ended: str) -> None:
    minutes, seconds = divmod(int((time.monotonic() - begin) / done * (total - done)), 60)
    line = f"{done}/{total}, {minutes}:{seconds:02} left: {fault.name}/{label}"
    if ended.startswith("failed"):
        print(f"{line}: {ended}", flush=True)
    elif sys.stdout.isatty():
        print(f"\r{line:<78.78}", end="\r", flush=True)
    elif done % 50 == 0:
        print(line, flush=True)


def _report(results: Results) -> int:
    print(f"\n{sum(results.held.values())} trials held")
    for name, reason in results.skipped.items():
        print(f"not tried: {name}: {reason}")
    for name, failures in results.failed.items():
        print(f"{name}: {len(failures)} failed, {results.held[name]} held")
        for reason, number in Counter(failures.values()).most_common(3):
            label = next(label for label, found in failures.items() if found == reason)
            print(
                f"  {number}x {reason.strip().splitlines()[-1]}\n     again: make faults ONLY={name}/{label}"
            )
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
