"""The clinic with its real neighbours on loopback; the policy follows a script unless said so."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.clinic.address import DatabaseAddress
from services.clinic.app import create_app
from services.clinic.settings import ClinicSettings
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.blobs import BlobStore
from tests.clinic.postgres import Postgres, empty_tables, running_postgres
from tests.clinic.scripted_policy import ScriptedPolicy, scripted_app

START_S = 20.0


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """An app on a loopback port, in a thread of its own; yields its URL."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="served", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive(), "the server stopped while it started"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=START_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@dataclass(frozen=True)
class Surroundings:
    """What a clinic needs around it."""

    blob_url: str
    zoom_url: str
    cca_url: str
    policy: ScriptedPolicy

    def settings(self, database: object, **changes: object) -> ClinicSettings:
        """Settings of a clinic in these surroundings."""
        values: dict[str, object] = {
            "blob_url": self.blob_url,
            "zoom_url": self.zoom_url,
            "cca_url": self.cca_url,
            "policy_url": self.policy.url,
            "database": database,
            "max_upload_bytes": 8 * 2**20,
            "patience_s": 0,
        }
        if DatabaseAddress.of(database).path is None:
            values["pseudonym_database"] = f"{self.blob_url}-pseudonyms.sqlite"
        return ClinicSettings.model_validate(values | changes)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL server of the session."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseAddress:
    """A database without tables, of either kind."""
    if request.param == "sqlite":
        return DatabaseAddress(str(tmp_path / "sub" / "clinic.sqlite"))
    return DatabaseAddress(request.getfixturevalue("postgres").new_database())


@pytest.fixture(scope="session")
def _postgres_with_tables(postgres: Postgres) -> DatabaseAddress:
    return DatabaseAddress(postgres.new_database())


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseAddress:
    """A database without cases, of either kind; opening it is quick."""
    if request.param == "sqlite":
        return DatabaseAddress(str(tmp_path / "sub" / "clinic.sqlite"))
    address: DatabaseAddress = request.getfixturevalue("_postgres_with_tables")
    empty_tables(address)
    return address


@pytest.fixture(scope="session")
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    blob_url = str(tmp_path_factory.mktemp("blobs"))
    policy = ScriptedPolicy(BlobStore(blob_url))
    with ExitStack() as stack:
        policy.url = stack.enter_context(served(scripted_app(policy)))
        zoom_url = stack.enter_context(served(create_zoom(ZoomSettings(blob_url=blob_url))))
        cca_url = stack.enter_context(served(create_cca(CcaSettings())))
        yield Surroundings(blob_url, zoom_url, cca_url, policy)
        policy.release.set()


@pytest.fixture
def surroundings(_surroundings: Surroundings) -> Surroundings:
    """Real zoom and cca, and a policy without a script."""
    _surroundings.policy.rehearse()
    return _surroundings


@pytest.fixture
def policy(surroundings: Surroundings) -> ScriptedPolicy:
    """The scripted policy."""
    return surroundings.policy


@pytest.fixture
def start_clinic(
    surroundings: Surroundings, tmp_path: Path
) -> Iterator[Callable[..., httpx.Client]]:
    """Starts a clinic with changed settings; returns a client of it."""
    with ExitStack() as stack:

        def start(**changes: object) -> httpx.Client:
            settings = surroundings.settings(**{"database": tmp_path / "clinic.sqlite"} | changes)
            url = stack.enter_context(served(create_app(settings)))
            return stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))

        yield start


@pytest.fixture
def clinic(start_clinic: Callable[..., httpx.Client]) -> httpx.Client:
    """A client of a running clinic."""
    return start_clinic()
