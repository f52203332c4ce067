"""Saving pictures atomically and reproducibly: equal figures give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_picture(figure: Any, path: Path, dpi: int = 150) -> None:
    """Save a matplotlib figure as PNG, replacing `path` atomically, and close the figure."""
    from matplotlib import pyplot as plt

    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    temporary.replace(path)
