"""The parts of a large corpus are encoded in tasks of datatrove: on this machine, or on a Slurm cluster."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from pipeline.config.errors import UserError
from pipeline.corpus.documents import Span
from pipeline.corpus.progress import counted, progress
from pipeline.storage.machine import cores
from pipeline.tokens.parts import PartFiles
from pipeline.tokens.tokenizers import Tokenizer, load_tokenizer

SECONDS_BETWEEN_LOOKS = 1.0
# Of a Slurm job; sbatch lets SBATCH_TIMELIMIT, SBATCH_PARTITION and others in the environment go first.
SLURM_TIME, SLURM_GB = "1:00:00", 1


def run_tasks(
    name: str, parts: Sequence[Sequence[Span]], end: int | None, workers: int | None, folder: Path
) -> None:
    """Encode the parts that are not finished in `folder` with the tokenizer in the folder above.

    `name` is that of an executor: local or slurm. `end` follows each document. At most `workers` tasks run
    at a time; if it is None, one for each CPU core, or on Slurm as many as it has room for. Raises UserError
    for text that cannot be read, and if there is no Slurm here; ChildProcessError if a task failed.
    """
    if (
        name == "slurm" and "SLURM_ARRAY_TASK_ID" in os.environ
    ):  # datatrove would take this for one of its tasks
        raise UserError("runtime.executor = slurm: this runs in a job array; start it outside, or use local")
    logger.disable("datatrove")  # in this process; each task has its own log
    executor: PipelineExecutor = EXECUTORS[name](EncodePart(parts, end, folder), len(parts), workers, folder)
    for number in set(range(len(parts))) - set(executor.get_incomplete_ranks()):
        if not PartFiles(folder, number).are_whole():
            (folder / "completions" / f"{number:05d}").unlink()
    with _reported(executor, [sum(span.text_bytes for span in part) for part in parts]):
        executor.run()
    unfinished = executor.get_incomplete_ranks()
    if unfinished:
        log = folder / "logs" / f"task_{unfinished[0]:05d}.log"
        raise ChildProcessError(f"{counted(len(unfinished), 'part')} of {len(parts)} failed (see {log})")


class EncodePart(PipelineStep):
    """A step of datatrove that encodes a part of the corpus for each task."""

    type, name = "tokenizer", "tiktoken"

    def __init__(self, parts: Sequence[Sequence[Span]], end: int | None, folder: Path) -> None:
        super().__init__()
        self.parts, self.end, self.folder = parts, end, folder.absolute()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded once in each worker."""
        return load_tokenizer(self.folder.parent)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        PartFiles(self.folder, rank).write(self.parts[rank], self.tokenizer, self.end)


class LocalExecutor(LocalPipelineExecutor):
    """Tasks in processes of this machine.

    datatrove's own pool waits forever for a process that was killed. This one ends the others, and what is
    finished stays.
    """

    def __init__(self, step: EncodePart, tasks: int, workers: int | None, folder: Path) -> None:
        super().__init__([step], tasks, workers or cores(), str(folder))

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        context = multiprocessing.get_context("spawn")
        running = set[Future[None]]()
        try:
            with ProcessPoolExecutor(self.workers, context, _start_worker, (self,)) as pool:
                for rank in ranks:
                    if len(running) == self.workers:  # so that after an error no more tasks begin
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        _check(done)
                    running.add(pool.submit(_run_task, rank))
                _check(running)
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker was killed, perhaps for lack of memory; runtime.workers sets how many there are"
            ) from None


_executor: LocalExecutor  # in a worker


def _start_worker(executor: LocalExecutor) -> None:
    global _executor
    _executor = executor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the process that started this one
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # errors are told there, in one line
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by another process"
    parent.join()
    os._exit(1)


def _run_task(rank: int) -> None:
    _executor._run_for_rank(rank)


def _check(done: set[Future[None]]) -> None:
    for future in done:
        future.result()


class SlurmExecutor(SlurmPipelineExecutor):
    """Tasks in a job array of Slurm. Unlike datatrove's own, `run` waits for its end."""

    def __init__(self, step: EncodePart, tasks: int, workers: int | None, folder: Path) -> None:
        super().__init__(
            [step],
            tasks,
            time=SLURM_TIME,
            partition="",
            mem_per_cpu_gb=SLURM_GB,
            workers=workers or -1,
            job_name="tokenize",
            qos="",
            env_command=f"export PYTHONPATH={shlex.quote(os.getcwd())}${{PYTHONPATH:+:$PYTHONPATH}}",
            sbatch_args={"wait": ""},
            logging_dir=str(folder),
            with_srun=False,
        )

    def launch_job(self) -> None:
        try:
            super().launch_job()
        except FileNotFoundError:
            raise UserError(
                "runtime.executor = slurm: there is no sbatch here; run this where jobs can be submitted, or "
                "set it to local"
            ) from None
        except subprocess.CalledProcessError as error:
            if not error.output:  # else it was submitted, and a task failed
                raise UserError(
                    "runtime.executor = slurm: sbatch refused the job, see above; set SBATCH_PARTITION, "
                    "SBATCH_ACCOUNT or what else the cluster needs in the environment"
                ) from None

    def launch_merge_stats(self) -> None:
        """Nobody reads them."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Those of datatrove; the partition is the cluster's default, or SBATCH_PARTITION."""
        arguments: dict[str, Any] = super().get_sbatch_args(max_array)
        del arguments["partition"]
        return arguments

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """The script for sbatch. It starts the Python that runs this, whatever PATH is on the nodes."""
        task = self.logging_dir.resolve_paths("executor.pik")
        command = shlex.join([sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline", task])
        script: str = super().get_launch_file_contents(sbatch_args, command)
        return script


EXECUTORS = {"local": LocalExecutor, "slurm": SlurmExecutor}


@contextmanager
def _reported(executor: PipelineExecutor, sizes: Sequence[int]) -> Iterator[None]:
    """Report how much is completed, wherever the tasks run: of each task, so many bytes of text."""
    unfinished = set(executor.get_incomplete_ranks())
    completed = len(sizes) - len(unfinished)
    if completed:
        print(f"{completed} of {counted(len(sizes), 'part')} are encoded already", file=sys.stderr)
    done = sum(sizes) - sum(sizes[rank] for rank in unfinished)
    ended = threading.Event()
    with progress("tokenize", "B", sum(sizes), done) as advance:

        def look() -> None:
            left, last = unfinished, False
            while not last:
                last = ended.wait(SECONDS_BETWEEN_LOOKS)
                now = set(executor.get_incomplete_ranks())
                advance(sum(sizes[rank] for rank in left - now))
                left = now

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
