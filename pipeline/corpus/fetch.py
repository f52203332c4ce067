"""Download one file, go on where an interrupted download ended, and verify the checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.config.errors import UserError, without_passwords
from pipeline.corpus.progress import progress
from pipeline.storage.checksums import sha256_file
from pipeline.storage.files import write_json
from pipeline.storage.machine import check_disk

if TYPE_CHECKING:
    import requests

MIRROR = "PIPELINE_MIRROR"
RETRIES = 4  # in a row that bring nothing new; then the download has failed
TIMEOUT = 60.0  # seconds in which a server sends nothing, until the connection counts as lost
LONGEST_PAUSE = 120.0  # seconds between two tries, even if the server asks for more
CHUNK_BYTES = 1 << 16


class _Refused(Exception):
    """The server refused the request, and a retry would not help."""


class _Partial:
    """The part of a file that was downloaded, and beside it which version of which file it is a part of."""

    def __init__(self, target: Path, at: Callable[[int], None] | None = None) -> None:
        self.name = target.name
        self._at = at
        self.path = target.with_name(f".{target.name}.part")
        self._about = target.with_name(f".{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version_of(self, url: str) -> str:
        """The ETag or date of the version of `url` that can be continued; empty if there is none."""
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            return str(about["version"]) if about["url"] == without_passwords(url) and self.size() else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def begin(self, url: str, version: str) -> None:
        self.remove()
        write_json(self._about, {"url": without_passwords(url), "version": version})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    @contextmanager
    def progress(self, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
        """As `progress` of the file; of a part of something larger, the caller's `at` gets the bytes done."""
        if self._at is None:
            with progress(self.name, "B", total, done) as advance:
                yield advance
            return
        at, now_done = self._at, done

        def advance_to(count: int) -> None:
            nonlocal now_done
            now_done += count
            at(now_done)

        advance_to(0)
        yield advance_to


def download_folder(url: str) -> Path:
    """Where the user's own file at `url` is kept on this machine."""
    from platformdirs import user_cache_path

    return (
        user_cache_path("gpt-pipeline")
        / "downloads"
        / hashlib.sha256(without_passwords(url).encode()).hexdigest()[:16]
    )


def last_part(url: str) -> str:
    """The name of the file at `url`."""
    return Path(unquote(urlsplit(url).path)).name or "index"


def downloaded(folder: Path) -> Path | None:
    """The file that `fetch_unknown` completed in `folder`, if it did."""
    return next((path for path in folder.glob("*") if not path.name.startswith(".")), None)


def fetch_unknown(url: str, folder: Path, complete_name: Callable[[str, Path], str]) -> Path:
    """Download the file at `url`, whose checksum nobody knows yet, to `folder`, and return its path.

    Its name there is `complete_name(the last part of the URL, the file)`. A file that an earlier call
    completed is returned as it is. See `fetch` for the mirror, for interruptions and for what is raised.
    """
    if (earlier := downloaded(folder)) is not None:
        return earlier
    folder.mkdir(parents=True, exist_ok=True)
    name = last_part(url)
    partial = _Partial(folder / name)
    _ = _from_mirror(url, partial) or _from_network(url, partial, {})
    target = folder / complete_name(name, partial.path)
    os.replace(partial.path, target)
    partial.remove()
    return target


def bytes_here(url: str, folder: Path) -> int:
    """The bytes of `url` that earlier calls of `fetch` brought to `folder`."""
    target = folder / last_part(url)
    if target.is_file():
        return target.stat().st_size
    partial = _Partial(target)
    return partial.size() if partial.version_of(url) else 0


def fetch(
    url: str,
    sha256: str,
    folder: Path,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
    at: Callable[[int], None] | None = None,
) -> Path:
    """Download `url` to `folder/name` and verify its SHA-256; `name` defaults to the last part of the URL.

    A file already there with the right checksum is returned without using the network. Otherwise the mirror
    comes first: the environment variable PIPELINE_MIRROR is a folder or an http(s) URL in which
    `https://host/path` is `<mirror>/host/path`. A file missing from the mirror comes from the network. After
    a failure that may pass the download goes on, and so does the next call after an interruption: the part
    that is there is kept as `folder/.<name>.part`. `folder/name` appears only when the file is complete and
    verified. `headers`, such as a token, are sent to the URL's own server alone, not to the mirror. `at` is
    called with the bytes that are there instead of showing progress.

    Raises UserError if the checksum differs (nothing is kept) or the download fails.
    """
    target = folder / (name or last_part(url))
    partial = _Partial(target, at)
    if target.is_file():
        if sha256_file(target) == sha256:
            partial.remove()  # a process may have been killed before it could
            return target
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    origin = _from_mirror(url, partial) or _from_network(url, partial, headers or {})
    actual = sha256_file(partial.path)
    if actual != sha256:
        what = "this is an HTML page, not the file; its " if is_html(partial.path) else ""
        partial.remove()
        remedy = (
            "repair the mirror"
            if origin != url
            else "try again; if the file was meant to change, correct its sha256"
        )
        raise UserError(
            f"{origin}: {what}sha256 is {actual}, expected {sha256}; the file was not kept, {remedy}"
        )
    os.replace(partial.path, target)
    partial.remove()
    return target


