"""A living worker says that it still works on its deliveries.

Celery's Redis transport delivers a message again once it has been unacknowledged for the
visibility timeout, whoever holds it. The renewal moves the time of every delivery in work up to
now, a few times within that timeout; so the timeout has to outlast a missed beat, not the longest
task, and the tasks of a killed worker come back soon. A worker that cannot renew in time (it was
stopped, or Redis was away) loses nothing, but its task is then also done by another: what a task
does must be right when it is done twice.
"""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import redis

from shared.work_queue.queue import WorkQueue

logger = logging.getLogger(__name__)

BEATS = 4
"""Renewals within a visibility timeout."""


class Renewal(AbstractContextManager["Renewal"]):
    """A thread that renews the deliveries of this process; `held` says which they are."""

    def __init__(self, client: redis.Redis, queue: WorkQueue, visibility_timeout_s: float) -> None:
        self._client = client
        self._key = queue.unacked_index_key
        self._every_s = visibility_timeout_s / BEATS
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def __enter__(self) -> "Renewal":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self._every_s)

    @contextmanager
    def held(self, delivery_tag: str) -> Generator[None]:
        """This delivery is in work."""
        with self._lock:
            self._held.add(delivery_tag)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(delivery_tag)

    def renew(self) -> int:
        """Move the deliveries in work up to now; how many there were."""
        with self._lock:
            held = list(self._held)
        if held:
            # XX: one that was acknowledged in the meantime is not put back.
            self._client.zadd(self._key, dict.fromkeys(held, time.time()), xx=True)
        return len(held)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.renew()
            except redis.RedisError as error:
                logger.warning("deliveries are not renewed: %s", error)
