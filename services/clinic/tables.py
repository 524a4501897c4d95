"""The clinic's SQLite file: its tables, how it is opened, and how an older one is brought up.

A file of version 1 has only the table of cases, unchanged since. Opening it adds the other tables
and gives each case that ended its last events, in one transaction with the new version number.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import (
    Connection,
    Engine,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
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


class Base(DeclarativeBase):
    """The tables of the file."""


class CaseRow(Base):
    """A case as last written."""

    __tablename__ = "cases"
    __table_args__ = {"sqlite_autoincrement": True}

    number: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int]
    document: Mapped[str]


class EventRow(Base):
    """An event of a case."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("case_id", "number"),)

    row: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str]
    number: Mapped[int]
    name: Mapped[str]
    document: Mapped[str]
    crop: Mapped[str | None]


class KeptRow(Base):
    """An idempotency key, and the answer or the case it led to."""

    __tablename__ = "kept_answers"

    key_sha256: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    kept_at_s: Mapped[float] = mapped_column(index=True)
    case_id: Mapped[str | None]
    answer: Mapped[bytes | None]


class JobRow(Base):
    """A batch of questions."""

    __tablename__ = "jobs"
    __table_args__ = {"sqlite_autoincrement": True}

    number: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str]
    document: Mapped[str]


class JobItemRow(Base):
    """A question of a batch, and the case it became."""

    __tablename__ = "job_items"
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    row: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(index=True)
    number: Mapped[int]
    status: Mapped[str] = mapped_column(index=True)
    case_id: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    document: Mapped[str]


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def open_engine(path: Path) -> Engine:
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
            Base.metadata.create_all(connection)
            if version == 1:
                _close_former_cases(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={DATABASE_VERSION}")
    except BaseException:
        engine.dispose()
        raise
    return engine


def _close_former_cases(connection: Connection) -> None:
    """Cases that ended before there were events get their last ones."""
    ended = select(CaseRow.document).where(CaseRow.status != CaseStatus.RUNNING.value)
    with Session(connection) as session:
        for document in session.execute(ended).scalars():
            case = Case.model_validate_json(document)
            add_events(session, case.case_id, closing_events(case))
        session.flush()


def add_events(session: Session, case_id: str, events: Sequence[CaseEvent]) -> None:
    """Number events and add them; the transaction must hold the write lock."""
    last = select(func.max(EventRow.number)).where(EventRow.case_id == case_id)
    first = (session.execute(last).scalar_one() or 0) + 1
    session.add_all(
        EventRow(
            case_id=case_id,
            number=number,
            name=told.event,
            document=told.model_dump_json(),
            crop=told.crop if isinstance(told, ZoomEvent) else None,
        )
        for number, told in enumerate(events, start=first)
    )
