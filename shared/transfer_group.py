# pyright: basic, reportPrivateImportUsage=false
"""The processes of one transfer: rank 0 sends, all others receive the same tensors in its order.

Both ends are this class, so what one does the other expects. A group is made for one transfer and
closed after it, whatever became of it; whoever is left alone notices within `timeout_s` at the
latest. It is torch's own process group beside the default one, never in place of it. Of shared
modules only this one imports torch, and only the trainer and the policy's workers import it.

NCCL has no time limit of its own, and a watchdog that torch starts for it ends the process at an
error. So the group is made without a watchdog, and its work is polled, never waited for. What
remains unbounded is NCCL's own connecting, inside the first broadcast; all ranks have met before
it, and both callers bound the whole from outside.
"""

import contextlib
import os
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shared.transfer import TransferStart

_POLL_S = 0.0002
_MEET_POLL_S = 0.005


class TransferGroup:
    """A process's place in one transfer."""

    def __init__(self, store: dist.Store, rank: int, start: TransferStart) -> None:
        """Meets all others. Raises `TimeoutError`, or torch's error if one is lost."""
        self._store = store
        self._rank = rank
        self._world_size = start.world_size
        self._deadline = time.monotonic() + start.timeout_s
        self._meet("joined", self._world_size, time.monotonic() + start.join_s)
        self._group: Any = _make_group(store, rank, start)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fill a contiguous tensor on all ranks with that of rank 0."""
        work = self._group.broadcast(tensor.view(-1).view(torch.uint8), 0)
        _poll(work.is_completed, self._deadline, _POLL_S, "a tensor")
        work.wait()  # raises what went wrong; orders the caller's stream after it

    def finish(self) -> None:
        """Return when all ranks have everything. Rank 0, which keeps the store, leaves last."""
        self._meet("received", self._world_size, self._deadline)
        if self._rank == 0:
            with contextlib.suppress(TimeoutError):
                self._await("left", self._world_size - 1, self._deadline)
        else:
            self._store.add("left", 1)

    def close(self) -> None:
        """Let go, also in the middle.

        NCCL needs to be told; Gloo's peers notice when the last reference goes, and with it its
        connections. A Gloo operation under way keeps it for as long as its own limit says.
        """
        self._group.abort()
        self._group = None

    def _meet(self, where: str, num_ranks: int, deadline: float) -> None:
        self._store.add(where, 1)
        self._await(where, num_ranks, deadline)

    def _await(self, where: str, num_ranks: int, deadline: float) -> None:
        _poll(lambda: self._store.add(where, 0) >= num_ranks, deadline, _MEET_POLL_S, where)


def open_store(host: str, timeout_s: float) -> dist.TCPStore:
    """The store of a transfer, on a free port of all interfaces; gone with the object.

    `host` is how this machine is reached, by itself too.
    """
    return dist.TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def reach_store(start: TransferStart) -> dist.TCPStore:
    """A receiver's connection to it."""
    return dist.TCPStore(
        start.host, start.port, is_master=False, timeout=timedelta(seconds=start.join_s)
    )


def _poll(is_true: Callable[[], bool], deadline: float, every_s: float, what: str) -> None:
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the transfer waited too long for {what}")
        time.sleep(every_s)


def _make_group(store: dist.Store, rank: int, start: TransferStart) -> Any:
    prefixed, timeout = dist.PrefixStore("group", store), timedelta(seconds=start.timeout_s)
    if start.backend == "gloo":
        return dist.ProcessGroupGloo(prefixed, rank, start.world_size, timeout)
    from torch.distributed.distributed_c10d import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _without_watchdog():
        return ProcessGroupNCCL(prefixed, rank, start.world_size, options)


@contextlib.contextmanager
def _without_watchdog() -> Generator[None]:
    """Groups made meanwhile raise in their caller's thread; torch reads this as it makes one."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
