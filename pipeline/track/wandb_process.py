"""The process that talks to Weights & Biases for `pipeline/track/wandb.py`, in lines of JSON.

It reads the run to open, then rows, then null. It writes where the run can be seen, and what goes wrong. Its
argument says how many seconds it may take after null: W&B would wait for its server without end.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NoReturn

import wandb

from pipeline.storage.lock import locked


class Talk:
    """The lines of the training, and what is said to it; it ends this process soon after the last line."""

    def __init__(self, seconds_to_finish: float) -> None:
        self._seconds_to_finish = seconds_to_finish
        self.complete = False  # whether the last line came, and not only the end of the training's process
        self._lines: queue.Queue[Any] = queue.Queue()
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what W&B prints
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._lines.get, None)

    def say(self, **values: str) -> None:
        print(json.dumps(values), file=self._out, flush=True)

    def fail(self, problem: str) -> NoReturn:
        try:
            self.say(problem=problem)
        finally:
            os._exit(1)  # without the handlers of W&B, which wait for its server

    def _read(self) -> None:
        for line in sys.stdin:
            value = json.loads(line)
            if value is None:
                self.complete = True
                break
            self._lines.put(value)
        self._lines.put(None)
        time.sleep(self._seconds_to_finish)
        self.fail(f"not finished after {self._seconds_to_finish:g} seconds")


def main() -> None:
    """Follow a training until its last row, or until it is gone."""
    talk = Talk(float(sys.argv[1]))
    try:
        lines = iter(talk)
        story = next(lines)
        with locked(Path(story["folder"], "wandb", "lock"), busy=lambda _: None):  # by a killed run's process
            run = _open(story)
            talk.say(place=_place(run))
            follow(run, story, lines)
            run.finish(exit_code=0 if talk.complete else 1)
            wandb.teardown()
    except BaseException as error:
        talk.fail(f"{type(error).__name__}: {error}")


def _open(story: dict[str, Any]) -> wandb.Run:
    """The run at W&B, which a run of the same key continues; offline where nobody has logged in."""
    folder = Path(os.environ.get("WANDB_DIR") or story["folder"])
    offline = "WANDB_MODE" not in os.environ and wandb.api.api_key is None
    run = wandb.init(
        id=story["id"],
        project=os.environ.get("WANDB_PROJECT") or story["project"],
        name=os.environ.get("WANDB_NAME") or story["name"],
        config=story["config"],
        dir=folder,
        mode="offline" if offline else None,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    # `wandb sync` of two folders of a run would keep the rows of the last one alone; this one gets them all.
    for former in folder.glob(f"wandb/offline-run-*-{story['id']}"):
        if former.name != _folder(run).name:
            shutil.rmtree(former, ignore_errors=True)
    return run


def _place(run: wandb.Run) -> str:
    if run.offline:
        return f"offline; to upload it: wandb sync {_folder(run)}"
    return run.url or "WANDB_MODE is disabled"


def _folder(run: wandb.Run) -> Path:
    return Path(run.dir).parent


def follow(run: wandb.Run, story: dict[str, Any], further: Iterator[dict[str, Any]]) -> None:
    """Log the rows of a story and further ones, but for those that a server has; then what else it has."""
    first, time = run.step, {}
    for row in (*story["rows"], *further):
        time = {"_timestamp": row["time"]}
        if row["step"] >= first:
            run.log(row["figures"] | time, step=row["step"])
    found: dict[str, Any] = {}
    if story["samples"]:
        html = "<hr>".join(f"<pre>{escape(text)}</pre>" for text in story["samples"])
        found["samples"] = wandb.Html(html)
    if story["depth_curve"]:
        table = wandb.Table(columns=["depth", "val_loss"], data=story["depth_curve"])
        title = "Validation loss by depth"
        found["depth/val_loss"] = wandb.plot.line(table, "depth", "val_loss", title=title)
    if found:
        run.log(found | time)  # without a step it joins the last row


if __name__ == "__main__":
    main()
