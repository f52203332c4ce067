"""Send an export to the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.paths import EXPORT


def main(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The model's name on the hub: user/name.")],
    folder: Annotated[Path, typer.Option(help="The folder that `make export` wrote.")] = EXPORT,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """List an export's files, upload them to the Hugging Face hub, and print the model's address."""
    from pipeline.weights.hub_models import upload  # imports PyTorch, which takes seconds

    print(upload(folder, repo, private, say=partial(print, flush=True)))
