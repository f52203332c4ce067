"""Serve models on this machine: the playground in a browser, and OpenAI's completions API."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from typing import Annotated

import typer

from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import params_or_defaults
from pipeline.config.paths import MODEL
from pipeline.config.signals import handled

SECONDS_TO_FINISH = 5  # for texts that are being written when the server is told to stop


def main(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models: folders, a run's folder (its newest checkpoint), gpt2, or names on the hub.",
            show_default=str(MODEL),
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is all of them.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    streams: Annotated[int, typer.Option(min=1, max=1024, help="Texts written at a time.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, max=1 << 16, help="Prompts that may wait.")] = 256,
    overrides: Overrides = None,
) -> None:
    """Serve models until Ctrl-C: a playground at http://127.0.0.1:8000, and /v1/completions for clients."""
    params = params_or_defaults(overrides or [])
    with listening(host, port) as listener:
        from pipeline.web.rounding import round_alike

        round_alike()
        import uvicorn

        from pipeline.runtime.device import use_device
        from pipeline.web.app import create_app
        from pipeline.web.models import open_models

        models = open_models(model or [str(MODEL)], use_device(params.runtime), streams)
        app = create_app(models, host, streams, waiting)
        config = uvicorn.Config(
            app, log_level="error", access_log=False, timeout_graceful_shutdown=SECONDS_TO_FINISH
        )
        # The models stay, so the collector need not look at them; it looks often, for what requests leave.
        gc.collect()
        gc.freeze()
        gc.set_threshold(1000)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"{', '.join(models)}: playground {address}, API {address}/v1; Ctrl-C stops", file=sys.stderr)
        _serve(uvicorn.Server(config), listener)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError if that cannot be; before models are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host = {host}: no address of this machine ({error}); use 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port = {port}: cannot listen on {host} ({error.strerror}); stop what uses it, or choose another"
        ) from None
    return listener


def _serve(server: object, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; then let texts finish, and exit as the signal says."""
    import uvicorn

    assert isinstance(server, uvicorn.Server)
    received: list[int] = []
    with handled((signal.SIGINT, signal.SIGTERM), received.append):
        server.run([listener])
    if received:
        sys.exit(128 + received[0])
