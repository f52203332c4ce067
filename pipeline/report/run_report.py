"""The report of one run as plain values, which the page draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.params import DEFAULTS_FILE, Params, load_params
from pipeline.config.paths import DATA, MODEL, RESULTS, ZEROSHOT
from pipeline.config.presets import flatten, show
from pipeline.corpus.sources import load_spec
from pipeline.evaluate.baselines import label, read_figures
from pipeline.evaluate.comparison import baseline_files
from pipeline.evaluate.inside import evenly, experts_of_tokens, passage_lens, written_by_depth
from pipeline.model.load import load_model
from pipeline.report.run_files import RunFiles, read_rows
from pipeline.storage.checksums import read_checked_json
from pipeline.tokens.shards import MANIFEST_FILE, Manifest, load_manifest, open_split, open_tokenizer
from pipeline.track.health_csv import COLUMNS, read_health

MOST_ROWS = 400  # of a curve; rows of a longer one are averaged
MOST_POINTS = 50  # of a layer's health; of more, some are left out evenly
ABOUT = ("device", "processes", "threads", "compile", "torch", "tokens_per_second")
FIGURES = ("params", "steps", "tokens", "seconds", "val_loss", "val_bpb", "perplexity", "train_loss")


def run_report(files: RunFiles, params: Params, device: torch.device) -> dict[str, Any]:
    """All that the page shows of a run; what is not known of it is None or empty."""
    folder = files.tokens_folder
    manifest = _manifest(files)
    rows = read_rows(files.log)
    trained = [row for row in rows if "train_loss" in row]
    evaluated = [row for row in rows if "val_loss" in row]
    per_byte = _nats_of_a_bit(files, manifest)
    return {
        "name": files.name,
        "key": files.key,
        "finished": bool(files.metrics),
        "data": _data(folder, manifest) | {"fingerprint": files.facts["identity"]["data"]},
        "start": _start(files),
        "figures": _figures(files, rows, per_byte),
        "per_byte": per_byte,
        "training": _averaged(trained, ("train_loss", "lr", "grad_norm")),
        "validation": _averaged(evaluated, ("val_loss",)),
        "baselines": _baselines(params, manifest),
        "zeroshot": _zeroshot(files),
        "depth": files.depth,
        "stopping": files.stopping,
        "samples": files.samples,
        "health": _health(files.health),
        "parameters": _parameters(files),
        "about": {name: files.metrics[name] for name in ABOUT if name in files.metrics},
        "hashes": _hashes(files, manifest),
        **_inside(files, manifest, params, device),
    }


def _manifest(files: RunFiles) -> Manifest | None:
    """The manifest of the run's tokens, unless they are gone or others now."""
    folder = files.tokens_folder
    if not (folder / MANIFEST_FILE).exists():
        return None
    manifest = load_manifest(folder)
    return manifest if manifest.fingerprint == files.facts["identity"]["data"] else None


def _start(files: RunFiles) -> str:
    """The model that training started from, as train.init_from names it."""
    return str(files.facts.get("start", {}).get("name", "scratch"))


def _data(folder: Path, manifest: Manifest | None) -> dict[str, Any]:
    description = ""
    if folder.parent.parent == DATA and (folder.parent / "dataset.yaml").exists():
        description = load_spec(folder.parent.name).description
    about: dict[str, Any] = {"name": folder.parent.name, "tokenizer": folder.name, "description": description}
    if manifest is not None:
        about |= {
            "vocab_size": manifest.vocab_size,
            "train_tokens": manifest.train.tokens,
            "val_tokens": manifest.val.tokens,
            "bytes": manifest.train.utf8_bytes + manifest.val.utf8_bytes,
        }
    return about


def _figures(
    files: RunFiles, rows: Sequence[Mapping[str, float]], per_byte: float | None
) -> dict[str, float]:
    """The last figures: of an unfinished run, those that the log has.

    The log's bits per byte are those of a few batches, which may have other tokens than the whole text that
    baselines were evaluated on.
    """
    if files.metrics:
        return {name: files.metrics[name] for name in FIGURES}
    last: dict[str, float] = {}
    for row in rows:
        last |= row
    names = {"step": "steps", "tokens": "tokens", "seconds": "seconds", "val_loss": "val_loss"}
    figures = {new: last[old] for old, new in names.items() if old in last}
    if per_byte and "val_loss" in figures:
        figures["val_bpb"] = figures["val_loss"] / per_byte
    return figures


def _nats_of_a_bit(files: RunFiles, manifest: Manifest | None) -> float | None:
    """Nats per token that are one bit per byte of this validation text."""
    if files.metrics.get("val_bpb"):
        return float(files.metrics["val_loss"] / files.metrics["val_bpb"])
    return None if manifest is None else math.log(2) * manifest.val.utf8_bytes / manifest.val.tokens


