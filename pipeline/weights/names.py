"""What a model's name stands for: a folder, a published GPT-2, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.published import PUBLISHED
from pipeline.config.validation import suggest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
OUR_FOLDERS = ("results/", "runs/", "data/", "saved/")  # never somebody's name on the hub


def place_on_hub(name: str) -> tuple[str, str] | None:
    """The repository and the revision that a model's name stands for; None for a folder, or no hub name."""
    if Path(name).is_dir():
        return None
    if name in PUBLISHED:
        return PUBLISHED[name].repository, PUBLISHED[name].revision
    if HUB_ID.fullmatch(name) and not name.startswith(OUR_FOLDERS):
        repository, _, revision = name.partition("@")
        return repository, revision or "main"
    return None


def check_name(name: str) -> None:
    """Raise UserError for a name that is neither a folder's nor one on the hub."""
    if Path(name).is_dir() or place_on_hub(name) is not None:
        return
    known = list(PUBLISHED)
    raise UserError(
        f"model {name}: no such folder; train a model first, or name another one, or {', '.join(known)}, or "
        f"one of the hub's like user/model{suggest(name, known)}"
    )
