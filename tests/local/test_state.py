"""Who holds a stack, what the state file says, and how a stack is stopped from outside."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from services.local.leftovers import stack_environment, stack_processes
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.spec import Probe, ProcessSpec, Tier
from services.local.stack import initial_state, running_stack, signals_as_interrupt
from services.local.state import StackError, StackFolder, StackState, stop_stack
from services.local.status import status
from services.local.supervisor import ChildState

SUPERVISE = """
import sys, time
from pathlib import Path
from rich.console import Console
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.spec import Probe, ProcessSpec, Tier
from services.local.stack import initial_state, running_stack, sleep_until_interrupted
from services.local.state import StackFolder

folder = StackFolder(Path(sys.argv[1]))
lines = CommandLines(StackPaths(folder.root), StackPorts.find(8080))
sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
try:
    with running_stack(folder, initial_state("up", lines), Console()) as stack:
        stack.start(ProcessSpec("sleeper", sleeper, Tier.SERVICE, probe=Probe.NONE))
        stack.start(lines.valkey("always"))
        print("up", flush=True)
        sleep_until_interrupted(stack)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


class Supervised:
    """A stack in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.folder = StackFolder(root)
        command = [sys.executable, "-c", SUPERVISE, str(root)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        until_line(self.output, "up")

    @property
    def state(self) -> StackState:
        state = self.folder.read()
        assert state is not None
        return state


def until_line(output: "subprocess.IO[str]", wanted: str) -> None:
    for line in output:
        if line.strip() == wanted:
            return
    raise AssertionError(f"ended without saying {wanted!r}")


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    stack = Supervised(tmp_path / "stack")
    stack_id = stack.state.stack_id
    yield stack
    if stack.process.poll() is None:
        stack.process.kill()
    stack.process.wait()
    stack.output.close()
    stop_stack(stack.folder, timeout_s=5)
    assert stack_processes(stack_id) == []


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_the_state_names_what_runs(supervised: Supervised) -> None:
    state = supervised.state
    assert state.supervisor_pid == supervised.process.pid
    assert [p.name for p in state.processes] == ["sleeper", "valkey"]
    assert {p.pid for p in state.processes} == set(stack_processes(state.stack_id))


def test_down_stops_it_and_leaves_nothing(supervised: Supervised) -> None:
    stack_id = supervised.state.stack_id
    assert "stopped the stack" in stop_stack(supervised.folder, timeout_s=30)
    until_line(supervised.output, "stopped")
    assert supervised.process.wait(timeout=10) == 0
    assert stack_processes(stack_id) == []
    assert supervised.folder.read() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_cleanly(supervised: Supervised, number: signal.Signals) -> None:
    stack_id = supervised.state.stack_id
    supervised.process.send_signal(number)
    until_line(supervised.output, "stopped")
    assert stack_processes(stack_id) == []


@pytest.mark.parametrize("pause_s", [0.0, 0.0002, 0.05])
def test_a_signal_that_comes_twice_leaves_nothing(supervised: Supervised, pause_s: float) -> None:
    stack_id = supervised.state.stack_id
    for _ in range(2):
        supervised.process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
    until_line(supervised.output, "stopped")
    assert stack_processes(stack_id) == []


def test_a_second_stack_in_the_folder_is_refused(supervised: Supervised) -> None:
    with (
        pytest.raises(StackError, match=rf"already running.*process {supervised.process.pid}"),
        StackFolder(supervised.folder.root),
    ):
        pass


def test_what_a_killed_supervisor_left_is_ended_by_the_next(supervised: Supervised) -> None:
    stack_id = supervised.state.stack_id
    supervised.process.kill()
    supervised.process.wait()
    assert len(stack_processes(stack_id)) == 2
    assert not supervised.folder.is_held()

    with supervised.folder:
        assert stack_processes(stack_id) == []


def test_what_a_killed_supervisor_left_is_ended_by_down(supervised: Supervised) -> None:
    supervised.process.kill()
    supervised.process.wait()
    assert "ended 2 processes" in stop_stack(supervised.folder, timeout_s=5)
    assert "nothing is running" in stop_stack(supervised.folder, timeout_s=5)


def test_a_restart_is_seen_in_the_state(supervised: Supervised) -> None:
    first = supervised.state.processes[0]
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: supervised.state.processes[0].num_restarts == 1)
    again = supervised.state.processes[0]
    assert again.state is ChildState.RUNNING
    assert again.pid != first.pid


def test_status_shows_every_process_and_asks_it(
    supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(supervised.folder, Console(width=160))
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    valkey = supervised.state.processes[1]
    assert rows["valkey"][1:3] == ["running", "yes"]
    assert str(valkey.pid) in rows["valkey"]
    assert str(valkey.port) in rows["valkey"]
    assert rows["sleeper"][1] == "running"


def test_status_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not status(StackFolder(tmp_path), Console(width=160))
    assert "nothing is running" in capsys.readouterr().out


def test_a_mark_is_only_the_stacks_own(tmp_path: Path) -> None:
    lines = CommandLines(StackPaths(tmp_path), StackPorts.find(8080))
    first, second = initial_state("up", lines), initial_state("up", lines)
    assert first.stack_id != second.stack_id
    assert first.stack_id in stack_environment(first.stack_id).values()


def test_ports_are_all_different_and_the_clinics_is_the_wanted_one() -> None:
    wanted = StackPorts.find(15_080)
    assert wanted.clinic == 15_080
    ports = [wanted.valkey, wanted.policy, wanted.zoom, wanted.cca, wanted.trainer, wanted.feeder]
    assert len(set(ports)) == len(ports)


def test_a_taken_clinic_port_gives_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        assert StackPorts.find(port).clinic > port


def test_a_process_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    folder = StackFolder(tmp_path)
    lines = CommandLines(StackPaths(folder.root), StackPorts.find(8080))
    broken = (sys.executable, "-c", "import sys; sys.exit('no such checkpoint')")
    with (
        pytest.raises(StackError, match=r"(?s)policy does not start.*no such checkpoint"),
        running_stack(folder, initial_state("up", lines), Console(quiet=True)) as stack,
    ):
        stack.start(ProcessSpec("policy", broken, Tier.SERVICE, port=1, probe=Probe.HTTP))
    assert folder.read() is None
    assert not folder.is_held()


def test_a_signal_that_comes_twice_interrupts_once_and_an_ignored_one_never() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupt():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
