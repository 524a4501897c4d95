"""The whole system under a real supervisor, training a tiny policy on a handful of phantoms.

The command lines are those of the embedded stack; what a short run wants otherwise is in
`PATIENT` (flags beat it, so nothing there contradicts a command line).
"""

import dataclasses
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
from rich.console import Console

from services.local.demo_settings import Arm, DemoPlan, RolloutPlan, TrainerPlan
from services.local.ports import free_ports
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.settings import TINY
from services.local.spec import ProcessSpec
from services.local.stack import Stack, initial_state, running_stack
from services.local.state import StackFolder
from shared.problem import Problem, read_problems
from shared.stream import RunStream
from shared.weights import TRAIN_CHANNEL

PATIENT = {
    "MEDVR_ROLLOUT_MAX_ATTEMPTS": "1000",
    "MEDVR_ROLLOUT_LONGEST_BACKOFF_S": "2",
    "MEDVR_CLINIC_PATIENCE_S": "3000",
    "MEDVR_CLINIC_CASE_TIMEOUT_S": "3600",
    "MEDVR_ZOOM_DECODE_TIMEOUT_S": "300",
}
"""On a busy machine a policy server may take minutes to start, and a decoder half a minute."""

ARM = Arm.MEDVR
NUM_PROBLEMS = 24
_SET = "brain-train"


def short_plan(*, max_steps: int, seed: int) -> DemoPlan:
    """Four trajectories a group, two groups a step: a step in a few seconds."""
    return DemoPlan(
        seed=seed,
        num_train_problems=NUM_PROBLEMS,
        num_test_problems=1,
        rollout=RolloutPlan(
            group_size=4,
            max_turns=3,
            max_turn_tokens=96,
            concurrency=3,
            group_timeout_s=100.0,
            visibility_timeout_s=15.0,
        ),
        trainer=TrainerPlan(
            max_steps=max_steps, groups_per_step=2, max_outstanding=6, warmup_steps=1
        ),
    )


@dataclass(frozen=True)
class System:
    """A running stack and what a test wants to know of it."""

    stack: Stack
    lines: CommandLines
    plan: DemoPlan
    problems: list[Problem]
    redis: redis.Redis
    run: str = "chaos"
    """Name of the training run."""

    @property
    def stream(self) -> RunStream:
        """The run's state."""
        return RunStream(self.redis, self.run)

    @property
    def run_folder(self) -> Path:
        """Checkpoints and steps.jsonl."""
        return self.lines.paths.runs / self.run

    @property
    def versions_folder(self) -> Path:
        """Published versions."""
        return self.lines.paths.weights / self.run

    @property
    def problem_set(self) -> Path:
        """The phantoms of the run."""
        return self.lines.paths.root / "problems" / _SET

    def steps(self) -> list[dict[str, Any]]:
        """Steps on record."""
        path = self.run_folder / "steps.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def num_steps(self) -> int:
        """How many there are."""
        return len(self.steps())

    def image_of(self, problem: Problem) -> bytes:
        """The PNG of a problem's image."""
        return httpx.get(
            f"{self.lines.zoom_url}/v1/images/{problem.image}", timeout=30, trust_env=False
        ).content

    def training(self) -> tuple[ProcessSpec, ...]:
        """Trainer, feeder and worker."""
        worker = self.lines.rollout(self.plan, ARM)
        specs = (
            self.lines.trainer(self.plan, ARM, TINY / "base"),
            self.lines.feeder(self.plan, ARM, self.problem_set),
            dataclasses.replace(worker, environment=PATIENT),
        )
        return tuple(with_flags(spec, run=self.run) for spec in specs)


def with_flags(spec: ProcessSpec, **flags: object) -> ProcessSpec:
    """The same process with other values for flags that it is given."""
    command = list(spec.command)
    for name, value in flags.items():
        command[command.index(f"--{name.replace('_', '-')}") + 1] = str(value)
    return dataclasses.replace(spec, command=tuple(command))


def metric(port: int | None, sample: str) -> float | None:
    """Sum of the samples of a process's /metrics that begin so; None if it does not answer."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2, trust_env=False).text
    except httpx.TransportError:
        return None
    pattern = re.compile(rf"^{re.escape(sample)}.* (\S+)$", re.MULTILINE)
    return sum(float(value) for value in pattern.findall(text))


@contextmanager
def running_system(folder: Path, plan: DemoPlan, console: Console) -> Generator[System]:
    """All services up and the problems made; training not started. Nothing is left behind."""
    lines = CommandLines(StackPaths(folder.resolve()), StackPorts.find(free_ports(1)[0]))
    with running_stack(StackFolder(folder), initial_state("up", lines), console) as stack:
        zoom = dataclasses.replace(lines.zoom(), environment=PATIENT)
        policy = lines.policy(
            TINY / "base", channel=TRAIN_CHANNEL, max_num_seqs=32, threads=plan.policy_threads
        )
        others = (policy, lines.cca(), dataclasses.replace(lines.clinic(), environment=PATIENT))
        stack.start(lines.valkey("always"))
        stack.launch(*others)
        stack.start(zoom)
        problems_folder = lines.paths.root / "problems"
        stack.run_job(lines.phantoms([_SET], problems_folder, num_train=NUM_PROBLEMS, num_test=1))
        stack.wait_for(*others)
        # Its own patience would hide from the watcher how long Redis was away.
        with redis.Redis.from_url(lines.redis_url, socket_timeout=5) as client:
            yield System(
                stack,
                lines,
                plan,
                read_problems(problems_folder / _SET),
                client,
            )
