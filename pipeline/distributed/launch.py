"""Starts a command on several processes with torchrun's agent, and ends with the status that they end with.

The environment says how many: NPROC on this machine, one for each GPU. For several machines it also has
NNODES, MASTER_ADDR and MASTER_PORT, which are the same on each, and NODE_RANK, from 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from pipeline.config.command_line import refusal, run
from pipeline.config.errors import UserError
from pipeline.config.signals import handled
from pipeline.storage.machine import cores

FOLDER = "GPT_PIPELINE_LAUNCH"  # names a folder by which a launcher and its ranks tell each other of the end
STATUS, STOP = "status", "stop"  # files in it: the exit status to end with, the number of a signal to stop

CALLING = "GPT_PIPELINE_CALLING"  # names a file that is there while a training waits for the other machines

PATIENCE = 10  # seconds for ranks that are told to end, before they are killed
RESTARTS = 3  # after a rank was lost; all then continue from the last checkpoint
PORT, MOST_PORT = 29500, 65534  # the one after it is used too


class Lost(UserError):
    """Processes or nodes were lost, or did not come. No mistake: to start again may help."""

    status = 1


def run_on_ranks(
    main: Callable[..., Any],
    module: str,
    nodes: bool = False,
    pays: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Run `main` of `module` as a command, on as many processes as the environment says.

    Without `nodes`, on those of this machine alone; in this process if `pays`, called with what `main` is
    called with, says that several do not help.
    """

    @wraps(main)
    def start(*arguments: Any, **options: Any) -> None:
        if processes(nodes) == 1 or not pays(*arguments, **options):
            main(*arguments, **options)
        else:
            sys.exit(launch(["-m", module, *sys.argv[1:]], nodes))

    run(_as_rank(main) if "RANK" in os.environ else start, on_ranks=True)


def is_main() -> bool:
    """Whether this process prints and writes results: the only one does, and of several ranks, one."""
    if "RANK" not in os.environ:
        return True
    from pipeline.distributed.world import world

    return world().is_main


def processes(nodes: bool = False) -> int:
    """How many processes the environment asks for, on this machine or on all of them."""
    return number("NPROC", 1) * (number("NNODES", 1) if nodes else 1)


def number(variable: str, otherwise: int, least: int = 1, most: int | None = None) -> int:
    """A whole number from an environment variable. Raises UserError if it is not one."""
    value = os.environ.get(variable) or str(otherwise)
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise UserError(f"{variable}={value}: set it to a whole number from {least} on")
    if most is not None and int(value) > most:
        raise UserError(f"{variable}={value}: set it to {most} or less")
    return int(value)


def node_0() -> tuple[str, int]:
    """The address of node 0 and the port of its ranks. Raises UserError if the environment does not say."""
    address = os.environ.get("MASTER_ADDR", "")
    if not address:
        raise UserError(
            f"NNODES={os.environ['NNODES']}: MASTER_ADDR is missing; set it to the address of node 0"
        )
    return address, number("MASTER_PORT", PORT, most=MOST_PORT)


def _own_address(other: str) -> str:
    """This machine's address in the network that leads to another. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((other, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR={other}: cannot be reached ({error}); set it to the address of node 0"
        ) from None


def launch(arguments: Sequence[str], nodes: bool = False) -> int:
    """Run Python with these arguments on every rank of this machine, and return their exit status.

    If a rank is lost, all start again. Raises UserError for an environment that is not complete, and
    Lost if node 0 is lost, or if another process or node is and does not come back.
    """
    count, node = (number("NNODES", 1), number("NODE_RANK", 0, least=0)) if nodes else (1, 0)
    address, port = node_0() if count > 1 else ("127.0.0.1", 0)
    if node >= count:
        raise UserError(
            f"NODE_RANK={node}: there are NNODES={count} nodes; number them from 0 to {count - 1}"
        )
    ranks = number("NPROC", 1)

    import torch.distributed.elastic.multiprocessing.errors as errors
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as name, _passed_on(folder := Path(name)):
        os.environ[FOLDER] = name
        # Sharing the agent's store, ranks often do not find each other again after one was lost.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(PATIENCE)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
        config = LaunchConfig(
            min_nodes=count,
            max_nodes=count,
            nproc_per_node=ranks,
            run_id="gpt-pipeline",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{address}:{port}",
            rdzv_configs={"is_host": node == 0},
            local_addr=_own_address(address),
            logs_specs=DefaultLogsSpecs(log_dir=name),
            max_restarts=RESTARTS,
            signals_to_handle="SIGQUIT",  # the others reach the ranks through a file
        )
        try:
            if count > 1:
                print(f"waiting for {count} machines at {address}:{port}", file=sys.stderr)
            with _announced(count > 1 and node == 0):
                elastic_launch(config, sys.executable)(*arguments)
        except (errors.ChildFailedError, RendezvousError) as error:
            if _ended(folder) is None:
                raise Lost(_lost(error, count)) from None
        return _ended(folder) or 0


def _lost(error: Any, count: int) -> str:
    """What to say of a process, or of another of `count` machines, that torchrun's agent has lost."""
    if not hasattr(error, "get_first_failure"):
        return (
            f"NNODES={count}: another node was lost, or did not come; the last checkpoint is kept; start the "
            "same commands again on all nodes"
        )
    rank, failure = error.get_first_failure()
    return (
        f"a process was lost {RESTARTS + 1} times (the last time process {rank}, exit status "
        f"{failure.exitcode}); see the output above; the last checkpoint is kept"
    )