def _averaged(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, list[float | None]]:
    """Columns of at most MOST_ROWS rows: each is the mean of some, at the step of the last of them."""
    size = -(-len(rows) // MOST_ROWS) or 1
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    found: dict[str, list[float | None]] = {
        name: [group[-1].get(name) for group in groups] for name in ("step", "tokens", "seconds")
    }
    for name in columns:
        found[name] = [_mean([row[name] for row in group if name in row]) for group in groups]
    return found


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{sum(values) / len(values):.6g}") if values else None


def _baselines(params: Params, manifest: Manifest | None) -> list[dict[str, Any]]:
    """Those that were evaluated on the same validation text, the best one first."""
    if manifest is None:
        return []
    found = {}
    for path in filter(Path.exists, baseline_files(params).values()):
        figures = read_figures(path)
        if figures["data"] == manifest.fingerprint:
            name = label(figures["name"], figures.get("first_tokens"))
            found[name] = {"name": name, "val_bpb": figures["val_bpb"], "params": figures.get("params")}
    return sorted(found.values(), key=lambda one: one["val_bpb"])


def _zeroshot(files: RunFiles) -> list[dict[str, Any]]:
    """The figures of this model on tasks."""
    results = []
    for path in sorted((ZEROSHOT / MODEL).glob("*.json")):
        figures = read_checked_json(path, f"`rm {path}`, and evaluate it again")
        if files.model is not None and figures["weights"] == files.model.sha256:
            results.append({key: figures[key] for key in figures if key not in ("model", "weights")})
    return results


def _health(path: Path) -> dict[str, Any] | None:
    """Of each figure the layers it was measured in, and {layer: [[step, value], …]}; None if damaged."""
    columns: dict[str, dict[str, list[list[float]]]] = {}
    try:
        rows = read_health(path)
    except ValueError:
        return None
    for row in rows:
        for name, value in row.items():
            if name == "step" or value is None:
                continue
            _, column, layer = name.split("/")
            columns.setdefault(column, {}).setdefault(layer, []).append([row["step"] or 0, value])
    return {
        name: {layer: evenly(points, MOST_POINTS) for layer, points in columns[name].items()}
        for name in COLUMNS
        if name in columns
    } or None


def _parameters(files: RunFiles) -> list[dict[str, Any]]:
    """What the run records of its parameters, with the default of each."""
    defaults = flatten(load_params([], DEFAULTS_FILE).model_dump(mode="json"))
    folder = files.tokens_folder
    values = {
        "data.dataset": folder.parent.name,
        "tokenizer.name": folder.name,
        **flatten({"model": files.facts["model"], "train": files.facts["train"]}),
        "train.init_from": _start(files),  # by name; the run records the sha256 of its weights there
    }
    return [
        {"name": name, "value": show(value), "default": show(defaults[name])}
        for name, value in values.items()
        if name in defaults  # a model also records what follows from its parameters
    ]


def _hashes(files: RunFiles, manifest: Manifest | None) -> dict[str, str]:
    """The sha256 of what went in and came out."""
    tokens = {} if manifest is None else {str(files.tokens_folder): manifest.fingerprint}
    model = {} if files.model is None else {str(files.model.weights.path): files.model.sha256}
    return tokens | model | dict(files.hashes)


def _inside(
    files: RunFiles, manifest: Manifest | None, params: Params, device: torch.device
) -> dict[str, Any]:
    """The lens, the texts by depth and the experts; None without the model or the text it was trained on."""
    if files.model is None or manifest is None:
        return {"lens": None, "written": None, "experts": None}
    model, tokenizer = load_model(files.model, device), open_tokenizer(files.tokens_folder)
    val = open_split(files.tokens_folder, "val")
    try:
        written = written_by_depth(model, tokenizer, params.sample, device)
    except UserError:  # the prompt has a character that this run's tokenizer does not know
        written = None
    return {
        "lens": passage_lens(model, val, tokenizer, device),
        "written": written,
        "experts": experts_of_tokens(model, val, tokenizer, device),
    }


def experiments_table() -> list[list[str]] | None:
    """The rows of results/experiments.csv with its heading, as `make experiments` wrote them."""
    import csv

    path = RESULTS / "experiments.csv"
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def commands(report: Mapping[str, Any]) -> Iterator[str]:
    """The commands that make the same results in a fresh copy of the project."""
    yield "make preset-default FORCE=1"
    changed = [one for one in report["parameters"] if one["value"] != one["default"]]
    if changed:
        yield "# then, in params.yaml:"
        yield from (f"#   {one['name']}: {one['value']}" for one in changed)
    if report["start"] != "scratch":
        yield f"# with the same model that it started from: {report['start']}"
    yield "make repro"
    yield "make verify"