def _from_mirror(url: str, partial: _Partial) -> str | None:
    """Get all of `url` from the mirror. Returns its address there, or None if no mirror has it."""
    import requests

    mirror = os.environ.get(MIRROR, "")
    if mirror.startswith(("http://", "https://")):
        origin = f"{mirror.rstrip('/')}/{_path_in_mirror(url)}"
        try:
            _download(origin, partial, {})
        except _Refused:
            return None
        except requests.RequestException as error:
            raise UserError(f"{MIRROR}={mirror}: {_reason(error)}; correct it or unset it") from None
        return origin
    if not mirror:
        return None
    if not Path(mirror).is_dir():
        raise UserError(f"{MIRROR}={mirror}: no such folder; correct it or unset it")
    path = Path(mirror) / unquote(_path_in_mirror(url))
    if not path.is_file():
        return None
    partial.remove()
    check_disk(partial.path.parent, path.stat().st_size, f"the bytes of {partial.name}")
    shutil.copyfile(path, partial.path)
    return str(path)


def _from_network(url: str, partial: _Partial, headers: Mapping[str, str]) -> str:
    import requests

    try:
        _download(url, partial, headers)
    except (_Refused, requests.RequestException) as error:
        mirror = os.environ.get(MIRROR, "")
        setting = "" if mirror else f", then set {MIRROR}=FOLDER"
        raise UserError(
            f"cannot download {url}: {_reason(error)}; try again later, or "
            "get it by other means and put it at "
            f"{mirror.rstrip('/') or 'FOLDER'}/{unquote(_path_in_mirror(url))}{setting}"
        ) from None
    return url


def _path_in_mirror(url: str) -> str:
    parts = urlsplit(without_passwords(url))
    return parts.netloc + parts.path


def _download(url: str, partial: _Partial, headers: Mapping[str, str]) -> None:
    """Get all of `url`, trying again after failures that may pass.

    Raises _Refused or, after the last retry, an exception of `requests`.
    """
    import requests

    failures, most = 0, partial.size()
    while True:
        try:
            return _get_rest(url, partial, headers)
        except requests.RequestException as error:
            if _is_refusal(error):
                raise _Refused(_reason(error)) from None
            failures = failures + 1 if partial.size() <= most else 1
            most = max(most, partial.size())
            if failures > RETRIES or _is_lasting(error):
                raise
            asked = _asked_pause(error)
            pause = min(max(asked, 2.0 ** (failures - 1)), LONGEST_PAUSE)
            request = f" (the server asks for {asked:.0f} s)" if asked else ""
            where = without_passwords(url)
            print(f"{where}: {_reason(error)}; trying again in {pause:.0f} s{request}", file=sys.stderr)
        sleep(pause)


def _get_rest(url: str, partial: _Partial, headers: Mapping[str, str]) -> None:
    """Make one request for what is missing of `url`, or for all of it if the server has another version."""
    import requests

    version = partial.version_of(url)
    done = partial.size() if version else 0
    # Ask for no compression on the way: the checksum is that of the file itself.
    asked = {**headers, "Accept-Encoding": "identity"}
    if done:
        asked |= {"Range": f"bytes={done}-", "If-Range": version}
    with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if done and response.status_code == 416 and content_range == f"bytes */{done}":
            return  # nothing is missing
        continues = response.status_code == 206 and content_range.startswith(f"bytes {done}-")
        if done and not continues and response.status_code in (206, 416):
            partial.remove()
            return _get_rest(url, partial, headers)
        response.raise_for_status()
        compressed = response.headers.get("Content-Encoding", "identity") != "identity"
        if not continues:
            done = 0
            partial.begin(url, "" if compressed else _version(response))
        length = "" if compressed else response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        check_disk(partial.path.parent, (total or 0) - done, f"the bytes of {partial.name}")
        with (
            partial.path.open("ab") as file,
            partial.progress(total, done) as advance,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                advance(len(chunk))
    if total is not None and partial.size() < total:
        raise requests.exceptions.ChunkedEncodingError(f"{partial.size()} bytes of {total}")


def _version(response: requests.Response) -> str:
    """What If-Range needs to continue this version of the file; a weak ETag does not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _status(error: Exception) -> int:
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def _is_refusal(error: requests.RequestException) -> bool:
    return 400 <= _status(error) < 500 and _status(error) not in (408, 429)


def _is_lasting(error: requests.RequestException) -> bool:
    """Whether another try would fail in the same way: a wrong certificate or address."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, ValueError)


def _asked_pause(error: requests.RequestException) -> float:
    """The seconds that the server asks for in Retry-After, which holds seconds or a date; 0 without it."""
    asked = "" if error.response is None else error.response.headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _reason(error: Exception) -> str:
    import requests
    from urllib3.exceptions import ReadTimeoutError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}"
    message = " ".join(str(error).split())
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r"\[SSL[^\]]*\] ([^(')]+)", message)
        return f"TLS failure ({found.group(1).strip() if found else message})"
    if isinstance(error, requests.Timeout) or (error.args and isinstance(error.args[0], ReadTimeoutError)):
        return f"nothing came for {TIMEOUT:.0f} s"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the end"
    return message


def is_html(path: Path) -> bool:
    """Whether a file begins like a page."""
    with path.open("rb") as file:
        return file.read(1024).lstrip().lower().startswith((b"<!doctype html", b"<html"))
