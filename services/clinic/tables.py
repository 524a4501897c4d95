"""The tables of the clinic's database, the same on SQLite and PostgreSQL.

The scripts in `migrations` make them; a change here needs a new one there (a test compares the
two). An SQLite file says by `PRAGMA user_version` how it is to be read: 1 and 2 are from before
there were scripts, `SCRIPTED_VERSION` means that Alembic's own table has the revision. A clinic
from before refuses a file that says so.
"""

from pathlib import Path

from sqlalchemy import Connection, Dialect, Engine, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from services.clinic.address import DatabaseAddress
from services.clinic.database import open_database
from services.clinic.migrating import UnusableDatabase

SCRIPTS = Path(__file__).parent / "migrations"
SCRIPTED_VERSION = 3
"""`PRAGMA user_version` of a file whose revision is in Alembic's table."""


class StoredText(TypeDecorator[str]):
    """Text without NUL, which PostgreSQL does not take.

    Ids have none and JSON escapes it, so only what a caller asks for can have one; as U+FFFD it
    names nothing that there is.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The text as it is stored and looked up."""
        return None if value is None else value.replace("\0", "\ufffd")


class Base(DeclarativeBase):
    """The tables of the database."""

    type_annotation_map = {str: StoredText()}


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


class FeedbackRow(Base):
    """What a reader said of a case; every change is a version of its own."""

    __tablename__ = "feedback"
    __table_args__ = (UniqueConstraint("case_id", "version"),)

    row: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(index=True)
    version: Mapped[int]
    document: Mapped[str]


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


def _mark_scripted(connection: Connection) -> None:
    """Say in an SQLite file that its revision is in Alembic's table from now on."""
    if connection.dialect.name != "sqlite":
        return
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version not in range(SCRIPTED_VERSION + 1):
        raise UnusableDatabase(
            f"it is of version {version}; this clinic reads up to {SCRIPTED_VERSION}"
        )
    connection.exec_driver_sql(f"PRAGMA user_version={SCRIPTED_VERSION}")


def open_tables(address: DatabaseAddress) -> Engine:
    """An engine on a database that has these tables. Raises `UnusableDatabase`."""
    return open_database(address, SCRIPTS, before=_mark_scripted)
