"""What larger trainings need, beside its limits: tokenizing, reading 100 GB, several processes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from bench import scale_reading, scale_tokenizing, scale_training
from bench.harness import Figure, write_figures
from pipeline.config.errors import UserError
from pipeline.config.validation import suggest

# Each takes a folder to write to, and how often to measure what varies.
PARTS: dict[str, Callable[[Path, int], Iterable[Figure]]] = {
    "tokenizing": scale_tokenizing.figures,
    "reading": scale_reading.figures,
    "training": scale_training.figures,
}


def main(
    runs: Annotated[int, typer.Option(min=1, help="Runs of each kind, by turns.")] = 3,
    only: Annotated[str, typer.Option(help="Parts, separated by commas; by default all.")] = "",
) -> None:
    """Measure what scales: tokenizing, reading, and training on several processes."""
    names = only.replace(",", " ").split() or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise UserError(
                f"ONLY={name}: not a part{suggest(name, list(PARTS))} (there are {', '.join(PARTS)})"
            )
    figures: list[Figure] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
            figures += PARTS[name](Path(folder), runs)
    write_figures("scale", "Scale", figures)
