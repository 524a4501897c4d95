"""The jobs of the clinic's database: stored whole, each item ended once.

Lifecycle of an item: `create` (queued, with the case it will become) → `take` (one attempt more) →
`begin` (running: its case is written in the same transaction, under an id that was given to it
when the job was stored, so that there is never a second one) → `settle` (what its case came to).
`fail` and `cancel` end an item that has not begun.

A job is running until no item of it is queued or running, or until it is cancelled. `settle` reads
both off the cases, so nothing depends on who saw a case end: whoever calls it next notes it. Every
method may be done twice, as `transactions` asks.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from services.clinic.job_documents import (
    ItemDocument,
    ItemName,
    JobDocument,
    StoredItem,
    StoredJob,
    UnknownJob,
)
from services.clinic.store import Answer, Repeatable
from services.clinic.tables import CaseRow, JobItemRow, JobRow, KeptRow
from services.clinic.transactions import Transactions
from shared.api.clinic import Case, CaseStatus
from shared.api.jobs import ItemStatus, JobCounts, JobStatus

_OPEN = (ItemStatus.QUEUED.value, ItemStatus.RUNNING.value)

_STATUS_OF_CASE = {
    CaseStatus.ANSWERED: ItemStatus.DONE,
    CaseStatus.ABSTAINED: ItemStatus.DONE,
    CaseStatus.FAILED: ItemStatus.FAILED,
    CaseStatus.CANCELLED: ItemStatus.CANCELLED,
}


class JobStore:
    """Jobs by id and newest first; safe to use from several threads."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def create(
        self,
        job_id: str,
        document: JobDocument,
        items: Sequence[ItemDocument],
        kept: tuple[Repeatable, Answer] | None = None,
    ) -> None:
        """Store a job with its items numbered from 1, and the answer to the request that made it.

        Durable on return, or not there at all.
        """

        def work(session: Session) -> None:
            if session.scalar(select(JobRow.number).where(JobRow.job_id == job_id)) is not None:
                return  # written by a first try that broke off after it was done
            session.add(
                JobRow(
                    job_id=job_id,
                    status=JobStatus.RUNNING.value,
                    document=document.model_dump_json(),
                )
            )
            session.add_all(
                JobItemRow(
                    job_id=job_id,
                    number=number,
                    status=ItemStatus.QUEUED.value,
                    case_id=None,
                    attempts=0,
                    document=item.model_dump_json(),
                )
                for number, item in enumerate(items, start=1)
            )
            if kept is not None:
                request, answer = kept
                session.merge(
                    KeptRow(
                        key_sha256=request.key_sha256,
                        fingerprint=request.fingerprint,
                        kept_at_s=request.asked_at_s,
                        answer=msgspec.json.encode(answer),
                    )
                )

        self._transactions.write(work)

    # -- reading ------------------------------------------------------------------------------

    def job(self, job_id: str) -> StoredJob:
        """The job. Raises `UnknownJob`."""
        statement = select(JobRow).where(JobRow.job_id == job_id)
        found = self._transactions.read(lambda session: _jobs(session, session.scalars(statement)))
        if not found:
            raise UnknownJob(f"no job {job_id}")
        return found[0]

    def newest(self, limit: int, before: str | None = None) -> list[StoredJob]:
        """At most `limit` jobs, newest first, older than job `before`. Raises `UnknownJob`."""

        def work(session: Session) -> list[StoredJob]:
            statement = select(JobRow).order_by(JobRow.number.desc()).limit(limit)
            if before is not None:
                number = session.scalar(select(JobRow.number).where(JobRow.job_id == before))
                if number is None:
                    raise UnknownJob(f"no job {before}")
                statement = statement.where(JobRow.number < number)
            return _jobs(session, session.scalars(statement))

        return self._transactions.read(work)

    def items(self, job_id: str, after: int, limit: int) -> list[StoredItem]:
        """At most `limit` items that come after one, in order."""
        statement = (
            select(JobItemRow, CaseRow.status)
            .outerjoin(CaseRow, CaseRow.case_id == JobItemRow.case_id)
            .where(JobItemRow.job_id == job_id, JobItemRow.number > after)
            .order_by(JobItemRow.number)
            .limit(limit)
        )
        return self._transactions.read(
            lambda session: [_item(row, status) for row, status in session.execute(statement)]
        )

    def item(self, name: ItemName) -> StoredItem:
        """One item. Raises `UnknownJob`."""
        found = self.items(name.job_id, name.number - 1, 1)
        if not found or found[0].number != name.number:
            raise UnknownJob(f"no item {name.number} of a job {name.job_id}")
        return found[0]

    def waiting(self) -> list[ItemName]:
        """The items that nobody has begun, oldest first."""
        statement = (
            select(JobItemRow.job_id, JobItemRow.number)
            .where(JobItemRow.status == ItemStatus.QUEUED.value)
            .order_by(JobItemRow.row)
        )
        return self._transactions.read(
            lambda session: [ItemName(*row) for row in session.execute(statement)]
        )

    def running_cases(self) -> list[str]:
        """The cases of the items that have begun and not ended."""
        statement = select(JobItemRow.case_id).where(JobItemRow.status == ItemStatus.RUNNING.value)
        found = self._transactions.read(lambda session: list(session.scalars(statement)))
        return [case_id for case_id in found if case_id is not None]

    def abandoned_cases(self) -> list[str]:
        """The cases that run although their job was cancelled."""
        statement = (
            select(JobItemRow.case_id)
            .join(JobRow, JobRow.job_id == JobItemRow.job_id)
            .where(
                JobItemRow.status == ItemStatus.RUNNING.value,
                JobRow.status == JobStatus.CANCELLED.value,
            )
        )
        found = self._transactions.read(lambda session: list(session.scalars(statement)))
        return [case_id for case_id in found if case_id is not None]

    # -- working ------------------------------------------------------------------------------

    def take(self, name: ItemName) -> int | None:
        """Note that work on a queued item begins; its attempts so far, this one included.

        None if it is not queued any more.
        """
        statement = (
            update(JobItemRow)
            .where(*_is(name), JobItemRow.status == ItemStatus.QUEUED.value)
            .values(attempts=JobItemRow.attempts + 1)
            .returning(JobItemRow.attempts)
        )
        return self._transactions.write(lambda session: session.scalar(statement), is_durable=False)

    def begin(self, name: ItemName, case: Case) -> None:
        """Write the case of a queued item; nothing happens if the item is not queued any more."""

        def work(session: Session) -> None:
            statement = (
                update(JobItemRow)
                .where(*_is(name), JobItemRow.status == ItemStatus.QUEUED.value)
                .values(status=ItemStatus.RUNNING.value, case_id=case.case_id)
                .returning(JobItemRow.row)
            )
            if session.scalar(statement) is None:
                return
            session.add(
                CaseRow(
                    case_id=case.case_id,
                    status=case.status.value,
                    attempts=0,
                    document=case.model_dump_json(),
                )
            )

        self._transactions.write(work)

    def fail(self, name: ItemName, reason: str) -> None:
        """End a queued item that will not be begun again."""

        def work(session: Session) -> None:
            row = session.scalar(select(JobItemRow).where(*_is(name)))
            if row is not None:
                _end(session, row, ItemStatus.QUEUED, ItemStatus.FAILED, reason)

        self._transactions.write(work)

    def cancel(self, job_id: str, now: datetime) -> None:
        """End a running job and the items that have not begun; nothing happens to another."""

        def work(session: Session) -> None:
            job = session.scalar(select(JobRow).where(JobRow.job_id == job_id))
            if job is not None and _finish(session, job, JobStatus.CANCELLED, now):
                waiting = (JobItemRow.status == ItemStatus.QUEUED.value,)
                session.execute(
                    update(JobItemRow)
                    .where(JobItemRow.job_id == job_id, *waiting)
                    .values(status=ItemStatus.CANCELLED.value)
                )

        self._transactions.write(work)

    def settle(self, now: datetime) -> list[StoredJob]:
        """Note what the cases of running items came to; the jobs that ended by it."""
        ended = (
            select(JobItemRow, CaseRow.document)
            .join(CaseRow, CaseRow.case_id == JobItemRow.case_id)
            .where(
                JobItemRow.status == ItemStatus.RUNNING.value,
                CaseRow.status != CaseStatus.RUNNING.value,
            )
        )
        is_open = (
            select(JobItemRow.row)
            .where(JobItemRow.job_id == JobRow.job_id, JobItemRow.status.in_(_OPEN))
            .exists()
        )
        over = select(JobRow).where(JobRow.status == JobStatus.RUNNING.value, ~is_open)

        def is_due(session: Session) -> bool:
            return any(session.execute(each.limit(1)).first() for each in (ended, over))

        def work(session: Session) -> list[StoredJob]:
            for item, document in session.execute(ended).all():
                case = Case.model_validate_json(document)
                failure = case.failure and f"{case.failure.service}: {case.failure.reason}"
                _end(session, item, ItemStatus.RUNNING, _STATUS_OF_CASE[case.status], failure)
            rows = {row.job_id: row for row in session.scalars(over)}
            ended_here: list[str] = []
            for job in _jobs(session, rows.values()):
                is_clean = job.counts.failed == job.counts.cancelled == 0
                status = JobStatus.DONE if is_clean else JobStatus.DONE_WITH_FAILURES
                if _finish(session, rows[job.job_id], status, now):
                    ended_here.append(job.job_id)
            again = select(JobRow).where(JobRow.job_id.in_(ended_here))
            return _jobs(session, session.scalars(again)) if ended_here else []

        return self._transactions.write(work) if self._transactions.read(is_due) else []


