"""What trackers hold of a run, read back from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
from wandb.sdk.internal.datastore import DataStore

Shown = dict[str, list[tuple[int, float]]]  # name -> (step, value), as they were written


def in_tensorboard(folder: Path) -> Shown:
    """The scalars in the event files of a folder, with whatever is there twice."""
    shown: Shown = {}
    for path in sorted(folder.iterdir()):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def wandb_records(folder: Path) -> Iterator[Record]:
    """The records in all offline folders of W&B in the folder of a run."""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            yield record


def wandb_history(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows that W&B has, each with its `_step`."""
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def in_wandb(folder: Path) -> Shown:
    """The scalars in all offline folders of W&B, with whatever is there twice."""
    shown: Shown = {}
    for row in wandb_history(folder):
        for name, value in row.items():
            if isinstance(value, int | float) and not name.startswith("_"):
                shown.setdefault(name, []).append((row["_step"], value))
    return shown
