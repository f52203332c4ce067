"""Send the active dataset's text and tokens to a DVC remote."""

from __future__ import annotations

from pipeline.cli import data_remote
from pipeline.cli.data_remote import Remote
from pipeline.config.errors import UserError
from pipeline.corpus.progress import counted
from pipeline.storage.dvc_cache import LOCKS
from stages import check


def main(remote: Remote = None) -> None:
    """Send the active dataset's text and tokens to a DVC remote, for `pull-data` elsewhere."""
    if not LOCKS[0].exists():
        raise UserError("nothing to push: no stage has run; run `dvc repro tokenize`")
    with data_remote.opened(remote) as repo:
        check.main()
        sent = data_remote.push(repo)
        print(f"{data_remote.folders(repo)}: {counted(sent, 'new file')} sent")
