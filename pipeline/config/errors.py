"""The one exception that means "the user can fix this"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's input: one line naming the field, the value and the remedy.

    Commands print it on stderr without a traceback and exit with `status`.
    """

    status = 2


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of the parameter in question before a UserError that does not mention it."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise UserError(message if field in message else f"{field}: {message}") from None
