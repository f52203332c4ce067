"""Requests wait in a queue, and join the batch of their model and depth as soon as there is room.

The event loop owns all of this; only the forward passes run in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from pipeline.config.errors import UserError
from pipeline.serve.batch import Batch, Prompt, Row, Token
from pipeline.web.errors import Refusal
from pipeline.web.metrics import Metrics
from pipeline.web.models import LoadedModel
from pipeline.web.writing import Piece, Writer, pieces_of

Result = TypeVar("Result")


class Event(NamedTuple):
    """What is new in one choice of an answer."""

    choice: int
    pieces: Sequence[Piece]
    finish_reason: str | None


Events = asyncio.Queue[Event | Refusal]


class Job:
    """A prompt with the sequences that continue it, from the request to the last token.

    `first` is the index of the first of them among the choices of the answer. With `echo`, the prompt is the
    first piece of each. If there is nothing to write, its prompt has no sequences, but `choices` answers.
    """

    def __init__(
        self,
        model: LoadedModel,
        depth: int | None,
        prompt: Prompt,
        writers: Sequence[Writer],
        events: Events,
        first: int = 0,
        choices: int = 1,
        echo: bool = False,
    ) -> None:
        self.model = model
        self.depth = None if depth == model.gpt.depth else depth
        self.prompt = prompt
        self.writers = dict(zip(prompt.rows, writers, strict=True))
        self.came_at = time.monotonic()
        self.gone = False  # nobody waits for it any more
        self._events = events
        self._indices = range(first, first + choices)
        self._echo = echo

    @property
    def unfinished(self) -> int:
        return sum(writer.finish_reason is None for writer in self.writers.values())

    def begin(self) -> None:
        """The prompt has been read."""
        echoed = self._prompt_pieces() if self._echo else []
        finish_reason = None if self.writers else "length"
        if echoed or finish_reason:
            for index in self._indices:
                self._events.put_nowait(Event(index, echoed, finish_reason))

    def take(self, row: Row, token: Token) -> None:
        writer = self.writers[row]
        pieces = writer.take(token)
        if pieces or writer.finish_reason:
            index = self._indices[self.prompt.rows.index(row)]
            self._events.put_nowait(Event(index, pieces, writer.finish_reason))

    def fail(self, refusal: Refusal) -> None:
        self._events.put_nowait(refusal)

    def _prompt_pieces(self) -> list[Piece]:
        """The tokens of the prompt; of the first one, nothing is known but its text."""
        first, *others = self.prompt.ids
        known = self.prompt.scores or [Token(id, None, ()) for id in others]
        return pieces_of(self.model.tokenizer, [Token(first, None, ()), *known])


class Engine:
    """At most `streams` sequences are written at a time, and at most `waiting` prompts wait for that."""

    def __init__(self, streams: int, waiting: int, metrics: Metrics) -> None:
        self.streams = streams
        self.waiting = waiting
        self.metrics = metrics
        self._queue: deque[Job] = deque()
        self._batches: dict[tuple[LoadedModel, int | None], Batch] = {}
        self._jobs: dict[Row, Job] = {}  # of the sequences in the batches
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        metrics.gauge("streams_running", "Sequences that are being written.", lambda: len(self._jobs))
        metrics.gauge("prompts_waiting", "Prompts in the queue.", lambda: len(self._queue))

    def check_room(self, jobs: Sequence[Job]) -> None:
        """Raise Refusal if so many jobs cannot wait."""
        if len(self._queue) + len(jobs) > self.waiting:
            self.metrics.add("refused_total")
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{len(self._queue)} prompts wait already; try again in a second",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    @asynccontextmanager
    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[None]:
        """Do these jobs; at the end of the block, what is left of them is dropped.

        Raises Refusal if so many cannot wait.
        """
        self.check_room(jobs)
        self._queue += jobs
        self._work.set()
        try:
            yield
        finally:
            for job in jobs:
                job.gone = True
                self.metrics.add("cancelled_total", job.unfinished)
            self._queue = deque(job for job in self._queue if not job.gone)
            self._work.set()

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """The result of what uses a model, computed between two tokens."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def work(self) -> None:
        """Write until cancelled."""
        while True:
            await self._work.wait()
            joining = self._admit()
            if not joining and not self._jobs:
                self._work.clear()
                continue
            for key in list(self._batches):
                await self._step(key, [job for job in joining if (job.model, job.depth) == key])
            # Whoever waits for a token sends it now, not while the next one is computed.
            await asyncio.sleep(0)

    def _admit(self) -> list[Job]:
        """The jobs that join now, the first ones first. Sequences that are finished or dropped leave."""
        for row, job in list(self._jobs.items()):
            if job.gone or job.writers[row].finish_reason:
                self._batches[job.model, job.depth].leave(row)
                del self._jobs[row]
        for key in [key for key, batch in self._batches.items() if not len(batch)]:
            del self._batches[key]  # and with it a model that is served no more
        joining: list[Job] = []
        positions = 0  # of prompts: reading many of them at once would make the others wait
        while self._queue:
            job = self._queue[0]
            rows = len(job.prompt.rows)
            full = len(self._jobs) + rows > self.streams and self._jobs
            if full or (joining and positions + len(job.prompt.ids) > job.model.gpt.block_size):
                break
            joining.append(self._queue.popleft())
            positions += len(job.prompt.ids)
            self._jobs.update(dict.fromkeys(job.prompt.rows, job))
            if (job.model, job.depth) not in self._batches:
                vocabulary, device = job.model.tokenizer.vocab_size, job.model.device
                self._batches[job.model, job.depth] = Batch(job.model.gpt, vocabulary, job.depth, device)
        return joining

    async def _step(self, key: tuple[LoadedModel, int | None], joining: Sequence[Job]) -> None:
        batch = self._batches[key]
        try:
            written = await self.in_thread(lambda: batch.step([job.prompt for job in joining]))
        except Exception as error:  # this batch is lost, but the server and the others go on
            self._fail(key, joining, error)
            return
        now = time.monotonic()
        for job in joining:
            job.begin()
            self.metrics.add("prompt_tokens_total", len(job.prompt.ids))
            self.metrics.observe("first_token_seconds", now - job.came_at)
        self.metrics.add("generated_tokens_total", len(written))
        for row, token in written:
            self._jobs[row].take(row, token)

    def _fail(self, key: tuple[LoadedModel, int | None], joining: Sequence[Job], error: Exception) -> None:
        message = str(error) if isinstance(error, UserError) else "the model failed; see the server's log"
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        failed = {id(job): job for job in (*joining, *self._jobs.values()) if (job.model, job.depth) == key}
        for job in failed.values():
            job.fail(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message))
        self._jobs = {row: job for row, job in self._jobs.items() if id(job) not in failed}
        del self._batches[key]
