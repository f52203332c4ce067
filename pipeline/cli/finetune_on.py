"""Set params.yaml to finetune a model on the user's own text: the preset, the model and the data at once."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.new_dataset import Text, TextColumn, describe
from pipeline.cli.preset import apply
from pipeline.cli.start_from import BlockSize, start_values
from pipeline.config import presets
from pipeline.config.command_line import ModelName, run
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE
from pipeline.corpus.sources import write_spec

PRESET = "finetune-on"


def main(
    text: Text,
    model: ModelName = "gpt2",
    block_size: BlockSize = None,
    text_column: TextColumn = "text",
    force: Annotated[bool, typer.Option("--force", help="Overwrite values edited by hand.")] = False,
) -> None:
    """Put the preset finetune-on, a model to start from and your text into params.yaml, or change nothing."""
    path, spec, data = describe(text, text_column)
    values = start_values(model, block_size, dropout=0.0) | {"data": data["data"]}
    if "tokenizer" in data:  # ids come with theirs
        values["tokenizer"] = {**data["tokenizer"], "model": None}
    if "tokenizer" not in values:
        raise UserError(
            f"MODEL={model}: it has no tokenizer, and its vocabulary is not GPT-2's; put its tokenizer.json "
            "into its folder"
        )
    changed = apply(PRESET, force, values=values)
    write_spec(spec, path)
    print(f"{path}: {spec.description}, validation split by {spec.split.by}")
    print(f"{PARAMS_FILE} finetunes {model} on {data['data']['dataset']}")
    for key, (before, after) in changed.items():
        print(f"  {key}: {presets.show(before)} -> {presets.show(after)}")


if __name__ == "__main__":
    run(main)
