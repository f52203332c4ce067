"""Make data/<name>/dataset.yaml for the user's own text, and make it the active dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.data.sources import FilesSource, dataset_name, load_spec, spec_for_text, write_spec
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.params import PARAMS_FILE, load_params
from pipeline.paths import DATA
from pipeline.presets import overlay
from stages.command import run


def main(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Path or glob of .txt, .jsonl or .parquet files.")
    ],
    text_column: Annotated[
        str, typer.Option(help="Where .jsonl and .parquet files hold their text.")
    ] = "text",
) -> None:
    """Describe your own text in data/<name>/dataset.yaml, and set data.dataset to it."""
    load_params()  # a broken params.yaml stops here, before anything is written
    spec = spec_for_text(text, text_column)
    name = dataset_name(text)
    path = DATA / name / "dataset.yaml"
    if path.exists() and not isinstance(load_spec(name).source, FilesSource):
        raise UserError(f"TEXT={text}: {path} is another dataset's; rename the file or folder of your text")
    write_spec(spec, path)
    write_text(PARAMS_FILE, overlay(PARAMS_FILE.read_text(encoding="utf-8"), {"data": {"dataset": name}}))
    print(f"{path}: {spec.description}, validation split by {spec.split.by}")
    print(f"{PARAMS_FILE}: data.dataset is now {name}\nnext: dvc repro")
    print(f"(experiments in a copy, `dvc exp run --temp`, need it in git: git add {path})")


if __name__ == "__main__":
    run(main)
