"""Transactions that outlive a PostgreSQL server's restart, and that sync no more than they must.

A transaction whose connection breaks is run again, for some seconds. Whether a commit that broke
was done is not known, so the work given must be safe to do twice; it can remember in a variable of
its own what its first try saw. After that `DatabaseAway` says that asking again later helps: a
request is answered 503, a case waits as it does for any neighbour. A file does not go away: on
SQLite nothing is tried twice.

`write` is on the disk when it returns. With `is_durable=False` it is not yet: what it wrote
outlives the end of this process, but the machine's (or PostgreSQL's own) may take it back, with all
that came after it and before the next durable one. That saves the sync, most of a write's time.

SQLite lets one writer in, and one that waits looks again only now and then: so writers of this
process queue before the file.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import DeclarativeBase, Session

from shared.errors import BoundaryError

T = TypeVar("T")
Insert = sqlite.Insert | postgresql.Insert

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Between the tries of a transaction."""


class DatabaseAway(BoundaryError):
    """The database server does not answer."""

    service = "clinic"


class Transactions:
    """Runs work in transactions on a database; safe to use from several threads."""

    def __init__(self, engine: Engine, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._engine = engine
        self._is_server = engine.dialect.name == "postgresql"
        self._pauses_s = pauses_s if self._is_server else ()
        self._turn = nullcontext() if self._is_server else threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Session], T], *, is_patient: bool = True) -> T:
        """What the work returned. Raises `DatabaseAway`."""
        return self._tried(lambda: self._read(work), is_patient)

    def write(
        self, work: Callable[[Session], T], *, is_patient: bool = True, is_durable: bool = True
    ) -> T:
        """What the work returned; committed on return. Raises `DatabaseAway`."""
        return self._tried(lambda: self._written(work, is_durable), is_patient)

    def _read(self, work: Callable[[Session], T]) -> T:
        with Session(self._engine) as session:
            return work(session)

    def _written(self, work: Callable[[Session], T], is_durable: bool) -> T:
        with self._turn, Session(self._engine) as session, session.begin():
            if not self._is_server:  # before the transaction has begun in the file
                level = "FULL" if is_durable else "NORMAL"
                session.connection().exec_driver_sql(f"PRAGMA synchronous={level}")
            elif not is_durable:
                session.connection().exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
            return work(session)

    def _tried(self, transaction: Callable[[], T], is_patient: bool) -> T:
        pauses_s = iter(self._pauses_s if is_patient else ())
        while True:
            try:
                return transaction()
            except (DBAPIError, NoConnection) as error:
                if not self._has_gone(error):
                    raise
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    message = "the database does not answer"
                    raise DatabaseAway(message, is_transient=True) from error
            time.sleep(pause_s)

    def _has_gone(self, error: DBAPIError | NoConnection) -> bool:
        """Whether it is the server's state, not the statement, that made this fail.

        While a server hangs, those that wait for it hold all connections of the pool.
        """
        if isinstance(error, NoConnection):
            return self._is_server
        is_state = error.connection_invalidated or isinstance(error, OperationalError)
        return self._is_server and is_state

    def insert(self, table: type[DeclarativeBase], **values: Any) -> Insert:
        """An insert that has the database's own `ON CONFLICT`."""
        dialect = postgresql if self._is_server else sqlite
        return dialect.insert(table).values(**values)
