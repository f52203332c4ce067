"""Evaluate a model with lm-evaluation-harness, on any of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, Overrides
from pipeline.config.errors import UserError, missing_extra
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL
from pipeline.corpus.hub_datasets import first_line, is_network_error
from pipeline.storage.files import write_json
from stages.eval_zeroshot import Limit


def main(
    tasks: Annotated[list[str], typer.Argument(help="The harness's tasks, such as arc_easy.")],
    model: ModelName = str(MODEL),
    limit: Limit = None,
    tasks_folder: Annotated[
        Path | None,
        typer.Option(help="A folder of tasks in YAML, instead of the harness's own.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to save the figures, as JSON.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate a model on tasks of lm-evaluation-harness, which needs the optional extra lm-eval."""
    params = params_or_defaults(overrides or [])
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError:
        raise missing_extra("lm-eval", "lm-eval") from None
    from pipeline.evaluate.lm_eval import NAME
    from pipeline.runtime.device import use_device

    manager = TaskManager(
        include_path=None if tasks_folder is None else str(tasks_folder),
        include_defaults=tasks_folder is None,
    )
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        where = "`lm-eval ls tasks` lists all tasks" if tasks_folder is None else f"look in {tasks_folder}"
        raise UserError(f"task {unknown[0]}: no such task; {where}")
    try:
        results = simple_evaluate(
            model=NAME,
            model_args={"pretrained": model},
            device=str(use_device(params.runtime)),
            tasks=list(tasks),
            task_manager=manager,
            limit=params.zeroshot.limit if limit is None else limit,
            batch_size=params.zeroshot.batch_size,
            log_samples=False,
        )
    except Exception as error:
        if is_network_error(error):
            raise UserError(
                f"{' '.join(tasks)}: cannot reach the hub ({first_line(error)}); try again with a network "
                "connection"
            ) from None
        raise
    print(make_table(results))
    if out is not None:
        write_json(out, results["results"])
        print(f"{out}: these figures as JSON")
