"""Evaluate one baseline or model on the active dataset's validation text: results/baselines/<name>.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.command_line import Overrides
from pipeline.config.params import BASELINES as COUNTED
from pipeline.config.params import load_params
from pipeline.config.paths import BASELINES, tokens_folder
from pipeline.distributed.launch import is_main, run_on_ranks
from pipeline.evaluate.baselines import evaluate_baseline, file_name, label, write_figures
from pipeline.storage.files import check_writable
from pipeline.tokens.shards import load_manifest


def main(
    name: Annotated[
        str,
        typer.Argument(
            help="uniform, unigram, bigram, trigram (interpolated), kneser-ney (modified, of order 5), xz, "
            "gpt2 (-medium, -large, -xl), a model's folder, or its name on the hub."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = BASELINES,
    overrides: Overrides = None,
) -> None:
    """Measure a baseline's loss in nats per token and bits per byte."""
    params = load_params(overrides or [])
    folder, path = tokens_folder(params), out / file_name(name)
    check_writable(path)
    result = evaluate_baseline(name, params, folder)
    if not is_main():
        return
    write_figures(path, name, load_manifest(folder).fingerprint, result)
    loss, bpb = result.val.loss, result.val.bits_per_byte
    shown = label(str(path), result.first_tokens)
    print(f"{shown}: val loss {loss:.4f} nats per token, {bpb:.4f} bits per byte")


def _is_model(name: str, **_: object) -> bool:
    """Whether several processes are faster."""
    return name not in COUNTED


if __name__ == "__main__":
    run_on_ranks(main, "stages.eval_baselines", pays=_is_model)
