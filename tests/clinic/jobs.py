"""Jobs for the tests: forms, a worker process, waiting."""

import base64
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from tests.clinic.pictures import png

CSV_HEADER = "image,question,choices\n"


def scan(shade: int) -> bytes:
    """A picture like no other of another shade."""
    image = Image.new("L", (112, 112), shade)
    image.paste(255 - shade, (40, 40, 60, 60))
    return png(image.convert("RGB"))


def send(
    clinic: httpx.Client,
    images: Sequence[tuple[str, bytes]],
    questions: str | bytes | None = None,
    headers: Any = None,
    **form: Any,
) -> httpx.Response:
    files: list[tuple[str, Any]] = [("images", (name, data, "image/png")) for name, data in images]
    if questions is not None:
        content = questions.encode() if isinstance(questions, str) else questions
        files.append(("questions", ("questions.csv", content, "text/csv")))
    return clinic.post("/v1/jobs", data={"k": "1"} | form, files=files, headers=headers)


def study(clinic: httpx.Client, num_images: int, headers: Any = None) -> dict[str, Any]:
    """A job that asks one question of each image."""
    images = [(f"scan{number}.png", scan(number)) for number in range(1, num_images + 1)]
    response = send(
        clinic, images, headers=headers, question="What is shown?", choices=["ring", "disc"]
    )
    assert response.status_code == 202, response.text
    return response.json()


def ended(clinic: httpx.Client, job: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
    """The job once it has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            read = clinic.get(job["url"]).json()
        except httpx.TransportError:
            read = job
        if read["status"] != "running":
            return read
        time.sleep(0.1)
    pytest.fail(f"the job stayed running: {read['counts']}")


def until(is_so: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def everything_in(queue: redis.Redis) -> bytes:
    """All keys and values that Redis holds, as they were written."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"list": lambda key: queue.lrange(key, 0, -1),
        b"hash": queue.hgetall,
        b"zset": lambda key: queue.zrange(key, 0, -1),
        b"set": queue.smembers,
        b"string": queue.get,
    }
    found = [(key, read[queue.type(key)](key)) for key in queue.scan_iter()]
    bodies = [
        base64.b64decode(body)
        for body in re.findall(rb'"body": "([A-Za-z0-9+/=]+)"', repr(found).encode())
    ]
    return repr((found, bodies)).encode()


class WorkerProcess:
    """`python -m services clinic-worker`."""

    def __init__(self, redis_url: str, clinic_url: str, port: int, log: Path) -> None:
        self.redis_url = redis_url
        self.log = log
        self._command = [
            *(sys.executable, "-m", "services", "clinic-worker"),
            *("--redis-url", redis_url, "--clinic-url", clinic_url, "--probe-port", str(port)),
            *("--visibility-timeout-s", "2", "--log-level", "DEBUG"),
        ]
        self._port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, stdout=log)

    def metrics(self) -> str:
        """Empty as long as it does not answer."""
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/metrics", trust_env=False).text
        except httpx.TransportError:
            return ""

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(timeout=30)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
