"""What programs print and save is read as they mean it; clones and earlier versions are found or named."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.harness import (
    CONFIG,
    FLAGS,
    NANOGPT,
    PREPARE,
    PRESET,
    Figure,
    earlier_version,
    find_clone,
    nanogpt_steps,
    prepare_here,
    steps_here,
    write_figures,
)
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.presets import compose
from pipeline.storage.files import write_text
from tests import tiny

NANOGPT_OUTPUT = """\
number of parameters: 0.80M
step 0: train loss 4.1676, val loss 4.1649
iter 0: loss 4.1828, time 700.50ms, mfu -100.00%
iter 1: loss 4.1373, time 30.25ms, mfu -100.00%
step 2: train loss 4.1306, val loss 4.1214
saving checkpoint to out-shakespeare-char
"""

LOG = """\
step,tokens,train_loss,val_loss,lr,grad_norm,tokens_per_second,mfu
0,0,,4.1,1e-05,,,
1,768,4.2,,1e-05,2.1,7680,0.1
2,1536,4.1,4.0,2e-05,2.0,38400,0.5
"""

WITHOUT_A_USER = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def test_a_figure_keeps_its_limit_at_most_or_at_least() -> None:
    least = Figure("rate", 5.0, "5", 5, "5/s", at_least=True)
    assert least.row == ("rate", "5", "≥ 5/s", "pass")
    assert replace(least, value=4.9).row[3] == replace(least, value=5.1, at_least=False).row[3] == "MISS"
    assert replace(least, at_least=False).row == ("rate", "5", "≤ 5/s", "pass")


def test_figures_are_written_as_a_table_and_as_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_figures("some", "Some figures", [Figure("a time", 0.5, "0.50 s", 1, "1 s")])
    table = (tmp_path / "results/bench-some.md").read_text()
    assert table.startswith("# Some figures\n\n|") and "| a time | 0.50 s | ≤ 1 s | pass |" in table
    (values,) = json.loads((tmp_path / "results/bench-some.json").read_text())["figures"]
    assert values["value"] == 0.5 and values["limit"] == 1
    assert "| a time | 0.50 s |" in capsys.readouterr().out


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def repository(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, *WITHOUT_A_USER, "commit", "--quiet", "-m", "all")


def clone(folder: Path) -> Path:
    for name in ("train.py", "model.py", "sample.py", CONFIG, PREPARE):
        write_text(folder / name, "")
    return folder


def test_reads_what_nanogpt_prints() -> None:
    assert nanogpt_steps(NANOGPT_OUTPUT) == [0.7005, 0.03025]


def test_reads_the_log() -> None:
    assert steps_here(LOG.splitlines()) == pytest.approx([0.1, 0.02])


def test_both_programs_get_the_same_configuration(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(compose(PRESET, tiny.ROOT / "presets"))
    params = load_params(path=path).model_dump()
    ours = params["model"] | params["train"] | params["log"]
    assert {name: ours[name] for name in FLAGS} == FLAGS
    assert ours["max_iters"] == 2000


def test_a_folder_that_is_no_clone_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    with pytest.raises(UserError, match=r"not a clone of github.com/karpathy/nanoGPT, it has no model\.py"):
        find_clone(NANOGPT, tmp_path)
    assert find_clone(NANOGPT, clone(tmp_path)) == tmp_path


def test_a_clone_is_made_once_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = clone(tmp_path / "origin")
    repository(origin)
    head = subprocess.run(
        ["git", "-C", str(origin), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    write_text(origin / "train.py", "later")
    git(origin, *WITHOUT_A_USER, "commit", "--quiet", "-am", "later")
    monkeypatch.setattr("bench.harness.user_cache_path", lambda name: tmp_path / name)
    peer = replace(NANOGPT, url=str(origin), commit=head)
    made = find_clone(peer, None)
    assert made.is_relative_to(tmp_path / "gpt-pipeline") and (made / "train.py").read_text() == ""
    origin.rename(tmp_path / "gone")
    assert find_clone(peer, None) == made


def test_a_clone_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.harness.user_cache_path", lambda name: tmp_path / name)
    peer = replace(NANOGPT, url=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere.*; name a clone of it with CLONE=\.\.\."):
        find_clone(peer, None)
    assert not list(tmp_path.rglob("nanoGPT*"))


def test_an_earlier_version_is_what_git_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    write_text(project / "file", "before")
    repository(project)
    write_text(project / "file", "now")
    monkeypatch.chdir(project)
    assert earlier_version("HEAD", tmp_path / "earlier") is None
    assert (tmp_path / "earlier/file").read_text() == "before"
    why = earlier_version("no-such-commit", tmp_path / "other")
    assert why is not None and why.startswith("no-such-commit: not in the history here")


def test_a_copy_of_the_project_has_its_code_and_tokens_but_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    for name in ("pipeline/file.py", "stages/file.py", "results/model/file", "runs/one/file", ".venv/file"):
        write_text(project / name, "")
    write_text(project / "presets/default.yaml", "")
    write_text(project / "data/shakespeare/raw/input.txt", "a text")
    monkeypatch.chdir(project)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr("bench.harness.run_python", lambda what, folder, *arguments: ran.append(arguments))
    prepare_here(copy)
    assert {path.name for path in copy.iterdir()} == {"pipeline", "stages", "presets", "data"}
    assert (copy / "data/shakespeare/raw/input.txt").read_text() == "a text"
    assert ran[0][-2:] == (PRESET, "--force")
    assert ran[1] == ("-m", "stages.tokenize")
