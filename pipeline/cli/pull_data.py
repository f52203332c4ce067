"""Bring the active dataset's text and tokens from a DVC remote."""

from __future__ import annotations

from pipeline.cli import data_remote
from pipeline.cli.data_remote import Remote
from stages import check


def main(remote: Remote = None) -> None:
    """Bring the active dataset's text and tokens from a DVC remote, instead of tokenizing again."""
    with data_remote.opened(remote) as repo:
        check.main()
        data_remote.pull(repo)
        print(f"{data_remote.folders(repo)}: here; `dvc repro` does not make them again")
