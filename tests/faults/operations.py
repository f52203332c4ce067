"""Counts what a process does to the files of a project, and lets one of these operations go wrong.

Nothing in the product knows about this: the functions of the standard library and of safetensors are replaced
in the process that is to be hurt.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

NEEDS_SPACE = {"open", "write", "mkdir", "copyfile", "serialize_file", "link", "symlink"}


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """One change of the project's files; `half` does a part of it."""

    number: int  # from 1, in the order of the process
    kind: str
    path: str  # relative to the project
    half: Callable[[], object] = nothing

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


Act = Callable[[Operation], None]


class Operations:
    """Calls `act` before each operation below `root`."""

    def __init__(self, root: Path, act: Act) -> None:
        self._root = str(root)
        self._act = act
        self._number = 0
        self._counting = threading.Lock()  # checkpoints are written by a thread
        self._local = threading.local()
        self._unsynced: set[tuple[int, int]] = set()

    def install(self) -> None:
        """Replace the functions that change files, for the rest of this process."""
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate"):
            self._replace(os, name, lambda path, *_, **options: _located(path, options.get("dir_fd")))
        for name in ("replace", "rename", "link", "symlink"):
            self._replace(os, name, lambda _, path, *__, **options: _located(path, options.get("dst_dir_fd")))
        for name in ("write", "pwrite", "ftruncate"):
            self._replace(os, name, lambda descriptor, *_: _path_of(descriptor))
        self._replace(os, "fsync", _path_of, then=self._synced)
        self._replace(
            shutil, "copyfile", lambda _, path, **options: path, half=_half_a_copy, then=self._copied
        )
        self._replace(
            safetensors.torch, "serialize_file", lambda _, path, *rest, **options: path, half=_half_a_save,
            then=self._saved,
        )  # fmt: skip
        self._replace_open()

    def power_cut(self) -> None:
        """Cut every file that was written and not synced, as a power cut may, and kill this process."""
        for path in Path(self._root).rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                if (status.st_dev, status.st_ino) in self._unsynced:
                    os.truncate(path, status.st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, kind: str, path: Any, half: Callable[[], object] = nothing) -> None:
        if getattr(self._local, "acting", False):  # what the act itself does is not counted
            return
        absolute = os.path.abspath(os.fsdecode(path))
        if not absolute.startswith(self._root + os.sep):
            return
        with self._counting:
            self._number += 1
            number = self._number
        self._local.acting = True
        try:
            self._act(Operation(number, kind, os.path.relpath(absolute, self._root), half))
        finally:
            self._local.acting = False

    def _replace(
        self,
        module: Any,
        name: str,
        path_of: Callable[..., Any],
        half: Callable[..., object] | None = None,
        then: Callable[..., object] | None = None,
    ) -> None:
        original = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            part = partial(half, original, *args, **options) if half else nothing
            self._before(name, path_of(*args, **options), part)
            result = original(*args, **options)
            if then:
                then(*args)
            return result

        setattr(module, name, call)

    def _replace_open(self) -> None:
        original = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set("wax+") & set(mode):
                return original(file, mode, *args, **options)
            self._before("open", file)
            stream = original(file, mode, *args, **options)
            write = stream.write

            def hooked(content: Any) -> Any:
                def half() -> None:
                    write(content[: len(content) // 2])
                    stream.flush()

                self._before("write", file, half)
                self._written(os.fstat(stream.fileno()))
                return write(content)

            self._written(os.fstat(stream.fileno()))
            setattr(stream, "write", hooked)  # noqa: B010
            return stream

        setattr(builtins, "open", opened)  # noqa: B010
        setattr(io, "open", opened)  # noqa: B010

    def _written(self, status: os.stat_result) -> None:
        self._unsynced.add((status.st_dev, status.st_ino))

    def _synced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._unsynced.discard((status.st_dev, status.st_ino))

    def _copied(self, source: Any, target: Any) -> None:
        self._written(os.stat(target))

    def _saved(self, tensors: Any, path: Any, *_: Any) -> None:
        self._written(os.stat(path))


Inject = Callable[[Path], None]  # changes the process it runs in; gets the project's folder


def recorded(names: list[str]) -> Inject:
    """Append every operation to `names`."""

    def inject(root: Path) -> None:
        Operations(root, lambda operation: names.append(str(operation))).install()

    return inject


def killed_at(number: int) -> Inject:
    """`kill -9` in the middle of an operation: half of what is to be written reaches the file."""

    def act(operation: Operation) -> None:
        if operation.number == number:
            operation.half()
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda root: Operations(root, act).install()


def power_cut_at(number: int) -> Inject:
    """The same, and what was not synced is cut in half."""

    def inject(root: Path) -> None:
        def act(operation: Operation) -> None:
            if operation.number == number:
                operation.half()
                operations.power_cut()

        operations = Operations(root, act)
        operations.install()

    return inject


def full_from(number: int) -> Inject:
    """From this operation on, the disk is full."""

    def act(operation: Operation) -> None:
        if operation.number >= number and operation.kind in NEEDS_SPACE:
            if operation.number == number:
                operation.half()
            if operation.kind == "serialize_file":
                raise SafetensorError(
                    "Error while serializing: I/O error: No space left on device (os error 28)"
                )
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)

    return lambda root: Operations(root, act).install()


def signalled_at(number: int, signals: list[signal.Signals]) -> Inject:
    """Signals arrive at an operation."""

    def act(operation: Operation) -> None:
        if operation.number == number:
            for one in signals:
                os.kill(os.getpid(), one)

    return lambda root: Operations(root, act).install()


def slowed(seed: int) -> Inject:
    """Each operation first waits a moment, so that two processes meet in many places."""
    draw = random.Random(seed)
    return lambda root: Operations(root, lambda _: time.sleep(draw.choice([0, 0, 0.002, 0.01]))).install()


def _located(path: Any, folder_descriptor: int | None) -> Any:
    if folder_descriptor is None:
        return path
    return os.path.join(_path_of(folder_descriptor), os.fsdecode(path))


def _path_of(descriptor: Any) -> str:
    """The path of an open file."""
    if hasattr(descriptor, "fileno"):
        descriptor = descriptor.fileno()
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # macOS
        command = getattr(fcntl, "F_GETPATH", None)
        found = fcntl.fcntl(descriptor, command, bytes(1024)) if command else b""
        return os.fsdecode(found.rstrip(b"\0"))


def _half_a_copy(copy: Callable[..., Any], source: Any, target: Any, **options: Any) -> None:
    copy(source, target, **options)
    os.truncate(target, os.path.getsize(target) // 2)


def _half_a_save(save: Callable[..., Any], tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
    save(tensors, path, *rest, **options)
    os.truncate(path, os.path.getsize(path) // 2)
