"""Train together with node 0, on another machine of a cluster."""

from __future__ import annotations

import sys

from pipeline.cli.nodes import called
from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import tokens_folder
from pipeline.distributed.launch import launch, number
from pipeline.tokens.shards import load_manifest
from pipeline.track.console import say


def main(overrides: Overrides = None) -> None:
    """Wait for the training that `gpt-pipeline run` begins on node 0, take part, and end with its status.

    This needs the same params.yaml and the same shards. It runs no DVC, and writes no results.
    """
    nodes, node = number("NNODES", 1), number("NODE_RANK", 0, least=0)
    if nodes == 1 or node == 0:
        raise UserError(
            f"NNODES={nodes} NODE_RANK={node}: join is for the other nodes, from NODE_RANK=1 on; node 0 runs "
            "the pipeline: gpt-pipeline run"
        )
    params = load_params(overrides or [])
    try:
        load_manifest(tokens_folder(params))
    except UserError as error:
        raise UserError(f"{error}; a node that joins needs the shards: gpt-pipeline pull-data") from None
    if not called(say):
        say("node 0 ended without training")
        return
    given = [word for one in overrides or [] for word in ("-S", one)]
    sys.exit(launch(["-m", "stages.train", *given], nodes=True))
