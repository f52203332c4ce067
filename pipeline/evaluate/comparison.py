"""The trained model beside its baselines: one row each, as JSON, Markdown and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.config.paths import BASELINES, PRETRAINED
from pipeline.evaluate.baselines import file_name
from pipeline.report.pictures import save_picture
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text

OURS = "this model"


@dataclass(frozen=True)
class Row:
    """One model's figures; losses in nats per token, of its own tokens."""

    name: str  # the trained model has the name OURS
    params: int | None
    train_loss: float | None
    val_loss: float
    perplexity: float
    val_bpb: float  # bits per byte compare whatever the tokens
    same_tokens: bool  # as the trained model's
    published: float | None  # the validation loss that others report
    weights: str | None = None  # sha256, of a model that was not trained here


def read_rows(files: Iterable[Path], data: str, tokens: int, published: Mapping[str, float]) -> list[Row]:
    """A row for each JSON file whose figures are of `data`, a manifest's fingerprint.

    `tokens` are those of the validation split that a GPT predicts; a model with another number of them has
    another tokenizer. `published` are losses by name.
    """
    rows = {}
    for path in files:
        figures = of_the_saved_model(json.loads(path.read_text(encoding="utf-8")))
        if figures.get("data") == data:
            row = _row(figures, tokens, published)
            rows[row.name] = row
    return list(rows.values())


def evaluated(params: Params) -> list[Path]:
    """The files of those models and baselines that the parameters list, as far as they are there."""
    files = [BASELINES / file_name(name) for name in params.baselines.models]
    files += [PRETRAINED / file_name(name) for name in params.baselines.pretrained]
    return [path for path in files if path.exists()]


def is_stale(row: Row) -> bool:
    """Whether the model's folder has other weights than those evaluated, or none: DVC cannot see that."""
    if row.weights is None or not Path(row.name).is_dir():
        return False
    from pipeline.weights.stored_model import open_model

    try:
        return open_model(row.name).sha256 != row.weights
    except UserError:
        return True


def of_the_saved_model(figures: dict[str, Any]) -> dict[str, Any]:
    """Metrics of training have the last model's figures first; the best one's are those of what was kept."""
    if figures.get("saved") != "best":
        return figures
    loss = figures["best_val_loss"]
    best = {"val_loss": loss, "val_bpb": figures["best_val_bpb"], "perplexity": math.exp(loss)}
    last = figures["best_step"] == figures["steps"]
    return figures | best | ({} if last else {"train_loss": None})  # which only the last one's was taken of


def _row(figures: Mapping[str, Any], tokens: int, published: Mapping[str, float]) -> Row:
    name = figures.get("name", OURS)  # the metrics of a training run have none
    counted = tokens if name == OURS else figures["tokens"]
    return Row(
        name=name,
        params=figures.get("params"),
        train_loss=figures.get("train_loss"),
        val_loss=figures["val_loss"],
        perplexity=figures["perplexity"],
        val_bpb=figures["val_bpb"],
        same_tokens=counted in (tokens, tokens + 1),  # a compressor counts the first one too
        published=published.get(name),
        weights=figures.get("weights"),
    )


def write_comparison(rows: Sequence[Row], json_file: Path, table: Path, picture: Path, title: str) -> str:
    """Write all three, the best first, and return the table."""
    ordered = sorted(rows, key=lambda row: row.val_bpb)
    write_json(json_file, [asdict(row) for row in ordered])
    text = as_markdown(ordered)
    write_text(table, f"# {title}\n\n{text}")
    draw(picture, ordered, title)
    return text


def as_markdown(rows: Sequence[Row]) -> str:
    """A table that reads well as plain text too."""
    with_published = any(row.published is not None for row in rows)
    header = ["model", "parameters", "train loss", "val loss", "perplexity", "bits per byte"]
    header += ["published val loss"] if with_published else []
    cells = [header]
    for row in rows:
        mark = "" if row.same_tokens else " *"
        cells.append(
            [
                row.name,
                "" if row.params is None else f"{row.params:,}",
                "" if row.train_loss is None else f"{row.train_loss:.4f}",
                f"{row.val_loss:.4f}{mark}",
                f"{row.perplexity:,.2f}{mark}",
                f"{row.val_bpb:.4f}",
                *([] if not with_published else ["" if row.published is None else f"{row.published:.2f}"]),
            ]
        )
    text = markdown_table(cells, "<" + ">" * (len(header) - 1)) + "\n"
    if not all(row.same_tokens for row in rows):
        text += "\n\\* per token of its own tokenizer: compare bits per byte\n"
    return text


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """PNG of bits per byte, a bar for each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    colors = ["tab:blue" if row.name == OURS else "tab:gray" for row in rows]
    bars = axes.barh([row.name for row in rows], [row.val_bpb for row in rows], color=colors)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("validation text, bits per byte")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
