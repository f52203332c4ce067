"""The text and the tokens of the active dataset on a DVC remote, so that one machine makes them for all."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.config.errors import UserError
from pipeline.config.paths import DATA
from pipeline.config.validation import suggest
from pipeline.corpus.hub_datasets import first_line
from pipeline.storage.dvc_cache import object_path
from pipeline.storage.machine import binary, check_disk

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

STAGES = ("download", "tokenize")
URL_REMOTE = "url-of-this-call"

Remote = Annotated[
    str | None,
    typer.Option(
        help="A folder, a URL (ssh://, s3://, ...) or the name of a DVC remote; by default DVC's own.",
        show_default=False,
    ),
]


@contextmanager
def opened(remote: str | None) -> Iterator[Repo]:
    """This project in DVC, with `remote` as its default remote.

    What DVC and the remote refuse is raised as UserError.
    """
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.rwlock import RWLockFileCorruptedError

    with _quiet() as said:
        try:
            with Repo(".", config=_settings(remote)) as repo, lock_repo(repo):
                _check_kind(repo)
                yield repo
        except NoRemoteError:
            raise UserError(
                "no remote; say REMOTE=FOLDER or REMOTE=URL, or `dvc remote add --default NAME URL`"
            ) from None
        except RWLockFileCorruptedError:
            raise UserError(
                ".dvc/tmp/rwlock: DVC's file of locks is damaged, perhaps by a kill; if no other command "
                "of DVC runs here, remove it and try again"
            ) from None
        except DvcException as error:
            reasons = [error, *([error.__cause__] if isinstance(error.__cause__, Exception) else [])]
            why = ": ".join([*map(first_line, reasons), *said[:1]])
            raise UserError(
                f"{remote or 'the remote'}: {why}; correct that, or name another remote"
            ) from None


def _settings(remote: str | None) -> dict[str, Any]:
    """The settings with which DVC uses `remote`, and compares what comes with its hash.

    Raises UserError if it is neither an address nor a name.
    """
    from dvc.repo import Repo

    verified: dict[str, Any] = {"verify": True}
    if remote is not None and ("://" in remote or remote.startswith(("/", ".", "~"))):
        url = remote if "://" in remote else str(Path(remote).expanduser().absolute())
        return {"core": {"remote": URL_REMOTE}, "remote": {URL_REMOTE: {"url": url} | verified}}
    with Repo(".") as repo:
        known, default = sorted(repo.config["remote"]), repo.config["core"].get("remote")
    if remote is not None and remote not in known:
        raise UserError(
            f"REMOTE={remote}: no such remote{suggest(remote, known)}; the remotes are "
            f"{', '.join(known) or 'none'}; name a folder as ./{remote}, or `dvc remote add {remote} URL`"
        )
    name = remote or default
    return {"core": {"remote": name}, "remote": {name: verified}} if name in known else {}


def _check_kind(repo: Repo) -> None:
    """Raise UserError if there is no remote, or of a kind that cannot be used."""
    try:
        storage = repo.cloud.get_remote()
    except ImportError as error:  # DVC has a package for each kind
        package = re.search(r"dvc-\w+", str(error))
        raise UserError(
            f"{first_line(error)}; run `pip install {package[0] if package else 'dvc'}`"
        ) from None
    if storage.fs.protocol in ("http", "https"):
        raise UserError(
            f"{storage.fs.protocol}: DVC keeps no record of runs there; name a folder, an ssh:// or s3:// URL"
        )


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what DVC logs off the screen; yields the errors among it."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    before = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
    try:
        yield said
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers


def push(repo: Repo) -> int:
    """Send what both stages wrote, then their entries of the run cache. Returns the number of new files.

    Raises UserError if a stage has to run first.
    """
    if late := repo.status(targets=list(STAGES)):
        raise UserError(f"nothing to push: {', '.join(late)} has to run first; run `dvc repro tokenize`")
    sent = int(repo.push(targets=list(STAGES)))
    for stage in _stages(repo):
        repo.stage_cache.save(stage)
        _copy_entries(stage, repo.cache.legacy, _storage(repo))
    return sent


def pull(repo: Repo) -> None:
    """Bring what both stages would write, and their entries of the run cache, by which `dvc repro` knows it.

    Raises UserError if the remote lacks what this code makes with these parameters, and if the disk is small.
    """
    from dvc.stage.cache import RunCacheNotFoundError

    for stage in _stages(repo):
        stage.save_deps()
        _copy_entries(stage, _storage(repo), repo.cache.legacy)
        _check_disk(repo, stage)
        try:
            repo.stage_cache.restore(stage, pull=True)
        except RunCacheNotFoundError:
            # DVC sends nothing again that has its name on the remote.
            has, there = ("a damaged", " to another remote") if repo.stage_cache._load(stage) else ("no", "")
            raise UserError(
                f"the remote has {has} {_path(stage)} of these parameters, this dataset.yaml and this code; "
                f"run `make push-data`{there} where it was made, or `dvc repro tokenize` to make it here"
            ) from None


def folders(repo: Repo) -> str:
    """The folders that both stages write, for a message, with their size."""
    paths = [_path(stage) for stage in _stages(repo)]
    size = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    return f"{paths[0]} and {paths[1]}, {binary(size)}"


def _stages(repo: Repo) -> list[PipelineStage]:
    return [repo.stage.load_one(name=name) for name in STAGES]


def _path(stage: PipelineStage) -> Path:
    return Path(stage.outs[0].def_path)


def _storage(repo: Repo) -> Any:
    """Where the remote keeps the run cache."""
    return repo.cloud.get_remote_odb(hash_name="md5-dos2unix")


def _copy_entries(stage: PipelineStage, source: Any, target: Any) -> None:
    """Copy the run cache's entries of a stage with its code, parameters and inputs, and no others.

    `source` and `target` are DVC's object databases: a file system and a path in it.
    """
    from dvc.fs import generic
    from dvc.stage.cache import _get_stage_hash

    key = _get_stage_hash(stage)
    folder = ("runs", key[:2], key)
    here = source.fs.join(source.path, *folder)
    for path in source.fs.find(here) if source.fs.exists(here) else ():
        copy = target.fs.join(target.path, *folder, source.fs.name(path))
        if not target.fs.exists(copy):
            generic.copy(source.fs, path, target.fs, copy)


def _check_disk(repo: Repo, stage: PipelineStage) -> None:
    """Raise UserError if the disk is too small for what a stage writes and DVC's cache lacks."""
    entry = repo.stage_cache._load(stage) or {"outs": ()}
    missing = sum(out["size"] for out in entry["outs"] if not object_path(out["md5"]).exists())
    check_disk(DATA, missing, f"the files of {_path(stage)}")
