"""Takes jobs in and sees to it that every item ends: the clinic's side of the queue.

A job is in the database before a message is sent for any of its items, and the database alone says
what is left to do. A worker that has a message asks `work` for its item, and asks again until it
has ended; so the clinic itself works every case, under its own slots, and begins it again if it is
killed (`desk`). Nothing that a worker, a clinic or Redis forgets is lost: the sweep, at the start
and every few seconds, sends again what waits and is not on the way, and notes what cases came to.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus

from services.clinic.desk import CaseDesk
from services.clinic.job_documents import ItemName, StoredItem, StoredJob
from services.clinic.job_queue import ItemSender, QueueAway
from services.clinic.job_store import JobStore
from services.clinic.metrics import ClinicMetrics
from services.clinic.store import UnknownCase
from shared.api.jobs import ItemStatus, JobStatus
from shared.errors import ApiProblem, BoundaryError
from shared.service.logs import places_of

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""An item on which work began so often without a case coming of it fails."""

CANCEL_ABSENT = (ApiProblem, UnknownCase)
"""What cancelling a case raises that ended in the meantime."""


class JobDesk:
    """The jobs of one clinic process."""

    def __init__(
        self,
        store: JobStore,
        desk: CaseDesk,
        sender: ItemSender | None,
        metrics: ClinicMetrics,
        now: Callable[[], datetime],
    ) -> None:
        self.store = store
        self.desk = desk
        self._sender = sender
        self._metrics = metrics
        self._now = now
        self._missed: set[ItemName] | None = None
        """Waiting items that the last sweep found no message for; None before the first."""

    @property
    def has_queue(self) -> bool:
        """Whether there is a queue to put items into."""
        return self._sender is not None

    async def announce(self, job_id: str, num_items: int) -> None:
        """Queue the items of a job that has just been stored; what fails is left to the sweep."""
        assert self._sender is not None, "a job is taken in only where there is a queue"
        names = [ItemName(job_id, number) for number in range(1, num_items + 1)]
        try:
            await asyncio.to_thread(self._sender.send, names)
        except QueueAway as error:
            logger.warning("a job waits for the queue: %s", error, extra={"job_id": job_id})

    async def work(self, name: ItemName, wait_s: float) -> StoredItem:
        """Begin an item unless it has begun, wait for its end at most so long; as it stands then.

        May be asked for the same item any number of times. Raises `UnknownJob`.
        """
        item = await asyncio.to_thread(self.store.item, name)
        if item.status is ItemStatus.QUEUED:
            await self._begin(name, item)
            item = await asyncio.to_thread(self.store.item, name)
        if item.status is ItemStatus.RUNNING and item.case_id is not None:
            await self.desk.wait_for(item.case_id, wait_s)
            await self.settle()
            item = await asyncio.to_thread(self.store.item, name)
        return item

    async def _begin(self, name: ItemName, item: StoredItem) -> None:
        attempts = await asyncio.to_thread(self.store.take, name)
        if attempts is None:
            return
        if attempts > MAX_ATTEMPTS:
            reason = f"clinic: work on it began {MAX_ATTEMPTS} times, and no case came of it"
            await asyncio.to_thread(self.store.fail, name, reason)
            return
        case = item.document.case.model_copy(update={"created_at": self._now()})
        await asyncio.to_thread(self.store.begin, name, case)

    async def cancel(self, job_id: str) -> StoredJob:
        """End a job that has not ended, and its running cases; of a cancelled one nothing changes.

        Raises `UnknownJob`, and `ApiProblem` 409 if the job ended in another way.
        """
        job = await asyncio.to_thread(self.store.job, job_id)
        if job.status is JobStatus.RUNNING:
            await asyncio.to_thread(self.store.cancel, job_id, self._now())
            await self._cancel_abandoned()
            await self.settle()
            job = await asyncio.to_thread(self.store.job, job_id)
            if job.status is JobStatus.CANCELLED:
                self._report(job)
        if job.status is not JobStatus.CANCELLED:
            raise ApiProblem(
                HTTPStatus.CONFLICT,
                "The job has ended",
                f"job {job_id} is {job.status.value}; only a running job can be cancelled",
            )
        return job

    async def _cancel_abandoned(self) -> None:
        for case_id in await asyncio.to_thread(self.store.abandoned_cases):
            with contextlib.suppress(*CANCEL_ABSENT):
                await self.desk.cancel(case_id)

    async def settle(self) -> None:
        """Note what cases came to."""
        for job in await asyncio.to_thread(self.store.settle, self._now()):
            self._report(job)

    def _report(self, job: StoredJob) -> None:
        self._metrics.jobs.labels(job.status.value).inc()
        logger.info("job ended", extra={"job_id": job.job_id, "status": job.status.value})

    # -- the sweep ----------------------------------------------------------------------------

    async def keep_sweeping(self, every_s: float) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except (QueueAway, BoundaryError) as error:
                logger.warning("jobs cannot be looked after: %s", error)
            except Exception as error:  # noqa: BLE001 - the next sweep must come
                logger.error("a sweep failed", extra={"exception": places_of(error)})
            await asyncio.sleep(every_s)

    async def sweep(self) -> None:
        """Do what was left undone. Raises `QueueAway`.

        A waiting item is sent again if two sweeps in turn find no message for it: it may have
        been sent between looking at the database and at the queue. What a former process left has
        been waiting long enough.
        """
        await self.settle()
        await self._cancel_abandoned()
        for case_id in await asyncio.to_thread(self.store.running_cases):
            await self.desk.wait_for(case_id, 0)  # begun, if whoever was to begin it is gone
        if self._sender is None:
            return
        waiting = await asyncio.to_thread(self.store.waiting)
        missing = set(await asyncio.to_thread(self._sender.missing, waiting) if waiting else ())
        lost = missing if self._missed is None else missing & self._missed
        if lost:
            logger.warning("%d items had no message and are sent again", len(lost))
            await asyncio.to_thread(self._sender.send, sorted(lost))
            self._metrics.items_sent_again.inc(len(lost))
        self._missed = missing - lost
