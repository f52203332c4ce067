"""Downloads against a small server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config.errors import UserError, one_line
from pipeline.corpus import fetch as fetch_module
from pipeline.corpus.fetch import bytes_here, fetch
from pipeline.storage.machine import Room

CONTENT = b"".join(b"%d: to be, or not to be\n" % line for line in range(20_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
OTHER = hashlib.sha256(b"other").hexdigest()
PAGE = b"<!DOCTYPE html>\n<title>Sign in</title>"


@dataclass
class Site:
    """A web site of /text.txt.

    `failures` are still to come: a status, "cut" for half of what was asked for, "stall" for half and then
    nothing. `requests` are the paths and `ranges` the ranges that were asked for.
    """

    content: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    has_ranges: bool = True
    failures: list[int | str] = field(default_factory=list)
    failure_headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        site = self
        self.ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path)
                site.ranges.append(self.headers["Range"])
                site.tokens.append(self.headers["Authorization"])
                failure = site.failures.pop(0) if site.failures else None
                if isinstance(failure, int):
                    self.reply(failure, b"", site.failure_headers)
                elif not self.path.endswith("/text.txt"):
                    self.reply(404, b"", {})
                else:
                    self.send_text(failure)

            def send_text(self, failure: str | None) -> None:
                first, size = int((self.headers["Range"] or "bytes=0-")[6:-1]), len(site.content)
                if not site.has_ranges or self.headers["If-Range"] not in site.headers.values():
                    self.reply(200, site.content, site.headers, failure)
                elif first >= size:
                    self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
                else:
                    part = {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
                    self.reply(206, site.content[first:], site.headers | part, failure)

            def reply(
                self, status: int, body: bytes, headers: dict[str, str], failure: str | None = None
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if failure else body)
                if failure == "stall":
                    self.wfile.flush()
                    site.ended.wait()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/a/text.txt"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("PIPELINE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch_module, "CHUNK_BYTES", 1000)
    site = Site()
    monkeypatch.setattr(fetch_module, "sleep", site.pauses.append)
    yield site
    site.ended.set()
    site.server.shutdown()
    site.server.server_close()


def begun(site: Site, folder: Path, content: bytes = CONTENT[:HALF], version: str = '"1"') -> None:
    """Leave in `folder` what a killed download of the site's text leaves there."""
    (folder / ".text.txt.part").write_bytes(content)
    about = {"url": site.url, "version": version}
    (folder / ".text.txt.part.json").write_text(json.dumps(about))


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


