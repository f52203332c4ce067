"""The comparison of the trained model with its baselines, as JSON, a Markdown table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.evaluate.baselines import label
from pipeline.evaluate.comparison import OURS, Row
from pipeline.report.labels import COLORS
from pipeline.report.png import save_picture
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text


def write_comparison(rows: Sequence[Row], json_file: Path, table: Path, picture: Path, title: str) -> str:
    """Write the JSON file, the table and the picture, with the best model first; return the table."""
    ordered = sorted(rows, key=lambda row: row.val_bpb)
    write_json(json_file, [asdict(row) for row in ordered])
    text = as_markdown(ordered)
    write_text(table, f"# {title}\n\n{text}")
    draw(picture, ordered, title)
    return text


def as_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table that is readable as plain text too."""
    with_published = any(row.published is not None for row in rows)
    header = ["model", "parameters", "train loss", "val loss", "perplexity", "bits per byte"]
    header += ["published val loss"] if with_published else []
    cells = [header]
    for row in rows:
        mark = "" if row.same_tokens else " *"
        cells.append(
            [
                label(row.name, row.first_tokens),
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
        text += "\n\\* per token of another tokenizer: compare bits per byte instead\n"
    return text


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw a PNG of bits per byte, with a bar for each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    colors = [COLORS[0] if row.name == OURS else "#999999" for row in rows]
    names = [label(row.name, row.first_tokens) for row in rows]
    bars = axes.barh(names, [row.val_bpb for row in rows], color=colors)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("validation text, bits per byte")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
