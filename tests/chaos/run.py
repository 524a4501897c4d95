"""One disturbed training run: blows fall by the schedule until the run has come to its end."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import redis
from rich.console import Console

from services.local.channel import describe_policy
from services.local.ready import is_ready, log_tail
from services.local.spec import Probe
from services.local.supervisor import ChildState
from shared.stream import RunState
from tests.chaos.audit import audit_cases, audit_fates, audit_versions
from tests.chaos.inquiry import Inquiry
from tests.chaos.recovery import RecoveryRow, RecoveryWatch, table_of
from tests.chaos.schedule import Blow, Target, schedule
from tests.chaos.system import System, metric, running_system, short_plan
from tests.chaos.witness import Witness

_LOOK_S = 0.2
_LONGEST_ASK_S = 1.5
"""A case is asked up to so long before the clinic is killed."""


class ChaosReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a disturbed run came to."""

    seed: int
    seconds: float
    """From the start of the training to its end, all processes recovered."""
    steps: int
    fates: dict[str, int]
    longest_pause_s: float
    """Between two finished steps."""
    recoveries: list[RecoveryRow]


@dataclass(frozen=True)
class ChaosSettings:
    """How a run is disturbed."""

    seed: int = 0
    rounds: int = 2
    """Kills of every process."""
    max_steps: int = 12
    mean_pause_s: float = 4.0
    patience_s: float = 1500.0
    """A run that takes longer has hung."""


@dataclass
class Chaos:
    """The loop: look, strike if it is time, until everything has healed and the run is over."""

    system: System
    settings: ChaosSettings
    blows: list[Blow]
    inquiries: list[Inquiry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"moments:{self.settings.seed}")
        self._watch = RecoveryWatch(self._is_ready, self._work)
        self._restarts_before: dict[Target, int] = {}
        self._witness = Witness(self.system)
        self._image = self.system.image_of(self.system.problems[0])
        self._due_at = 0.0
        self._falling: Blow | None = None
        """The clinic's blow, between the question and the kill."""

    def run(self) -> ChaosReport:
        """Train to the end under blows."""
        self.system.stack.start(*self.system.training())
        started = time.monotonic()
        self._due_at = started + self.blows[0].pause_s
        while not self._is_over():
            assert time.monotonic() - started < self.settings.patience_s, self._state()
            self._watch.look()
            self._witness.look()
            self._strike_if_due(time.monotonic() - started)
            time.sleep(_LOOK_S)
        return self._report(time.monotonic() - started)

    def audit(self) -> None:
        """What must hold now."""
        audit_fates(self.system)
        audit_versions(self.system, self._witness)
        audit_cases(self.inquiries)

    # -- blows --------------------------------------------------------------------------------

    def _strike_if_due(self, at_s: float) -> None:
        step = self.system.num_steps()
        now = time.monotonic()
        if self._falling is not None:
            if now >= self._due_at:
                self._strike(self._falling, at_s, step)
            return
        blow = next((b for b in self.blows if not self._watch.is_recovering(b.target)), None)
        if blow is None or (now < self._due_at and step < blow.latest_step):
            return
        self.blows.remove(blow)
        if blow.target is Target.CLINIC:
            self._ask()
            self._falling = blow
            self._due_at = now + self._rng.uniform(0.0, _LONGEST_ASK_S)
            return
        self._strike(blow, at_s, step)

    def _strike(self, blow: Blow, at_s: float, step: int) -> None:
        if blow.target is Target.EMPTIED:
            try:
                self.system.redis.flushall()
            except redis.RedisError:  # Valkey is down at this moment: a little later
                self._falling, self._due_at = blow, time.monotonic() + _LOOK_S
                return
        else:
            child = self.system.stack.supervisor.child(blow.target.value)
            self._restarts_before[blow.target] = child.num_restarts
            os.kill(child.pid, signal.SIGKILL)
        # A clinic works again once the case asked before the blow has come to its end.
        baseline = len(self.inquiries) - 1 if blow.target is Target.CLINIC else None
        self._watch.begin(blow.target, at_s, step, baseline)
        self._falling = None
        if self.blows:
            self._due_at = time.monotonic() + self.blows[0].pause_s

    def _ask(self) -> None:
        inquiry = Inquiry(self.system.lines.clinic_url, self._image, len(self.inquiries))
        self.inquiries.append(inquiry)
        inquiry.start()

    # -- healing ------------------------------------------------------------------------------

    def _is_ready(self, target: Target) -> bool:
        if target is Target.EMPTIED:
            return self._run_state() is not None
        child = self.system.stack.supervisor.child(target.value)
        if child.state is ChildState.FINISHED:
            return True
        if child.num_restarts == self._restarts_before[target]:
            return False
        probe = Probe.VALKEY if target is Target.VALKEY else Probe.HTTP
        return child.state is ChildState.RUNNING and is_ready(probe, child.port)

    def _work(self, target: Target) -> float | None:
        system = self.system
        port = system.stack.supervisor.child(target.value).port if target in _SAMPLES else None
        try:
            match target:
                case Target.TRAINER:
                    return system.num_steps()
                case Target.CLINIC:
                    return sum(inquiry.case is not None for inquiry in self.inquiries)
                case Target.FEEDER:
                    return system.stream.cursor()
                case Target.VALKEY | Target.EMPTIED:
                    return len(system.stream.fates())
                case _:
                    return metric(port, _SAMPLES[target])
        except redis.RedisError:
            return None

    def _run_state(self) -> RunState | None:
        try:
            return self.system.stream.state()
        except redis.RedisError:
            return None

    # -- the end ------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if self.blows or self._falling is not None or self._watch.num_down():
            return False
        if self._run_state() is not RunState.FINISHED:
            return False
        if any(inquiry.case is None for inquiry in self.inquiries):
            return False
        children = self.system.stack.supervisor
        if any(children.child(n).state is not ChildState.FINISHED for n in ("trainer", "feeder")):
            return False
        try:
            served = describe_policy(self.system.lines.policy_url)
        except httpx.HTTPError:
            return False
        return served.version == self.settings.max_steps

    def _report(self, seconds: float) -> ChaosReport:
        fates = Counter(self.system.stream.fates().values())
        times = [float(line["time"]) for line in self.system.steps()]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        return ChaosReport(
            seed=self.settings.seed,
            seconds=round(seconds, 1),
            steps=len(times),
            fates={fate.value: count for fate, count in sorted(fates.items())},
            longest_pause_s=round(max(pauses), 1),
            recoveries=self._watch.rows(),
        )

    def _state(self) -> str:
        """Why it is not over: for the message of a run that hangs."""
        lines = [f"step {self.system.num_steps()}, blows to come: {self.blows}"]
        lines += [str(row) for row in self._watch.rows()]
        for child in self.system.stack.supervisor.children():
            lines += [f"-- {child}", *log_tail(child.log, 8)]
        return "\n".join(lines)


