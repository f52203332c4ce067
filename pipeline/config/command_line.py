"""What every command line shares: `-S` overrides, `--help`, one line for a mistake, and the exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.main import get_command

from pipeline.config.errors import UserError

# Set by the Makefile: its variables take the place of options, so that `make train-on TEXT=notes` is
# `gpt-pipeline train-on notes`.
FROM_MAKE = "GPT_PIPELINE_FROM_MAKE"

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-S", "--set-param", metavar="SECTION.KEY=VALUE", help="Override a parameter for this call."
    ),
]

ModelName = Annotated[
    str, typer.Option("--model", help="A model's folder, gpt2 (-medium, -large, -xl), or a name on the hub.")
]
RecurrentDepth = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Layers that a loop becomes; by default as many as it was trained for.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite values in params.yaml edited by hand.")]


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a command."""
    app = new_app()
    app.command()(main)
    run_app(app)


def run_one_of(commands: Mapping[str, tuple[str, str]], help: str, name: str) -> None:
    """Run the command that the first argument names, of {name: (what it does, module with its `main`)}.

    Only the module of that command is imported: several of them bring PyTorch.
    """
    app = new_app(help=help)
    for command, (text, module) in commands.items():
        called = command in sys.argv[1:2]
        function: Callable[..., Any] = importlib.import_module(module).main if called else _listed
        app.command(command, short_help=text)(function)
    run_app(app, name)


def _listed() -> None:
    """Stands for a command that is listed and not called."""


def new_app(**settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


def run_app(app: typer.Typer, name: str | None = None) -> None:
    """Run a command line, called `name` in its help, and exit.

    A mistake of the user's is one line on stderr and status 2; Ctrl-C is 130.
    """
    command: Any = get_command(app)
    if os.environ.get(FROM_MAKE):
        _read_variables(command)
    arguments = sys.argv[1:]
    if not arguments and hasattr(command, "commands"):
        arguments = ["--help"]
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which only errors in the arguments have
            raise
        print(f"error: {_explained(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _read_variables(command: Any) -> None:
    """Let every option and argument be given as an environment variable of its name in capitals."""
    for one in getattr(command, "commands", {"": command}).values():
        for parameter in one.params:
            if parameter.name not in ("help", "overrides"):
                parameter.envvar = parameter.name.upper()


def _explained(error: Any) -> str:
    message = error.format_message().strip().rstrip(".")
    message = f"{message[:1].lower()}{message[1:]}"
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    parameter = getattr(error, "param", None)
    if os.environ.get(FROM_MAKE) and parameter is not None:
        return f"{message}; set it: make {context.info_name} {parameter.name.upper()}=..."
    return f"{message}; see {context.command_path} --help"
