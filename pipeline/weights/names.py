"""Model names: each refers to a folder, a published GPT-2, or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.gpt2_models import PUBLISHED
from pipeline.config.paths import MODEL
from pipeline.config.validation import suggest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
OUR_FOLDERS = ("results/", "runs/", "data/", "saved/")  # never a user's name on the hub


def place_on_hub(name: str) -> tuple[str, str] | None:
    """The hub repository and revision that a name refers to; None for a folder or an invalid name."""
    if Path(name).is_dir():
        return None
    if name in PUBLISHED:
        return PUBLISHED[name].repository, PUBLISHED[name].revision
    if HUB_ID.fullmatch(name) and not name.startswith(OUR_FOLDERS):
        repository, _, revision = name.partition("@")
        return repository, revision or "main"
    return None


def check_name(name: str) -> None:
    """Raise UserError unless `name` is an existing folder or can be the name of a model on the hub."""
    if Path(name).is_dir() or place_on_hub(name) is not None:
        return
    known = list(PUBLISHED)
    raise UserError(
        f"model {name}: no such folder; train a model first, or name another folder, {', '.join(known)}, or "
        f"a model on the hub such as user/model{suggest(name, known)}"
    )


def check_kept(name: str) -> None:
    """Raise UserError if the model `name` is the trained one, which DVC removes before it trains the next."""
    if Path(name).resolve().is_relative_to(MODEL.resolve()):
        raise UserError(
            f"model {name}: training replaces this folder; copy it (mkdir -p saved && cp -r {MODEL} "
            "saved/mine) and name the copy"
        )