def _is(name: ItemName) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobItemRow.job_id == name.job_id, JobItemRow.number == name.number


def _end(
    session: Session, item: JobItemRow, before: ItemStatus, after: ItemStatus, failure: str | None
) -> None:
    """Change the status of an item, if it still is what it was."""
    document = ItemDocument.model_validate_json(item.document)
    ended = document.model_copy(update={"failure": failure})
    session.execute(
        update(JobItemRow)
        .where(JobItemRow.row == item.row, JobItemRow.status == before.value)
        .values(status=after.value, document=ended.model_dump_json())
    )


def _finish(session: Session, job: JobRow, status: JobStatus, now: datetime) -> bool:
    """End a job, unless it has ended."""
    document = JobDocument.model_validate_json(job.document)
    ended = document.model_copy(update={"finished_at": now})
    statement = (
        update(JobRow)
        .where(JobRow.number == job.number, JobRow.status == JobStatus.RUNNING.value)
        .values(status=status.value, document=ended.model_dump_json())
        .returning(JobRow.number)
    )
    return session.scalar(statement) is not None


def _jobs(session: Session, rows: Iterable[JobRow]) -> list[StoredJob]:
    """Jobs with their items counted."""
    rows = list(rows)
    counted: dict[str, dict[str, int]] = {row.job_id: {} for row in rows}
    statement = (
        select(JobItemRow.job_id, JobItemRow.status, func.count())
        .where(JobItemRow.job_id.in_(counted))
        .group_by(JobItemRow.job_id, JobItemRow.status)
    )
    for job_id, status, number in session.execute(statement):
        counted[job_id][status] = number
    return [
        StoredJob(
            row.job_id,
            JobStatus(row.status),
            JobDocument.model_validate_json(row.document),
            JobCounts(**counted[row.job_id]),
        )
        for row in rows
    ]


def _item(row: JobItemRow, case_status: str | None) -> StoredItem:
    return StoredItem(
        job_id=row.job_id,
        number=row.number,
        status=ItemStatus(row.status),
        case_id=row.case_id,
        case_status=None if case_status is None else CaseStatus(case_status),
        attempts=row.attempts,
        document=ItemDocument.model_validate_json(row.document),
    )
