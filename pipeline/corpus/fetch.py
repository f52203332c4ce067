"""Download one file and verify its checksum."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.config.errors import UserError
from pipeline.storage.checksums import sha256_file

MIRROR = "PIPELINE_MIRROR"
RETRIES = 4


class _Refused(Exception):
    """The server refused the request, and a retry would not help."""


def fetch(url: str, sha256: str, folder: Path, name: str | None = None) -> Path:
    """Download `url` to `folder/name` and verify its SHA-256; `name` defaults to the last part of the URL.

    A file already there with the right checksum is returned without using the network. Otherwise the mirror
    comes first: the environment variable PIPELINE_MIRROR is a folder or an http(s) URL in which
    `https://host/path` is `<mirror>/host/path`. A file missing from the mirror comes from the network, with
    RETRIES retries after growing pauses. `folder/name` appears only when the file is complete and verified.

    Raises UserError if the checksum differs (the file is not kept) or the download fails.
    """
    target = folder / (name or Path(unquote(urlsplit(url).path)).name)
    if target.is_file():
        if sha256_file(target) == sha256:
            return target
        target.unlink()
    # The folder has a fixed name, so that the next download removes what a killed one left behind.
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        origin = _from_mirror(url, partial / target.name)
        if origin is None:
            origin = _from_network(url, partial / target.name)
        actual = sha256_file(partial / target.name)
        if actual != sha256:
            remedy = (
                "repair the mirror"
                if origin != url
                else "if the file was meant to change, correct its sha256"
            )
            raise UserError(
                f"{origin}: sha256 is {actual}, expected {sha256}; the file was not kept, {remedy}"
            )
        os.replace(partial / target.name, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _from_mirror(url: str, target: Path) -> str | None:
    """Copy `url` from the mirror to `target`. Returns its address there, or None if no mirror has it."""
    mirror = os.environ.get(MIRROR, "")
    if mirror.startswith(("http://", "https://")):
        origin = f"{mirror.rstrip('/')}/{_path_in_mirror(url)}"
        try:
            _download(origin, target)
        except _Refused:
            return None
        except OSError as error:
            raise UserError(f"{MIRROR}={mirror}: {_reason(error)}; correct it or unset it") from None
        return origin
    if not mirror:
        return None
    if not Path(mirror).is_dir():
        raise UserError(f"{MIRROR}={mirror}: no such folder; correct it or unset it")
    path = Path(mirror) / unquote(_path_in_mirror(url))
    if not path.is_file():
        return None
    shutil.copyfile(path, target)
    return str(path)


def _from_network(url: str, target: Path) -> str:
    try:
        _download(url, target)
    except (_Refused, OSError) as error:
        mirror = os.environ.get(MIRROR, "")
        setting = "" if mirror else f", then set {MIRROR}=FOLDER"
        raise UserError(
            f"cannot download {url}: {_reason(error)}; "
            "get it by other means and put it at "
            f"{mirror.rstrip('/') or 'FOLDER'}/{unquote(_path_in_mirror(url))}{setting}"
        ) from None
    return url


def _path_in_mirror(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc + parts.path


def _download(url: str, target: Path) -> None:
    """Raises _Refused or, after the last retry, an exception of `requests` (all of them are OSErrors)."""
    import pooch
    import requests

    # Ask for no compression on the way: the checksum is that of the file itself.
    request = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), chunk_size=1 << 16, headers={"Accept-Encoding": "identity"}
    )

    def attempt(url: str, output: str, pooch: Any) -> None:
        try:
            request(url, output, pooch)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if 400 <= status < 500 and status not in (408, 429):
                raise _Refused(_reason(error)) from None
            raise

    # Without a checksum, so that pooch does not download a wrong file again and again.
    files = pooch.create(
        target.parent,
        base_url="",
        registry={target.name: None},
        urls={target.name: url},
        retry_if_failed=RETRIES,
    )
    files.fetch(target.name, downloader=attempt)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split())
