"""Where a database is: a setting that never shows its password.

Light to import, so that `--help` loads no SQLAlchemy.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import PlainSerializer, PlainValidator

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_SCHEMES = ("postgresql+psycopg", "postgresql")
_SECRETS = ("password", "sslpassword")


class DatabaseAddress:
    """A file's path or a PostgreSQL URL. Its text never shows the password; `url()` has it."""

    def __init__(self, text: str) -> None:
        """Raises `ValueError` with what is accepted."""
        self._text = text
        if "://" in text:
            self._check_url()
        elif not text:
            raise ValueError("must be a file's path or postgresql+psycopg://user@host/name")

    def _check_url(self) -> None:
        from sqlalchemy.exc import ArgumentError

        scheme = self._text.partition("://")[0]
        if scheme not in _SCHEMES:
            raise ValueError(
                "must be the path of an SQLite file, or a URL that starts with "
                "postgresql+psycopg://"
            )
        try:
            url = self.url()
        except (ArgumentError, ValueError):
            url = None  # what the parser says may quote a password
        if url is None or not url.database:
            raise ValueError("must have the form postgresql+psycopg://user:password@host:port/name")
        if any(name in url.query for name in _SECRETS):
            raise ValueError(
                "must have its password before the @ (or in PGPASSWORD or a passfile), "
                "not among its parameters"
            )

    @classmethod
    def of(cls, value: object) -> Self:
        """The address in a setting. Raises `ValueError` with what is accepted."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(str(value))
        raise ValueError("must be a path or a URL")

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        return None if "://" in self._text else Path(self._text)

    def url(self) -> "URL":
        """As SQLAlchemy connects with it, password included."""
        from sqlalchemy.engine import URL, make_url

        if "://" not in self._text:
            return URL.create("sqlite", database=self._text)
        return make_url(self._text).set(drivername=_SCHEMES[0])

    def __repr__(self) -> str:
        return str(self.path or self.url().render_as_string(hide_password=True))


Database = Annotated[DatabaseAddress, PlainValidator(DatabaseAddress.of), PlainSerializer(str)]
"""The address as a setting."""
