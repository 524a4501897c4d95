"""The cases, in one SQLite file: written before work starts, finished exactly once.

Lifecycle of a row: `create` (running, no attempt) → `begin` (one attempt more) → `finish` (a
final status, only for the attempt that began last, so that a late writer changes nothing). A
clean stop gives its attempt back with `release`; a killed process cannot, and that is how the
next start knows that it was killed. The file is readable by its owner only, in WAL mode, synced
on every commit.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from sqlalchemy import Engine, create_engine, event, select, update
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

from shared.api.clinic import Case, CaseStatus
from shared.errors import MedvrError

DATABASE_VERSION = 1
"""`PRAGMA user_version` of a file this code reads and writes."""

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
            if version not in (0, DATABASE_VERSION):
                raise CaseStoreError(
                    f"{path} is a database of version {version}; "
                    f"this clinic reads {DATABASE_VERSION}"
                )
            _Base.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={DATABASE_VERSION}")
    except BaseException:
        engine.dispose()
        raise
    return engine


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

    def create(self, case: Case) -> None:
        """Store a new case; durable on return."""
        with Session(self._engine) as session, session.begin():
            session.add(
                _CaseRow(
                    case_id=case.case_id,
                    status=case.status.value,
                    attempts=0,
                    document=case.model_dump_json(),
                )
            )

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

    def finish(self, case: Case, attempt: int) -> bool:
        """Write the final case; False, and nothing written, if another attempt began since."""
        return self._update(
            case.case_id, attempt, status=case.status.value, document=case.model_dump_json()
        )

    def _update(self, case_id: str, attempt: int, **values: str | int) -> bool:
        statement = (
            update(_CaseRow)
            .where(
                _CaseRow.case_id == case_id,
                _CaseRow.status == CaseStatus.RUNNING.value,
                _CaseRow.attempts == attempt,
            )
            .values(**values)
            .returning(_CaseRow.number)
        )
        with Session(self._engine) as session, session.begin():
            return session.execute(statement).scalar_one_or_none() is not None

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
