"""Train on the user's own text, or on ids that nanoGPT prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.repro import run_pipeline
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.config.paths import DATA
from pipeline.config.presets import overlay
from pipeline.corpus.own_text import dataset_name, holds_ids, spec_for_nanogpt, spec_for_text
from pipeline.corpus.sources import DatasetSpec, FilesSource, NanoGPTSource, load_spec, write_spec
from pipeline.storage.files import write_text
from pipeline.tokens.nanogpt_ids import check_folder

Text = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        help="A file, a folder or a glob: text, HTML, tables, JSON, source code, packed or not. Or a folder "
        "with nanoGPT's .bin files.",
    ),
]
Column = Annotated[
    str, typer.Option(help="The field or column with the text, in JSON, CSV and Parquet files.")
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Only set up the dataset; do not run the pipeline.")]


def main(text: Text, column: Column = "text", no_run: NoRun = False) -> None:
    """Describe your text in data/<name>/dataset.yaml, make it the active dataset and run the pipeline.

    For nanoGPT's .bin files, tokenizer.name is set too.
    """
    load_params()  # a broken params.yaml stops here, before anything is written
    path, spec, values = describe(text, column)
    write_spec(spec, path)
    write_text(PARAMS_FILE, overlay(PARAMS_FILE.read_text(encoding="utf-8"), values))
    print(f"{path}: {spec.description}, validation split by {spec.split.by}")
    changed = ", ".join(
        f"{section}.{key} is now {value}" for section, keys in values.items() for key, value in keys.items()
    )
    print(f"{PARAMS_FILE}: {changed}")
    print(f"(before `dvc exp run --temp`, which works on a copy, add it to git: git add {path})")
    if not no_run:
        run_pipeline()


def describe(text: str, column: str) -> tuple[Path, DatasetSpec, dict[str, dict[str, str]]]:
    """The path of the dataset.yaml for `text`, its content, and the parameters that choose this dataset.

    Raises UserError if the text cannot be read, or if another dataset has that path.
    """
    folder = Path(text).expanduser()
    if holds_ids(folder):
        check_folder(folder)
        # nanoGPT's folders have the same names as ours, but hold other splits of the same text.
        spec, name = spec_for_nanogpt(folder), f"nanogpt-{dataset_name(str(folder.resolve()))}"
    else:
        spec, name = spec_for_text(text, column), dataset_name(text)
    path = DATA / name / "dataset.yaml"
    if path.exists() and not isinstance(load_spec(name).source, FilesSource | NanoGPTSource):
        raise UserError(f"TEXT={text}: {path} belongs to another dataset; rename your file or folder")
    values = {"data": {"dataset": name}}
    if isinstance(spec.source, NanoGPTSource):
        values["tokenizer"] = {"name": spec.source.tokenizer_name}
    return path, spec, values
