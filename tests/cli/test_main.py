"""`gpt-pipeline`: the stages behind one command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.corpus.sources import spec_for_text, write_spec
from pipeline.storage.files import write_text
from tests import tiny
from tests.conftest import Ended

VERBS = {
    "prepare": ["--set-param"],
    "train": ["--set-param"],
    "sample": ["--start", "--model", "--out", "--set-param"],
    "eval": ["{task}", "--model", "--limit", "--data", "--set-param"],
    "lm-eval": ["{tasks}", "--model", "--limit", "--out"],
    "start-from": ["{MODEL}", "--block-size"],
    "baseline": ["{name}", "--out", "--set-param"],
    "export": ["--model", "--out", "--recurrent-depth"],
    "upload": ["--folder", "--private"],
    "import": ["--meta", "--out"],
    "export-nanogpt": ["--model", "--out"],
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gpt-pipeline", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_help_lists_every_verb(cli: Callable[..., Ended]) -> None:
    ended = cli("--help")
    assert ended.status == 0
    listed = [line.split()[0] for line in ended.out.split("Commands:")[1].splitlines() if line.strip()]
    assert sorted(verb for verb in listed if verb in VERBS) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_all_its_options(cli: Callable[..., Ended], verb: str) -> None:
    ended = cli(verb, "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"Usage: gpt-pipeline {verb} ")
    assert [option for option in VERBS[verb] if option not in ended.out] == []


def test_prepare_train_and_sample(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    shutil.rmtree("data/tiny/char")
    write_text(Path("tiny.txt"), tiny.text())
    write_spec(spec_for_text("tiny.txt"), Path("data/tiny/dataset.yaml"))
    prepared = cli("prepare")
    assert prepared.status == 0, prepared.err
    assert Path("data/tiny/char/manifest.json").exists()
    assert cli("train", "-S", "train.max_iters=2").status == 0
    sampled = cli("sample", "--start", "the ", "--out", "-")
    assert sampled.status == 0 and sampled.out.startswith("the ")


def test_a_mistake_is_one_line(tiny_project: Path, cli: Callable[..., Ended]) -> None:
    ended = cli("train", "-S", "train.max_itres=2")
    assert ended.status == 2
    assert ended.err.startswith("error: ") and "did you mean train.max_iters?" in ended.err
    assert ended.err.count("\n") == 1
