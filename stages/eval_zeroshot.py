"""Evaluate a model on a task it was not trained for: results/zeroshot/<model>/<task>.json.

With --limit, --file or -S, the result is `<task>-trial.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import ModelName, Overrides
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL, ZEROSHOT
from pipeline.distributed.launch import is_main, run_on_ranks

File = Annotated[
    Path | None, typer.Option(help="Read this file instead of the downloaded one.", show_default=False)
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2**63 - 1,
        help="Number of samples to evaluate; overrides zeroshot.limit.",
        show_default=False,
    ),
]


def main(
    task: Annotated[str, typer.Argument(help="hellaswag, lambada or wikitext2.")],
    model: ModelName = str(MODEL),
    file: File = None,
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the figures, instead of the default.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure a model on a zero-shot task."""
    # PyTorch takes seconds to import, which --help and completion need not wait for.
    from pipeline.distributed.world import world
    from pipeline.evaluate.zeroshot import evaluate_task, file_name, open_task
    from pipeline.model.load import load_model
    from pipeline.runtime.device import use_device
    from pipeline.storage.checksums import write_checked_json
    from pipeline.storage.files import check_writable
    from pipeline.weights.open import open_model

    params = params_or_defaults(overrides or [])
    # DVC's stages give none of these options; what they change must not replace a result that DVC records.
    name = f"{task}-trial" if limit is not None or file is not None or overrides else task
    path = out or ZEROSHOT / file_name(name, model)
    check_writable(path)
    device, stored = use_device(params.runtime), world().main_first(lambda: open_model(model))
    tokenizer = stored.tokenizer()
    most = params.zeroshot.limit if limit is None else limit
    samples = world().main_first(lambda: open_task(task, tokenizer, stored.config.block_size, most, file))
    gpt = load_model(stored, device)
    figures = evaluate_task(samples, gpt, tokenizer, device, params.zeroshot.batch_size)
    if not is_main():
        return
    about = {"task": task, "model": model, "weights": stored.sha256, "samples": samples.samples}
    write_checked_json(path, {**about, **figures})
    shown = ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
    print(f"{path}: {shown} on {samples.samples} samples")


if __name__ == "__main__":
    run_on_ranks(main, "stages.eval_zeroshot")
