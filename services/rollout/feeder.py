"""The feeder: keeps the rollout workers in work, without ever losing or repeating a group.

The task is queued first and then marked as fed, so a feeder killed in between queues it once more
and the second copy finds that it is not wanted. Nothing is kept here but a list of positions to
feed again: the cursor is in Redis, and the order is a function of it. On start, and whenever its
mark has vanished from Redis (somebody emptied it; the trainer then restores fates and cursor from
its checkpoint), the feeder looks for fed groups that neither have a fate nor are outstanding, and
feeds those first. A task that a worker took along when it died between taking it and noting so is
in no list; the feeder misses it and queues it again. It never has more than `max_outstanding`
groups without a fate, and ends with the run: then it closes what an emptied Redis had made the
trainer forget (`close`).
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from services.rollout.metrics import FeederMetrics
from services.rollout.order import ProblemOrder
from services.rollout.settings import FeederSettings
from services.rollout.task import (
    RolloutTask,
    queue_of,
    send_task,
)
from shared.errors import MedvrError
from shared.problem import read_problems
from shared.service.serve import probe_server
from shared.stream import RunState, RunStream, connect_redis

logger = logging.getLogger(__name__)

_CHUNK = 1000
"""Group ids that are looked up at a time."""

LOST_AFTER_S = 10.0
"""A task that is in no list at two looks so far apart is lost."""

Send = Callable[[RolloutTask], None]
"""Queues a task for the workers."""


class BoundError(MedvrError):
    """Feeder and trainer were given different bounds."""


class Feeder:
    """Hands out the groups of one run; `feed` does what is due and returns."""

    def __init__(
        self,
        stream: RunStream,
        order: ProblemOrder,
        send: Send,
        metrics: FeederMetrics,
        *,
        max_outstanding: int,
        max_groups: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._order = order
        self._send = send
        self._metrics = metrics
        self._max_outstanding = max_outstanding
        self._max_groups = max_groups
        self._mark = uuid.uuid4().hex.encode()
        self._missing: deque[int] = deque()
        """Positions to feed again."""
        self._clock = clock
        self._looked_at = clock()
        self._missed: set[str] = set()
        """Groups whose task was in no list at the last look."""

    def feed(self) -> int:
        """Hand out what is due, if the run is running; how many groups that was.

        Raises `BoundError`.
        """
        self._check_bound()
        num_fed = 0
        while self._stream.state() is RunState.RUNNING:
            self._look_for_missing()
            position = self._next_position()
            if position is None or self._stream.outstanding() >= self._max_outstanding:
                break
            task = self._order.task_at(position)
            self._send(task)
            if not self._stream.mark_fed(task.group_id, position):
                break
            self._count(position)
            num_fed += 1
        self._look_for_lost()
        self._metrics.outstanding.set(self._stream.outstanding())
        self._metrics.queue_depth.set(self._stream.client.llen(queue_of(self._stream.run).list_key))
        return num_fed

    def close(self) -> int:
        """After the end of the run: a fed group without a fate is surplus; how many there were.

        The trainer closes what is outstanding in Redis. If Redis was emptied shortly before, that
        is not all of it, and the cursor it restored may be behind what was fed and came back.
        """
        fates, cursor = self._stream.fates(), self._stream.cursor()
        most_fed = cursor + len(fates) + self._max_outstanding
        ids = [self._order.task_at(position).group_id for position in range(most_fed)]
        last_fated = max((p for p, group_id in enumerate(ids) if group_id in fates), default=-1)
        fed = ids[: max(cursor, last_fated + 1)]
        forgotten = [group_id for group_id in fed if group_id not in fates]
        self._stream.close(forgotten, len(fed))
        return len(forgotten)

    def _check_bound(self) -> None:
        """The trainer's settings were checked with its own value, so ours has to be that one."""
        announced = self._stream.announced_bound()
        if announced is not None and announced != self._max_outstanding:
            raise BoundError(
                f"max_outstanding is {self._max_outstanding}, but the trainer of run "
                f"{self._stream.run!r} has {announced}: give both the same"
            )

    def _next_position(self) -> int | None:
        if self._missing:
            return self._missing[0]
        cursor = self._stream.cursor()
        return None if self._max_groups is not None and cursor >= self._max_groups else cursor

    def _count(self, position: int) -> None:
        if self._missing and self._missing[0] == position:
            self._missing.popleft()
            self._metrics.refed.inc()
            return
        self._metrics.fed.inc()
        self._metrics.round.set(self._order.round_at(position))

    def _look_for_missing(self) -> None:
        """Once after the start, and again after Redis was emptied.

        The mark is set before looking: if Redis is emptied in between, it is gone again.
        """
        if not self._stream.register_feeder(self._mark):
            return
        self._missing.clear()
        cursor = self._stream.cursor()
        for start in range(0, cursor, _CHUNK):
            positions = range(start, min(start + _CHUNK, cursor))
            position_of = {self._order.task_at(p).group_id: p for p in positions}
            self._missing.extend(position_of[i] for i in self._stream.missing(position_of))
        if self._missing:
            logger.warning("%d fed groups are missing and fed again", len(self._missing))

    def _look_for_lost(self) -> None:
        """Queue again what is outstanding, did not come back, and is on no way."""
        if self._clock() - self._looked_at < LOST_AFTER_S:
            return
        self._looked_at = self._clock()
        run, client = self._stream.run, self._stream.client
        missed = self._stream.unreturned() - queue_of(run).ids_on_the_way(client)
        lost = missed & self._missed
        self._missed = missed - lost
        if lost:
            logger.warning("%d tasks were lost and are queued again", len(lost))
        for task in map(self._order.task_at, range(self._stream.cursor()) if lost else ()):
            if task.group_id in lost:
                self._send(task)
                self._metrics.refed.inc()


def run_feeder(settings: FeederSettings, stop: threading.Event) -> None:
    """Feed until the run is finished or `stop` is set. Raises `ProblemSetError`, `BoundError`."""
    registry = CollectorRegistry()
    metrics = FeederMetrics(registry)
    problems = read_problems(settings.problem_set)
    order = ProblemOrder(settings.run, problems, settings.seed)
    stream = RunStream(connect_redis(settings.redis_url), settings.run)

    async def redis_answers() -> None:
        await asyncio.to_thread(stream.client.ping)

    with (
        stream.client,
        queue_of(settings.run).celery(settings.redis_url) as app,
        probe_server(
            "feeder", settings.probe_host, settings.probe_port, registry, {"redis": redis_answers}
        ),
    ):

        def send(task: RolloutTask) -> None:
            send_task(app, task)

        feeder = Feeder(
            stream,
            order,
            send,
            metrics,
            max_outstanding=settings.max_outstanding,
            max_groups=settings.max_groups,
        )
        while not stop.is_set() and stream.state() is not RunState.FINISHED:
            feeder.feed()
            stop.wait(settings.poll_interval_s)
        if stream.state() is RunState.FINISHED and (num_forgotten := feeder.close()):
            logger.warning("%d fed groups had been forgotten and are surplus", num_forgotten)
        logger.info("feeder ends", extra={"cursor": stream.cursor()})
