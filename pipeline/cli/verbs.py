"""Every command of the project by name: the table behind `make`, `gpt-pipeline --help` and docs/commands.md.

Plain `make` runs this before anything is installed, so it needs nothing but an old Python.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One command: `make <name>`, with variables, and `gpt-pipeline <name>`, with options."""

    name: str
    help: str
    module: str | None = None  # where its `main` (or module:function) is; None for what only make does
    make: str | None = ""  # its name in make if that differs; None if it has none there


GROUPS: dict[str, tuple[Verb, ...]] = {
    "Start here": (
        Verb("demo", "install, train a small GPT on Python's documentation, show the results"),
        Verb("install", "create .venv with the pinned dependencies"),
    ),
    "Train": (
        Verb("repro", "run what is out of date (dvc repro), show the results", "pipeline.cli.repro"),
        Verb("train-<preset>", "the same with a preset: make train-gpt2"),
        Verb(
            "train-on", "the same on your own text: make train-on TEXT='notes/*.txt'", "pipeline.cli.train_on"
        ),
        Verb(
            "finetune-on",
            "start from a model: make finetune-on TEXT='notes/*.txt' MODEL=gpt2",
            "pipeline.cli.finetune_on",
        ),
    ),
    "Parameters": (
        Verb("presets", "list the presets", "pipeline.cli.preset:list_presets"),
        Verb(
            "preset",
            "put a preset into params.yaml; FORCE=1 overwrites your edits",
            "pipeline.cli.preset",
            make="preset-<name>",
        ),
        Verb(
            "start-from",
            "put a model's shape and tokenizer into params.yaml: make start-from MODEL=gpt2",
            "pipeline.cli.start_from",
        ),
    ),
    "Results": (
        Verb("summary", "losses, a sample, and where the files are", "pipeline.cli.summary"),
        Verb("sample", "write text: make sample START='ROMEO:' MODEL=gpt2", "stages.sample"),
        Verb(
            "baselines",
            "the model beside n-grams and GPT-2 on the same text",
            "pipeline.cli.baselines",
        ),
        Verb(
            "eval-zeroshot",
            "HellaSwag, LAMBADA, WikiText-2: make eval-zeroshot MODEL=gpt2 TASKS=lambada",
            "pipeline.cli.eval_zeroshot",
        ),
        Verb(
            "lm-eval",
            "tasks of lm-evaluation-harness: make lm-eval TASKS='arc_easy piqa'",
            "pipeline.cli.lm_eval",
        ),
    ),
    "Share": (
        Verb("export", "a folder for transformers; FORMAT=nanogpt for nanoGPT", "pipeline.cli.export"),
        Verb(
            "import",
            "nanoGPT's checkpoint as a model: make import CKPT=ckpt.pt META=meta.pkl",
            "pipeline.cli.import_checkpoint",
        ),
        Verb("upload", "send results/export to the hub: make upload REPO=user/name", "pipeline.cli.upload"),
    ),
    "Work on the code": (
        Verb("test", "run the tests"),
        Verb("test-gpu", "run those that need a GPU"),
        Verb("check", "format, lint, types and imports"),
        Verb("format", "format the code and fix what lint can fix"),
        Verb("generate", "write the files that are made from the code", "pipeline.cli.generate"),
        Verb("bench", "measure: make bench WHAT=nanogpt, fork, interop or variants"),
        Verb("doctor", "versions, device and changed parameters, for a bug report", "pipeline.cli.doctor"),
        Verb("clean", "remove results/; `make repro` brings them back"),
    ),
    "The stages, one at a time": (
        Verb("download", "bring the dataset's text to data/<dataset>/raw/", "stages.download", make=None),
        Verb("tokenize", "cut the text into shards of token ids", "stages.tokenize", make=None),
        Verb("train", "train a GPT; interrupted, the same command continues", "stages.train", make=None),
        Verb(
            "eval-baselines",
            "evaluate a baseline or a model on the dataset",
            "stages.eval_baselines",
            make=None,
        ),
        Verb("depth-curve", "draw validation loss over depth", "stages.depth_curve", make=None),
    ),
}


def verbs() -> tuple[Verb, ...]:
    """All of them, in order."""
    return tuple(verb for group in GROUPS.values() for verb in group)


def make_help() -> str:
    """What plain `make` prints."""
    lines = []
    for group, members in GROUPS.items():
        targets = [(verb.make or verb.name, verb.help) for verb in members if verb.make is not None]
        if targets:
            lines += [group, *(f"  {name:<16}{text}" for name, text in targets)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_help())
