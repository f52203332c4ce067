"""Evaluate models on tasks that they were not trained for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli.repro import repro_optional
from pipeline.config.command_line import ModelName, Overrides
from pipeline.config.errors import UserError, one_line
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL
from stages import eval_zeroshot
from stages.eval_zeroshot import File, Limit


def main(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="hellaswag, lambada or wikitext2; by default zeroshot.tasks.", show_default=False
        ),
    ] = None,
    model: ModelName = str(MODEL),
    limit: Limit = None,
    file: File = None,
    overrides: Overrides = None,
) -> None:
    """Measure zero-shot accuracy and perplexity.

    Without arguments, the trained model and zeroshot.models are evaluated; earlier results are reused from
    DVC's cache.
    """
    if file is not None and not tasks:
        raise UserError(
            f"--file {file}: belongs to one task; name that task as the argument (with make: TASKS=hellaswag)"
        )
    if not tasks and model == str(MODEL) and limit is None and not overrides:
        status = repro_optional("--glob", "stages/dvc.yaml:eval_zeroshot*")
        sys.exit(2 if status else 0)
    failed = False
    for task in tasks or params_or_defaults(overrides or []).zeroshot.tasks:
        try:
            eval_zeroshot.main(task, model, file, limit, overrides=overrides)
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            failed = True
    sys.exit(2 if failed else 0)