@contextlib.contextmanager
def _announced(wanted: bool) -> Iterator[None]:
    """Within the block, the command that started this stage knows that the other machines are waited for."""
    if CALLING not in os.environ or not wanted:
        yield
        return
    note = Path(os.environ[CALLING])
    note.touch()
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def told_to_stop() -> int | None:
    """The signal that this rank's launcher has got; None if none, or if there is no launcher."""
    folder = os.environ.get(FOLDER)
    return None if folder is None else _noted(Path(folder, STOP))


def _as_rank(main: Callable[..., Any]) -> Callable[..., None]:
    """`main` for a process that torchrun started: it joins the others, and only one prints what is wrong."""

    @wraps(main)
    def ranked(*arguments: Any, **options: Any) -> None:
        folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else None
        from pipeline.distributed.world import joined

        main_rank = False
        try:
            with joined() as here, _silent(not here.is_main):
                main_rank = here.is_main
                if folder is not None and (status := here.first(_ended(folder))) is not None:
                    _end(folder, status)  # a rank ended for good, and the agents have started all again
                    return
                if here.is_main and (lost := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))):
                    print(f"a process was lost; starting again ({lost} of {RESTARTS})", file=sys.stderr)
                main(*arguments, **options)
        except SystemExit as ended:
            if folder is None or not isinstance(ended.code, int):
                raise
            _end(folder, ended.code)
        except Exception as error:
            refused = refusal(error)
            if folder is None:
                if refused is None or main_rank:
                    raise
                sys.exit(refused[1])
            if refused is not None and _end(folder, refused[1]):
                raise
            if _ended(folder) is not None:
                os._exit(0)  # what PyTorch would still do needs the other ranks
            if not _is_loss_of_contact(error):
                _end(folder, 1)  # it would happen again
                raise
            with contextlib.suppress(OSError):
                print("lost contact with another process; waiting for it to start again", file=sys.stderr)
            os._exit(1)

    return ranked


def _is_loss_of_contact(error: Exception) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistBackendError) or "gloo" in str(error)


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Within the block, print nothing on stdout if `silent`."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if silent else sys.stdout):
        yield


def _has_ranks() -> bool:
    """Whether this launcher has started its ranks; True where that cannot be known."""
    try:
        return bool(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
    except OSError:
        return True


def _end(folder: Path, status: int) -> bool:
    """Note the status to end with; whether this rank is the first on its machine."""
    own = folder / str(os.getpid())
    own.write_text(str(status))
    try:
        (folder / STATUS).hardlink_to(own)  # whole, or not there
    except FileExistsError:
        return False
    return True


def _ended(folder: Path) -> int | None:
    """The status that a rank of this machine has noted; None if none has."""
    return _noted(folder / STATUS)


def _noted(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _passed_on(folder: Path) -> Iterator[None]:
    """Within the block, signals and the end of DVC are told to the ranks, which save and stop.

    A second signal ends the launcher, and within PATIENCE its ranks, saved or not. So does the first while it
    has no ranks, as it waits for nodes.
    """
    parent, done = os.getppid(), threading.Event()

    def tell(number: int) -> None:
        first = _noted(folder / STOP) is None
        (folder / STOP).write_text(str(number))
        if not first or not _has_ranks():
            sys.exit(128 + number)

    def watch() -> None:
        while not done.wait(0.5):
            if os.getppid() != parent:
                (folder / STOP).write_text(str(int(signal.SIGTERM)))
                return

    if "DVC_STAGE" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), tell):
            yield
    finally:
        done.set()
