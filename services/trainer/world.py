# pyright: basic
"""The processes that train together: one without torchrun, as many as it started with it.

Rank 0 *leads*: it alone reads the stream, keeps the records and publishes. What all must do
together (a step, a checkpoint, an export) it announces with `lead`, and the others, which sit in
`follow`, take part. Small figures and Python objects travel over gloo, gradients and weights over
the device's own backend. A world of one calls nobody, and opens no process group unless weights
are to be sharded all the same.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shared.errors import MedvrError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Followers wait for the leader as long as the leader waits for groups, or for Redis."""
DILIGENCE = timedelta(hours=1)
"""How far ranks may be apart where none of them waits for anything outside."""


class RankGone(MedvrError):
    """Another process of this trainer ended without a word, or does not answer."""


class Order(StrEnum):
    """What all processes do next."""

    TAKE_STEP = "take_step"
    SAVE = "save"
    EXPORT = "export"
    END = "end"


class World:
    """This process among those that train together. Every method but `lead` is for all of them.

    All raise `RankGone` if one of them is.
    """

    def __init__(
        self, device: torch.device, rank: int = 0, size: int = 1, mesh: DeviceMesh | None = None
    ) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.mesh = mesh
        """Over which weights are sharded; None if they are not."""
        self.saving: dist.ProcessGroup | None = None
        """For checkpoints, which are written in the background."""
        self._control: dist.ProcessGroup | None = None
        self._working: dist.ProcessGroup | None = None
        if mesh is not None:
            self.saving = _small_group(DILIGENCE)
            self._control = _small_group(PATIENCE)
            self._working = _small_group(DILIGENCE)

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    # -- from the leader ------------------------------------------------------------------------

    def lead(self, order: Order) -> None:
        """Leader: tell the others what comes; a follower was told already."""
        if self.leads and not self.is_alone:
            with _together():
                dist.broadcast_object_list([order], src=0, group=self._control)

    def next_order(self) -> Order:
        """Follower: wait for the leader."""
        told: list[Order | None] = [None]
        with _together():
            dist.broadcast_object_list(told, src=0, group=self._control)
        assert told[0] is not None
        return told[0]

    def deal(self, parts: Sequence[T]) -> T:
        """The leader's `parts`, one for each rank; a follower gives none."""
        if self.is_alone:
            return parts[0]
        received: list[T | None] = [None]
        given = list(parts) if self.leads else None
        with _together():
            dist.scatter_object_list(received, given, src=0, group=self._control)  # type: ignore[arg-type]
        return received[0]  # type: ignore[return-value]

    def told(self, value: Any) -> Any:
        """The leader's value; what a follower gives is not looked at."""
        return self.deal([value] * self.size)

    # -- among all ------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether it is true anywhere."""
        if self.is_alone:
            return flag
        answer = torch.tensor(int(flag))
        with _together():
            dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self._control)
        return bool(answer)

    def longest(self, counts: Sequence[int]) -> list[int]:
        """Place by place the largest; where a rank has nothing it has 0."""
        if self.is_alone:
            return list(counts)
        every: list[Sequence[int]] = [()] * self.size
        with _together():
            dist.all_gather_object(every, list(counts), group=self._working)
        return [max(column) for column in zip_longest(*every, fillvalue=0)]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Place by place the sum over all ranks, in float64."""
        if self.is_alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _together():
            dist.all_reduce(total, group=self._working)
        return total.tolist()

    def gathered(self, own: T) -> list[T]:
        """What every rank has, for the leader; a follower gets nothing."""
        if self.is_alone:
            return [own]
        every: list[Any] | None = [None] * self.size if self.leads else None
        with _together():
            dist.gather_object(own, every, dst=0, group=self._working)
        return every or []


@contextmanager
def _together() -> Generator[None]:
    """Gloo tells of a closed connection, or of too long a wait, by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise RankGone(f"another process of this trainer is gone: {error}") from error


def _small_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


@contextmanager
def open_world(device: str, *, always_sharded: bool = False) -> Generator[World]:
    """The world that torchrun's environment tells of; `cuda` becomes this process's own card."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if not launched and not always_sharded:
        yield World(torch.device(device))
        return
    own = torch.device(device)
    if own.type == "cuda" and launched:
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if own.type == "cuda":
        own = torch.device("cuda", own.index or 0)
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    if launched:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    try:
        size = dist.get_world_size()
        mesh = init_device_mesh(own.type, (size,)) if size > 1 or always_sharded else None
        yield World(own, dist.get_rank(), size, mesh)
    finally:
        dist.destroy_process_group()
