"""Saving pictures atomically and reproducibly: equal figures give equal bytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    Raises UserError if the picture is damaged.
    """
    if not path.exists():
        return None
    content, model, kind = path.read_bytes(), None, b""
    place = len(SIGNATURE)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place) if place + 12 <= len(content) else (0, b"")
        chunk = content[place + 4 : place + 8 + length]
        checksum = content[place + 8 + length : place + 12 + length]
        if not content.startswith(SIGNATURE) or zlib.crc32(chunk).to_bytes(4, "big") != checksum:
            raise UserError(f"{path}: a damaged picture; remove it, `rm {path}`, and run `dvc repro`")
        key, _, text = chunk[4:].partition(b"\0")
        if (kind, key) == (b"tEXt", MODEL_KEY.encode()):
            model = text.decode("latin-1")
        place += length + 12
    return model
