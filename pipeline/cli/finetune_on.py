"""Finetune a model on the user's own text: set the preset, the model and the dataset, then train."""

from __future__ import annotations

from pipeline.cli.preset import apply, show_changes
from pipeline.cli.repro import run_pipeline
from pipeline.cli.short_text import FINETUNING, fit_short_text
from pipeline.cli.start_from import BlockSize, start_values
from pipeline.cli.train_on import Column, Encoding, Name, NoRun, SkipBad, Text, describe
from pipeline.config.command_line import Force, ModelName
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE
from pipeline.config.presets import composed, merged
from pipeline.corpus.sources import write_spec

PRESET = "finetune-on"


def main(
    text: Text,
    model: ModelName = "gpt2",
    block_size: BlockSize = None,
    column: Column = "text",
    name: Name = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    force: Force = False,
    no_run: NoRun = False,
) -> None:
    """Set up params.yaml to finetune a model on your text (preset finetune-on), and run the pipeline."""
    path, spec, data = describe(text, column, name, encoding, skip_bad)
    values = start_values(model, block_size, dropout=0.0) | {"data": data["data"]}
    if "tokenizer" in data:  # nanoGPT's ids come with their tokenizer
        values["tokenizer"] = {**data["tokenizer"], "model": None}
    if "tokenizer" not in values:
        raise UserError(
            f"MODEL={model}: it has no tokenizer, and its vocabulary is not GPT-2's; put its tokenizer.json "
            "into its folder"
        )
    spec, short = fit_short_text(composed(PRESET, values=values), spec, FINETUNING)
    changed = apply(PRESET, force, values=merged([values, short]))
    write_spec(spec, path)
    print(f"{path}: {spec.description}, validation split by {spec.split.by}")
    print(f"{PARAMS_FILE}: training finetunes {model} on {data['data']['dataset']}")
    show_changes(changed)
    if not no_run:
        run_pipeline()
