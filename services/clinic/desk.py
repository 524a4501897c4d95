"""Takes cases in and sees to it that each one ends: the lifecycle around `answer_case`.

Invariant: a case that was accepted is in the store before any work is done for it, and its status
becomes final exactly once. The work runs in tasks of the desk's own, so a caller who hangs up
stops nothing; only `cancel` does. At start-up the cases a former process left are begun again; one
whose work was already cut short `MAX_ATTEMPTS` times, by a kill or because the database stayed
away, fails with that reason instead. A clean stop hands unfinished cases to the next start without
counting against them.

A case waits for a neighbour that fails for a moment, and for the database; if that stays away, the
case stays running there and the next start begins it again.

A failure is logged by its kind and place, never by its message, which may quote the case.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Literal, TypeVar, cast

from services.clinic.admission import Admitted, admit, admit_again, case_image
from services.clinic.casework import Standing, Stopwatch, answer_case
from services.clinic.conversation import ContextFull, check_followable
from services.clinic.diary import Diary
from services.clinic.following import Bells
from services.clinic.metrics import ClinicMetrics
from services.clinic.patience import patiently
from services.clinic.pseudonyms import Pseudonyms
from services.clinic.rounds import Neighbours
from services.clinic.settings import ClinicSettings
from services.clinic.store import CaseStore, Repeatable, UnfinishedCase, UnknownCase
from services.clinic.submission import Asked, Submission
from services.clinic.telling import Tell
from services.clinic.transactions import DatabaseAway
from shared.api.clinic import Case, CaseFailure, CaseImage, CaseSettings, CaseStatus
from shared.api.zoom import IngestResponse
from shared.errors import ApiProblem, BlobError, BoundaryError, ZoomError
from shared.geometry import BadBox
from shared.service.logs import new_request_id, places_of, request_id

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
"""A killed case is run once more."""

T = TypeVar("T")

FailingService = Literal["policy", "zoom", "cca", "clinic"]


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def failure_of(error: Exception) -> CaseFailure:
    """What a reader is told of an error that ended a case."""
    if isinstance(error, BoundaryError):
        service = cast("FailingService", error.service)
        return CaseFailure(service=service, reason=str(error).removeprefix(f"{service}: "))
    if isinstance(error, BadBox | BlobError | ContextFull):
        return CaseFailure(service="clinic", reason=str(error))
    return CaseFailure(service="clinic", reason=f"internal error ({type(error).__name__})")


class CaseDesk:
    """The cases of one clinic process."""

    def __init__(
        self,
        settings: ClinicSettings,
        store: CaseStore,
        pseudonyms: Pseudonyms,
        neighbours: Neighbours,
        standing: Standing,
        metrics: ClinicMetrics,
        bells: Bells,
        *,
        now: Callable[[], datetime] = utc_now,
        new_case_id: Callable[[], str] = new_request_id,
    ) -> None:
        self._settings = settings
        self._store = store
        self.pseudonyms = pseudonyms
        self._neighbours = neighbours
        self._standing = standing
        self._metrics = metrics
        self._bells = bells
        self._now = now
        self._new_case_id = new_case_id
        self._slots = asyncio.Semaphore(settings.max_concurrent_cases)
        self._tasks: dict[str, asyncio.Task[Case]] = {}

    async def recover(self) -> None:
        """Begin again, or fail, the cases that a former process left running."""
        for unfinished in await asyncio.to_thread(self._store.unfinished):
            case_id, attempts = unfinished.case.case_id, unfinished.attempts
            if attempts >= MAX_ATTEMPTS:
                await self._give_up(unfinished)
            else:
                logger.info("case resumed", extra={"case_id": case_id, "attempts": attempts})
                self._start(unfinished.case, Stopwatch(unfinished.case.timings))

    async def stop(self) -> None:
        """End the work in hand; its cases stay running and are begun again at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(
        self,
        submission: Submission,
        *,
        wait_s: float | None = None,
        request: Repeatable | None = None,
    ) -> Case:
        """Ingest the image, store the case, and wait for its end, or `wait_s` from now on.

        The case is final, or still running if it was not waited for long enough. `request` is
        stored with it. Raises `ApiProblem` with what zoom said of an image it refused, `ZoomError`
        if zoom failed; there is no case then.
        """
        started = time.monotonic()
        case, watch = await self.opened(submission)
        left_s = None if wait_s is None else started + wait_s - time.monotonic()
        return await self._asked(case, watch, left_s, request)

    async def opened(self, submission: Submission) -> tuple[Case, Stopwatch]:
        """Ingest the image; the case as it would be stored. Raises as `answer`."""
        watch = Stopwatch()
        with watch.stage("ingest_s"):
            ingested = await self._ingest(submission)
            admitted = await asyncio.to_thread(
                admit, submission, ingested.identity, self.pseudonyms
            )
        image = case_image(ingested)
        return self._new(admitted, image, submission.settings, watch), watch

    async def follow_up(
        self,
        case_id: str,
        asked: Asked,
        *,
        wait_s: float | None = None,
        request: Repeatable | None = None,
    ) -> Case:
        """Go on from an answered case with a further question; else as `answer`.

        Raises `UnknownCase`, and `ApiProblem` 409 if there is nothing to go on from.
        """
        earlier = await asyncio.to_thread(self._store.conversation, case_id)
        former = earlier[-1]
        check_followable(earlier)
        admitted = await asyncio.to_thread(admit_again, asked, former.subject, self.pseudonyms)
        case = self._new(admitted, former.image, asked.settings, Stopwatch())
        case = case.model_copy(update={"follows": case_id})
        return await self._asked(case, Stopwatch(), wait_s, request)

    async def _asked(
        self, case: Case, watch: Stopwatch, wait_s: float | None, request: Repeatable | None
    ) -> Case:
        """Store a new case, start it, and wait for its end."""
        await asyncio.to_thread(self._store.create, case, request)
        return await self._awaited(case.case_id, self._start(case, watch), wait_s)

    async def wait_for(self, case_id: str, wait_s: float) -> Case:
        """Wait for the end of a stored case, at most so long; it is begun if nobody is at it."""
        case = await asyncio.to_thread(self._store.get, case_id)
        if case.status is not CaseStatus.RUNNING:
            return case
        task = self._tasks.get(case_id) or self._start(case, Stopwatch(case.timings))
        return await self._awaited(case_id, task, wait_s)

    async def _awaited(self, case_id: str, task: asyncio.Task[Case], wait_s: float | None) -> Case:
        await asyncio.wait([task], timeout=None if wait_s is None else max(0.0, wait_s))
        if task.done() and not task.cancelled():
            return task.result()
        return await asyncio.to_thread(self._store.get, case_id)

    async def cancel(self, case_id: str) -> Case:
        """End a case that has not ended; of a cancelled one, nothing changes.

        Raises `UnknownCase`, and `ApiProblem` 409 if the case ended in another way.
        """
        case = await asyncio.to_thread(self._store.get, case_id)
        if case.status is CaseStatus.RUNNING:
            cancelled = case.model_copy(
                update={"status": CaseStatus.CANCELLED, "finished_at": self._now()}
            )
            if await asyncio.to_thread(self._store.cancel, cancelled):
                task = self._tasks.get(case_id)
                if task is not None:
                    task.cancel()
                self._report(cancelled)
                return cancelled
            case = await asyncio.to_thread(self._store.get, case_id)
        if case.status is not CaseStatus.CANCELLED:
            raise ApiProblem(
                HTTPStatus.CONFLICT,
                "The case has ended",
                f"case {case_id} is {case.status.value}; only a running case can be cancelled",
            )
        return case

    async def _ingest(self, submission: Submission) -> IngestResponse:
        try:
            return await self._neighbours.zoom.ingest(
                submission.image, submission.media_type, submission.rendering, identity=True
            )
        except ZoomError as error:
            if error.is_transient or error.status is None or error.status >= 500:
                raise
            detail = str(error).removeprefix("zoom: ").removeprefix(f"{error.status} ")
            raise ApiProblem(
                HTTPStatus(error.status), "The image cannot be used", detail
            ) from error

    def _new(
        self, admitted: Admitted, image: CaseImage, settings: CaseSettings, watch: Stopwatch
    ) -> Case:
        """A case of a new id; `image` gets its URL."""
        case_id = self._new_case_id()
        return Case(
            case_id=case_id,
            status=CaseStatus.RUNNING,
            created_at=self._now(),
            question=admitted.question,
            choices=admitted.choices,
            image=image.model_copy(update={"url": f"/v1/cases/{case_id}/image"}),
            subject=admitted.subject,
            settings=settings,
            timings=watch.timings,
        )

    def _start(self, case: Case, watch: Stopwatch) -> asyncio.Task[Case]:
        task = asyncio.create_task(self._work(case, watch))
        self._tasks[case.case_id] = task
        self._metrics.unfinished.set(len(self._tasks))
        task.add_done_callback(partial(self._ended, case.case_id))
        return task

    def _ended(self, case_id: str, task: asyncio.Task[Case]) -> None:
        del self._tasks[case_id]
        self._metrics.unfinished.set(len(self._tasks))
        error = None if task.cancelled() else task.exception()
        if error is not None:  # the store itself failed: the case stays running in the file
            logger.error(
                "case not finished",
                extra={"exception": places_of(error)},
            )

    async def _work(self, case: Case, watch: Stopwatch) -> Case:
        """One attempt at a case, under a slot, to its final status."""
        if not request_id.get():
            request_id.set(new_request_id())
        with watch.stage("waiting_s"):
            await self._slots.acquire()
        try:
            try:
                attempt = await self._patiently_stored(partial(self._store.begin, case.case_id))
            except UnknownCase:  # it was cancelled before it began
                return await asyncio.to_thread(self._store.get, case.case_id)
            diary = Diary(self._store, self._bells, self._metrics, case.case_id, attempt)
            try:
                final = await self._final(case, watch, diary.tell)
            except asyncio.CancelledError:
                await diary.close()
                await asyncio.to_thread(self._store.release, case.case_id, attempt)
                raise
            last = await diary.close()
            if await self._patiently_stored(partial(self._store.finish, final, attempt, last)):
                diary.count(last)
                self._report(final)
                return final
            return await asyncio.to_thread(self._store.get, case.case_id)
        finally:
            self._slots.release()

    async def _final(self, case: Case, watch: Stopwatch, tell: Tell) -> Case:
        """The case as it ends; whatever goes wrong makes it a failed one."""
        try:
            async with asyncio.timeout(self._settings.case_timeout_s):
                final = await self._patiently_answered(case, watch, tell)
        except TimeoutError:
            limit_s = self._settings.case_timeout_s
            final = self._failed(
                case, CaseFailure(service="clinic", reason=f"not answered within {limit_s:g} s")
            )
        except DatabaseAway:  # where it would have to end: it stays running there
            raise
        except Exception as error:  # noqa: BLE001 - a case must end, whatever its work raised
            logger.warning(
                "case failed",
                extra={
                    "case_id": case.case_id,
                    "exception": places_of(error),
                },
            )
            final = self._failed(case, failure_of(error))
        return final.model_copy(update={"finished_at": self._now(), "timings": watch.timings})

    async def _patiently_answered(self, case: Case, watch: Stopwatch, tell: Tell) -> Case:
        """Begin again while a neighbour fails for a moment. Raises what it failed with at last."""
        earlier: list[Case] = []
        if case.follows is not None:
            earlier = await asyncio.to_thread(self._store.conversation, case.follows)

        def warn(error: BoundaryError) -> None:
            logger.warning("case waits for %s", error.service, extra={"case_id": case.case_id})

        return await patiently(
            lambda: answer_case(self._neighbours, self._standing, case, watch, tell, earlier),
            self._settings.patience_s,
            warn,
        )

    async def _patiently_stored(self, write: Callable[[], T]) -> T:
        """What a write of the store returns, once the database answers. Raises `DatabaseAway`."""
        return await patiently(partial(asyncio.to_thread, write), self._settings.patience_s)

    def _failed(self, case: Case, failure: CaseFailure) -> Case:
        return case.model_copy(update={"status": CaseStatus.FAILED, "failure": failure})

    async def _give_up(self, unfinished: UnfinishedCase) -> None:
        reason = (
            f"the work on this case was cut short {unfinished.attempts} times: "
            "the clinic was killed, or its database stayed away"
        )
        failed = self._failed(unfinished.case, CaseFailure(service="clinic", reason=reason))
        final = failed.model_copy(update={"finished_at": self._now()})
        if await asyncio.to_thread(self._store.finish, final, unfinished.attempts):
            self._report(final)

    def _report(self, final: Case) -> None:
        self._bells.ring(final.case_id)
        self._metrics.observe(final)
        logger.info(
            "case ended",
            extra={
                "case_id": final.case_id,
                "status": final.status.value,
                "total_s": round(final.timings.total_s, 3),
            },
        )
