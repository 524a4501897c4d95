"""Transactions that outlive a PostgreSQL server's restart.

A transaction whose connection breaks is run again, for some seconds. Whether a commit that broke
was done is not known, so the work given to `run` must be safe to do twice; it can remember in a
variable of its own what its first try saw. After that `DatabaseAway` says that asking again later
helps: a request is answered 503, a case waits as it does for any neighbour.

A file does not go away: on SQLite nothing is tried twice.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from shared.errors import BoundaryError

T = TypeVar("T")
Insert = sqlite.Insert | postgresql.Insert

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
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

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def run(self, work: Callable[[Session], T], *, is_patient: bool = True) -> T:
        """What the work returned; committed on return. Raises `DatabaseAway`."""
        pauses_s = iter(self._pauses_s if is_patient else ())
        while True:
            try:
                with Session(self._engine) as session, session.begin():
                    return work(session)
            except DBAPIError as error:
                if not self._has_gone(error):
                    raise
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    message = "the database does not answer"
                    raise DatabaseAway(message, is_transient=True) from error
            time.sleep(pause_s)

    def _has_gone(self, error: DBAPIError) -> bool:
        """Whether it is the server's state, not the statement, that made this fail."""
        is_state = error.connection_invalidated or isinstance(error, OperationalError)
        return self._is_server and is_state

    def insert(self, table: type[DeclarativeBase], **values: Any) -> Insert:
        """An insert that has the database's own `ON CONFLICT`."""
        dialect = postgresql if self._is_server else sqlite
        return dialect.insert(table).values(**values)
