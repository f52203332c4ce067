"""Run the pipeline on a cluster, on node 0, and end with the status of the stage that failed."""

from __future__ import annotations

from pipeline.cli import repro
from pipeline.cli.repro import Preset
from pipeline.config.command_line import Force
from pipeline.config.errors import UserError
from pipeline.distributed.launch import number


def main(
    preset: Preset = None,
    force: Force = False,
) -> None:
    """Do what `repro` does, and let the nodes that `join` take part in the training."""
    node = number("NODE_RANK", 0, least=0)
    if node:
        raise UserError(f"NODE_RANK={node}: node 0 runs the pipeline; here: gpt-pipeline join")
    repro.main(preset, force)
