"""What all commands share: `-S` overrides, `--help`, one-line error messages and exit statuses."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.main import get_command

from pipeline.config.errors import UserError

# The Makefile sets this variable. Options and arguments are then read from make's variables too, so that
# `make train-on TEXT=notes` means `gpt-pipeline train-on notes`. They are meant for this command alone: the
# stages that it starts through DVC do not see FROM_MAKE.
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
        max=1 << 16,
        help="Layers to unroll a loop into; by default as many as it was trained for.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite hand-edited values in params.yaml.")]


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a command."""
    app = new_app()
    app.command()(main)
    run_app(app)


def run_one_of(commands: Mapping[str, tuple[str, str]], help: str, name: str) -> None:
    """Run the command that the first argument names; `commands` is {name: (what it does, module of `main`)}.

    Only the module of that command is imported, because some modules import PyTorch, which is slow.
    """
    app = new_app(help=help)
    for command, (text, module) in commands.items():
        called = command in sys.argv[1:2]
        function = _imported(module) if called else _only_listed
        app.command(command, short_help=text)(function)
    run_app(app, name)


def _imported(name: str) -> Callable[..., Any]:
    """The function that `module` or `module:function` names; without a function it is `main`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function or "main")
    return found


def _only_listed() -> None:
    """Placeholder for a command that the help lists but that is not called."""


def new_app(**settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


def run_app(app: typer.Typer, name: str | None = None) -> None:
    """Run the command line, with `name` as the program's name in its help, and exit.

    After a user's mistake, stderr has one line and the exit status is that of the error, usually 2. After
    Ctrl-C the status is 130.
    """
    command: Any = get_command(app)
    from_make = bool(os.environ.pop(FROM_MAKE, ""))
    if from_make:
        _read_variables(command)
    arguments = sys.argv[1:]
    if not arguments and hasattr(command, "commands"):
        arguments = ["--help"]
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # only errors in the arguments have it
            raise
        print(f"error: {_explained(error, from_make)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _read_variables(command: Any) -> None:
    """Read each option and argument also from the environment variable that has its name in capitals."""
    for one in getattr(command, "commands", {"": command}).values():
        for parameter in one.params:
            if parameter.name not in ("help", "overrides"):
                parameter.envvar = parameter.name.upper()


def _explained(error: Any, from_make: bool) -> str:
    message = error.format_message().strip().rstrip(".")
    message = f"{message[:1].lower()}{message[1:]}"
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    parameter = getattr(error, "param", None)
    if from_make and parameter is not None:
        given = parameter.name.upper() in os.environ
        return f"{message}; {'change' if given else 'add'} {parameter.name.upper()}=..."
    return f"{message}; see {context.command_path} --help"
