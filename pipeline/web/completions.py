"""OpenAI's completions: jobs for the engine, and answers in its form, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pipeline.serve.batch import Prompt
from pipeline.serve.drawing import Choice
from pipeline.web.engine import Engine, Event, Events, Job
from pipeline.web.errors import Refusal, bad_request
from pipeline.web.models import LoadedModel
from pipeline.web.requests import MAX_CHOICES, Completion, check_depth, prompt_ids
from pipeline.web.writing import Piece, Writer

CLIENT_LEFT = 499  # nginx's status, for the metrics: nobody reads the answer


class Answer:
    """One request and its answer."""

    def __init__(self, form: Completion, model: LoadedModel, streams: int, waiting: int) -> None:
        """Raises Refusal for what the model cannot do."""
        if form.n > streams:
            raise bad_request(f"n = {form.n}: this server writes at most {streams} at a time", "n")
        if form.n * len(form.prompts) > MAX_CHOICES:
            raise bad_request(f"prompt: {MAX_CHOICES} texts at a time are the limit; send fewer", "prompt")
        if len(form.prompts) > waiting:
            raise bad_request(f"prompt: only {waiting} prompts may wait at this server; send fewer", "prompt")
        check_depth(form.depth, model)
        prompts = [prompt_ids(prompt, model) for prompt in form.prompts]
        seed = secrets.randbits(63) if form.seed is None else form.seed
        choices = [
            Choice(form.temperature, form.top_k, form.top_p, seed, number)
            for number in range(form.n if form.max_tokens else 0)
        ]
        self.form = form
        self.model = model
        self.events: Events = asyncio.Queue()  # holds at most `max_tokens` of each choice
        self.jobs = [
            Job(
                model,
                form.depth,
                Prompt(ids, choices, form.logprobs, score=form.echo and form.logprobs is not None),
                [Writer(model.tokenizer, form.stop or (), form.max_tokens) for _ in choices],
                self.events,
                first=number * form.n,
                choices=form.n,
                echo=form.echo,
            )
            for number, ids in enumerate(prompts)
        ]
        self._choices = form.n * len(prompts)
        self._lengths = [0] * self._choices  # characters of each choice so far
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Events as they come; those that are there already come together. Raises Refusal if a job fails."""
        unfinished = self._choices
        while unfinished:
            events = [await self.events.get()]
            while not self.events.empty():
                events.append(self.events.get_nowait())
            for event in events:
                if isinstance(event, Refusal):
                    raise event
                unfinished -= event.finish_reason is not None
            yield events  # type: ignore[misc]

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        pieces: list[list[Piece]] = [[] for _ in range(self._choices)]
        reasons: list[str | None] = [None] * self._choices
        async for events in self.batches():
            for event in events:
                pieces[event.choice] += event.pieces
                reasons[event.choice] = event.finish_reason
        choices = [self._choice(index, *of) for index, of in enumerate(zip(pieces, reasons, strict=True))]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def stream(self, engine: Engine) -> AsyncIterator[str]:
        """The answer as server-sent events. If the reader leaves, the work for it ends."""
        try:
            async with engine.run(self.jobs):
                async for events in self.batches():
                    choices = [self._choice(*event) for event in _together(events)]
                    yield _sent({**self._head, "choices": choices})
        except Refusal as refusal:
            yield _sent(refusal.content())
            return
        if self.form.stream_options is not None and self.form.stream_options.include_usage:
            yield _sent({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _choice(self, index: int, pieces: Sequence[Piece], finish_reason: str | None) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        logprobs = None if self.form.logprobs is None else self._logprobs(pieces, self._lengths[index])
        self._lengths[index] += len(text)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
        """OpenAI's lists, and `token_ids` and `texts`: what each token adds to the text."""
        names, offsets = self.model.token_names, []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece.text)
        tokens = [piece.token for piece in pieces]
        return {
            "tokens": [names[token.id] for token in tokens],
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [
                # The token itself is among them, as in OpenAI's, even if it was unlikely.
                None
                if token.log_probability is None
                else {names[id]: nats for id, nats in (*token.likeliest, (token.id, token.log_probability))}
                for token in tokens
            ],
            "text_offset": offsets,
            "token_ids": [token.id for token in tokens],
            "texts": [piece.text for piece in pieces],
        }

    def _usage(self) -> dict[str, int]:
        read = sum(len(job.prompt.ids) for job in self.jobs)
        written = sum(row.drawn for job in self.jobs for row in job.writers)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def complete(request: Request, form: Completion, model: LoadedModel, engine: Engine) -> Response:
    """Answer a request. If its client leaves, the work for it ends."""
    answer = Answer(form, model, engine.streams, engine.waiting)
    if form.stream:
        engine.check_room(answer.jobs)
        return StreamingResponse(answer.stream(engine), media_type="text/event-stream")
    async with engine.run(answer.jobs):
        work = asyncio.create_task(answer.whole())
        left = asyncio.create_task(_left(request))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await work) if work.done() else Response(status_code=CLIENT_LEFT)
        finally:
            work.cancel()
            left.cancel()


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _together(events: Iterable[Event]) -> list[Event]:
    """One event for each choice, with all of its pieces."""
    merged: dict[int, Event] = {}
    for event in events:
        before = merged.get(event.choice)
        pieces = event.pieces if before is None else [*before.pieces, *event.pieces]
        merged[event.choice] = Event(event.choice, pieces, event.finish_reason)
    return list(merged.values())


def _sent(values: Any) -> str:
    # ASCII: some clients end a line at U+0085 and U+2028, too.
    return f"data: {json.dumps(values, separators=(',', ':'))}\n\n"
