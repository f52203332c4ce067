"""The few routes of the Hugging Face hub that its client takes to data sets and models, and to upload one."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest

from pipeline.storage.checksums import sha256_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"


def use_hub(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client, which read its settings when it was imported, use another address and cache."""
    settings = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(home / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def serving_hub(
    repository: str,
    files: Path,
    kind: Literal["dataset", "model"] = "dataset",
    gated: bool = False,
    sent: list[tuple[str, str | None]] | None = None,
    stalls: Collection[str] = (),
) -> Iterator[str]:
    """Serve the files in a folder, on 127.0.0.1, as `repository` at revision COMMIT, which `main` is too.

    Without the folder there is no such repository until somebody with TOKEN creates it; what is uploaded is
    written there. A gated repository can be looked at, but its files are refused. Parquet files have a
    sha256, as all large files of the hub. `sent` gets the name and range of each file that is sent. The files
    in `stalls` are sent up to their middle, then nothing comes, until they are asked for from there. Yields
    the address.
    """
    ended = threading.Event()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api, resolve = f"/api/{kind}s/{repository}", f"{prefix}/{repository}/resolve/"
            if not files.exists():
                self.refuse(404, "RepoNotFound")
            elif path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
                siblings = [{"rfilename": name} for name in names()]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.reply(200, json.dumps(info).encode())
            elif path.startswith(f"{api}/revision/") or (path.startswith(resolve) and COMMIT not in path):
                self.refuse(404, "RevisionNotFound")
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                inside = [entry(path.relative_to(files)) for path in sorted((files / folder).glob("*"))]
                self.reply(200, json.dumps(inside).encode())
            elif path.startswith(f"{resolve}{COMMIT}/") and gated:
                self.refuse(403, "GatedRepo")
            elif path.startswith(f"{resolve}{COMMIT}/"):
                self.send_file(path.removeprefix(f"{resolve}{COMMIT}/"))
            else:
                self.refuse(404, "RepoNotFound")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = unquote(urlsplit(self.path).path)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.refuse(401, "")
            elif path == "/api/repos/create":
                asked = json.loads(body)
                files.mkdir(exist_ok=True)
                address = f"{endpoint}/{asked['organization']}/{asked['name']}"
                self.reply(200, json.dumps({"url": address}).encode())
            elif path == "/api/validate-yaml":
                self.reply(200, b'{"errors": [], "warnings": []}')
            elif path == f"/api/{kind}s/{repository}/preupload/main":
                modes = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.reply(200, json.dumps({"files": modes}).encode())
            elif path == f"/api/{kind}s/{repository}/commit/main":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        (files / line["value"]["path"]).write_bytes(content)
                commit = {"commitUrl": f"{endpoint}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                self.reply(200, json.dumps(commit).encode())
            else:
                self.refuse(404, "RepoNotFound")

        def send_file(self, name: str) -> None:
            if name not in names():
                self.refuse(404, "EntryNotFound")
                return
            content = (files / name).read_bytes()
            etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}  # the client's cache is kept by it
            asked = self.headers.get("Range")
            if sent is not None and self.command == "GET":
                sent.append((name, asked))
            if asked is None:
                self.reply(200, content, etag, stalls=name in stalls)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last or len(content)) + 1]
            end = int(first) + len(part) - 1
            self.reply(206, part, etag | {"Content-Range": f"bytes {first}-{end}/{len(content)}"})

        def refuse(self, status: int, code: str) -> None:
            self.reply(status, b"", {"X-Error-Code": code})

        def reply(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, stalls: bool = False
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if stalls else body)
            if stalls:
                self.wfile.flush()
                ended.wait()

        def log_message(self, *_: object) -> None:
            pass

    def names() -> list[str]:
        return sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())

    def entry(path: Path) -> dict[str, object]:
        if (files / path).is_dir():
            return {"type": "directory", "path": str(path), "oid": "0" * 40, "size": 0}
        size = (files / path).stat().st_size
        about: dict[str, object] = {"type": "file", "path": str(path), "oid": "0" * 40, "size": size}
        if path.suffix == ".parquet":
            about["lfs"] = {"oid": sha256_file(files / path), "size": size, "pointerSize": 130}
        return about

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    prefix, endpoint = "" if kind == "model" else "/datasets", f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield endpoint
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
