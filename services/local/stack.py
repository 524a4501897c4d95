"""One running stack: the lock, the supervisor, the state file, in this order and back.

Entering takes the folder's lock (ending what a dead supervisor left), leaving stops all children
and releases it. SIGTERM and SIGHUP count as Ctrl-C, so a stack is left in one way only.
"""

import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console

from services.local.processes import CommandLines
from services.local.ready import log_tail, wait_until_ready
from services.local.spec import ProcessSpec
from services.local.state import ProcessState, StackError, StackFolder, StackState
from services.local.supervisor import ChildReport, ChildState, Supervisor

READY_TIMEOUT_S = 600.0
"""Half a minute on two idle cores; minutes on busy ones."""
_POLL_S = 0.2
_SAME_SIGNAL_S = 1.0
_KEPT_LOG_BYTES = 8 * 1024 * 1024


class Stack:
    """Children of one supervisor, written to the state file at every change."""

    def __init__(self, folder: StackFolder, state: StackState, console: Console) -> None:
        self.console = console
        self._folder = folder
        self._state = state
        self._specs: dict[str, ProcessSpec] = {}
        self._writing = threading.Lock()
        self.supervisor = Supervisor(state.stack_id, folder.logs, on_change=self._write_state)

    def launch(self, *specs: ProcessSpec) -> None:
        """Start these together; `wait_for` waits until they are ready."""
        for spec in specs:
            self._specs[spec.name] = spec
            self.supervisor.start(spec)

    def wait_for(self, *specs: ProcessSpec) -> None:
        """Wait until these are ready. Raises `StackError`."""
        wait_until_ready(self.supervisor, specs, self.console, READY_TIMEOUT_S)

    def start(self, *specs: ProcessSpec) -> None:
        """Start these together and wait until all are ready. Raises `StackError`."""
        self.launch(*specs)
        self.wait_for(*specs)

    def run_job(self, spec: ProcessSpec) -> None:
        """Start a job, which shows its own progress, and wait until it is finished.

        Raises `StackError` if it fails.
        """
        self._specs[spec.name] = spec
        self.supervisor.start(spec)
        while (child := self.supervisor.child(spec.name)).state is ChildState.RUNNING:
            time.sleep(_POLL_S)
        if child.state is not ChildState.FINISHED:
            raise StackError(describe_end(child))

    def stop(self, *names: str) -> None:
        """Stop these children and wait until they are gone."""
        self.supervisor.stop(*names)

    def note_run(self, run: str | None) -> None:
        """Say in the state file which training run is in progress."""
        self._state = msgspec.structs.replace(self._state, run=run)
        self._write_state()

    def _write_state(self) -> None:
        with self._writing:
            processes = [self._process_state(c) for c in self.supervisor.children()]
            self._folder.write(msgspec.structs.replace(self._state, processes=processes))

    def _process_state(self, child: ChildReport) -> ProcessState:
        return ProcessState(
            name=child.name,
            state=child.state,
            pid=child.pid,
            port=child.port,
            probe=self._specs[child.name].probe,
            num_restarts=child.num_restarts,
            started_at=time.time() - child.uptime_s,
            log=str(child.log),
        )


def describe_end(child: ChildReport) -> str:
    """How a child ended, with the end of its log."""
    tail = "\n".join(f"    {line}" for line in log_tail(child.log, 20))
    return f"{child.name} {child.end}" + (f":\n{tail}" if tail else "")


@contextmanager
def signals_as_interrupt() -> Generator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt`, as SIGINT does; what is ignored stays so.

    Who signals a process and its group (as `timeout` does) means it once: a second signal right
    after the first would else break off the stopping that the first began.
    """
    raised_at = -math.inf

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal raised_at
        if (now := time.monotonic()) - raised_at > _SAME_SIGNAL_S:
            raised_at = now
            raise KeyboardInterrupt(signal.Signals(number).name)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _put_old_logs_aside(folder: Path) -> None:
    """A log that has grown large becomes `<name>.log.1`."""
    for log in folder.glob("*.log"):
        if log.stat().st_size > _KEPT_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


@contextmanager
def running_stack(folder: StackFolder, state: StackState, console: Console) -> Generator[Stack]:
    """A stack to start children in; on leaving, whatever the reason, none of them is left."""
    with signals_as_interrupt(), folder:
        _put_old_logs_aside(folder.logs)
        stack = Stack(folder, state, console)
        try:
            with stack.supervisor:
                yield stack
        finally:
            folder.remove_state()


def initial_state(command: str, lines: CommandLines) -> StackState:
    """The state of a stack in which nothing was started yet."""
    return StackState(
        stack_id=uuid.uuid4().hex,
        command=command,
        supervisor_pid=os.getpid(),
        started_at=time.time(),
        url=lines.clinic_url,
        redis_url=lines.redis_url,
        policy_url=lines.policy_url,
    )


def sleep_until_interrupted(stack: Stack) -> None:
    """Serve until Ctrl-C. Crashed services are started again meanwhile; says so when they are."""
    told: dict[str, int] = {}
    while True:
        for child in stack.supervisor.children():
            if child.num_restarts > told.get(child.name, 0):
                told[child.name] = child.num_restarts
                stack.console.print(
                    f"{child.name} {child.end} and was started again "
                    f"({child.num_restarts}×); see {child.log}",
                    highlight=False,
                    soft_wrap=True,
                )
        time.sleep(1.0)
