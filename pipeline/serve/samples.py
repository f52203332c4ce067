"""The file of samples. Its last line says from which weights they are, and has the checksum of the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.reading import check_file
from pipeline.storage.files import write_text

RULE = "---------------"  # after each sample


def write_samples(path: Path, texts: Iterable[str], model: str) -> None:
    """Write samples of the weights with the sha256 `model`."""
    text = "".join(f"{text}\n{RULE}\n" for text in texts)
    write_text(path, text + _last_line(text, model))


def read_samples(path: Path, model: str) -> list[str]:
    """The samples of these weights; none if the file is missing or of others.

    Raises UserError if the file is damaged.
    """
    if not path.exists():
        return []
    remedy = f"remove it, `rm {path}`, and run `dvc repro`"
    check_file(path)
    content = path.read_bytes().decode("utf-8", "replace")  # text mode would change line ends
    text = content[: content.rstrip("\n").rfind("\n") + 1]
    last = content[len(text) :].split()
    if len(last) != 4 or content != text + _last_line(text, last[1]):
        raise UserError(f"{path}: not what was written; {remedy}")
    return text.split(f"\n{RULE}\n")[:-1] if last[1] == model else []


def _last_line(text: str, model: str) -> str:
    known = f"{text}model {model}"
    return f"model {model} sha256 {hashlib.sha256(known.encode()).hexdigest()}\n"
