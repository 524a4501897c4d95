"""Services as processes: started as users start them, on loopback, ended by the test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120


@dataclass
class Process:
    """A running service and what it printed."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def stop(self) -> list[dict[str, object]]:
        """SIGTERM; returns the log once it ended by that and left no child behind."""
        children = children_of(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) in (0, -signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline, "a child outlived the service"
            time.sleep(0.05)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def environment(**variables: str) -> dict[str, str]:
    """That of this process without settings of services, and with these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDVR_")}
    return kept | variables


@contextlib.contextmanager
def running(name: str, port: int, folder: Path, *flags: str) -> Iterator[Process]:
    """`python -m services NAME --port …`, ready; killed at the end if it still runs."""
    log, url = folder / f"{name}.log", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "services", name, "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, cwd=ROOT, env=environment())
    try:
        wait_until_alive(url, process)
        yield Process(url, process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until_alive(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Until /health answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended while starting"
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} is not alive after {START_TIMEOUT_S} s")


def ended(
    *arguments: str, cwd: Path = ROOT, timeout_s: float = 200, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """`python -m services …` once it has ended by itself."""
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
