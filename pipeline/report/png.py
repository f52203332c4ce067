"""Saving pictures atomically and reproducibly: equal figures give equal bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

MODEL_KEY = "Model"  # of the text chunk that says from which weights a picture was drawn


def save_picture(figure: Any, path: Path, dpi: int = 150, model: str | None = None) -> None:
    """Save a matplotlib figure as PNG, replacing `path` atomically, and close the figure.

    `model` is the sha256 of the weights that it shows, which `drawn_from` reads.
    """
    from matplotlib import pyplot as plt

    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        temporary, format="png", dpi=dpi, metadata={"Software": None, **({MODEL_KEY: model} if model else {})}
    )
    plt.close(figure)
    temporary.replace(path)


def drawn_from(path: Path) -> str | None:
    """The sha256 of the weights that a saved picture shows; None if there is none, or it does not say.

    Walks over the chunks of the file: length, type, content and checksum (PNG specification, section 5.3).
    """
    content = path.read_bytes() if path.exists() else b""
    place = 8  # after the signature
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        key, _, text = content[place + 8 : place + 8 + length].partition(b"\0")
        if (kind, key) == (b"tEXt", MODEL_KEY.encode()):
            return text.decode("latin-1")
        place += length + 12
    return None
