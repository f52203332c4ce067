"""Every command of the project by name: the table behind `make`, `gpt-pipeline --help` and the README.

Plain `make` runs this before anything is installed, so it needs nothing but an old Python.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: `make <name>`, with variables, and `gpt-pipeline <name>`, with options."""

    name: str
    help: str
    module: str | None = None  # where its `main` (or module:function) is; None for what only make does
    make: str | None = ""  # its name in make if that differs; None if it has none there
    means: tuple[str, ...] = ()  # what `name-<preset>` is short for, with the preset's name after it
    anywhere: bool = False  # whether it also works outside a project's folder

    def is_called(self, word: str) -> bool:
        """Whether a word of the command line names this command: for `bench-<part>`, its beginning does."""
        beginning, rest, _ = self.name.partition("<")
        return word.startswith(beginning) if rest else word == self.name


GROUPS: dict[str, tuple[Command, ...]] = {
    "Start here": (
        Command(
            "demo", "train a small GPT on Python's documentation, show the results", "pipeline.cli.repro"
        ),
        Command("install", "create .venv with the pinned dependencies; TORCH=cu128, EXTRAS=hub"),
    ),
    "Train": (
        Command("repro", "run what is out of date (dvc repro), show the results", "pipeline.cli.repro"),
        Command(
            "train-<preset>",
            "the same with a preset: make train-gpt2",
            "pipeline.cli.repro",
            means=("repro", "--preset"),
        ),
        Command(
            "train-on", "the same on your own text: make train-on TEXT='notes/*.txt'", "pipeline.cli.train_on"
        ),
        Command(
            "finetune-on",
            "start from a model: make finetune-on TEXT='notes/*.txt' MODEL=gpt2",
            "pipeline.cli.finetune_on",
        ),
        Command(
            "experiment",
            "try parameters and compare: make experiment SET='model.n_layer=2 train.seed=2'",
            "pipeline.cli.experiment",
        ),
        Command("watch", "follow the run that trains now, from another terminal", "pipeline.cli.watch"),
        Command("run", "repro for node 0 of a cluster: ends with the trainer's status", "pipeline.cli.run"),
        Command("join", "on the other nodes: take part in that training", "pipeline.cli.join"),
    ),
    "Parameters": (
        Command("presets", "list the presets", "pipeline.cli.preset:list_presets"),
        Command(
            "preset",
            "put a preset into params.yaml; FORCE=1 overwrites your edits",
            "pipeline.cli.preset",
            make="preset-<name>",
            means=("preset",),
        ),
        Command(
            "start-from",
            "put a model's shape and tokenizer into params.yaml: make start-from MODEL=gpt2",
            "pipeline.cli.start_from",
        ),
        Command(
            "sizing", "parameters, FLOPs, memory and disk: make sizing PRESET=gpt2", "pipeline.cli.sizing"
        ),
        Command(
            "scaling",
            "a sweep of small runs, and the scaling law they follow; JOBS=2",
            "pipeline.cli.scaling",
        ),
        Command(
            "profile",
            "a step's time by part, its limit, the faster dtype; FIT=1, TRACE=1",
            "pipeline.cli.profile",
        ),
    ),
    "Results": (
        Command("summary", "losses, a sample, and where the files are", "pipeline.cli.summary"),
        Command(
            "report",
            "all results as one page; several runs: make report RUNS='0f4a 77b2'",
            "pipeline.cli.report",
        ),
        Command(
            "experiments",
            "all experiments beside the baseline: a table, CSV and a picture",
            "pipeline.cli.experiments",
        ),
        Command(
            "sample", "write text: make sample START='ROMEO:' MODEL=gpt2", "stages.sample", anywhere=True
        ),
        Command(
            "play",
            "the same in a conversation: it continues what you write, in colors",
            "pipeline.cli.play",
            anywhere=True,
        ),
        Command(
            "serve",
            "a playground in the browser, OpenAI's API: make serve MODEL='results/model gpt2'",
            "pipeline.cli.serve",
            anywhere=True,
        ),
        Command(
            "baselines",
            "the model beside n-grams and GPT-2 on the same text",
            "pipeline.cli.baselines",
        ),
        Command(
            "eval-zeroshot",
            "HellaSwag, LAMBADA, WikiText-2: make eval-zeroshot MODEL=gpt2 TASKS=lambada",
            "pipeline.cli.eval_zeroshot",
            anywhere=True,
        ),
        Command(
            "lm-eval",
            "tasks of lm-evaluation-harness: make lm-eval TASKS='arc_easy piqa'",
            "pipeline.cli.lm_eval",
            anywhere=True,
        ),
    ),
    "Share": (
        Command(
            "push-data",
            "send the dataset's text and tokens to a DVC remote: make push-data REMOTE=/shared",
            "pipeline.cli.push_data",
        ),
        Command(
            "pull-data",
            "bring them from there, instead of tokenizing again",
            "pipeline.cli.pull_data",
        ),
        Command(
            "export",
            "a folder for transformers; FORMAT=nanogpt for nanoGPT",
            "pipeline.cli.export",
            anywhere=True,
        ),
        Command(
            "import",
            "nanoGPT's or nano-gpt's checkpoint: make import CKPT=ckpt.pt META=meta.pkl",
            "pipeline.cli.import_checkpoint",
            anywhere=True,
        ),
        Command(
            "upload",
            "send results/export to the hub: make upload REPO=user/name",
            "pipeline.cli.upload",
            anywhere=True,
        ),
    ),
    "Work on the code": (
        Command("test", "run the tests"),
        Command("test-gpu", "run those that need a GPU"),
        Command("faults", "hurt a small run in every way, write docs/reliability.md; ONLY=kill-in-save"),
        Command("check", "format, lint, types and imports"),
        Command("format", "format the code and fix what lint can fix"),
        Command("generate", "write the files that are made from the code", "pipeline.cli.generate"),
        Command("bench", "the table of speed beside nanoGPT and the fork: make bench CLONE=... FORK=..."),
        Command("bench-<part>", "one more: make bench-gpu, bench-scale, bench-report, bench-serve"),
        Command("setup-browser", "install Chromium, which tests and benchmarks look at pages with"),
        Command(
            "doctor",
            "this machine and project, for a bug report; what to mend",
            "pipeline.cli.doctor",
            anywhere=True,
        ),
        Command(
            "verify",
            "hash every file of data/, runs/ and results/ again; what is damaged",
            "pipeline.cli.verify",
        ),
        Command("clean", "remove results/; `make repro` makes it again", "pipeline.cli.clean"),
    ),
    "The stages, one at a time": (
        Command("download", "bring the dataset's text to data/<dataset>/raw/", "stages.download", make=None),
        Command("tokenize", "cut the text into shards of token ids", "stages.tokenize", make=None),
        Command("train", "train a GPT; interrupted, the same command continues", "stages.train", make=None),
        Command(
            "eval-baselines",
            "evaluate a baseline or a model on the dataset",
            "stages.eval_baselines",
            make=None,
        ),
        Command("depth-curve", "draw validation loss over depth", "stages.depth_curve", make=None),
    ),
}


def commands() -> tuple[Command, ...]:
    """All of them, in order."""
    return tuple(command for group in GROUPS.values() for command in group)


def make_help() -> str:
    """What plain `make` prints."""
    lines = []
    for group, members in GROUPS.items():
        targets = [
            (command.make or command.name, command.help) for command in members if command.make is not None
        ]
        if targets:
            lines += [group, *(f"  {name:<16}{text}" for name, text in targets)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_help())
