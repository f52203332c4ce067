"""The server under load: streams at a time, the first token, memory after bad requests, exact logits.

The model is results/model, such as that of `make demo`. The server is a process of its own; its clients are
in this one, on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from bench.harness import Figure, call_apart, write_figures
from pipeline.config.errors import UserError
from pipeline.config.paths import MODEL

STREAMS = 16
TOKENS = 100  # of each text
FIRST_TOKENS = 30  # how often the first token is waited for
MALFORMED, VANISHING = 200, 50
WARM_UP, ROUNDS = 3, 3  # of malformed requests and vanishing clients
PROMPTS = ("The file", "class ", "If the", "Return a", "\n", "import os\n", "Note that", "def ")
WRONG: tuple[dict[str, Any] | bytes, ...] = (
    b"{",
    b"[" * 50_000,
    b"\xff",
    b"",
    {"prompt": ""},
    {"prompt": "a" * 50_000},
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a", "n": 10**9},
    {"prompt": [10**9]},
    {"prompt": "a", "model": "gpt5"},
)


def main(seconds: Annotated[int, typer.Option(min=1, help="How long the streams run.")] = 60) -> None:
    """Measure the server with the model in results/model."""
    if not MODEL.exists():
        raise UserError(f"no {MODEL}; run `make demo` first")
    difference = call_apart(largest_difference)
    with server() as (port, process):
        figures = asyncio.run(_figures(port, process, seconds))
    title = f"logits of a text alone and among {STREAMS}: largest difference"
    write_figures("serve", "Server", [*figures, Figure(title, difference, f"{difference:.1e}", 1e-5, "1e-5")])


async def _figures(port: int, process: int, seconds: int) -> list[Figure]:
    await _tokens_per_second(port, 2, 2)  # kernels are chosen, memory is taken
    first = sorted([await _first_token(port) for _ in range(FIRST_TOKENS)])
    alone, errors_alone = await _tokens_per_second(port, 1, max(1, seconds // 4))
    together, errors = await _tokens_per_second(port, STREAMS, seconds)
    resident = []
    for _ in range(WARM_UP + ROUNDS):
        await _malformed(port)
        await asyncio.gather(*(_vanish(port) for _ in range(VANISHING)))
        while _metric(await _get(port, "/metrics"), "streams_running"):
            await asyncio.sleep(0.05)
        resident.append(_resident(process))
    growth = (resident[-1] - resident[WARM_UP - 1]) / ROUNDS / 1e6
    failed = errors + errors_alone
    rates = f"{STREAMS} streams beside one: {together:,.0f} tokens per second beside {alone:,.0f}"
    title = f"growth of memory by {MALFORMED} malformed requests and {VANISHING} clients that vanish"
    return [
        Figure(f"errors in {seconds} s with {STREAMS} streams", failed, str(failed), 0, "0"),
        Figure(rates, together / alone, f"{together / alone:.1f}", 3, "3", at_least=True),
        Figure("first token, idle: median", median(first), f"{median(first) * 1e3:.0f} ms", 0.15, "150 ms"),
        Figure("first token, idle: slowest", first[-1], f"{first[-1] * 1e3:.0f} ms", 0.15, "150 ms"),
        Figure(title, growth, f"{growth:.1f} MB", 1, "1 MB"),
    ]


def largest_difference() -> float:
    """Of the logits of texts of different lengths, in a batch that they join one by one, and alone."""
    from pipeline.web.rounding import round_alike

    round_alike()
    import torch

    from pipeline.model.load import load_model
    from pipeline.serve.batch import Batch, Prompt
    from pipeline.serve.drawing import Choice
    from pipeline.weights.open import open_model

    class Heard(Batch):
        """A batch that keeps its logits (B, vocabulary)."""

        last = torch.empty(0)

        def _next_logits(self, joining: Any) -> torch.Tensor:
            self.last = super()._next_logits(joining)
            return self.last

    stored = open_model(MODEL)
    gpt, tokenizer = load_model(stored), stored.tokenizer()
    ids = tokenizer.encode(" ".join(PROMPTS) * 20).tolist()
    prompts = [Prompt(ids[number : 2 * number + 1], [Choice(seed=number)]) for number in range(STREAMS)]
    batch = Heard(gpt, tokenizer.vocab_size, None, torch.device("cpu"))
    heard: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in range(2 * gpt.block_size):
        batch.step(prompts[step : step + 1])
        for number, logits in enumerate(batch.last):
            heard[number].append(logits)
    worst = 0.0
    for prompt, logits in zip(prompts, heard, strict=True):
        alone = Heard(gpt, tokenizer.vocab_size, None, torch.device("cpu"))
        for step, own in enumerate(logits):
            alone.step([] if step else [Prompt(prompt.ids, prompt.choices)])
            worst = max(worst, float((alone.last[0] - own).abs().max()))
    return worst


@contextmanager
def server(folder: Path = Path()) -> Iterator[tuple[int, int]]:
    """The port and the process of a server for the model that a project has trained."""
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", str(MODEL), "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+),", line)
        if found is None:
            raise UserError(f"the server did not start: {line}")
        try:
            yield int(found[1]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


async def _open(port: int, body: dict[str, Any] | bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a completion has been asked for."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    return reader, writer


async def _write(port: int, number: int) -> int:
    """How many tokens one text had; 0 if it failed."""
    usage = {"include_usage": True}
    prompt = PROMPTS[number % len(PROMPTS)]
    body = {"prompt": prompt, "seed": number, "max_tokens": TOKENS, "stream": True, "stream_options": usage}
    reader, writer = await _open(port, body)
    tail = b""
    while part := await reader.read(1 << 16):
        tail = (tail + part)[-1000:]
    writer.close()
    written = re.search(rb'"completion_tokens":(\d+)', tail)
    return int(written[1]) if written and b"[DONE]" in tail else 0


async def _tokens_per_second(port: int, streams: int, seconds: int) -> tuple[float, int]:
    """With so many clients that each ask again and again; and how many texts failed."""
    counts: list[int] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        while time.perf_counter() - began < seconds:
            counts.append(await _write(port, number))
            number += streams

    await asyncio.gather(*map(client, range(streams)))
    return sum(counts) / (time.perf_counter() - began), counts.count(0)


async def _first_token(port: int) -> float:
    """Seconds from the connection to the first event."""
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    reader, writer = await _open(port, {"prompt": PROMPTS[0], "max_tokens": 2, "stream": True})
    await reader.readuntil(b"data: ")
    seconds = time.perf_counter() - began
    writer.close()
    return seconds


async def _malformed(port: int) -> None:
    for number in range(MALFORMED):
        reader, writer = await _open(port, WRONG[number % len(WRONG)])
        line = await reader.readline()
        assert line.startswith(b"HTTP/1.1 4"), line
        writer.close()


async def _vanish(port: int) -> None:
    reader, writer = await _open(port, {"prompt": PROMPTS[0], "max_tokens": 4096, "stream": True})
    await reader.read(10)
    writer.transport.abort()


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


def _metric(text: str, name: str) -> float:
    found = re.search(rf"^gpt_pipeline_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def _resident(process: int) -> int:
    """Bytes of a process in memory."""
    with open(f"/proc/{process}/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmRSS")).split()[1])
