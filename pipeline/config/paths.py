"""Where things live. Paths are relative to the project's folder, where every command runs."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.params import Params

DATA = Path("data")
RESULTS = Path("results")
MODEL = RESULTS / "model"
CHECKED = RESULTS / "checked"
METRICS = RESULTS / "metrics.json"
LOG = RESULTS / "log.csv"
BASELINES = RESULTS / "baselines"
PRETRAINED = RESULTS / "pretrained"
COMPARISON = RESULTS / "baselines.json"
COMPARISON_TABLE = RESULTS / "baselines.md"
COMPARISON_PICTURE = RESULTS / "baselines.png"
DEPTH_CURVE = RESULTS / "depth.csv"
DEPTH_PICTURE = RESULTS / "depth.png"
STOPPING = RESULTS / "stopping.csv"
ZEROSHOT = RESULTS / "zeroshot"
SAMPLES = RESULTS / "samples.txt"

RUN_FILE = "run.json"  # in runs/<key>/: what the key stands for
EXPORT = RESULTS / "export"
NANOGPT_EXPORT = RESULTS / "nanogpt"


def raw_folder(params: Params) -> Path:
    """The active dataset's text, as downloaded."""
    return DATA / params.data.dataset / "raw"


def tokens_folder(params: Params) -> Path:
    """The active dataset's shards, manifest and tokenizer."""
    return DATA / params.data.dataset / params.tokenizer.name


def runs_folder() -> Path:
    """Resumable training state. An experiment in a temporary copy of the project uses the main project's."""
    return Path(os.environ.get("DVC_ROOT", ".")) / "runs"
