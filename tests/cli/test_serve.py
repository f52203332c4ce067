"""The server as a process: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import tiny, zeroshot
from tests.conftest import Ended


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(zeroshot.save_model(tmp_path / "model", zeroshot.bpe()))


@pytest.fixture
def process(model: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", model, "--port", "0"]
    environment = {"PYTHONPATH": str(tiny.ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.kill()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"playground (http://127\.0\.0\.1:\d+), API", line)
    assert found, line
    return found[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_texts_finish(process: subprocess.Popen[str], model: str, number: int) -> None:
    at = address(process)
    request: Any = {"prompt": "The", "max_tokens": 400, "temperature": 0, "stream": True}
    with requests.post(f"{at}/v1/completions", json=request, stream=True, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(number)
        *_, last = (line for line in lines if line)
    assert last == b"data: [DONE]"
    assert process.wait(20) == 128 + number
    assert process.stderr is not None and process.stderr.read() == ""


def test_a_port_in_use(model: str, stage: Callable[..., Ended]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = stage("serve", model, "--port", str(port))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(f"error: port = {port}: cannot listen on 127.0.0.1 (Address already in use)")
