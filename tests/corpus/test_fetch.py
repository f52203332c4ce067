"""Downloads against a small server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.corpus import fetch as fetch_module
from pipeline.corpus.fetch import fetch

CONTENT = b"To be, or not to be\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class Site:
    """A web site of /text.txt, with `failures` still to come: statuses, or "cut" for half an answer."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.failures: list[int | str] = []
        self.requests: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path)
                failure = site.failures.pop(0) if site.failures else None
                found = self.path.endswith("/text.txt")
                self.send_response(failure if isinstance(failure, int) else 200 if found else 404)
                body = site.content if found and not isinstance(failure, int) else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if failure == "cut" else body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/a/text.txt"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("PIPELINE_MIRROR", raising=False)
    monkeypatch.setattr(fetch_module, "RETRIES", 1)
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_downloads_once_and_then_needs_no_network(site: Site, tmp_path: Path) -> None:
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert fetch(site.url, SHA256, tmp_path) == tmp_path / "text.txt"
    assert len(site.requests) == 1
    assert names(tmp_path) == ["text.txt"]


def test_name_and_missing_folders(site: Site, tmp_path: Path) -> None:
    path = fetch(site.url, SHA256, tmp_path / "some" / "where", name="mine.txt")
    assert path == tmp_path / "some" / "where" / "mine.txt"
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_is_downloaded_again_even_if_read_only(site: Site, tmp_path: Path) -> None:
    damaged = tmp_path / "text.txt"
    damaged.write_bytes(b"damaged")
    damaged.chmod(0o444)
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_wrong_checksum_removes_the_file(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fetch(site.url, OTHER, tmp_path)
    assert all(part in str(error.value) for part in (site.url, SHA256, OTHER))
    assert "\n" not in str(error.value)
    assert len(site.requests) == 1  # the same bytes would come again
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [503, "cut"])
def test_a_passing_failure_is_retried(site: Site, tmp_path: Path, failure: int | str) -> None:
    site.failures = [failure]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 2


def test_lasting_failure_says_what_to_put_where(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "RETRIES", 0)
    site.failures = ["cut"]
    with pytest.raises(UserError) as error:
        fetch(site.url, SHA256, tmp_path)
    assert f"FOLDER/{site.host}/a/text.txt, then set PIPELINE_MIRROR=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_what_the_server_refuses_is_not_asked_twice(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="HTTP status 404"):
        fetch(f"http://{site.host}/nothing.txt", SHA256, tmp_path, name="text.txt")
    assert len(site.requests) == 1


def test_what_a_killed_download_left_is_removed(site: Site, tmp_path: Path) -> None:
    left = tmp_path / ".text.txt.partial" / "tmp123"
    left.parent.mkdir()
    left.write_bytes(CONTENT[:100])
    fetch(site.url, SHA256, tmp_path)
    assert names(tmp_path) == ["text.txt"]


def test_mirror_folder_comes_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirrored = mirror / "example.com" / "b c" / "text.txt"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(CONTENT)
    monkeypatch.setenv("PIPELINE_MIRROR", str(mirror))
    path = fetch("https://example.com/b%20c/text.txt", SHA256, tmp_path / "out")
    assert path.read_bytes() == CONTENT
    assert mirrored.exists()
    assert fetch(site.url, SHA256, tmp_path / "other").read_bytes() == CONTENT  # not in the mirror
    assert len(site.requests) == 1


def test_mirror_address_comes_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_MIRROR", f"http://{site.host}/mirror/")
    assert fetch("https://example.com/text.txt", SHA256, tmp_path).read_bytes() == CONTENT
    assert site.requests == ["/mirror/example.com/text.txt"]
    site.failures = [404]
    assert fetch(site.url, SHA256, tmp_path / "other").read_bytes() == CONTENT
    assert site.requests[1:] == [f"/mirror/{site.host}/a/text.txt", "/a/text.txt"]


def test_a_wrong_file_in_the_mirror_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = tmp_path / "mirror" / "example.com" / "text.txt"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(b"other")
    monkeypatch.setenv("PIPELINE_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(UserError) as error:
        fetch("https://example.com/text.txt", SHA256, tmp_path / "out")
    assert all(part in str(error.value) for part in (str(mirrored), SHA256, OTHER))
    assert names(tmp_path / "out") == []


def test_a_mirror_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        fetch("https://example.com/text.txt", SHA256, tmp_path)
