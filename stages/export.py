"""Write the trained model as a folder that Hugging Face's transformers loads: results/export/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError
from pipeline.files import replacing_folder
from pipeline.interop.gpt2 import save_gpt2, to_gpt2
from pipeline.model.saved import CONFIG_FILE, WEIGHTS_FILE, load_config, load_model
from pipeline.paths import EXPORT, MODEL
from stages.command import run

WRITTEN = {CONFIG_FILE, WEIGHTS_FILE}


def main(
    model: Annotated[Path, typer.Option(help="Folder of a saved model.")] = MODEL,
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")] = EXPORT,
    recurrent_depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layers that a loop becomes; by default as many as it was trained for.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a saved model into transformers' GPT2LMHeadModel: config.json and model.safetensors."""
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= WRITTEN):
        raise UserError(f"--out {out}: there is something else already; name a new folder")
    config = load_config(model)
    values, tensors = to_gpt2(load_model(model), config, recurrent_depth)
    with replacing_folder(out) as folder:
        save_gpt2(values, tensors, folder)
    print(f"{out}: GPT2LMHeadModel with {values['n_layer']} layers; from_pretrained({str(out)!r}) loads it")


if __name__ == "__main__":
    run(main)
