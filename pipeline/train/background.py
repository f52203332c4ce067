"""Work that goes on beside the training: writing checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One job at a time in a thread of its own. What a job raises, the next `wait` raises."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; `wait` must have been called since the last one."""
        assert self._job is None, "one job at a time"
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Return when the job is done."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
