"""The cases, in one database: written before work starts, finished exactly once.

Lifecycle of a row: `create` (running, no attempt) → `begin` (one attempt more) → `finish` (a
final status, only for the attempt that began last, so that a late writer changes nothing). A
clean stop gives its attempt back with `release`; a killed process cannot, and that is how the
next start knows that it was killed. `cancel` ends a case whatever attempt is at it. A database
belongs to one clinic: two would begin each other's cases again.

Events of a case are numbered from 1, without gaps, in the order they are read. Only the attempt
that began last adds to them, and the last ones are written with the final status, in the same
transaction: a case is final exactly if its last event is `done`. Numbering is safe because the
row of the case is changed, and so locked, first.

`create`, `finish`, `cancel` and `keep` are on the disk when they return. That work began and what
it told is not: the end of the machine, unlike that of this process, may take it back, and then the
case is begun again as one that told less.

On PostgreSQL each method is tried again for some seconds while the server is away, without doing
twice what was done (`transactions`); only an attempt may count twice. Then `DatabaseAway` is
raised, and a running case stays running.

An answer is kept under its idempotency key's digest until it expires. The key is written with the
case it made, in the same transaction, so that a repetition finds the case even if no answer was
ever sent.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.clinic.address import DatabaseAddress
from services.clinic.new_events import NewEvents
from services.clinic.tables import CaseRow, EventRow, KeptRow, open_tables
from services.clinic.telling import closing_events
from services.clinic.transactions import Transactions
from shared.api.case_events import CaseEvent
from shared.api.clinic import Case, CaseStatus
from shared.errors import MedvrError


class UnknownCase(MedvrError):
    """There is no case of this id."""


class Repeatable(msgspec.Struct, frozen=True):
    """A request that carries an idempotency key."""

    key_sha256: str
    fingerprint: str
    """Digest of what was asked: equal for a repetition, different for another request."""
    asked_at_s: float
    """Unix time; the key expires counted from it."""


class Answer(msgspec.Struct, frozen=True):
    """An answer as it was first sent."""

    status: int
    headers: dict[str, str]
    body: str
    """JSON."""


class Kept(msgspec.Struct, frozen=True):
    """What is known of an idempotency key."""

    fingerprint: str
    case_id: str | None
    """The case the request made."""
    answer: Answer | None
    """None if the process ended before it answered."""


class StoredEvent(msgspec.Struct, frozen=True):
    """An event as a follower is sent it."""

    number: int
    name: str
    document: str
    """JSON."""


class UnfinishedCase(msgspec.Struct, frozen=True):
    """A case that a former process left running."""

    case: Case
    attempts: int
    """How often work on it began and did not end."""


class CaseStore:
    """Cases by id and newest first; safe to use from several threads."""

    def __init__(self, address: DatabaseAddress) -> None:
        """Open the database and bring it up. Raises `UnusableDatabase`."""
        self.transactions = Transactions(open_tables(address))

    def close(self) -> None:
        """Close all connections."""
        self.transactions.close()

    def ping(self) -> None:
        """Ask the database for nothing. Raises `DatabaseAway`."""
        self.transactions.read(lambda session: session.execute(select(1)), is_patient=False)

    def create(self, case: Case, request: Repeatable | None = None) -> None:
        """Store a new case, and the key of the request that made it; durable on return."""
        was_tried = False

        def work(session: Session) -> None:
            nonlocal was_tried
            statement = self.transactions.insert(
                CaseRow,
                case_id=case.case_id,
                status=case.status.value,
                attempts=0,
                document=case.model_dump_json(),
            )
            # An id that is there by the second try was written by the first.
            session.execute(statement.on_conflict_do_nothing() if was_tried else statement)
            was_tried = True
            if case.follows is not None:
                _link(session, case.follows, case.case_id)
            if request is not None:
                self._keep(session, request, case_id=case.case_id)

        self.transactions.write(work)

    def conversation(self, case_id: str) -> list[Case]:
        """A case and all it goes on from, oldest first. Raises `UnknownCase`."""
        cases = [self.get(case_id)]
        while (former := cases[-1].follows) is not None:
            cases.append(self.get(former))
        return cases[::-1]

    def begin(self, case_id: str) -> int:
        """Note that work on a running case begins; returns the number of this attempt, from 1."""
        statement = (
            update(CaseRow)
            .where(CaseRow.case_id == case_id, CaseRow.status == CaseStatus.RUNNING.value)
            .values(attempts=CaseRow.attempts + 1)
            .returning(CaseRow.attempts)
        )
        attempt = self.transactions.write(
            lambda session: session.execute(statement).scalar_one_or_none(), is_durable=False
        )
        if attempt is None:
            raise UnknownCase(f"no running case {case_id}")
        return attempt

    def release(self, case_id: str, attempt: int) -> None:
        """Take back an attempt that a clean stop cut short; the case stays running.

        A database that is away is not waited for: then the attempt counts.
        """
        self._update(case_id, attempt, is_patient=False, attempts=attempt - 1)

    def tell(self, case_id: str, attempt: int, events: Sequence[CaseEvent]) -> bool:
        """Add events; False, and nothing written, if the case ended or was begun again since."""
        return self._update(case_id, attempt, events, is_durable=False, attempts=attempt)

    def finish(self, case: Case, attempt: int, events: Sequence[CaseEvent] = ()) -> bool:
        """Write the final case and what it told last; durable on return.

        False, and nothing written, if another attempt began since.
        """
        return self._update(
            case.case_id,
            attempt,
            [*events, *closing_events(case)],
            status=case.status.value,
            document=case.model_dump_json(),
        )

    def cancel(self, case: Case) -> bool:
        """Write the cancelled case; False, and nothing written, if it had ended. Durable."""
        return self._update(
            case.case_id,
            None,
            closing_events(case),
            status=case.status.value,
            document=case.model_dump_json(),
        )

    def _update(
        self,
        case_id: str,
        attempt: int | None,
        events: Sequence[CaseEvent] = (),
        *,
        is_patient: bool = True,
        is_durable: bool = True,
        **values: str | int,
    ) -> bool:
        """Change a running case and add to its events, if this attempt (None: any) is at it.

        The update comes first: it takes the lock that numbering the events needs.
        """
        statement = (
            update(CaseRow)
            .where(CaseRow.case_id == case_id, CaseRow.status == CaseStatus.RUNNING.value)
            .values(**values)
            .returning(CaseRow.number)
        )
        if attempt is not None:
            statement = statement.where(CaseRow.attempts == attempt)
        new_events = NewEvents(case_id, events)

        def work(session: Session) -> bool:
            is_ours = session.execute(statement).scalar_one_or_none() is not None
            if new_events.were_added(session):
                return True
            if is_ours:
                new_events.add(session)
            return is_ours

        return self.transactions.write(work, is_patient=is_patient, is_durable=is_durable)

    def events_after(self, case_id: str, number: int, limit: int) -> list[StoredEvent]:
        """At most `limit` events of a case that come after one, in order."""
        statement = (
            select(EventRow.number, EventRow.name, EventRow.document)
            .where(EventRow.case_id == case_id, EventRow.number > number)
            .order_by(EventRow.number)
            .limit(limit)
        )
        return self.transactions.read(
            lambda session: [StoredEvent(*row) for row in session.execute(statement)]
        )

    def last_event(self, case_id: str) -> StoredEvent | None:
        """The latest event of a case; None if it has told nothing yet."""
        statement = (
            select(EventRow.number, EventRow.name, EventRow.document)
            .where(EventRow.case_id == case_id)
            .order_by(EventRow.number.desc())
            .limit(1)
        )
        row = self.transactions.read(lambda session: session.execute(statement).one_or_none())
        return None if row is None else StoredEvent(*row)

    def has_told_crop(self, case_id: str, crop: str) -> bool:
        """Whether an event of the case names this crop."""
        statement = (
            select(EventRow.row).where(EventRow.case_id == case_id, EventRow.crop == crop).limit(1)
        )
        return self.transactions.read(
            lambda session: session.execute(statement).scalar_one_or_none() is not None
        )

    def kept(self, key_sha256: str, asked_after_s: float) -> Kept | None:
        """What is known of a key; all that were used before `asked_after_s` are forgotten."""

        def work(session: Session) -> Kept | None:
            session.execute(delete(KeptRow).where(KeptRow.kept_at_s < asked_after_s))
            row = session.get(KeptRow, key_sha256)
            if row is None:
                return None
            answer = None if row.answer is None else msgspec.json.decode(row.answer, type=Answer)
            return Kept(row.fingerprint, row.case_id, answer)

        return self.transactions.write(work)

    def keep(self, request: Repeatable, answer: Answer) -> None:
        """Keep the answer to a request under its key."""
        self.transactions.write(lambda session: self.keep_in(session, request, answer))

    def keep_in(self, session: Session, request: Repeatable, answer: Answer) -> None:
        """Keep the answer to a request in the transaction of what it did."""
        self._keep(session, request, answer=msgspec.json.encode(answer))

    def _keep(self, session: Session, request: Repeatable, **values: str | bytes) -> None:
        statement = self.transactions.insert(
            KeptRow,
            key_sha256=request.key_sha256,
            fingerprint=request.fingerprint,
            kept_at_s=request.asked_at_s,
            **values,
        )
        session.execute(statement.on_conflict_do_update(index_elements=["key_sha256"], set_=values))

    def get(self, case_id: str) -> Case:
        """The case as last written. Raises `UnknownCase`."""
        statement = select(CaseRow.document).where(CaseRow.case_id == case_id)
        document = self.transactions.read(
            lambda session: session.execute(statement).scalar_one_or_none()
        )
        if document is None:
            raise UnknownCase(f"no case {case_id}")
        return Case.model_validate_json(document)

    def newest(self, limit: int, before: str | None = None) -> list[Case]:
        """At most `limit` cases, newest first, older than case `before`. Raises `UnknownCase`."""
        statement = select(CaseRow.document).order_by(CaseRow.number.desc()).limit(limit)

        def work(session: Session) -> Sequence[str]:
            if before is None:
                return session.execute(statement).scalars().all()
            number = session.execute(
                select(CaseRow.number).where(CaseRow.case_id == before)
            ).scalar_one_or_none()
            if number is None:
                raise UnknownCase(f"no case {before}")
            return session.execute(statement.where(CaseRow.number < number)).scalars().all()

        return [Case.model_validate_json(document) for document in self.transactions.read(work)]

    def unfinished(self) -> list[UnfinishedCase]:
        """The cases still running, oldest first: at start-up, those a former process left."""
        statement = (
            select(CaseRow.document, CaseRow.attempts)
            .where(CaseRow.status == CaseStatus.RUNNING.value)
            .order_by(CaseRow.number)
        )
        rows = self.transactions.read(lambda session: session.execute(statement).all())
        return [UnfinishedCase(Case.model_validate_json(d), attempts) for d, attempts in rows]


def _link(session: Session, case_id: str, follow_up: str) -> None:
    """Note in a case that another goes on from it.

    The update that changes nothing comes first: it takes the lock under which to read.
    """
    chosen = CaseRow.case_id == case_id
    lock = update(CaseRow).where(chosen).values(attempts=CaseRow.attempts)
    document = session.execute(lock.returning(CaseRow.document)).scalar_one_or_none()
    if document is None:
        raise UnknownCase(f"no case {case_id}")
    case = Case.model_validate_json(document)
    if follow_up not in case.follow_ups:
        linked = case.model_copy(update={"follow_ups": [*case.follow_ups, follow_up]})
        session.execute(update(CaseRow).where(chosen).values(document=linked.model_dump_json()))
