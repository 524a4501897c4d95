"""The Celery worker: one task is one group; what becomes of a delivery is decided here.

A delivery ends in exactly one way: its group is *appended* to the stream, found to be a
*duplicate* there or in work here, no longer *unwanted* work, *buried* with its reason, *rejected*
because it is no task (dead-lettered as it came), or *requeued* because the worker is stopping.
Acknowledged is what is over; a worker that dies leaves its deliveries unacknowledged and no longer
renews them (`renewal`), and they are delivered again after the visibility timeout. One that keeps
taking its worker down is buried after `max_deliveries`.

Tasks run in threads that only wait: the work is done in one asyncio loop, in a thread of its own,
whose keep-alive connections all groups share. So a process is cheap however many groups it runs.
"""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Reject

from services.rollout.attempt import RolloutFailed, Services, make_group_with_retries
from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import TASK_NAME, RolloutTask, decode_task
from shared.errors import PayloadError
from shared.service.logs import places_of
from shared.stream import RunStream
from shared.trajectory import TrajectoryGroup, encode_group
from shared.work_queue.renewal import Renewal
from shared.work_queue.worker import take_tasks

logger = logging.getLogger(__name__)


class RolloutLoop(AbstractContextManager["RolloutLoop"]):
    """An asyncio loop in a thread, with the clients that live in it; threads hand it groups."""

    def __init__(self, settings: RolloutSettings, metrics: RolloutMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-loop")
        self._services = Services.connect(settings)
        self._running: set[Future[TrajectoryGroup | None]] = set()
        self._lock = threading.Lock()
        self._is_stopping = False

    def __enter__(self) -> "RolloutLoop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()
        asyncio.run_coroutine_threadsafe(self._services.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def make_group(self, task: RolloutTask, stream: RunStream) -> TrajectoryGroup | None:
        """Wait for the group. Raises `RolloutFailed`, or `CancelledError` when interrupted."""
        work = make_group_with_retries(
            task,
            self._services,
            self._settings,
            self._metrics,
            lambda: stream.is_wanted(task.group_id),
        )
        with self._lock:
            if self._is_stopping:
                work.close()
                raise CancelledError
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._running.add(future)
        try:
            with self._metrics.running.track_inprogress():
                return future.result()
        finally:
            with self._lock:
                self._running.discard(future)

    def interrupt(self) -> None:
        """Cancel what is running and take nothing more."""
        with self._lock:
            self._is_stopping = True
            running = list(self._running)
        for future in running:
            future.cancel()


class Deliveries:
    """What is done with a delivered task; called from Celery's threads."""

    def __init__(
        self,
        settings: RolloutSettings,
        stream: RunStream,
        loop: RolloutLoop,
        metrics: RolloutMetrics,
    ) -> None:
        self._settings = settings
        self._stream = stream
        self._loop = loop
        self._metrics = metrics
        self._counts_key = f"medvr:run:{settings.run}:deliveries"
        self._in_work: set[str] = set()
        self._lock = threading.Lock()

    def handle(self, payload: object, task_id: str = "") -> None:
        """Bring one delivery to its end; raises only `Reject` (to be delivered again).

        `task_id` is Celery's: the feeder gives a task the id of its group.
        """
        try:
            outcome = self._outcome(payload, task_id)
        except (CancelledError, redis.RedisError) as error:
            self._metrics.groups.labels("requeued").inc()
            logger.info("a group goes back to the queue: %s", type(error).__name__)
            raise Reject(type(error).__name__, requeue=True) from error
        self._metrics.groups.labels(outcome).inc()

    def _outcome(self, payload: object, task_id: str) -> str:
        try:
            task = decode_task(payload)
            if task.run != self._settings.run:
                raise PayloadError(f"run {task.run!r}, this worker serves {self._settings.run!r}")
        except PayloadError as error:
            logger.error("a task was rejected: %s", error)
            raw = payload if isinstance(payload, str) else repr(payload)
            self._bury_as_it_came(raw.encode(errors="backslashreplace"), task_id, str(error))
            return "rejected"
        if not self._stream.is_wanted(task.group_id):
            return self._over(task, "unwanted")
        with self._lock:
            if task.group_id in self._in_work:  # this worker was late to renew it
                return "duplicate"
            self._in_work.add(task.group_id)
        try:
            return self._made(task)
        finally:
            with self._lock:
                self._in_work.discard(task.group_id)

    def _made(self, task: RolloutTask) -> str:
        if self._count(task, 1) > self._settings.max_deliveries:
            return self._bury(task, f"delivered {self._settings.max_deliveries} times in vain")
        try:
            return self._attempted(task)
        except (CancelledError, redis.RedisError):  # no fault of the group's
            self._count(task, -1)
            raise

    def _attempted(self, task: RolloutTask) -> str:
        try:
            group = self._loop.make_group(task, self._stream)
        except (CancelledError, redis.RedisError):
            raise
        except RolloutFailed as error:
            return self._bury(task, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one group must not stop the others
            logger.error(
                "a rollout failed unexpectedly",
                extra={"group_id": task.group_id, "exception": places_of(error)},
            )
            return self._bury(task, f"unexpected {type(error).__name__}", str(error))
        if group is None:
            return self._over(task, "unwanted")
        self._metrics.count_group(group)
        is_new = self._stream.append(task.group_id, encode_group(group))
        return self._over(task, "appended" if is_new else "duplicate")

    def set_aside(self, raw: bytes, task_id: str, reason: str) -> None:
        """What Celery could make no task of."""
        self._bury_as_it_came(raw, task_id, reason)
        self._metrics.groups.labels("rejected").inc()

    def _bury_as_it_came(self, raw: bytes, task_id: str, reason: str) -> None:
        """Dead-letter what is no task; if its id says which group waits for it, that is dead."""
        is_ours = task_id.startswith(f"{self._settings.run}:") and self._stream.is_wanted(task_id)
        self._stream.bury_task(task_id if is_ours else "", reason, raw)

    def _bury(self, task: RolloutTask, reason: str, words: str = "") -> str:
        """`words` may quote what was worked on: they are for the letter, not for the log."""
        if not self._stream.give_up(task.group_id, f"{reason}: {words}" if words else reason):
            logger.info(
                "failed, but ended elsewhere: %s", reason, extra={"group_id": task.group_id}
            )
            return self._over(task, "duplicate")
        logger.error("buried: %s", reason, extra={"group_id": task.group_id})
        return self._over(task, "buried")

    def _over(self, task: RolloutTask, outcome: str) -> str:
        self._stream.client.hdel(self._counts_key, task.group_id)
        return outcome

    def _count(self, task: RolloutTask, step: int) -> int:
        """Deliveries of this group that have not ended, this one included."""
        count: Any = self._stream.client.hincrby(self._counts_key, task.group_id, step)
        return int(count)


def work(
    app: Celery,
    settings: RolloutSettings,
    loop: RolloutLoop,
    deliveries: Deliveries,
    renewal: Renewal,
) -> int:
    """Take tasks until SIGTERM or SIGINT; running groups then go back to the queue at once."""
    return take_tasks(
        app,
        TASK_NAME,
        deliveries.handle,
        deliveries.set_aside,
        renewal,
        on_stop=loop.interrupt,
        concurrency=settings.concurrency,
        log_level=settings.log_level,
    )
