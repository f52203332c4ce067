"""A server in a thread, on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

from pipeline.cli.serve import listening
from pipeline.web.app import create_app
from pipeline.web.models import open_models


@contextmanager
def serving(*models: str | Path, streams: int = 4, waiting: int = 16) -> Iterator[str]:
    """The address of a server for these models, while the block runs."""
    opened = open_models([str(model) for model in models], torch.device("cpu"), streams)
    app = create_app(opened, streams=streams, waiting=waiting)
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def until(condition: Sequence[object] | object, seconds: float = 10) -> None:
    """Wait for what a function says to be true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
