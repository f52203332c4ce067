"""Train on the user's own text, or on ids that nanoGPT prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.install import add_if_missing
from pipeline.cli.repro import run_pipeline
from pipeline.cli.short_text import FROM_SCRATCH, Values, fit_short_text
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, Params, load_params
from pipeline.config.paths import DATA
from pipeline.config.presets import before_short_text, flatten, merged, overlay
from pipeline.config.validation import validate
from pipeline.corpus.own_text import (
    dataset_name,
    holds_ids,
    is_hub_name,
    spec_for_hub,
    spec_for_nanogpt,
    spec_for_text,
)
from pipeline.corpus.sources import (
    DatasetSpec,
    FilesSource,
    HuggingFaceSource,
    NanoGPTSource,
    Source,
    is_url,
    load_spec,
    safe_name,
    write_spec,
)
from pipeline.storage.files import write_text
from pipeline.tokens.nanogpt_ids import check_folder

Text = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        help="A file, a folder, a glob or a URL: text, HTML, tables, JSON, source code, packed or not. Or "
        "hf:user/name, a dataset on the Hugging Face hub; or a folder with nanoGPT's .bin files.",
    ),
]
Column = Annotated[
    str, typer.Option(help="The field or column with the text, in JSON, CSV and Parquet files.")
]
Name = Annotated[
    str | None,
    typer.Option(help="The dataset's name, a folder in data/; by default that of TEXT.", show_default=False),
]
Encoding = Annotated[
    str | None,
    typer.Option(help="The encoding of text that is not UTF-8; by default it is found.", show_default=False),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")]
NoRun = Annotated[bool, typer.Option("--no-run", help="Only set up the dataset; do not run the pipeline.")]


def main(
    text: Text,
    column: Column = "text",
    name: Name = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    no_run: NoRun = False,
) -> None:
    """Describe your text in data/<name>/dataset.yaml, make it the active dataset and run the pipeline.

    For nanoGPT's .bin files, tokenizer.name is set too. For a text that is too short for the present
    parameters, so are the block size, the vocabulary and the steps; docs/guide.md has the rule.
    """
    params = load_params()  # a broken params.yaml stops here, before anything is written
    path, spec, values = describe(text, column, name, encoding, skip_bad)
    earlier = before_short_text(params.model_dump())
    params = validate(Params, merged([params.model_dump(), earlier]), PARAMS_FILE)
    spec, short = fit_short_text(params, spec, FROM_SCRATCH)
    values = merged([earlier, values, short])
    write_spec(spec, path)
    write_text(PARAMS_FILE, overlay(PARAMS_FILE.read_text(encoding="utf-8"), values))
    print(f"{path}: {spec.description}, validation split by {spec.split.by}")
    changed = ", ".join(f"{name} is now {value}" for name, value in flatten(values).items())
    print(f"{PARAMS_FILE}: {changed}")
    print(f"(before `dvc exp run --temp`, which works on a copy, add it to git: git add {path})")
    if not no_run:
        run_pipeline()


def describe(
    text: str, column: str, name: str | None, encoding: str | None, skip_bad: bool
) -> tuple[Path, DatasetSpec, Values]:
    """The path of the dataset.yaml for `text`, its content, and the parameters that choose this dataset.

    The dataset is called `name`, or as its text is.

    Raises UserError if the text cannot be read, or if another dataset has that path.
    """
    folder = Path(text).expanduser()
    if is_hub_name(text):
        add_if_missing("datasets", "hub")
        spec, own_name = spec_for_hub(text, column), dataset_name(text)
    elif holds_ids(folder):
        check_folder(folder)
        # nanoGPT's folders have the same names as ours, but hold other splits of the same text.
        spec, own_name = spec_for_nanogpt(folder), f"nanogpt-{dataset_name(str(folder.resolve()))}"
    else:
        spec, own_name = spec_for_text(text, column, skip_bad, encoding), dataset_name(text)
    if name is not None and name != safe_name(name):
        raise UserError(
            f"NAME={name}: not a folder's name; use letters, digits and . _ -: NAME={safe_name(name)}"
        )
    name = name or own_name
    path = DATA / name / "dataset.yaml"
    if path.exists() and _origins(load_spec(name).source).isdisjoint(_origins(spec.source)):
        raise UserError(f"TEXT={text}: {path} is of other text; choose a name: NAME={name}-2 (--name)")
    values: Values = {"data": {"dataset": name}}
    if isinstance(spec.source, NanoGPTSource):
        values["tokenizer"] = {"name": spec.source.tokenizer_name}
    return path, spec, values


def _origins(source: Source) -> set[str]:
    """The files, or the data set on the hub, that a dataset of the user's own is made of."""
    if isinstance(source, HuggingFaceSource):
        return {f"hf:{source.repository}"}
    own = list(source.paths) if isinstance(source, FilesSource) else []
    if isinstance(source, NanoGPTSource):
        own = [source.train, source.val]
    return {file.path if is_url(file.path) else str(Path(file.path).absolute()) for file in own}
