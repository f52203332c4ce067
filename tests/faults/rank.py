"""Trains as `python -m stages.train` does, on several processes, of which one does harm once.

HARM in the environment says which and what, such as `1 kill step`: rank 1 kills itself in a step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from pipeline.distributed.launch import run_on_ranks
from stages.train import main
from tests.faults.moments import at_evaluation, at_gathering, at_step, at_writing
from tests.faults.operations import Inject

HARM = "HARM"
Act = Callable[..., None]


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_all(*_: object) -> None:
    """Kill the launcher and every rank."""
    launcher = os.getppid()
    ranks = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in (launcher, *(int(rank) for rank in ranks if int(rank) != os.getpid()), os.getpid()):
        os.kill(pid, signal.SIGKILL)


def to_launcher(*numbers: signal.Signals) -> Act:
    def send(*_: object) -> None:
        for number in numbers:
            os.kill(os.getppid(), number)

    return send


ACTS: dict[str, Act] = {
    "kill": kill,
    "kill-all": kill_all,
    "kill-launcher": to_launcher(signal.SIGKILL),
    "int": to_launcher(signal.SIGINT),
    "term": to_launcher(signal.SIGTERM),
    "term-twice": to_launcher(signal.SIGTERM, signal.SIGTERM),
}
MOMENTS: dict[str, Callable[[Act], Inject]] = {
    "step": lambda act: at_step(25, act),
    "evaluation": lambda act: at_evaluation(2, act),
    "gathering": at_gathering,
    "writing": at_writing,
}

if __name__ == "__main__":
    harm = os.environ.get(HARM)
    if harm and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        rank, act, moment = harm.split(" ")
        if rank == os.environ["RANK"]:
            MOMENTS[moment](ACTS[act])(Path.cwd())
    run_on_ranks(main, "tests.faults.rank", nodes=True)
