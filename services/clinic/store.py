"""The cases, in one SQLite file: written before work starts, finished exactly once.

Lifecycle of a row: `create` (running, no attempt) → `begin` (one attempt more) → `finish` (a
final status, only for the attempt that began last, so that a late writer changes nothing). A
clean stop gives its attempt back with `release`; a killed process cannot, and that is how the
next start knows that it was killed. `cancel` ends a case whatever attempt is at it. The file is
readable by its owner only, in WAL mode, synced on every commit.

Events of a case are numbered from 1, without gaps, in the order they are read. Only the attempt
that began last adds to them, and the last ones are written with the final status, in the same
transaction: a case is final exactly if its last event is `done`.

An answer is kept under its idempotency key's digest until it expires. The key is written with the
case it made, in the same transaction, so that a repetition finds the case even if no answer was
ever sent.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

from services.clinic.telling import closing_events
from shared.api.case_events import CaseEvent, ZoomEvent
from shared.api.clinic import Case, CaseStatus
from shared.errors import MedvrError

DATABASE_VERSION = 2
"""`PRAGMA user_version` of a file this code writes. Version 1 had only cases; it is brought up."""

_BUSY_TIMEOUT_MS = 5000


class CaseStoreError(MedvrError):
    """The database file cannot be used; the message says why."""


class UnknownCase(MedvrError):
    """There is no case of this id."""


class _Base(DeclarativeBase):
    pass


class _CaseRow(_Base):
    __tablename__ = "cases"
    __table_args__ = {"sqlite_autoincrement": True}

    number: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int]
    document: Mapped[str]


class _EventRow(_Base):
    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("case_id", "number"),)

    row: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str]
    number: Mapped[int]
    name: Mapped[str]
    document: Mapped[str]
    crop: Mapped[str | None]


class _KeptRow(_Base):
    __tablename__ = "kept_answers"

    key_sha256: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    kept_at_s: Mapped[float] = mapped_column(index=True)
    case_id: Mapped[str | None]
    answer: Mapped[bytes | None]


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


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _open_engine(path: Path) -> Engine:
    """An engine on a file that exists, is private and has this code's version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    # hide_parameters: an error message must not carry a question into the log.
    engine = create_engine(f"sqlite:///{path}", hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    try:
        with engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, 1, DATABASE_VERSION):
                raise CaseStoreError(
                    f"{path} is a database of version {version}; "
                    f"this clinic reads {DATABASE_VERSION}"
                )
            _Base.metadata.create_all(connection)
            if version == 1:
                _close_former_cases(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={DATABASE_VERSION}")
    except BaseException:
        engine.dispose()
        raise
    return engine


def _close_former_cases(connection: Connection) -> None:
    """Cases that ended before there were events get their last ones."""
    ended = select(_CaseRow.document).where(_CaseRow.status != CaseStatus.RUNNING.value)
    with Session(connection) as session:
        for document in session.execute(ended).scalars():
            case = Case.model_validate_json(document)
            _add_events(session, case.case_id, closing_events(case))
        session.flush()


def _add_events(session: Session, case_id: str, events: Sequence[CaseEvent]) -> None:
    """Number events and add them; the transaction must hold the write lock."""
    last = select(func.max(_EventRow.number)).where(_EventRow.case_id == case_id)
    first = (session.execute(last).scalar_one() or 0) + 1
    session.add_all(
        _EventRow(
            case_id=case_id,
            number=number,
            name=told.event,
            document=told.model_dump_json(),
            crop=told.crop if isinstance(told, ZoomEvent) else None,
        )
        for number, told in enumerate(events, start=first)
    )


class CaseStore:
    """Cases by id and newest first; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises `CaseStoreError` if it cannot be used."""
        try:
            self._engine = _open_engine(path)
        except OSError as error:
            raise CaseStoreError(f"{path} cannot be opened: {error.strerror}") from error
        except DatabaseError as error:
            raise CaseStoreError(f"{path} is no SQLite database: {error.orig}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def create(self, case: Case, request: Repeatable | None = None) -> None:
        """Store a new case, and the key of the request that made it; durable on return."""
        with Session(self._engine) as session, session.begin():
            session.add(
                _CaseRow(
                    case_id=case.case_id,
                    status=case.status.value,
                    attempts=0,
                    document=case.model_dump_json(),
                )
            )
            if request is not None:
                self._keep(session, request, case_id=case.case_id)

    def begin(self, case_id: str) -> int:
        """Note that work on a running case begins; returns the number of this attempt, from 1."""
        statement = (
            update(_CaseRow)
            .where(_CaseRow.case_id == case_id, _CaseRow.status == CaseStatus.RUNNING.value)
            .values(attempts=_CaseRow.attempts + 1)
            .returning(_CaseRow.attempts)
        )
        with Session(self._engine) as session, session.begin():
            attempt = session.execute(statement).scalar_one_or_none()
        if attempt is None:
            raise UnknownCase(f"no running case {case_id}")
        return attempt

    def release(self, case_id: str, attempt: int) -> None:
        """Take back an attempt that a clean stop cut short; the case stays running."""
        self._update(case_id, attempt, attempts=attempt - 1)

    def tell(self, case_id: str, attempt: int, events: Sequence[CaseEvent]) -> bool:
        """Add events; False, and nothing written, if the case ended or was begun again since."""
        return self._update(case_id, attempt, events, attempts=attempt)

    def finish(self, case: Case, attempt: int) -> bool:
        """Write the final case; False, and nothing written, if another attempt began since."""
        return self._update(
            case.case_id,
            attempt,
            closing_events(case),
            status=case.status.value,
            document=case.model_dump_json(),
        )

    def cancel(self, case: Case) -> bool:
        """Write the cancelled case; False, and nothing written, if it had ended."""
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
        **values: str | int,
    ) -> bool:
        """Change a running case and add to its events, if this attempt (None: any) is at it.

        The update comes first: it takes the write lock that numbering the events needs.
        """
        statement = (
            update(_CaseRow)
            .where(_CaseRow.case_id == case_id, _CaseRow.status == CaseStatus.RUNNING.value)
            .values(**values)
            .returning(_CaseRow.number)
        )
        if attempt is not None:
            statement = statement.where(_CaseRow.attempts == attempt)
        with Session(self._engine) as session, session.begin():
            if session.execute(statement).scalar_one_or_none() is None:
                return False
            if events:
                _add_events(session, case_id, events)
            return True

    def events_after(self, case_id: str, number: int, limit: int) -> list[StoredEvent]:
        """At most `limit` events of a case that come after one, in order."""
        statement = (
            select(_EventRow.number, _EventRow.name, _EventRow.document)
            .where(_EventRow.case_id == case_id, _EventRow.number > number)
            .order_by(_EventRow.number)
            .limit(limit)
        )
        with Session(self._engine) as session:
            return [StoredEvent(*row) for row in session.execute(statement)]

    def last_event(self, case_id: str) -> StoredEvent | None:
        """The latest event of a case; None if it has told nothing yet."""
        statement = (
            select(_EventRow.number, _EventRow.name, _EventRow.document)
            .where(_EventRow.case_id == case_id)
            .order_by(_EventRow.number.desc())
            .limit(1)
        )
        with Session(self._engine) as session:
            row = session.execute(statement).one_or_none()
        return None if row is None else StoredEvent(*row)

    def has_told_crop(self, case_id: str, crop: str) -> bool:
        """Whether an event of the case names this crop."""
        statement = (
            select(_EventRow.row)
            .where(_EventRow.case_id == case_id, _EventRow.crop == crop)
            .limit(1)
        )
        with Session(self._engine) as session:
            return session.execute(statement).scalar_one_or_none() is not None

    def kept(self, key_sha256: str, asked_after_s: float) -> Kept | None:
        """What is known of a key; all that were used before `asked_after_s` are forgotten."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(_KeptRow).where(_KeptRow.kept_at_s < asked_after_s))
            row = session.get(_KeptRow, key_sha256)
            if row is None:
                return None
            answer = None if row.answer is None else msgspec.json.decode(row.answer, type=Answer)
            return Kept(row.fingerprint, row.case_id, answer)

    def keep(self, request: Repeatable, answer: Answer) -> None:
        """Keep the answer to a request under its key."""
        with Session(self._engine) as session, session.begin():
            self._keep(session, request, answer=msgspec.json.encode(answer))

    def _keep(self, session: Session, request: Repeatable, **values: str | bytes) -> None:
        row = {
            "key_sha256": request.key_sha256,
            "fingerprint": request.fingerprint,
            "kept_at_s": request.asked_at_s,
            **values,
        }
        statement = insert(_KeptRow).values(row)
        session.execute(statement.on_conflict_do_update(["key_sha256"], set_=values))

    def get(self, case_id: str) -> Case:
        """The case as last written. Raises `UnknownCase`."""
        statement = select(_CaseRow.document).where(_CaseRow.case_id == case_id)
        with Session(self._engine) as session:
            document = session.execute(statement).scalar_one_or_none()
        if document is None:
            raise UnknownCase(f"no case {case_id}")
        return Case.model_validate_json(document)

    def newest(self, limit: int, before: str | None = None) -> list[Case]:
        """At most `limit` cases, newest first, older than case `before`. Raises `UnknownCase`."""
        statement = select(_CaseRow.document).order_by(_CaseRow.number.desc()).limit(limit)
        with Session(self._engine) as session:
            if before is not None:
                number = session.execute(
                    select(_CaseRow.number).where(_CaseRow.case_id == before)
                ).scalar_one_or_none()
                if number is None:
                    raise UnknownCase(f"no case {before}")
                statement = statement.where(_CaseRow.number < number)
            documents: Sequence[str] = session.execute(statement).scalars().all()
        return [Case.model_validate_json(document) for document in documents]

    def unfinished(self) -> list[UnfinishedCase]:
        """The cases still running, oldest first: at start-up, those a former process left."""
        statement = (
            select(_CaseRow.document, _CaseRow.attempts)
            .where(_CaseRow.status == CaseStatus.RUNNING.value)
            .order_by(_CaseRow.number)
        )
        with Session(self._engine) as session:
            rows = session.execute(statement).all()
        return [UnfinishedCase(Case.model_validate_json(d), attempts) for d, attempts in rows]
