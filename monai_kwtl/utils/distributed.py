"""Several processes of one run: who is who, what one does for all, and how they begin and end together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from monai_kwtl.errors import KWTLError

__all__ = [
    "FailedElsewhereError",
    "Ranks",
    "agreed",
    "alone",
    "barrier",
    "connect",
    "first_to_fail",
    "gathered",
    "is_main_process",
    "joined",
    "local_rank",
    "on_main_process",
    "ranks",
    "scatter",
    "start",
    "started_together",
    "stop",
]

Result = TypeVar("Result")

_store: dist.Store | None = None  # which all processes of the run can reach
_alone = False


class FailedElsewhereError(KWTLError):
    """Ends this process because another one of the run has failed, which says why."""


class Ranks(NamedTuple):
    """Number of this process, from 0, and how many there are."""

    rank: int
    count: int


# --- who is who -------------------------------------------------------------------------------------------------------


def joined() -> bool:
    """Return True if this process is part of a distributed run."""
    return dist.is_available() and dist.is_initialized()


def ranks() -> Ranks:
    """Return this process's rank and the number of processes that work together: (0, 1) where it works alone."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if joined() and not _alone else Ranks(0, 1)


def is_main_process() -> bool:
    """Return True if this process writes and speaks: it is the only one, or the first of several."""
    return ranks().rank == 0


def started_together() -> int:
    """Return the number of processes that ``torchrun`` started together; 0 where it has not started this one."""
    known = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if known else 0


def local_rank() -> int:
    """Return the number of this process among those of its machine, from 0, which is the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", 0)) if started_together() > 1 else 0


# --- beginning and end ------------------------------------------------------------------------------------------------


def connect() -> None:
    """Reach the store of the processes that were started together: from now on only the first one to fail says so.

    Where one of them is killed, ``torchrun`` tells the others to end (SIGTERM), which then raise, and say so too.
    """
    global _store
    if _store is None and started_together():
        _store = next(rendezvous("env://", timeout=timedelta(minutes=5)))[0]
        if started_together() > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _told_to_end)


def _told_to_end(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: nothing shall stop the sentence
    raise KWTLError(
        "another process of this run has ended, or the run was told to end; run it again, with --resume true where the "
        "stage has it."
    )


def start(device: torch.device | str, timeout: float = 3600.0) -> None:
    """Join the other processes that ``torchrun`` has started: with NCCL on CUDA, else with Gloo.

    From then on all processes but the first are silent.

    Args:
        device: what this process computes on.
        timeout: seconds that a process waits for the others before it gives up: longer than one works alone.

    Raises:
        KWTLError: when the processes were not started by ``torchrun``, or the timeout is unusable.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e7:
        raise KWTLError(f"timeout must be a number of seconds above 0, got {timeout!r}.")
    connect()
    if _store is None:
        raise KWTLError(
            "this configuration is for several processes: start it with torchrun --standalone --nproc_per_node=2 "
            "-m monai.bundle run ..., or leave the multi_gpu file out of --config_file."
        )
    device = torch.device(device)
    if not joined():
        cuda = {"device_id": device} if device.type == "cuda" and device.index is not None else {}
        if cuda:
            torch.cuda.set_device(device)
        hook = sys.excepthook
        dist.init_process_group(
            "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo",
            store=dist.PrefixStore("run", _store),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=timeout),
            **cuda,
        )
        sys.excepthook = hook  # PyTorch's own puts the rank before every line
    if not is_main_process():
        logging.disable(logging.ERROR)


def stop() -> None:
    """Leave the other processes, at the end of a run."""
    if joined():
        dist.destroy_process_group()


def first_to_fail() -> bool:
    """Return True if no other process of the run has failed before: the first one says why, for all."""
    if _store is None:
        return True
    try:
        return _store.add("kwtl/failed", 1) == 1
    except RuntimeError:  # the process that kept the store has gone
        return True


# --- one for all ------------------------------------------------------------------------------------------------------


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if it were the only one: nothing inside is shared out or waits for others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def on_main_process(work: Callable[[], Result]) -> Result:
    """Let the first process do something alone, and give its result to all.

    Args:
        work: is called without arguments, in the first process; all others wait for it.

    Returns:
        Its result, which must be picklable.

    Raises:
        FailedElsewhereError: on the others, when it raises on the first.
    """
    rank, count = ranks()
    if count == 1:
        return work()
    told: list[Any] = [None, False]
    if rank == 0:
        try:
            with alone():
                told = [work(), True]
        except Exception:
            with suppress(RuntimeError):  # the others may have gone
                dist.broadcast_object_list(told, src=0)
            raise
    dist.broadcast_object_list(told, src=0)
    if not told[1]:
        raise FailedElsewhereError("the first process of this run has failed; see its message.")
    return told[0]


def agreed(items: Sequence[Any]) -> list[Any]:
    """Return the list that the first process has."""
    return on_main_process(lambda: list(items))


def scatter(items: Sequence[Any]) -> list[Any]:
    """Return this process's part of a list: every n-th element of the list that the first process has."""
    rank, count = ranks()
    return agreed(items)[rank::count]


def gathered(mine: Sequence[Any]) -> list[Any]:
    """Gather the results of all processes' parts of a list, in the order of the list that :func:`scatter` divided."""
    rank, count = ranks()
    if count == 1:
        return list(mine)
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, list(mine))
    return [parts[index % count][index // count] for index in range(sum(map(len, parts)))]


def barrier() -> None:
    """Wait until all processes are here."""
    if ranks().count > 1:
        dist.barrier()
