"""Two processes at once: both end well or one refuses, and what they leave belongs together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import combinations_with_replacement

from pipeline.storage.checksums import sha256_file
from tests.faults.operations import slowed
from tests.faults.project import COMMANDS, Ended, Project, World, last_line, refused, same
from tests.faults.table import Trial, fault

# `train` is a run of its own, `publish` finds its run finished.
AT_ONCE = ("download", "tokenize", "train", "publish", "export", "eval", "sample")
MAKING = ("download", "tokenize", "train", "eval", "depth", "sample", "report", "export")


@fault(
    "two-at-once",
    "two commands at once, with seeded pauses at each write, sync, rename and removal; every pair, "
    "twice or more",
    "each ends well or refuses in one line; published files are of one run; all commands again end as "
    "undisturbed",
)
def two_at_once(world: World) -> Iterator[Trial]:
    for first, second in combinations_with_replacement(AT_ONCE, 2):
        for seed in range(10 if first == second == "publish" else 2):
            yield f"{first}+{second}-{seed}", partial(_pair, first, second, seed)


def _pair(first: str, second: str, seed: int, world: World) -> None:
    project = world.project("trained")
    children = []
    if first == second == "publish":  # of two runs
        assert project("train", "-S", "train.seed=3").status == 0
    for number, name in enumerate((first, second)):
        command = "train" if name == "publish" else name
        other = name == "train" or (first == second == "publish" and number)
        other_run = ["-S", f"train.seed={2 + number}"] if other else []
        children.append(project.start(command, *other_run, inject=slowed(2 * seed + number)))
    ended = [child.wait() for child in children]
    for name, one in zip((first, second), ended, strict=True):
        _well_or_refused(name, one)
    _belongs_together(project)
    for command in MAKING:
        ended_again = project(command)
        assert ended_again.status == 0, f"{command} afterwards: {last_line(ended_again)}"
    same(project, world.reference)


def _well_or_refused(name: str, ended: Ended) -> None:
    assert "Traceback" not in ended.err, f"{name}: a traceback: {last_line(ended)}"
    if ended.status:
        refused(ended)


def _belongs_together(project: Project) -> None:
    """Fail unless model, log and metrics in results/ are of the same run."""
    model, log, metrics = (project.folder / name for name in COMMANDS["train"][2])
    missing = [path.name for path in (model / "model.safetensors", log, metrics) if not path.exists()]
    assert not missing, f"missing afterwards: {', '.join(missing)}"
    run = project.folder / "runs" / json.loads((project.folder / "results/run.json").read_text())["run"]
    weights = sha256_file(model / "model.safetensors")
    assert weights == sha256_file(run / "best/model.safetensors"), "weights and metrics are of two runs"
    assert log.read_bytes() == (run / "finished/log.csv").read_bytes(), "log and metrics are of two runs"
