"""The server as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.evaluate.lens import as_json, lens
from pipeline.web.completions import CLIENT_LEFT, complete
from pipeline.web.engine import Engine
from pipeline.web.errors import Refusal
from pipeline.web.guard import Guard
from pipeline.web.metrics import CONTENT_TYPE, Metrics
from pipeline.web.models import LoadedModel, ServedModel
from pipeline.web.requests import Completion, Look, model_named, prompt_ids, read_form

SECONDS_BETWEEN_LOOKS = 2.0  # for newer weights
PAGE = {
    "/": ("playground.html", "text/html"),
    "/playground.css": ("playground.css", "text/css"),
    "/playground.js": ("playground.js", "text/javascript"),
}


class Server:
    """What the routes share."""

    def __init__(self, models: dict[str, ServedModel], streams: int, waiting: int) -> None:
        self.models = models
        self.metrics = Metrics()
        self.engine = Engine(streams, waiting, self.metrics)
        self._began = time.monotonic()
        self.metrics.gauge("uptime_seconds", "Since the start.", lambda: time.monotonic() - self._began)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.engine.work()), asyncio.create_task(self._look_for_newer())]
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def completions(self, request: Request) -> Response:
        form = await read_form(request, Completion)
        return await complete(request, form, model_named(form.model, self.models), self.engine)

    async def look(self, request: Request) -> Response:
        """The depth lens for the last of some tokens, and for the one before, which predicts it."""
        form = await read_form(request, Look)
        model = model_named(form.model, self.models)
        ids = torch.tensor(prompt_ids(form.ids[-model.gpt.block_size :], model), device=model.device)
        found = await self.engine.in_thread(lambda: lens(model.gpt, ids, model.tokenizer.vocab_size, last=2))
        return JSONResponse(as_json(found, model.tokenizer))

    async def list_models(self, _: Request) -> Response:
        known = [_about(model.current) for model in self.models.values()]
        return JSONResponse({"object": "list", "data": known})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(_about(model_named(request.path_params["name"], self.models)))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics_page(self, _: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        file = importlib.resources.files("pipeline.web") / "playground" / name
        return Response(file.read_text(encoding="utf-8"), media_type=kind)

    async def _look_for_newer(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            for model in self.models.values():
                await asyncio.to_thread(model.refresh)


def create_app(
    models: dict[str, ServedModel], host: str = "127.0.0.1", streams: int = 16, waiting: int = 256
) -> Starlette:
    """The application for these models, reached at `host`.

    It writes `streams` sequences at a time, and `waiting` prompts may wait for that.
    """
    server = Server(models, streams, waiting)
    return Starlette(
        routes=[
            *(Route(path, server.page) for path in PAGE),
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.list_models),
            Route("/v1/models/{name:path}", server.one_model),
            Route("/lens", server.look, methods=["POST"]),
            Route("/health", server.health),
            Route("/metrics", server.metrics_page),
        ],
        middleware=[Middleware(Guard, host=host, metrics=server.metrics)],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _no_route,
            ClientDisconnect: _nobody_reads,
            Exception: _failed,
        },
        lifespan=server.lifespan,
    )


def _about(model: LoadedModel) -> dict[str, Any]:
    """A model as OpenAI lists it, and what the playground shows of it."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "gpt-pipeline",
        "root": str(model.stored.folder),
        "max_model_len": model.gpt.block_size,
        "parameters": model.gpt.num_params(),
        "depth": model.gpt.depth,
        "unit": model.gpt.trunk.unit,
        "depths": list(model.gpt.depths) if model.loops else None,
        "vocab_size": model.tokenizer.vocab_size,
    }


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return Refusal(HTTPStatus(error.status_code), message, headers=error.headers).response()


async def _nobody_reads(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failed(_: Request, __: Exception) -> Response:
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; see its log").response()
