"""`gpt-pipeline`: runs any command of the table in `commands`."""

from __future__ import annotations

from pipeline.cli.commands import commands
from pipeline.config.command_line import run_one_of

HELP = (
    "GPT pretraining and finetuning as a pipeline. Run it in the project's folder; parameters come from "
    "params.yaml, and -S section.key=value overrides one. `dvc repro` runs every stage that is out of date."
)


def main() -> None:
    """Run the command that the first argument names."""
    known = {
        command.name: (command.help, command.module) for command in commands() if command.module is not None
    }
    run_one_of(known, HELP, "gpt-pipeline")


if __name__ == "__main__":
    main()
