"""Weights & Biases holds a run, as its offline folder shows; a server that is not there stops nothing."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.track import apart, wandb, wandb_process
from pipeline.track.apart import Apart
from pipeline.track.tracker import Row, Story
from pipeline.track.wandb import WandB
from tests import tiny
from tests.track.shown import in_wandb, wandb_history, wandb_records


@pytest.fixture(autouse=True)
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of W&B who has not logged in, on a machine that may be slow."""
    monkeypatch.setattr(wandb, "SECONDS_TO_FINISH", 100)
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def row(step: int) -> Row:
    return {"step": step, "train_loss": 3.0 - step / 64, "lr": 0.5, "seconds": step * 10.0}


def story(folder: Path, steps: int, *overrides: str, **later: Any) -> Story:
    rows = [row(step) for step in range(steps)]
    return Story(folder=folder / "key", name="a run", params=tiny.params(*overrides), rows=rows, **later)


def send(story: Story, *steps: int) -> list[str]:
    """Show a story and further rows; returns what is said meanwhile."""
    notes: list[str] = []
    tracker = WandB(story, notes.append)
    for step in steps:
        tracker.log(row(step))
    tracker.close()
    return notes


def kind(folder: Path, name: str) -> Any:
    (found,) = (
        getattr(record, name) for record in wandb_records(folder) if record.WhichOneof("record_type") == name
    )
    return found


def test_without_a_key_it_works_offline_and_says_how_to_upload(tmp_path: Path) -> None:
    (note,) = send(story(tmp_path, 0, "train.learning_rate=0.25"), 0, 1)
    (folder,) = (tmp_path / "key" / "wandb").glob("offline-run-*")
    assert note == f"wandb: offline; to upload it: wandb sync {folder}"
    run = kind(tmp_path / "key", "run")
    assert (run.run_id, run.project, run.display_name) == ("key", "gpt-pipeline", "a run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["run"] == "key" and config["train"]["learning_rate"] == 0.25


def test_each_start_holds_the_whole_run_in_one_folder(tmp_path: Path) -> None:
    send(story(tmp_path, 0), 0, 1, 2, 3)
    later = {"samples": ["<b>\n  once"], "depth_curve": {1: 4.0, 2: 3.5}}
    send(story(tmp_path, 3, **later), 3, 4)  # the last checkpoint was that of step 2
    assert in_wandb(tmp_path / "key")["train/loss"] == [(step, 3.0 - step / 64) for step in range(5)]
    times = [row["_timestamp"] for row in wandb_history(tmp_path / "key") if "train/loss" in row]
    assert [time - times[0] for time in times] == pytest.approx([0, 10, 20, 30, 40])
    (folder,) = (tmp_path / "key" / "wandb").glob("offline-run-*")
    (sample,) = folder.rglob("samples*.html")
    assert "<pre>&lt;b&gt;\n  once</pre>" in sample.read_text()
    (table,) = folder.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[1, 4.0], [2, 3.5]]


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT", "NAME", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    monkeypatch.setenv("WANDB_TAGS", "one,two")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    send(story(tmp_path, 2))
    assert len(in_wandb(tmp_path / "elsewhere")["train/loss"]) == 2
    run = kind(tmp_path / "elsewhere", "run")
    assert (run.project, run.display_name, run.entity) == ("project", "name", "entity")
    assert list(run.tags) == ["one", "two"]


def test_a_server_gets_no_step_that_it_has() -> None:
    class Continued:
        step = 3  # the server has 0, 1 and 2

        def log(self, figures: dict[str, float], step: int) -> None:
            got.append(step)

    got: list[int] = []
    lines: list[dict[str, Any]] = [{"step": step, "time": 1.0, "figures": {"lr": 0.5}} for step in range(6)]
    run: Any = Continued()
    wandb_process.follow(run, {"rows": lines[:5], "samples": [], "depth_curve": []}, iter(lines[5:]))
    assert got == [3, 4, 5]


@pytest.fixture(params=["silent", "refusing"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that takes connections and never answers, or of none."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_does_not_answer_gives_one_warning(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "SECONDS_TO_FINISH", 0.5)
    monkeypatch.setattr(apart, "SECONDS_TO_FINISH", 100)
    warnings: list[str] = []
    tale = story(tmp_path, 2)
    training = Apart("wandb", lambda: WandB(tale, warnings.append), warnings.append)
    training.log(row(2))
    training.close()
    assert warnings == ["warning: wandb is off: not finished after 0.5 seconds; log.csv has every figure"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"k" * 40 in path.read_bytes()]


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("WANDB_MODE", "sometimes", "mode"),
        ("WANDB_API_KEY", "short", "API key"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RuntimeError, match=problem):
        send(story(tmp_path, 1), 1)
