"""Errors that are no mistakes of the program: the user can fix them, or the machine refused something."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's input: one line naming the field, the value and the remedy.

    Commands print it on stderr without a traceback and exit with `status`.
    """

    status = 2


def missing_extra(what: str, extra: str) -> UserError:
    """The error for `what` needs packages of an extra of pyproject.toml that is not installed."""
    return UserError(
        f"{what} needs the extra {extra}, which is not installed; run `make install EXTRAS={extra}` "
        f"(with pip: `pip install -e '.[{extra}]'`)"
    )


def without_passwords(text: str) -> str:
    """`text` without the `user:password@` of URLs in it, which may come from the environment."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def one_line(message: str) -> str:
    """`message` without line ends, passwords in URLs, and characters that a terminal would act on."""
    words = without_passwords(" ".join(message.split()))
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of the parameter in question before a UserError that does not mention it."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise UserError(message if field in message else f"{field}: {message}") from None


REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit: ulimit -f unlimited",
    errno.EMFILE: "raise the limit: ulimit -n 4096",
    errno.EACCES: "change its permissions, or use another folder",
    errno.EPERM: "change its permissions, or use another folder",
    errno.EROFS: "use a folder that can be written to",
    errno.EPIPE: "its reader has closed it; send the output to a file",
    errno.ENOMEM: "close other programs, or make the model or the batch smaller",
}
# PyTorch's errors; it has no class for those of a CPU.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def machine_refusal(error: Exception) -> str | None:
    """One line for what the system refused: disk, memory, permissions. None for any other error.

    What is complete on disk stays, so the same command can go on from there.
    """
    number, named = _errno(error), getattr(error, "filename", None)
    where = f"{os.fsdecode(named)}: " if isinstance(named, str | bytes | os.PathLike) else ""
    if isinstance(error, RecursionError):
        return "something that was read is nested too deep; flatten it"
    if number is not None:
        remedy = REMEDIES.get(number, "correct that")
        return f"{where}{os.strerror(number)}; {remedy} and run the same command again"
    if isinstance(error, OSError):
        return f"{where}{error}; correct that and run the same command again"
    return None


def _errno(error: Exception) -> int | None:
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))  # from a library in Rust, such as safetensors
    return int(found[1]) if found else None
