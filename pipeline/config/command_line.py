"""What all commands share: `-S` overrides, `--help`, one-line error messages and exit statuses."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from pipeline.config.errors import UserError, machine_refusal, one_line

# The Makefile sets this variable. Options and arguments are then read from make's variables too, so that
# `make train-on TEXT=notes` means `gpt-pipeline train-on notes`. They are meant for this command alone: the
# stages that it starts through DVC do not see FROM_MAKE.
FROM_MAKE = "GPT_PIPELINE_FROM_MAKE"

# Names a folder in which each stage that DVC starts notes its exit status, in a file named by its process.
STAGES_FOLDER = "GPT_PIPELINE_STAGES"

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


def run(main: Callable[..., Any], on_ranks: bool = False) -> None:
    """Run `main` as a command; with `on_ranks`, torchrun may have started it on several processes."""
    app = new_app()
    app.command()(main)
    run_app(app, on_ranks=on_ranks)


def run_one_of(
    commands: Mapping[str, tuple[str, str]],
    help: str,
    name: str,
    before: Callable[..., None] | None = None,
    add_completion: bool = False,
) -> None:
    """Run `before`, and the command that the first argument names.

    `commands` is {name: (what it does, module of `main`)}. Only the module of that command is imported,
    because some modules import PyTorch, which is slow. With `add_completion`, shells can complete the line.
    """
    app = new_app(help=help, add_completion=add_completion)
    if before is not None:
        app.callback()(before)
    for command, (text, module) in commands.items():
        function = _imported(module) if command == _called() else _only_listed
        app.command(command, short_help=text)(function)
    run_app(app, name)


def _called() -> str:
    """The command in the arguments, or in the unfinished line for which a shell asks how it may go on."""
    unfinished = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = unfinished.split() if unfinished else sys.argv
    return words[1] if len(words) > 1 else ""


def _imported(name: str) -> Callable[..., Any]:
    """The function that `module` or `module:function` names; without a function it is `main`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function or "main")
    return found


def _only_listed() -> None:
    """Placeholder for a command that the help lists but that is not called."""


def new_app(add_completion: bool = False, **settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=add_completion, pretty_exceptions_enable=False, rich_markup_mode=None, **settings
    )


@contextmanager
def _noted_status() -> Iterator[None]:
    """If DVC started this as a stage, note the exit status for the command that started DVC."""
    folder = os.environ.get(STAGES_FOLDER)
    if folder is None or "DVC_STAGE" not in os.environ or "RANK" in os.environ:
        yield
        return
    note, status = Path(folder, str(os.getpid())), 1
    note.touch()
    try:
        yield
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        note.write_text(str(status))


@_noted_status()
def run_app(app: typer.Typer, name: str | None = None, on_ranks: bool = False) -> None:
    """Run the command line, with `name` as the program's name in its help, and exit.

    After a user's mistake, or if the system refuses something (disk, memory, permissions), stderr has one
    line and the exit status is 2, or that of the error. After Ctrl-C it is 130. A mistake of the program
    gives a traceback.
    """
    # Python would search for unreachable objects again and again while PyTorch is imported, and once more at
    # the end: a quarter of a second that finds nothing.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    _open_streams()
    command: Any = get_command(app)
    from_make = bool(os.environ.pop(FROM_MAKE, ""))
    if from_make:
        _read_variables(command)
    arguments = sys.argv[1:]
    if not arguments and hasattr(command, "commands"):
        arguments = ["--help"]
    try:
        if not on_ranks:
            _check_alone()
        status = command.main(arguments, prog_name=name, standalone_mode=False)
        _flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer ends the program without a word
            _refuse(f"standard output: {machine_refusal(ended.__context__)}", 2)
        raise
    except Exception as error:
        explained = _explained(error, from_make)
        refused = refusal(error) if explained is None else (explained, 2)
        if refused is None:
            raise
        _refuse(*refused)
    sys.exit(status if isinstance(status, int) else 0)


def refusal(error: Exception) -> tuple[str, int] | None:
    """What to say of an error that is no mistake of the program, and the exit status; None for others."""
    if isinstance(error, UserError):
        return str(error), error.status
    refused = machine_refusal(error)
    return None if refused is None else (refused, 2)


def _check_alone() -> None:
    """Raise UserError if torchrun started this on several processes: each would do the same work."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and count != "1":
        raise UserError(
            f"this command is one process, but torchrun started {count}; start it without torchrun (training "
            "takes several: NPROC=2 make train-...)"
        )


def _flush() -> None:
    """Raise UserError if what was printed cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise UserError(f"standard output: {machine_refusal(error)}") from None


def _refuse(message: str, status: int) -> NoReturn:
    """Print one line on stderr, whatever is in the message, and exit."""
    with suppress(OSError):  # the terminal may be gone
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)


def _open_streams() -> None:
    """Lead standard streams that were closed, as by `2>&-`, to nowhere.

    Else the next file that is opened, such as a checkpoint, would get what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _read_variables(command: Any) -> None:
    """Read each option and argument also from the environment variable that has its name in capitals.

    Arguments may be several words. An option is one value, even if the command line may repeat it.
    """
    for one in getattr(command, "commands", {"": command}).values():
        for parameter in one.params:
            if parameter.name in ("help", "overrides"):
                continue
            value = os.environ.get(parameter.name.upper())
            if value and getattr(parameter, "multiple", False):
                sys.argv += [parameter.opts[0], value]
            else:
                parameter.envvar = parameter.name.upper()


def _explained(error: Any, from_make: bool) -> str | None:
    """What is wrong with the arguments; None for another error."""
    if not hasattr(error, "format_message"):
        return None
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
