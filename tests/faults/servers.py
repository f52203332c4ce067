"""Servers that misbehave: a download waits and goes on, or one line says why not."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from pipeline.corpus.documents import write_jsonl
from pipeline.corpus.sources import DatasetSpec, HuggingFaceSource, TailSplit, UrlSource, write_spec
from pipeline.storage.checksums import sha256_file
from tests import tiny
from tests.faults.operations import killed_at
from tests.faults.project import Project, World, last_line, refused
from tests.faults.table import Trial, fault

TEXT = tiny.text(60_000).encode()
PAGE = b"<!DOCTYPE html><html><body>Please sign in.</body></html>"
MISBEHAVIOURS = ("truncate", "stall", "429", "500", "page")


@contextmanager
def serving(behaviours: list[str]) -> Iterator[str]:
    """Serve TEXT from a process of its own; yields its URL.

    Each request meets the next behaviour, and all further ones the last. `ok` serves, also parts of the
    text; `whole` serves and knows no parts.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
            getattr(self, f"serve_{behaviour}")()

        def serve_ok(self) -> None:
            asked = self.headers.get("Range", "")
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            length = {"Content-Length": str(len(TEXT) - first)}
            if asked:
                length["Content-Range"] = f"bytes {first}-{len(TEXT) - 1}/{len(TEXT)}"
            self.answer(206 if asked else 200, TEXT[first:], length)

        def serve_whole(self) -> None:
            self.answer(200, TEXT, {"Content-Length": str(len(TEXT))})

        def serve_truncate(self) -> None:
            self.answer(200, TEXT[: len(TEXT) // 2], {"Content-Length": str(len(TEXT))})

        def serve_stall(self) -> None:
            self.serve_truncate()
            time.sleep(20)

        def serve_429(self) -> None:
            self.answer(429, b"", {"Content-Length": "0", "Retry-After": "1"})

        def serve_500(self) -> None:
            self.answer(500, b"", {"Content-Length": "0"})

        def serve_page(self) -> None:
            self.answer(200, PAGE, {"Content-Length": str(len(PAGE)), "Content-Type": "text/html"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"ETag": '"1"', "Accept-Ranges": "bytes"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed
        server.serve_forever()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tiny.txt"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        server.server_close()


def in_a_hurry(_: Path) -> None:
    """Pauses and time limits of the network pass fifty times faster."""
    sleep, settimeout = time.sleep, socket.socket.settimeout

    def limited(self: socket.socket, seconds: float | None) -> None:
        settimeout(self, seconds and max(0.3, seconds / 50))

    setattr(time, "sleep", lambda seconds: sleep(seconds / 50))  # noqa: B010
    setattr(socket.socket, "settimeout", limited)  # noqa: B010


def from_url(project: Project, url: str) -> None:
    """Let the project's text come from a URL."""
    source = UrlSource(kind="url", url=url, sha256=hashlib.sha256(TEXT).hexdigest())
    spec = DatasetSpec(source=source, split=TailSplit(by="tail", fraction=0.1))
    write_spec(spec, project.folder / "data/tiny/dataset.yaml")


def arrived(project: Project) -> None:
    """Fail unless the text is there, whole, and nothing besides."""
    names = project.files("data/tiny")
    expected = ["data/tiny/dataset.yaml", "data/tiny/raw/manifest.json", "data/tiny/raw/tiny.txt"]
    assert names == expected, f"also there: {names}"
    assert (project.folder / "data/tiny/raw/tiny.txt").read_bytes() == TEXT, "another text arrived"


def register(behaviour: str, how: str) -> None:
    @fault(
        f"server-{behaviour}",
        f"a server on 127.0.0.1 that {how}: once, and always",
        "once: the text arrives; always: one line says why and the status is 2; a good server then mends it",
        quick=1 if behaviour in ("429", "500") else 0,
    )
    def trials(world: World) -> Iterator[Trial]:
        yield "once", partial(_once, [behaviour, "ok"])
        if behaviour == "truncate":
            yield "once-without-parts", partial(_once, [behaviour, "whole"])
        yield "always", partial(_always, behaviour)


for behaviour, how in zip(
    MISBEHAVIOURS,
    (
        "closes the connection in the middle",
        "stops in the middle and says nothing more",
        "answers 429 with Retry-After",
        "answers 500",
        "answers 200 with a page in place of the text",
    ),
    strict=True,
):
    register(behaviour, how)


def _once(behaviours: list[str], world: World) -> None:
    project = world.project("raw")
    with serving(behaviours) as url:
        from_url(project, url)
        ended = project("download", inject=in_a_hurry)
        if behaviours[0] == "page" and ended.status:  # it may be what the server has; asking again is enough
            refused(ended)
            ended = project("download", inject=in_a_hurry)
        assert ended.status == 0, f"status {ended.status}: {last_line(ended)}"
    arrived(project)


def _always(behaviour: str, world: World) -> None:
    project = world.project("raw")
    with serving([behaviour]) as url:
        from_url(project, url)
        refused(project("download", inject=in_a_hurry))
        assert not (project.folder / "data/tiny/raw").exists(), "there is a folder of raw text"
    with serving(["ok"]) as url:
        from_url(project, url)
        ended = project("download")
        assert ended.status == 0, f"with a good server: {last_line(ended)}"
    arrived(project)


@fault(
    "kill-in-url-download",
    "`kill -9` in the middle of every write, sync, rename and removal of a download over HTTP",
    "the same command again gets the whole text, from servers that know parts of files and that do not",
)
def kill_in_download(world: World) -> Iterator[Trial]:
    for behaviour in ("ok", "whole"):
        yield behaviour, partial(_kill_everywhere, behaviour)


def _kill_everywhere(behaviour: str, world: World) -> None:
    number = 1
    while True:
        project = world.project("raw")
        with serving([behaviour]) as url:
            from_url(project, url)
            ended = project("download", inject=killed_at(number))
            if ended.status == 0:
                break
            assert ended.status == -signal.SIGKILL, f"killed at {number}: {last_line(ended)}"
            ended = project("download")
            assert ended.status == 0, f"after a kill at {number}: {last_line(ended)}"
        arrived(project)
        number += 1
    assert number > 5


@fault(
    "kill-in-hub-download",
    "`kill -9` in the middle of every write, sync, rename and removal while a dataset of two files is copied",
    "the same command again ends with the result of an undisturbed run, bit for bit",
)
def kill_in_hub_download(world: World) -> Iterator[Trial]:
    yield "", _kill_between_pieces


def _kill_between_pieces(world: World) -> None:
    import datasets  # noqa: F401  # once, before any fork

    undisturbed, number = None, 0
    while True:
        project = world.project("raw")
        (project.folder / "hub").mkdir()
        for name in ("one", "two"):
            write_jsonl(project.folder / f"hub/{name}.jsonl", [{"text": f"{name} {tiny.text(1000)}"}])
        source = HuggingFaceSource(
            kind="huggingface", repository="hub", split="train", revision="none", text_column="text"
        )
        spec = DatasetSpec(source=source, split=TailSplit(by="tail", fraction=0.1))
        write_spec(spec, project.folder / "data/tiny/dataset.yaml")
        ended = project("download", inject=killed_at(number) if number else None)
        if ended.status == -signal.SIGKILL:
            ended = project("download")
        elif number and ended.status == 0:
            break
        assert ended.status == 0, f"after a kill at {number}: {last_line(ended)}"
        outcome = {name: sha256_file(project.folder / name) for name in project.files("data/tiny")}
        undisturbed = undisturbed or outcome
        assert outcome == undisturbed, f"after a kill at {number}: another result"
        number += 1
    assert number > 10
