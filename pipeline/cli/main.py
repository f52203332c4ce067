"""`gpt-pipeline`: runs any command of the table in `commands`."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.commands import commands
from pipeline.config.command_line import run_one_of
from pipeline.config.errors import UserError

NAME = "gpt-pipeline"
HELP = (
    "GPT pretraining and finetuning as a pipeline. Run it in the project's folder; parameters come from "
    "params.yaml, and -S section.key=value overrides one. `gpt-pipeline repro` runs every stage that is out "
    "of date."
)
OF_A_PROJECT = ("params.yaml", "dvc.yaml")  # a folder with one of these is a project's


def main() -> None:
    """Run the command that the first argument names."""
    sys.argv[1:] = _written_out(sys.argv[1:])
    known = {command.name: (command.help, command.module) for command in commands() if command.module}
    for command in commands():
        if command.module is None and any(map(command.is_called, sys.argv[1:2])):
            known[sys.argv[1]] = (command.help, "pipeline.cli.main:only_with_make")
    run_one_of(known, HELP, NAME, before, add_completion=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            number = version(NAME)
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"{NAME} {number}")
        raise typer.Exit


def before(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Refuse a command of the project outside of one."""
    name, elsewhere = context.invoked_subcommand, {command.name for command in commands() if command.anywhere}
    in_project = any(Path(file).exists() for file in OF_A_PROJECT)
    if name not in elsewhere and not in_project and "--help" not in sys.argv:
        raise UserError(
            f"{name}: {Path.cwd()} is not a project's folder (it has no {' or '.join(OF_A_PROJECT)}); go to "
            "your copy of the repository, or clone it"
        )


def only_with_make() -> None:
    """Say that only make has this command."""
    raise UserError(
        f"{sys.argv[1]}: is for work on the code; run `make {sys.argv[1]}` in the project's folder"
    )


def _written_out(arguments: list[str]) -> list[str]:
    """The arguments with `repro --preset NAME` for `train-NAME`, and `preset NAME` for `preset-NAME`."""
    name = arguments[0] if arguments else ""
    if "<" in name or name not in {command.name for command in commands()}:
        for command in commands():
            prefix = (command.make or command.name).partition("<")[0]
            if command.means and name.startswith(prefix):
                return [*command.means, name.removeprefix(prefix), *arguments[1:]]
    return arguments


if __name__ == "__main__":
    main()
