"""The same stage on loopback, for workers and feeders that are processes of their own."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redis
import uvicorn
from fastapi import FastAPI

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.rollout.task import RolloutTask, queue_of, send_task
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.blobs import BlobStore
from shared.problem import Problem, ProblemSetManifest, write_problem_set
from shared.stream import RunStream
from shared.trajectory import TrajectoryGroup, decode_group, make_group_id
from tests.rollout.scripted_policy import ScriptedPolicy, scripted_app
from tests.rollout.stage import make_problem, store_image

RUN = "run"
NUM_PROBLEMS = 3


def until(condition: Callable[[], object], timeout_s: float = 200.0) -> None:
    """Wait for something to come true."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        time.sleep(0.02)


@contextlib.contextmanager
def served(app: FastAPI, port: int) -> Iterator[str]:
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Company:
    """Everything a rollout process needs, and the processes started."""

    script: ScriptedPolicy
    problems: list[Problem]
    problem_set: Path
    stream: RunStream
    redis_url: str
    urls: dict[str, str]
    free_port: Callable[[], int]
    gate: threading.Event
    """Turns wait while it is cleared."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log: Path = Path()

    def start(self, service: str, **flags: object) -> "Process":
        """Start a process of the system; `flags` are its settings."""
        port = self.free_port()
        settings: dict[str, object] = {
            "run": RUN,
            "redis_url": self.redis_url,
            "probe_port": port,
            **(self.urls if service == "rollout" else {"problem_set": self.problem_set}),
            **flags,
        }
        arguments = [
            text
            for name, value in settings.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "services", service, *arguments], stderr=log, stdout=log
            )
        self.processes.append(process)
        return Process(process, f"http://127.0.0.1:{port}")

    def start_worker(self, **flags: object) -> "Process":
        settings: dict[str, object] = {
            "group_size": 4,
            "max_turns": 3,
            "max_turn_tokens": 200,
            "first_backoff_s": 0.05,
        }
        return self.start("rollout", **{**settings, **flags})

    def task(self, number: int = 0, run: str = RUN) -> RolloutTask:
        problem = self.problems[number]
        return RolloutTask(
            group_id=make_group_id(run, 0, problem.problem_id),
            run=run,
            round=0,
            position=number,
            problem=problem,
        )

    def send(self, *payloads: str) -> None:
        """Queue payloads that no feeder would."""
        with queue_of(RUN).celery(self.redis_url) as app:
            for payload in payloads:
                app.send_task("medvr.rollout", args=[payload])

    def feed(self, *numbers: int) -> list[str]:
        """Queue problems and mark them as fed; their group ids."""
        tasks = [self.task(number) for number in numbers]
        with queue_of(RUN).celery(self.redis_url) as app:
            for task in tasks:
                send_task(app, task)
        for task in tasks:
            self.stream.mark_fed(task.group_id, task.position)
        return [task.group_id for task in tasks]

    def groups(self, count: int, timeout_s: float = 200.0) -> list[TrajectoryGroup]:
        """Wait until so many groups are on the stream; all that are there."""
        until(lambda: self.stream.length() >= count, timeout_s)
        return [decode_group(entry.payload) for entry in self.stream.read_new(100, 10)]

    def letters(self) -> dict[str, str]:
        """Reasons in the dead-letter stream by group id."""
        rows = self.stream.client.xrange(self.stream.dead_key)
        return {f[b"group_id"].decode(): f[b"reason"].decode() for _, f in rows}


@dataclass
class Process:
    """A started process and its probes."""

    popen: subprocess.Popen[bytes]
    url: str

    def wait_ready(self) -> None:
        until(lambda: self.probe("/ready") == 200)

    def probe(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def metric(self, line_start: str) -> float:
        """Value of the first sample whose line begins so; 0 if there is none."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith(line_start)]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    def stop(self, number: int) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout=120)


@contextlib.contextmanager
def gather_company(folder: Path, redis_url: str, free_port: Callable[[], int]) -> Iterator[Company]:
    blobs = BlobStore(str(folder / "blobs"))
    image = store_image(blobs)
    problems = [make_problem(image, number) for number in range(NUM_PROBLEMS)]
    manifest = ProblemSetManifest(name="s", num_problems=len(problems), seed=0, source="test")
    write_problem_set(folder / "set", manifest, problems)
    script = ScriptedPolicy(blobs)
    gate = threading.Event()
    gate.set()

    async def wait_at_the_gate(_: int) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.01)

    script.before_turn = wait_at_the_gate
    zoom = create_zoom(ZoomSettings(blob_url=str(folder / "blobs")))
    with (
        served(scripted_app(script), free_port()) as policy_url,
        served(zoom, free_port()) as zoom_url,
        served(create_cca(CcaSettings()), free_port()) as cca_url,
        redis.Redis.from_url(redis_url) as client,
    ):
        company = Company(
            script=script,
            problems=problems,
            problem_set=folder / "set",
            stream=RunStream(client, RUN),
            redis_url=redis_url,
            urls={"policy_url": policy_url, "zoom_url": zoom_url, "cca_url": cca_url},
            free_port=free_port,
            gate=gate,
            log=folder / "processes.log",
        )
        try:
            yield company
        finally:
            gate.set()
            for process in company.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            sys.stderr.write(company.log.read_text() if company.log.exists() else "")
