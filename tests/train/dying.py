"""A process that dies at a given moment, for tests of what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """Nothing catches it, as nothing catches `kill -9`."""


class DiesAfter:
    """Lets the first `operations` calls through, whichever they are, and dies at the next one."""

    def __init__(self, operations: int) -> None:
        self._left = operations

    def wrap(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise Killed
            self._left -= 1
            return operation(*args, **kwargs)

        return call
