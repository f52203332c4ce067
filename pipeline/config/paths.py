"""Paths of data and results. They are relative to the project's folder, in which every command runs."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.params import Params

DATA = Path("data")
RESULTS = Path("results")
MODEL = RESULTS / "model"
CHECKED = RESULTS / "checked"
CHECKED_TOKENS = RESULTS / "checked-tokens.json"
RECORD = RESULTS / "run.json"  # facts of the run, and the checksums of model, log and metrics
METRICS = RESULTS / "metrics.json"
LOG = RESULTS / "log.csv"
LIVE = RESULTS / "live.csv"  # a link to the log of the run that trains, or that trained last
BASELINES = RESULTS / "baselines"
PRETRAINED = RESULTS / "pretrained"
COMPARISON = RESULTS / "baselines.json"
COMPARISON_TABLE = RESULTS / "baselines.md"
COMPARISON_PICTURE = RESULTS / "baselines.png"
DEPTH_CURVE = RESULTS / "depth.csv"
DEPTH_PICTURE = RESULTS / "depth.png"
LOSS_PICTURE = RESULTS / "loss.png"
REFERENCE_LINES = RESULTS / "reference-lines.csv"  # for the plots of DVC
STOPPING = RESULTS / "stopping.csv"
EXPERIMENTS = RESULTS / "experiments.csv"
EXPERIMENTS_PICTURE = RESULTS / "experiments.png"
SCALING = RESULTS / "scaling.json"
SCALING_RUNS = RESULTS / "scaling.csv"
SCALING_PICTURE = RESULTS / "scaling.png"
ZEROSHOT = RESULTS / "zeroshot"
SAMPLES = RESULTS / "samples.txt"
REPORT = RESULTS / "report.html"

SAVED = Path("saved")  # models that the user keeps, and imports
RUN_FILE = "run.json"  # in runs/<key>/: the settings behind the key
RUN_LOCK = "lock"  # in runs/<key>/: held by the process that trains
RUN_FINISHED = "finished"  # in runs/<key>/: its last figures, once it is finished
EXPORT = RESULTS / "export"
NANOGPT_EXPORT = RESULTS / "nanogpt"


def raw_folder(params: Params) -> Path:
    """The active dataset's text, as downloaded."""
    return DATA / params.data.dataset / "raw"


def tokens_folder(params: Params) -> Path:
    """The active dataset's shards, manifest and tokenizer."""
    return DATA / params.data.dataset / params.tokenizer.name


def runs_folder() -> Path:
    """The folder of resumable training state."""
    return original_project() / "runs"


def checkpoints_in(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, oldest first."""
    return sorted(run.glob("step-?????????"))


def hashes_file() -> Path:
    """The hashes of large files, so that they are not read again and again."""
    return original_project() / ".dvc/tmp/hashes.json"


def original_project() -> Path:
    """This project; for an experiment in a copy of it, the original."""
    return Path(os.environ.get("DVC_ROOT", "."))
