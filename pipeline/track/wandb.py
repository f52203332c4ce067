"""Weights & Biases: a process of its own talks to it, `pipeline/track/wandb_process.py`.

So neither W&B's import, nor its threads, nor a server that does not answer can touch the training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.track.names import named
from pipeline.track.tracker import Row, Story

FOLDER = "wandb"  # W&B's own, in the folder of a run
SECONDS_TO_FINISH = 10.0
PACKAGES = Path(__file__).parents[2]


class WandB:
    """Sends the story, and then each row, to the process. Raises RuntimeError with what went wrong there."""

    def __init__(self, story: Story, note: Callable[[str], None]) -> None:
        """Call `note` with where the run can be seen, once that is known."""
        self._story = story
        self._note = note
        self._problem = ""
        path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.track.wandb_process", str(SECONDS_TO_FINISH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"WANDB_ERROR_REPORTING": "false"} | os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the training, which then closes this tracker
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._send(_opening(story))

    def log(self, row: Row) -> None:
        self._send(_line(self._story, row))

    def close(self) -> None:
        self._send(None)
        self._end()

    def _send(self, value: Any) -> None:
        assert self._process.stdin
        try:
            print(json.dumps(value), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._end()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            self._problem = answer.get("problem", "")
            if "place" in answer:
                self._note(f"wandb: {answer['place']}")

    def _end(self) -> None:
        assert self._process.stdin
        status = self._process.wait()
        self._listener.join()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if status:
            raise RuntimeError(self._problem or f"its process ended with status {status}")


def _opening(story: Story) -> dict[str, Any]:
    return {
        "id": story.key,
        "folder": str(story.folder),
        "project": story.params.log.wandb_project,
        "name": story.name,
        "config": {"run": story.key, **story.params.model_dump()},
        "rows": [_line(story, row) for row in story.rows],
        "samples": list(story.samples),
        "depth_curve": list(story.depth_curve.items()),
    }


def _line(story: Story, row: Row) -> dict[str, Any]:
    return {"step": row["step"], "time": story.when(row), "figures": named(row)}