_SAMPLES = {
    Target.ROLLOUT: 'medvr_rollout_groups_total{outcome="appended"}',
    Target.ZOOM: 'medvr_zoom_crops_total{outcome="re',
    Target.CCA: 'medvr_cca_requests_total{route="/v1/score",status="200"}',
    Target.POLICY: "medvr_policy_sampled_tokens_total",
}
"""Figures on /metrics that only the work of a process moves."""


def disturbed_run(folder: Path, settings: ChaosSettings, console: Console) -> ChaosReport:
    """A whole system in `folder`, a disturbed run in it; shows what came of it, then audits."""
    plan = short_plan(max_steps=settings.max_steps, seed=settings.seed)
    blows = schedule(
        settings.seed,
        rounds=settings.rounds,
        max_steps=settings.max_steps,
        mean_pause_s=settings.mean_pause_s,
    )
    with running_system(folder, plan, console) as system:
        chaos = Chaos(system, settings, blows)
        try:
            report = chaos.run()
            (folder / "recovery.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
            show(report, console)
            chaos.audit()
        finally:
            for inquiry in chaos.inquiries:
                inquiry.give_up()
    assert not Path(f"/dev/shm/medvr_policy_{system.lines.ports.policy}").exists()
    return report


def show(report: ChaosReport, console: Console) -> None:
    """The report for people."""
    fates = ", ".join(f"{count} {fate}" for fate, count in report.fates.items())
    console.print(
        f"seed {report.seed}: {report.steps} steps in {report.seconds:.0f} s, longest pause "
        f"between two {report.longest_pause_s:.0f} s; fates: {fates}",
        highlight=False,
    )
    console.print(table_of(report.recoveries, "Recoveries"))
