"""Send an export to the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.paths import EXPORT
from pipeline.weights.hub_models import upload


def main(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The model's name there: user/name.")],
    folder: Annotated[Path, typer.Option(help="What `make export` wrote.")] = EXPORT,
    private: Annotated[bool, typer.Option("--private", help="For nobody else to see, if it is new.")] = False,
) -> None:
    """List what goes up, upload it, and print the model's address."""
    print(upload(folder, repo, private, say=partial(print, flush=True)))
