"""Where the clinic keeps what it must not lose: an SQLite file, or a PostgreSQL database by URL.

`open_database` gives an engine whose database has the tables of this code: it brings it up by the
Alembic scripts of a folder, in one transaction under a lock, so that processes that open at once
take turns and one that is killed leaves what was there before. It knows nothing of cases: any
database of its own, with a folder of scripts of its own, is opened in the same way.

A commit is on the disk when it returns: SQLite is told so (`synchronous=FULL`), of PostgreSQL it is
the default (`synchronous_commit`). No message shows a password or what was being written.
"""

import os
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from services.clinic.address import DatabaseAddress
from services.clinic.migrating import UnusableDatabase, upgrade

_BUSY_TIMEOUT_MS = 30_000
"""How long SQLite waits for another writer; each holds the file for milliseconds."""
_CONNECT = {
    "client_encoding": "utf8",
    "connect_timeout": 5,  # seconds
    "tcp_user_timeout": 20_000,  # milliseconds: a server that vanished is noticed
    "application_name": "medvr clinic",
}
_MIGRATION_LOCK = 0x6D656476  # an advisory lock of PostgreSQL: any number, always the same


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _engine_of(address: DatabaseAddress) -> Engine:
    """An engine that has not connected yet; of a file that exists and is private."""
    # hide_parameters: an error message must not carry a question into the log.
    path = address.path
    if path is None:
        return create_engine(
            address.url(),
            hide_parameters=True,
            pool_pre_ping=True,  # a connection that broke while it was idle is made anew
            isolation_level="READ COMMITTED",
            connect_args=_CONNECT,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_engine(address.url(), hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    return engine


def _lock(connection: Connection) -> None:
    """Until this transaction ends, no other process brings the database up."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise UnusableDatabase(f"its encoding is {encoding}; it must be UTF8")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def _reason(error: DBAPIError) -> str:
    """Why a database cannot be used, in the driver's words, on one line."""
    words = " ".join(str(error.orig).split())
    is_foreign = isinstance(error, DatabaseError) and not isinstance(error, OperationalError)
    if is_foreign and type(error.orig).__module__ == "sqlite3":
        return f"is no SQLite database: {words}"
    return f"cannot be used: {words}"


def must_exist(address: DatabaseAddress) -> None:
    """For who only reads: a file that is not there is not made. Raises `UnusableDatabase`."""
    if address.path is not None and not address.path.is_file():
        raise UnusableDatabase(f"there is no database {address}")


def open_database(
    address: DatabaseAddress,
    scripts: Path,
    before: Callable[[Connection], None] | None = None,
) -> Engine:
    """An engine on a database that is at the newest revision of a folder of Alembic scripts.

    `before` runs in the same transaction ahead of the scripts: for what is older than they are.
    Raises `UnusableDatabase`, also for one of a revision that the folder does not have.
    """
    try:
        engine = _engine_of(address)
    except OSError as error:
        raise UnusableDatabase(f"{address} cannot be opened: {error.strerror}") from error
    try:
        with engine.begin() as connection:
            _lock(connection)
            if before is not None:
                before(connection)
            upgrade(connection, scripts)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, DBAPIError):
            raise UnusableDatabase(f"{address} {_reason(error)}") from error
        if isinstance(error, UnusableDatabase):
            raise UnusableDatabase(f"{address} cannot be used: {error}") from error
        raise
    return engine
