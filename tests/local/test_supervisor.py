"""The supervisor with real child processes: restarts, order, and that nothing is left behind."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from services.local.leftovers import end_stack, stack_environment, stack_processes
from services.local.spec import Probe, ProcessSpec, Restart, Tier
from services.local.supervisor import ChildReport, ChildState, Supervisor

SLEEP = "import time; time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def spec(
    name: str,
    code: str,
    *arguments: str,
    tier: Tier = Tier.SERVICE,
    restart: Restart = Restart.ALWAYS,
) -> ProcessSpec:
    command = (sys.executable, "-c", code, *arguments)
    return ProcessSpec(name, command, tier, probe=Probe.NONE, restart=restart)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def stack_id() -> Iterator[str]:
    mark = uuid.uuid4().hex
    yield mark
    assert end_stack(mark, grace_s=0) == 0, "the test left processes behind"


@pytest.fixture
def supervisor(stack_id: str, tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(stack_id, tmp_path / "logs", grace_s=1.0) as running:
        yield running


def test_a_crashed_child_is_started_again_and_counted(supervisor: Supervisor) -> None:
    supervisor.start(spec("service", SLEEP))
    first = supervisor.child("service")
    os.kill(first.pid, signal.SIGKILL)

    until(lambda: supervisor.child("service").num_restarts == 1)

    again = supervisor.child("service")
    assert again.state is ChildState.RUNNING
    assert again.pid != first.pid
    assert again.exit_code == -signal.SIGKILL
    assert again.end == "was ended by SIGKILL"
    assert again.log_start == again.log.stat().st_size


def test_a_child_that_keeps_crashing_waits_longer_each_time(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    note = "import sys, time; open(sys.argv[1], 'a').write(f'{time.time()}\\n'); sys.exit(3)"
    supervisor.start(spec("service", note, str(starts)))

    until(lambda: len(starts.read_text().splitlines()) == 3 if starts.exists() else False)
    until(lambda: supervisor.child("service").state is ChildState.WAITING)

    times = [float(line) for line in starts.read_text().splitlines()]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    assert supervisor.child("service").exit_code == 3


def test_a_job_that_ends_well_is_finished_and_not_started_again(supervisor: Supervisor) -> None:
    supervisor.start(spec("job", "pass", restart=Restart.ON_FAILURE))
    until(lambda: supervisor.child("job").state is ChildState.FINISHED)
    assert supervisor.child("job").exit_code == 0
    assert supervisor.child("job").num_restarts == 0


def test_a_job_that_fails_for_good_says_with_what(supervisor: Supervisor) -> None:
    supervisor.start(spec("job", "raise SystemExit(7)", restart=Restart.NEVER))
    until(lambda: supervisor.child("job").state is ChildState.FAILED)
    assert supervisor.child("job").exit_code == 7


def test_a_child_deaf_to_sigterm_is_killed_after_the_grace(supervisor: Supervisor) -> None:
    ready = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True);"
    supervisor.start(spec("deaf", f"{ready} {SLEEP}"))
    until(lambda: supervisor.child("deaf").log.read_text() == "x\n")

    started = time.monotonic()
    supervisor.stop("deaf")

    assert 0.9 < time.monotonic() - started < 5
    assert supervisor.child("deaf").exit_code == -signal.SIGKILL


def test_leaving_ends_grandchildren_in_sessions_of_their_own(stack_id: str, tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        f" start_new_session=True); {SLEEP}"
    )
    with Supervisor(stack_id, tmp_path / "logs", grace_s=1.0) as running:
        running.start(spec("parent", parent, IGNORES_SIGTERM))
        until(lambda: len(stack_processes(stack_id)) == 2)
    assert stack_processes(stack_id) == []


def test_workers_stop_before_the_services_they_use(stack_id: str, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    note_end = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.2); open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    with Supervisor(stack_id, tmp_path / "logs") as running:
        for name, tier in (("store", Tier.STORE), ("service", Tier.SERVICE)):
            running.start(spec(name, note_end, str(ends), name, tier=tier))
        running.start(spec("worker", note_end, str(ends), "worker", tier=Tier.WORKER))
        logs = [child.log for child in running.children()]
        until(lambda: all(log.read_text() == "up\n" for log in logs))
    assert ends.read_text().split() == ["worker", "service", "store"]


def test_a_stopped_child_may_be_started_anew(supervisor: Supervisor) -> None:
    supervisor.start(spec("service", SLEEP))
    supervisor.stop("service")
    assert supervisor.child("service").state is ChildState.STOPPED
    supervisor.start(spec("service", SLEEP))
    assert supervisor.child("service").state is ChildState.RUNNING
    assert len(supervisor.children()) == 1


def test_every_change_is_told(stack_id: str, tmp_path: Path) -> None:
    seen: list[list[ChildReport]] = []
    with Supervisor(
        stack_id, tmp_path / "logs", on_change=lambda: seen.append(running.children())
    ) as running:
        running.start(spec("service", SLEEP))
        os.kill(running.child("service").pid, signal.SIGKILL)
        until(lambda: running.child("service").num_restarts == 1)
    states = [children[0].state for children in seen]
    assert states[0] is ChildState.RUNNING
    assert ChildState.WAITING in states
    assert states[-1] is ChildState.STOPPED


def test_only_processes_of_the_same_stack_are_ended(supervisor: Supervisor, stack_id: str) -> None:
    supervisor.start(spec("service", SLEEP))
    assert stack_processes(stack_id) == [supervisor.child("service").pid]
    assert stack_processes("another") == []
    assert stack_environment(stack_id)["MEDVR_STACK"] == stack_id
