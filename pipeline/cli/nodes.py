"""How node 0 of a cluster tells the other nodes when the training begins, and that there is none."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.distributed.launch import CALLING, Lost, node_0, number

BEGINS, ENDED = b"training\n", b"no train\n"  # of the same length
SECONDS = 0.5  # between two looks


def rendezvous() -> tuple[str, int]:
    """The address of node 0, and the port on which it calls the others: the one after that of the ranks."""
    address, port = node_0()
    return address, port + 1


@contextmanager
def calling() -> Iterator[None]:
    """Within the block, tell each node that calls when a training begins that a stage of this process starts.

    The end of the block ends the connections. Without other nodes, nothing happens.
    """
    if number("NNODES", 1) == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as folder:
        training = Path(folder, "training")
        os.environ[CALLING] = str(training)
        try:
            with _answering(training):
                yield
        finally:
            del os.environ[CALLING]


@contextmanager
def _answering(training: Path) -> Iterator[None]:
    """Within the block, tell each node that calls that the training begins, once `training` exists."""
    _, port = rendezvous()
    done = threading.Event()
    answers: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while not training.exists():
                if done.wait(SECONDS):
                    connection.sendall(ENDED)
                    return
            connection.sendall(BEGINS)

    def serve(server: socket.socket) -> None:
        while not done.is_set():
            with suppress(TimeoutError):
                connection, _ = server.accept()
                answers.append(threading.Thread(target=answer, args=(connection,), daemon=True))
                answers[-1].start()

    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"MASTER_PORT={port - 1}: port {port}, from which node 0 calls the others, cannot be opened "
            f"({error.strerror}); choose another"
        ) from None
    server.settimeout(SECONDS)
    thread = threading.Thread(target=serve, args=(server,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        for one in (thread, *answers):
            one.join()
        server.close()


def called(say: Callable[[str], None]) -> bool:
    """Wait until node 0 begins to train; False if it ended without. While there is no node 0, say so.

    Raises Lost if node 0 is lost before.
    """
    address, port = rendezvous()
    told = False
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=10)
        except OSError as error:
            if not told:
                say(f"waiting for node 0 at {address}:{port} ({error})")
                told = True
            time.sleep(SECONDS)
            continue
        with connection:
            connection.settimeout(None)
            say("waiting for the training to begin on node 0")
            word = b""
            with suppress(OSError):
                word = connection.recv(len(BEGINS), socket.MSG_WAITALL)
        if word not in (BEGINS, ENDED):
            raise Lost(f"node 0 at {address}:{port} was lost before it trained; start all nodes again")
        return word == BEGINS