def test_what_does_not_fit_on_the_disk_is_not_begun(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.machine.disk", lambda path: Room(10**9, len(CONTENT) - 1))
    with pytest.raises(UserError, match=r"the bytes of text.txt need .* of disk, but .* are free"):
        fetch(site.url, SHA256, tmp_path)
    assert len(site.requests) == 1
    assert not any(path.stat().st_size > 1000 for path in tmp_path.iterdir())
    begun(site, tmp_path)  # the rest of it fits
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_token_reaches_its_own_server_and_no_mirror(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(site.url, SHA256, tmp_path / "direct", headers={"Authorization": "Bearer of-the-tests"})
    monkeypatch.setenv("PIPELINE_MIRROR", f"http://{site.host}/mirror")
    url = "https://example.com/text.txt"
    fetch(url, SHA256, tmp_path / "mirrored", headers={"Authorization": "Bearer of-the-tests"})
    assert site.tokens == ["Bearer of-the-tests", None]


def test_the_bytes_of_a_part_are_told_to_the_caller(site: Site, tmp_path: Path) -> None:
    begun(site, tmp_path)
    told: list[int] = []
    assert bytes_here(site.url, tmp_path) == HALF
    fetch(site.url, SHA256, tmp_path, at=told.append)
    assert told[0] == HALF and told[-1] == len(CONTENT) and told == sorted(told)
    assert bytes_here(site.url, tmp_path) == len(CONTENT)


def test_wrong_checksum_removes_the_file(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fetch(site.url, OTHER, tmp_path)
    assert all(part in str(error.value) for part in (site.url, SHA256, OTHER))
    assert "\n" not in str(error.value)
    assert len(site.requests) == 1  # the same bytes would come again
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [408, 429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_retried(site: Site, tmp_path: Path, failure: int) -> None:
    site.failures = [failure]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, None]


def test_a_download_that_was_cut_goes_on(site: Site, tmp_path: Path) -> None:
    site.failures = ["cut"] * 7  # more than RETRIES, but each brought something
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    starts = [int(asked[6:-1]) for asked in site.ranges[1:] if asked]
    assert len(starts) == 7
    assert starts == sorted(set(starts))
    assert HALF - 1000 <= starts[0] <= HALF
    assert set(site.pauses) == {1.0}
    assert names(tmp_path) == ["text.txt"]


def test_a_server_that_stalls_is_asked_for_the_rest(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_module, "TIMEOUT", 0.3)
    site.failures = ["stall"]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges[1]
    assert "nothing came for" in capsys.readouterr().err


def test_a_server_without_ranges_sends_all_of_it_again(site: Site, tmp_path: Path) -> None:
    site.has_ranges = False
    site.failures = ["cut"]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, site.ranges[1]]
    site.failures, site.requests = ["cut"] * 10, []
    with pytest.raises(UserError, match="the connection broke before the end"):
        fetch(site.url, SHA256, tmp_path / "other")
    assert len(site.requests) == 1 + fetch_module.RETRIES  # the retries brought nothing new


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"ETag": 'W/"1"', "Last-Modified": "Thu, 01 Jan 2026"}])
def test_an_interrupted_download_goes_on_in_another_call(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(fetch_module, "RETRIES", 0)
    site.headers = headers
    site.failures = ["cut", "cut"]
    for _ in range(2):
        with pytest.raises(UserError, match="the connection broke"):
            fetch(site.url, SHA256, tmp_path)
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges[0] is None
    assert all(site.ranges[1:])


def test_a_killed_download_goes_on(site: Site, tmp_path: Path) -> None:
    killed = f"""
import os
from pathlib import Path
from pipeline.corpus import fetch as module
module.CHUNK_BYTES = 1000
received = 0
def progress(*_):
    from contextlib import nullcontext
    def advance(n):
        global received
        received += n
        if received > {HALF}:
            os.kill(os.getpid(), 9)
    return nullcontext(advance)
module.progress = progress
module.fetch({site.url!r}, {SHA256!r}, Path({str(tmp_path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", killed], cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert sorted(names(tmp_path)) == [".text.txt.part", ".text.txt.part.json"]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert HALF - 10_000 <= int(str(site.ranges[-1])[6:-1]) <= HALF  # Python kept the last bytes in memory
    assert names(tmp_path) == ["text.txt"]


def test_a_file_that_changed_on_the_server_is_downloaded_from_its_start(site: Site, tmp_path: Path) -> None:
    begun(site, tmp_path, b"old" * 1000, version='"0"')
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == ["bytes=3000-"]


@pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more"])
def test_a_part_with_nothing_missing(site: Site, tmp_path: Path, content: bytes) -> None:
    begun(site, tmp_path, content)
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [f"bytes={len(content)}-"] + [None] * (content != CONTENT)


@pytest.mark.parametrize("about", ["", "{", "[]", '{"url": "http://127.0.0.1/other", "version": "1"}'])
def test_a_part_of_something_else_is_not_continued(site: Site, tmp_path: Path, about: str) -> None:
    begun(site, tmp_path)
    (tmp_path / ".text.txt.part.json").write_text(about)
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None]
    assert names(tmp_path) == ["text.txt"]


def test_a_damaged_part_is_removed_so_that_the_next_call_starts_afresh(site: Site, tmp_path: Path) -> None:
    begun(site, tmp_path, b"?" * HALF)
    with pytest.raises(UserError, match="the file was not kept"):
        fetch(site.url, SHA256, tmp_path)
    assert names(tmp_path) == []
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_lasting_failure_says_what_to_put_where(site: Site, tmp_path: Path) -> None:
    site.failures = [503] * 9
    with pytest.raises(UserError, match="HTTP status 503 Service Unavailable") as error:
        fetch(site.url, SHA256, tmp_path)
    assert f"FOLDER/{site.host}/a/text.txt, then set PIPELINE_MIRROR=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    assert site.pauses == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("asked", "pause", "said"),
    [
        ("7", 7, "trying again in 7 s (the server asks for 7 s)"),
        ("3600", 120, "trying again in 120 s (the server asks for 3600 s)"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 120, "trying again in 120 s (the server asks for"),
        ("Thu, 01 Jan 2015 00:00:00 GMT", 1, "trying again in 1 s\n"),
        ("soon", 1, "trying again in 1 s\n"),
    ],
)
def test_the_pause_is_what_the_server_asks_for(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, pause: float, said: str
) -> None:
    site.failures, site.failure_headers = [429], {"Retry-After": asked}
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.pauses == [pause]
    assert f"{site.url}: HTTP status 429 Too Many Requests; {said}" in capsys.readouterr().err


def test_a_retry_date_is_a_time_from_now(site: Site, tmp_path: Path) -> None:
    in_half_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    site.failures, site.failure_headers = [503], {"Retry-After": in_half_a_minute}
    fetch(site.url, SHA256, tmp_path)
    assert 20 < site.pauses[0] <= 30


def test_a_tls_failure_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"TLS failure \([a-z ]+\)") as error:
        fetch(f"https://{site.host}/a/text.txt", SHA256, tmp_path)  # the server does not speak TLS
    assert "no connection" not in str(error.value)


def test_a_server_that_is_not_there(tmp_path: Path, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(UserError, match="no connection"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/text.txt", SHA256, tmp_path)


def test_a_page_instead_of_the_file_is_named(site: Site, tmp_path: Path) -> None:
    site.content = PAGE
    with pytest.raises(UserError, match="text.txt: this is an HTML page, not the file") as error:
        fetch(site.url, SHA256, tmp_path)
    assert SHA256 in str(error.value)
    assert names(tmp_path) == []


def test_what_came_compressed_is_not_continued(site: Site, tmp_path: Path) -> None:
    compressed = gzip.compress(CONTENT)
    site.content, site.headers = compressed, {"ETag": '"1"', "Content-Encoding": "gzip"}
    site.failures = ["cut"]
    assert fetch(site.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, None]


def test_what_the_server_refuses_is_not_asked_twice(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="HTTP status 404"):
        fetch(f"http://{site.host}/nothing.txt", SHA256, tmp_path, name="text.txt")
    assert len(site.requests) == 1


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


def test_a_password_in_an_address_is_neither_shown_nor_kept(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, mirror = (f"http://reader:CANARY@{site.host}/{path}" for path in ("a/text.txt", "mirror"))
    monkeypatch.setenv("PIPELINE_MIRROR", mirror)
    with pytest.raises(UserError) as error:
        fetch(url, "0" * 64, tmp_path)
    assert "CANARY" not in one_line(str(error.value)) and site.host in one_line(str(error.value))
    assert site.requests == [f"/mirror/{site.host}/a/text.txt"]
    monkeypatch.delenv("PIPELINE_MIRROR")
    site.failures += [500, "cut"]
    kept = b""

    def look(pause: float) -> None:
        nonlocal kept
        kept += b"".join(path.read_bytes() for path in tmp_path.iterdir())

    monkeypatch.setattr(fetch_module, "sleep", look)
    fetch(url, SHA256, tmp_path)
    printed = capsys.readouterr()
    assert "trying again" in printed.err and b'"url"' in kept
    assert "CANARY" not in printed.out + printed.err and b"CANARY" not in kept
