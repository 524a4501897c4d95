"""Two of policy (real vLLM), zoom, cca and rollout worker, and one trainer that feeds on both.

One system serves both tests' halves: a run on a single policy replica, which is what the second
half is measured against; then a replica that joins late; then a run on two, one of which is
killed before its end.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from services.local.channel import describe_policy, read_channel
from services.local.supervisor import ChildState
from shared.api.policy import GenerateRequest, TextSegment
from shared.stream import RunState
from shared.weights import TRAIN_CHANNEL
from tests.chaos.audit import audit_fates, audit_versions
from tests.chaos.doors import groups_of
from tests.chaos.system import System, metric, running_system, short_plan
from tests.chaos.twofold import PrefixTokens, Twofold, twofold
from tests.chaos.witness import Witness

MAX_STEPS = 6
KILL_AT_STEP = 4
PATIENCE_S = 900.0
SHARE_NOISE = 0.05
"""Which of two siblings is first to fill the cache is a matter of timing."""

TURN = GenerateRequest(segments=[TextSegment(text="Is it ready?")], max_tokens=1)


def until(look: Callable[[], object], system: System) -> None:
    """Wait for something to come true, however slow the machine."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        children = system.stack.supervisor.children()
        assert time.monotonic() < deadline, f"too slow: step {system.num_steps()}, {children}"
        time.sleep(0.2)


class Watching:
    """A witness of a run in a thread, while the test does something else."""

    def __init__(self, system: System) -> None:
        self.witness = Witness(system)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self.witness

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.witness.look()


def run_of(two: Twofold, run: str, at_step: Callable[[System], None]) -> System:
    """A whole run; `at_step` is called once, when it has come to `KILL_AT_STEP`."""
    system = replace(two.system, run=run)
    specs = two.training(run)
    system.stack.start(*specs)
    with Watching(system) as witness:
        until(lambda: system.num_steps() >= KILL_AT_STEP, system)
        at_step(system)
        until(lambda: has_finished(system), system)
    audit_fates(system)
    audit_versions(system, witness)
    return system


def has_finished(system: System) -> bool:
    children = system.stack.supervisor
    if any(children.child(n).state is not ChildState.FINISHED for n in ("trainer", "feeder")):
        return False
    if system.stream.state() is not RunState.FINISHED:
        return False
    served = describe_policy(system.lines.policy_url)
    return (served.run, served.version) == (system.run, MAX_STEPS)


def join_late(two: Twofold) -> list[int]:
    """Start the second policy server; the statuses it gave to turns before it was ready."""
    pointer = read_channel(two.system.redis, TRAIN_CHANNEL)
    assert pointer is not None
    assert pointer.version == MAX_STEPS
    two.system.stack.launch(two.policy())
    url, refusals = two.second.policy_url, []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:

        def is_ready() -> bool:
            try:
                if http.get("/ready").status_code == 200:
                    return True
                answer = http.post("/medvr/v1/generate", content=TURN.model_dump_json())
            except httpx.TransportError:
                return False
            if answer.status_code == 200:  # it became ready between the two requests
                assert http.get("/ready").status_code == 200
            else:
                refusals.append(answer.status_code)
            return False

        until(is_ready, two.system)
        served = describe_policy(url)
        assert (served.run, served.version) == (pointer.run, pointer.version)
        turn = http.post("/medvr/v1/generate", content=TURN.model_dump_json()).json()
        assert [span["version"] for span in turn["version_spans"]] == [pointer.version]
    return refusals


@pytest.mark.timeout(2400)
def test_two_of_everything_share_a_run_and_one_may_die(tmp_path: Path) -> None:
    plan = short_plan(max_steps=MAX_STEPS, seed=3)
    console = Console(soft_wrap=True)
    with (
        running_system(tmp_path / "stack", plan, console) as system,
        twofold(system, run="two") as two,
    ):
        system.stack.start(*two.zoom_and_cca())
        before = two.prefix_tokens(served_by=(0,))
        alone: list[PrefixTokens] = []
        run_of(two, "one", lambda _: alone.append(two.prefix_tokens(served_by=(0,)).since(before)))
        assert two.doors[1].groups == set(), "the second server was not there yet"
        system.stack.stop("rollout", "rollout-2")

        refusals = join_late(two)
        assert set(refusals) <= {503}

        for door in two.doors:
            door.groups.clear()
        before = two.prefix_tokens(served_by=(0, 1))
        together: list[PrefixTokens] = []

        def look_and_kill(system: System) -> None:
            together.append(two.prefix_tokens(served_by=(0, 1)).since(before))
            check_affinity(two)
            check_both_work(two)
            child = system.stack.supervisor.child("policy-2")
            os.kill(child.pid, signal.SIGKILL)

        run_of(two, "two", look_and_kill)
    console.print(
        f"prefix tokens from cache: {alone[0].share:.3f} of {alone[0].asked:.0f} on one replica, "
        f"{together[0].share:.3f} of {together[0].asked:.0f} on two"
    )
    assert together[0].share > alone[0].share - SHARE_NOISE


def check_affinity(two: Twofold) -> None:
    """Both policy servers were asked, and none about a group of the other's."""
    seen, twice = groups_of(two.doors)
    assert len(seen) >= KILL_AT_STEP * two.system.plan.trainer.groups_per_step
    assert all(door.groups for door in two.doors)
    assert twice == set()


def check_both_work(two: Twofold) -> None:
    """Both workers delivered groups, both zooms rendered, both scorers scored."""
    first, second = two.system.lines.ports, two.second.ports
    for name, sample in (
        ("rollout", 'medvr_rollout_groups_total{outcome="appended"}'),
        ("zoom", 'medvr_zoom_crops_total{outcome="rendered"}'),
        ("cca", 'medvr_cca_requests_total{route="/v1/score",status="200"}'),
    ):
        counts = [metric(getattr(ports, name), sample) for ports in (first, second)]
        assert all(count is not None and count > 0 for count in counts), (name, counts)
