"""Finds what is known of a run: the published one in results/, or any in runs/."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.paths import (
    DEPTH_CURVE,
    DEPTH_PICTURE,
    LOG,
    METRICS,
    MODEL,
    RECORD,
    RUN_FILE,
    RUN_FINISHED,
    SAMPLES,
    STOPPING,
    checkpoints_in,
    runs_folder,
)
from pipeline.config.reading import read_json
from pipeline.evaluate.comparison import read_results
from pipeline.report.png import drawn_from
from pipeline.serve.samples import read_samples
from pipeline.storage.checksums import MANIFEST_FILE, read_checked_json
from pipeline.track.csv_log import read_log
from pipeline.track.health_csv import HEALTH_FILE
from pipeline.track.open import LATER_FILE
from pipeline.weights.open import StoredModel, open_model

Rows = list[dict[str, float]]


@dataclass(frozen=True)
class RunFiles:
    """What a report needs of one run. What the run lacks is empty or None."""

    name: str
    key: str
    facts: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Any]  # all of them; empty for a run that is not finished
    log: Path
    health: Path
    model: StoredModel | None
    depth: Rows  # of depth.csv
    stopping: Rows  # of stopping.csv
    samples: list[str]
    hashes: Mapping[str, str]  # sha256 by file

    @property
    def tokens_folder(self) -> Path:
        return Path(self.facts["data"])


def published_run() -> RunFiles:
    """The run in results/. Raises UserError if there is none, or if its files do not belong together."""
    if not METRICS.exists():
        raise UserError(f"{METRICS}: no results yet; run `dvc repro` first")
    facts, metrics = read_results(RECORD, METRICS)
    model = open_model(MODEL)
    of_model = drawn_from(DEPTH_PICTURE) == model.sha256
    return RunFiles(
        name="this model",
        key=facts["run"],
        facts=facts,
        metrics=metrics,
        log=LOG,
        health=runs_folder() / facts["run"] / HEALTH_FILE,
        model=model,
        depth=_table(DEPTH_CURVE) if of_model else [],
        stopping=_table(STOPPING) if of_model else [],
        samples=read_samples(SAMPLES, model.sha256),
        hashes=facts["files"],
    )


def stored_run(name: str, folder: Path) -> RunFiles:
    """The run in runs/<key>/, finished or not.

    Raises UserError if it has no log, and if its settings are damaged.
    """
    about, log = folder / RUN_FILE, folder / LOG.name
    facts = read_checked_json(about, "restore it from a copy", f"{folder} is no run; name another one")
    if not log.exists() or log.read_text(encoding="utf-8", errors="replace").count("\n") < 2:
        raise UserError(f"{log}: a run without logs; train it, or leave it out of RUNS")
    finished = folder / RUN_FINISHED / METRICS.name
    metrics = read_json(finished) if finished.exists() else {}
    later = read_checked_json(folder / LATER_FILE, "remove it") if (folder / LATER_FILE).exists() else {}
    curve = later.get("depth_curve", {})
    return RunFiles(
        name=name,
        key=folder.name,
        facts=facts,
        metrics=metrics,
        log=log,
        health=folder / HEALTH_FILE,
        model=_stored_model(folder, metrics),
        depth=[{"depth": float(depth), "val_loss": loss} for depth, loss in curve.items()],
        stopping=[],
        samples=later.get("samples", []),
        hashes={},
    )


def named_run(name: str, folder: Path) -> RunFiles:
    """The run in runs/<key>/; if it is the published one, with all that results/ has of it."""
    if METRICS.exists() and read_json(RECORD).get("run") == folder.name:
        return replace(published_run(), name=name)
    return stored_run(name, folder)


def known_runs() -> list[Path]:
    """The folders of all runs."""
    return [path.parent for path in sorted(runs_folder().glob(f"*/{RUN_FILE}"))]


def find_run(name: str) -> Path | None:
    """The folder in runs/ of this name, or the one whose name starts with it.

    Raises UserError if several do.
    """
    runs = known_runs()
    found = [run for run in runs if run.name == name] or [run for run in runs if run.name.startswith(name)]
    if len(found) > 1:
        raise UserError(f"RUNS={name}: {len(found)} runs start with it; give more of the name of one of them")
    return found[0] if found else None


def _stored_model(folder: Path, metrics: Mapping[str, Any]) -> StoredModel | None:
    """The model that a run publishes, or its best one up to now; None if there is none yet."""
    newest = checkpoints_in(folder)[-1:]
    places = [folder / "best"] if metrics.get("saved") != "last" else newest
    whole = [place for place in places if (place / MANIFEST_FILE).exists()]
    return open_model(whole[0]) if whole else None


def _table(path: Path) -> Rows:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError):
        raise UserError(f"{path}: damaged; `dvc repro -f -s depth_curve` writes it again") from None


def read_rows(log: Path) -> Rows:
    """The rows of a run's log. Raises UserError if it is damaged."""
    try:
        rows = read_log(log)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{log}: not a run's log; restore it from a copy, or train the run again") from None
    return [{name: float(value) for name, value in row.items() if value is not None} for row in rows]
