"""One table of commands is behind `make` and `gpt-pipeline`; a mistake is one line at every door."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.commands import commands, make_help
from pipeline.cli.main import main
from pipeline.config.command_line import FROM_MAKE
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.storage.files import write_text
from tests import tiny
from tests.conftest import Ended

OPTIONS = {
    "repro": ["--preset", "--force"],
    "train-on": ["TEXT", "--column", "--encoding", "--name", "--no-run", "--skip-bad"],
    "finetune-on": [
        "TEXT",
        "--model",
        "--block-size",
        "--column",
        "--encoding",
        "--name",
        "--skip-bad",
        "--force",
        "--no-run",
    ],
    "presets": [],
    "preset": ["NAME", "--force"],
    "start-from": ["MODEL", "--block-size"],
    "sizing": ["--preset", "--set-param"],
    "summary": [],
    "sample": ["--start", "--model", "--out", "--set-param"],
    "baselines": [],
    "eval-zeroshot": ["TASKS", "--model", "--limit", "--file", "--set-param"],
    "lm-eval": ["TASKS", "--model", "--limit", "--tasks-folder", "--out", "--set-param"],
    "export": ["--model", "--format", "--out", "--recurrent-depth"],
    "import": ["CKPT", "--meta", "--out"],
    "upload": ["REPO", "--folder", "--private"],
    "generate": [],
    "doctor": [],
    "verify": [],
    "download": ["--set-param"],
    "tokenize": ["--set-param"],
    "train": ["--set-param"],
    "eval-baselines": ["NAME", "--out", "--set-param"],
    "depth-curve": ["--set-param"],
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    monkeypatch.delenv(FROM_MAKE, raising=False)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gpt-pipeline", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_command_with_what_the_table_says(
    cli: Callable[..., Ended], arguments: list[str]
) -> None:
    ended = cli(*arguments)
    assert ended.status == 0
    listed = ended.out.split("Commands:")[1]
    for command in commands():
        if command.module is not None:
            assert re.search(rf"^  {command.name}  +{re.escape(command.help[:20])}", listed, re.MULTILINE), (
                command
            )


def test_every_command_is_tested_for_its_options() -> None:
    assert list(OPTIONS) == [command.name for command in commands() if command.module is not None]


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_explains_all_its_options(cli: Callable[..., Ended], command: str) -> None:
    ended = cli(command, "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"Usage: gpt-pipeline {command} ")
    found = re.findall(r"--[a-z][a-z-]+", ended.out.split("Options:")[1])
    assert set(found) - {"--help", "--no-force"} == {
        name for name in OPTIONS[command] if name.startswith("--")
    }
    for name in OPTIONS[command]:
        assert name.lower() in ended.out.lower()


def test_make_has_the_same_names() -> None:
    makefile = (tiny.ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^COMMANDS := (.*?)\n\n", makefile, re.MULTILINE | re.DOTALL)
    assert listed
    targets = {
        *listed[1].replace("\\\n", " ").split(),
        *re.findall(r"^([a-z%-]+):", makefile, re.MULTILINE),
    }
    named = {(command.make or command.name) for command in commands() if command.make is not None}
    assert targets - {"help", "ready"} == {re.sub(r"<.*>", "%", name) for name in named}


def test_recipes_are_two_lines_at_most() -> None:
    recipe = 0
    for line in (tiny.ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        recipe = recipe + 1 if line.startswith("\t") and not line.startswith("\timport upload") else 0
        assert recipe <= 2, line


def test_plain_make_prints_the_table_on_one_screen() -> None:
    command = ["make", "--no-print-directory"]
    printed = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == make_help() + "\n"
    lines = printed.splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= 100


def test_variables_of_make_are_options(
    tiny_project: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(Path("my book.txt"), tiny.text())
    monkeypatch.setenv("TEXT", "my book.txt")
    monkeypatch.setenv("NO_RUN", "1")
    assert cli("train-on").status == 2, "a shell's variables are nobody's options"
    monkeypatch.setenv(FROM_MAKE, "1")
    ended = cli("train-on")
    assert ended.status == 0, ended.err
    assert "data/my-book/dataset.yaml: " in ended.out


def test_a_variable_that_is_missing_or_wrong_is_asked_for(
    tiny_project: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FROM_MAKE, "1")
    monkeypatch.delenv("TEXT", raising=False)
    ended = cli("train-on")
    assert (ended.status, ended.err) == (
        2,
        "error: missing argument 'TEXT'; add TEXT=...\n",
    )
    monkeypatch.setenv(FROM_MAKE, "1")
    monkeypatch.setenv("LIMIT", "few")
    ended = cli("eval-zeroshot")
    assert ended.status == 2 and ended.err.endswith("; change LIMIT=...\n")


def test_download_tokenize_train_and_sample(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    shutil.rmtree("data/tiny/char")
    write_text(Path("tiny.txt"), tiny.text())
    write_spec(spec_for_text("tiny.txt"), Path("data/tiny/dataset.yaml"))
    for command in ("download", "tokenize"):
        ended = cli(command)
        assert ended.status == 0, ended.err
    assert Path("data/tiny/char/manifest.json").exists()
    assert cli("train", "-S", "train.max_iters=2").status == 0
    sampled = cli("sample", "--start", "the ")
    assert sampled.status == 0 and sampled.out.startswith("the ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train -S train.max_itres=2", "did you mean train.max_iters?"),
        ("train --sed 3", "no such option: --sed; see gpt-pipeline train --help"),
        ("tain", "no such command 'tain'"),
        ("upload", "missing argument 'REPO'; see gpt-pipeline upload --help"),
        ("export --format pickle", "'pickle' is not one of 'transformers', 'nanogpt'"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_project: Path, cli: Callable[..., Ended], arguments: str, expected: str
) -> None:
    ended = cli(*arguments.split())
    assert ended.status == 2
    assert ended.err.startswith("error: ") and expected in ended.err
    assert ended.err.count("\n") == 1
