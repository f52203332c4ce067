"""What every stage's command line shares: `-S` overrides, `--help`, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipeline.config.errors import UserError

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


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a command."""
    app = new_app()
    app.command()(main)
    run_app(app)


def new_app(**settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


def run_app(app: typer.Typer, name: str | None = None) -> None:
    """Run a command line, called `name` in its help.

    A UserError is one line on stderr and exit status 2; Ctrl-C is 130.
    """
    try:
        app(prog_name=name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
