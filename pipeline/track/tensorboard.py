"""TensorBoard: a run's figures as a file of events, for `tensorboard --logdir runs`."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Sequence

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.config.params import Params
from pipeline.config.params_yaml import params_yaml
from pipeline.config.paths import original_project
from pipeline.track.names import named
from pipeline.track.tracker import Row, Story

FILES = "events.out.tfevents."  # TensorBoard reads every file that is called so
COMPARED = ("data", "tokenizer", "model", "train")  # sections of parameters in its table of runs


class TensorBoard:
    """Writes the story into a new file of events, which replaces the folder's former ones, and goes on there.

    So nothing is read that a killed process left, such as half an event.
    """

    def __init__(self, story: Story) -> None:
        chosen = story.params.log.tensorboard_dir
        folder = original_project() / chosen / story.key if chosen else story.folder / "tensorboard"
        self._story = story
        self._last = story.rows[-1] if story.rows else {}
        folder.mkdir(parents=True, exist_ok=True)
        former = list(folder.glob(f"{FILES}*"))
        path = folder / f"{FILES}{story.opened:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        for event in _events(story):
            self._records.write(event.SerializeToString())
        self._file.flush()
        for earlier in former:
            if earlier.stat().st_size:
                os.truncate(earlier, 0)  # not removed: a TensorBoard that reads it would go no further
            else:
                earlier.unlink()

    def log(self, row: Row) -> None:
        """Write a row; of a second row of a step, what the first did not have."""
        shown = self._last if self._last.get("step") == row["step"] else {}
        event = _scalars(self._story, row, without=named(shown))
        self._records.write(event.SerializeToString())
        self._file.flush()
        self._last = row

    def close(self) -> None:
        self._file.close()


def _events(story: Story) -> Iterator[Event]:
    now = story.opened
    yield Event(wall_time=now, file_version="brain.Event:2")
    # A TensorBoard that runs forgets what it read in the former files.
    yield Event(wall_time=now, session_log=SessionLog(status=SessionLog.START))
    yield Event(wall_time=now, summary=_text("params.yaml", [params_yaml(story.params, story.name)]))
    yield Event(wall_time=now, summary=hparams_pb(_hyperparameters(story.params), trial_id=story.key))
    for row in story.rows:
        yield _scalars(story, row)
    last = int(story.rows[-1]["step"] or 0) if story.rows else 0
    if story.samples:
        yield Event(wall_time=now, step=last, summary=_text("samples", story.samples))
    for depth, loss in story.depth_curve.items():
        yield Event(wall_time=now, step=depth, summary=_summary({"depth/val_loss": loss}))


def _scalars(story: Story, row: Row, without: Collection[str] = ()) -> Event:
    """A row as one event, so that it is there as a whole or not at all."""
    figures = {name: value for name, value in named(row).items() if name not in without}
    return Event(wall_time=story.when(row), step=int(row["step"] or 0), summary=_summary(figures))


def _summary(figures: dict[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in figures.items()])


def _text(tag: str, texts: Sequence[str]) -> Summary:
    """Texts as TensorBoard's Markdown shows them unchanged."""
    blocks = ("\n".join(f"    {line}" for line in text.split("\n")) for text in texts)
    return text_pb(tag, "\n\n---\n\n".join(blocks))


def _hyperparameters(params: Params) -> dict[str, bool | float | str]:
    values = {
        f"{section}.{key}": value
        for section in COMPARED
        for key, value in getattr(params, section).model_dump().items()
    }
    return {
        name: value if isinstance(value, bool | int | float) else str(value or "")
        for name, value in values.items()
    }
