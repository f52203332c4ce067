"""TensorBoard shows a run: its files are read back, by its own reader and by its server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.track.tensorboard import TensorBoard
from pipeline.track.tracker import Row, Story
from tests import tiny
from tests.track.shown import in_tensorboard


def row(step: int) -> Row:
    return {"step": step, "train_loss": 3.0 - step / 64, "lr": 0.5, "seconds": step * 10.0}


def story(folder: Path, steps: int, *overrides: str, **later: Any) -> Story:
    rows = [row(step) for step in range(steps)]
    return Story(folder=folder / "key", name="a run", params=tiny.params(*overrides), rows=rows, **later)


def write(story: Story, *steps: int) -> Path:
    """Show a story and further rows; returns the folder."""
    tracker = TensorBoard(story)
    for step in steps:
        tracker.log(row(step))
    tracker.close()
    return story.folder / "tensorboard"


def losses(steps: range) -> list[tuple[int, float]]:
    return [(step, 3.0 - step / 64) for step in steps]


def test_each_start_shows_the_whole_run_once(tmp_path: Path) -> None:
    folder = write(story(tmp_path, 0), 0, 1, 2, 3)
    folder = write(story(tmp_path, 3), 3, 4)  # the last checkpoint was that of step 2
    shown = in_tensorboard(folder)
    assert shown["train/loss"] == losses(range(5))
    assert [step for step, _ in shown["lr"]] == list(range(5))


def test_a_second_row_of_a_step_adds_what_the_first_did_not_have(tmp_path: Path) -> None:
    tale = story(tmp_path, 3)
    for before in (tale, story(tmp_path, 2)):  # the first row was in the log, or is new
        tracker = TensorBoard(before)
        if before is not tale:
            tracker.log(row(2))
        tracker.log({**row(2), "val_loss": 2.5})
        tracker.close()
        shown = in_tensorboard(tale.folder / "tensorboard")
        assert shown["train/loss"] == losses(range(3)) and shown["val/loss"] == [(2, 2.5)]


@pytest.mark.parametrize("size", [0, 5, -3])
def test_a_file_that_was_cut_short_is_no_obstacle(tmp_path: Path, size: int) -> None:
    folder = write(story(tmp_path, 0), 0, 1, 2)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    assert in_tensorboard(write(story(tmp_path, 2), 2))["train/loss"] == losses(range(3))


def test_a_reader_of_the_former_file_has_each_step_once(tmp_path: Path) -> None:
    folder = write(story(tmp_path, 0), 0, 1, 2, 3)
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    write(story(tmp_path, 2), 2, 3, 4, 5)
    reader.Reload()
    assert [event.step for event in reader.Scalars("train/loss")] == list(range(6))
    for _ in range(3):
        write(story(tmp_path, 6))
    assert len(list(folder.iterdir())) == 2, "the last one, and an empty one"


def test_time_goes_on_from_the_last_row_as_if_there_had_been_no_break(tmp_path: Path) -> None:
    folder = write(story(tmp_path, 3), 3, 4)
    reader = EventAccumulator(str(folder)).Reload()
    times = [event.wall_time for event in reader.Scalars("train/loss")]
    assert [later - times[0] for later in times] == pytest.approx([0, 10, 20, 30, 40])


def test_all_runs_in_one_folder_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # an experiment runs in a copy of the project
    for steps, place in ((2, tmp_path / "one"), (3, tmp_path / "two")):
        tale = story(place, steps, "log.tensorboard_dir=board")
        write(Story(place / place.name, tale.name, tale.params, tale.rows))
    assert {path.name for path in (tmp_path / "board").iterdir()} == {"one", "two"}
    assert in_tensorboard(tmp_path / "board" / "two")["train/loss"] == losses(range(3))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def served(folder: Path) -> Iterator[Callable[..., Any]]:
    """TensorBoard's server on a folder, as a function that gets JSON from it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(port),
        "--reload_interval",
        "1",
    ]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True)

    def get(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
            return json.load(answer)

    try:
        assert process.stderr
        assert any("Press CTRL+C" in line for line in process.stderr)
        yield get
    finally:
        process.terminate()
        process.communicate()


def test_the_server_shows_scalars_texts_and_parameters(tmp_path: Path) -> None:
    found = {"samples": ["Once <b>upon\n  a time"], "depth_curve": {1: 4.0, 2: 3.5}}
    write(story(tmp_path, 3, "train.learning_rate=0.25", **found), 3)
    run = "key/tensorboard"
    with served(tmp_path) as get:

        def points(tag: str) -> list[tuple[int, float]]:
            found = get("plugin/scalars/scalars", run=run, tag=tag)
            return [(step, value) for _, step, value in found]

        wait_until(lambda: get("runs") == [run])
        assert set(get("plugin/scalars/tags")[run]) == {"train/loss", "lr", "train/seconds", "depth/val_loss"}
        assert points("train/loss") == losses(range(4))
        assert points("depth/val_loss") == [(1, 4.0), (2, 3.5)]
        (sample,) = get("plugin/text/text", run=run, tag="samples")
        assert "Once &lt;b&gt;upon\n  a time" in sample["text"] and sample["step"] == 2
        (text,) = get("plugin/text/text", run=run, tag="params.yaml")
        assert re.search(r"learning_rate: 0.25 ", text["text"])
        tags = get("plugin/hparams/experiment", request=json.dumps({"experimentName": ""}))
        assert "train.learning_rate" in {info["name"] for info in tags["hparamInfos"]}

        write(story(tmp_path, 2), 2, 3, 4)  # the run is continued, while TensorBoard shows it
        wait_until(lambda: len(points("train/loss")) != 4)
        assert points("train/loss") == losses(range(5))
