"""One table of commands is behind `make` and `gpt-pipeline`; a mistake is one line at every door."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.commands import commands, make_help
from pipeline.cli.main import main
from pipeline.config.command_line import FROM_MAKE
from pipeline.config.params import load_params
from pipeline.corpus.own_text import spec_for_text
from pipeline.corpus.sources import write_spec
from pipeline.storage.files import write_text
from pipeline.tokens.shards import open_tokenizer
from pipeline.weights.model_folder import save_config, save_weights
from tests import tiny
from tests.conftest import Ended

OPTIONS = {
    "demo": ["--preset", "--force"],
    "repro": ["--preset", "--force"],
    "train-<preset>": ["--preset", "--force"],
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
    "experiment": ["SET", "--name"],
    "watch": [],
    "run": ["--preset", "--force"],
    "join": ["--set-param"],
    "presets": [],
    "preset": ["NAME", "--force"],
    "start-from": ["MODEL", "--block-size"],
    "sizing": ["--preset", "--set-param"],
    "scaling": ["--sizes", "--tokens", "--jobs", "--flops", "--hours", "--set-param"],
    "profile": ["SET", "--preset", "--set-param", "--steps", "--fixed-batch", "--fit", "--trace"],
    "summary": [],
    "report": ["[RUNS]..."],
    "experiments": [],
    "sample": ["--start", "--model", "--out", "--set-param"],
    "play": ["--model", "--set-param"],
    "serve": ["MODEL", "--host", "--port", "--streams", "--waiting", "--set-param"],
    "baselines": [],
    "eval-zeroshot": ["TASKS", "--model", "--limit", "--file", "--set-param"],
    "lm-eval": ["TASKS", "--model", "--limit", "--tasks-folder", "--out", "--set-param"],
    "push-data": ["--remote"],
    "pull-data": ["--remote"],
    "export": ["--model", "--format", "--out", "--recurrent-depth"],
    "import": ["CKPT", "--meta", "--out"],
    "upload": ["REPO", "--folder", "--private"],
    "generate": [],
    "doctor": [],
    "verify": [],
    "clean": [],
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
            line = rf"^  {re.escape(command.name)}  +{re.escape(command.help[:20])}"
            assert re.search(line, listed, re.MULTILINE), command


def test_every_command_is_tested_for_its_options() -> None:
    assert list(OPTIONS) == [command.name for command in commands() if command.module is not None]


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_explains_all_its_options(cli: Callable[..., Ended], command: str) -> None:
    ended = cli(command, "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"Usage: gpt-pipeline {command.replace('train-<preset>', 'repro')} ")
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
        *" ".join(re.findall(r"^([a-z%-][a-z% -]*):", makefile, re.MULTILINE)).split(),
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
    assert len(lines) <= 48 and max(map(len, lines)) <= 100


def test_the_version_is_the_one_of_the_project(cli: Callable[..., Ended]) -> None:
    with (tiny.ROOT / "pyproject.toml").open("rb") as file:
        number = tomllib.load(file)["project"]["version"]
    assert cli("--version") == Ended(0, f"gpt-pipeline {number}\n", "")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("gpt-pipeline sum", ["summary"]),
        ("gpt-pipeline eval-", ["eval-zeroshot", "eval-baselines"]),
        ("gpt-pipeline sizing --p", ["--preset"]),
        ("gpt-pipeline sample --", ["--set-param", "--start", "--model", "--out", "--help"]),
        ("gpt-pipeline export --format t", ["transformers"]),
    ],
)
def test_bash_completes_commands_and_options(line: str, completed: list[str]) -> None:
    """As in the script that --show-completion prints."""
    words = line.split(" ")
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment = {**os.environ, **asked, "_GPT_PIPELINE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "pipeline.cli.main"]
    answer = subprocess.run(
        command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert answer.split() == completed


def test_a_shell_can_be_told_how_to_ask(cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    ended = cli("--show-completion")
    assert ended.status == 0 and "_GPT_PIPELINE_COMPLETE=complete_bash" in ended.out


@pytest.mark.parametrize(
    "command", ["", "sample", "repro", "train-on", "eval-zeroshot", "upload", "pull-data"]
)
def test_help_does_not_wait_for_pytorch(command: str) -> None:
    code = (
        "import sys; from pipeline.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", code, *command.split(), "--help"]
    ended = subprocess.run(arguments, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("Usage: ") and ended.stderr == "False\n"


def test_what_only_make_does_is_said(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    only_make = [command.name for command in commands() if command.module is None]
    assert only_make == [
        "install",
        "test",
        "test-gpu",
        "faults",
        "check",
        "format",
        "bench",
        "bench-<part>",
        "setup-browser",
    ]
    for name in only_make:
        assert cli(name) == Ended(
            2, "", f"error: {name}: is for work on the code; run `make {name}` in the project's folder\n"
        )


def test_presets_are_commands_as_in_make(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    shutil.copytree(tiny.ROOT / "presets", "presets")
    assert cli("preset-shakespeare-char", "--force").status == 0
    assert load_params().data.dataset == "shakespeare"
    ended = cli("train-shakespear")
    assert ended.status == 2 and "unknown preset shakespear; did you mean shakespeare-" in ended.err


def test_clean_removes_results_and_nothing_else(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    write_text(Path("results/model/config.json"), "{}")
    write_text(Path("runs/one/run.json"), "{}")
    assert cli("clean").status == 0
    assert not Path("results").exists() and Path("runs/one/run.json").exists()


@pytest.mark.parametrize("command", [one.name for one in commands() if one.module and not one.anywhere])
def test_a_command_of_the_project_says_that_it_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ended], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(command)
    assert ended.status == 2 and "is not a project's folder" in ended.err and ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_is_used_where_there_is_no_project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Ended],
    tiny_tokens: Path,
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    saved = tmp_path / "model"
    saved.mkdir()
    tokenizer = open_tokenizer(tiny_tokens)
    network = tiny.model(vocab_size=tokenizer.vocab_size)
    save_weights(network.state_dict(), saved)
    save_config(tiny.config(vocab_size=tokenizer.vocab_size), saved)
    tokenizer.save(saved)
    model = ("--model", str(tmp_path / "model"))
    few = ("-S", "sample.num_samples=1", "-S", "sample.max_new_tokens=4", "-S", "sample.start=the ")
    sampled = cli("sample", *model, *few)
    assert sampled.status == 0 and sampled.out.startswith("the"), sampled.err
    assert not list(folder.iterdir())
    exported = cli("export", *model, "--format", "nanogpt", "--out", "nanogpt")
    assert exported.status == 0, exported.err
    imported = cli("import", "nanogpt/ckpt.pt", "--meta", "nanogpt/meta.pkl", "--out", "again")
    assert imported.status == 0, imported.err
    assert cli("sample", "--model", "again", *few).out == sampled.out
    write_text(Path("text.txt"), tiny.text())
    measured = cli("eval-zeroshot", "wikitext2", *model, "--file", "text.txt", "--limit", "1")
    assert measured.status == 0, measured.err
    assert cli("export", *model).status == 0
    missing = cli("upload", "user/name", "--folder", "nowhere")
    assert missing.status == 2 and missing.err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {"nanogpt", "again", "text.txt", "results"}


def test_without_a_project_the_trained_model_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("sample", "export", "eval-zeroshot"):
        ended = cli(command)
        assert ended.status == 2 and ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


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
