"""The few routes of the Hugging Face hub that streaming a data set takes, on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving_hub(repository: str, files: Path) -> Iterator[str]:
    """Serve the files in a folder as `repository` at revision COMMIT; the endpoint's address."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api, resolve = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"
            if path in (api, f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in names()]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.reply(200, json.dumps(info).encode())
            elif path.startswith(f"{api}/revision/") or (path.startswith(resolve) and COMMIT not in path):
                self.refuse("RevisionNotFound")
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                inside = [entry(path.relative_to(files)) for path in sorted((files / folder).glob("*"))]
                self.reply(200, json.dumps(inside).encode())
            elif path.startswith(f"{resolve}{COMMIT}/"):
                self.send_file(path.removeprefix(f"{resolve}{COMMIT}/"))
            else:
                self.refuse("RepoNotFound")

        def send_file(self, name: str) -> None:
            if name not in names():
                self.refuse("EntryNotFound")
                return
            content = (files / name).read_bytes()
            asked = self.headers.get("Range")
            if asked is None:
                self.reply(200, content)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last or len(content)) + 1]
            end = int(first) + len(part) - 1
            self.reply(206, part, {"Content-Range": f"bytes {first}-{end}/{len(content)}"})

        def refuse(self, code: str) -> None:
            self.reply(404, b"", {"X-Error-Code": code})

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"0"')
            self.send_header("Accept-Ranges", "bytes")
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def names() -> list[str]:
        return sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())

    def entry(path: Path) -> dict[str, object]:
        if (files / path).is_dir():
            return {"type": "directory", "path": str(path), "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": str(path), "oid": "0" * 40, "size": (files / path).stat().st_size}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
