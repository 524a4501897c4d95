"""Starts the children, starts crashed ones again, and leaves none behind.

Every child leads a session of its own, so that Ctrl-C on the terminal reaches the supervisor
alone, which then stops the children in order: workers first, then services, then the store. A
child that is asked to stop gets SIGTERM (its leader alone: Celery and vLLM pass it on to their
own children in their own way), after the grace its whole group gets SIGKILL, and at the end
whatever still carries the mark of the stack. A watcher thread polls; all state is behind one lock.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from services.local.leftovers import end_stack, stack_environment
from services.local.spec import Output, ProcessSpec, Restart, Tier

logger = logging.getLogger(__name__)

POLL_S = 0.2
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 15.0
STEADY_AFTER_S = 60.0
"""A child that ran this long starts again without backoff."""


class ChildState(StrEnum):
    """Where a child is in its life."""

    RUNNING = "running"
    WAITING = "waiting"
    """Crashed; to be started again after its backoff."""
    FINISHED = "finished"
    """A job that ended with status 0."""
    FAILED = "failed"
    """Ended with an error and is not started again."""
    STOPPED = "stopped"
    """Was asked to stop."""


@dataclass(frozen=True)
class ChildReport:
    """A child as it is right now."""

    name: str
    state: ChildState
    pid: int
    """Of the last process started for it."""
    port: int | None
    num_restarts: int
    """Times it was started again after a crash."""
    uptime_s: float
    """Since its last start; 0 if it does not run."""
    exit_code: int | None
    """Of its last end; negative: ended by that signal. None if it never ended."""
    log: Path
    log_start: int = 0
    """Size of the log when it was last started: what is before that, others have said."""

    @property
    def end(self) -> str:
        """How it last ended: `ended with status 1`, `was ended by SIGKILL`."""
        if self.exit_code is not None and self.exit_code < 0:
            return f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"ended with status {self.exit_code}"


PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Policy and trainer share the cores: a thread that spins at a barrier takes a core from the other
process, and both become many times slower."""


class _Child:
    """A spec and the process that runs it now."""

    def __init__(self, spec: ProcessSpec, log: Path, environment: dict[str, str]) -> None:
        self.spec = spec
        self.log = log
        self.num_restarts = 0
        self.num_quick_crashes = 0
        self.exit_code: int | None = None
        self.start_again_at = 0.0
        self._environment = environment
        self.spawn()

    def spawn(self) -> None:
        is_logged = self.spec.output is Output.LOG
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log if is_logged else None,
                stderr=log if is_logged else None,
                env={
                    **PATIENT_THREADS,
                    **os.environ,
                    **self.spec.environment,
                    **self._environment,
                },
                start_new_session=True,
            )
        self.started_at = time.monotonic()
        self.state = ChildState.RUNNING

    def look(self, now: float) -> bool:
        """Notice an end, start again when it is time; whether anything changed."""
        if self.state is ChildState.RUNNING and (code := self.process.poll()) is not None:
            self._ended(code, now)
            return True
        if self.state is ChildState.WAITING and now >= self.start_again_at:
            self.num_restarts += 1
            try:
                self.spawn()
            except OSError:  # no memory or no process slot at this moment
                self.start_again_at = now + LONGEST_BACKOFF_S
                logger.exception("cannot start %s", self.spec.name)
            return True
        return False

    def _ended(self, code: int, now: float) -> None:
        self.exit_code = code
        self.kill_group()  # nothing of a dead service may hold its port or its memory
        restart = self.spec.restart
        if code == 0 and restart is not Restart.ALWAYS:
            self.state = ChildState.FINISHED
        elif restart is Restart.NEVER:
            self.state = ChildState.FAILED
        else:
            steady = now - self.started_at > STEADY_AFTER_S
            self.num_quick_crashes = 0 if steady else self.num_quick_crashes + 1
            pause_s = FIRST_BACKOFF_S * 2 ** max(0, self.num_quick_crashes - 1)
            self.start_again_at = now + min(pause_s, LONGEST_BACKOFF_S)
            self.state = ChildState.WAITING

    def kill_group(self) -> None:
        """SIGKILL whatever is left in the group that the child led."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # the group is empty

    def report(self) -> ChildReport:
        runs = self.state is ChildState.RUNNING
        return ChildReport(
            name=self.spec.name,
            state=self.state,
            pid=self.process.pid,
            port=self.spec.port,
            num_restarts=self.num_restarts,
            uptime_s=time.monotonic() - self.started_at if runs else 0.0,
            exit_code=self.exit_code,
            log=self.log,
            log_start=self.log_start,
        )


class Supervisor:
    """The children of one stack. Use as a context manager: leaving stops them all."""

    def __init__(
        self,
        stack_id: str,
        log_folder: Path,
        *,
        grace_s: float = 15.0,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.stack_id = stack_id
        self._log_folder = log_folder
        self._grace_s = grace_s
        self._on_change = on_change or (lambda: None)
        self._children: dict[str, _Child] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> "Supervisor":
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, spec: ProcessSpec) -> None:
        """Start a child; its log is appended to. A stopped one of that name is replaced."""
        with self._lock:
            log = self._log_folder / f"{spec.name}.log"
            self._children[spec.name] = _Child(spec, log, stack_environment(self.stack_id))
        self._on_change()

    def children(self) -> list[ChildReport]:
        """All children in the order they were started."""
        with self._lock:
            return [child.report() for child in self._children.values()]

    def child(self, name: str) -> ChildReport:
        """One child. Raises `KeyError` if none of that name was started."""
        with self._lock:
            return self._children[name].report()

    def stop(self, *names: str) -> None:
        """Stop these children together and wait until they are gone; unknown names are ignored."""
        with self._lock:
            chosen = [self._children[n] for n in names if n in self._children]
            for child in chosen:
                if child.state is ChildState.RUNNING:
                    child.process.terminate()
                if child.state in (ChildState.RUNNING, ChildState.WAITING):
                    child.state = ChildState.STOPPED
        deadline = time.monotonic() + self._grace_s
        for child in chosen:
            try:
                child.exit_code = child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill_group()
                child.exit_code = child.process.wait()
            child.kill_group()
        self._on_change()

    def stop_all(self) -> None:
        """Stop every child, tier by tier, then end whatever still carries the stack's mark."""
        try:
            self._stopping.set()
            if self._watcher.is_alive():
                self._watcher.join()
            for tier in sorted(Tier, reverse=True):
                with self._lock:
                    names = [n for n, c in self._children.items() if c.spec.tier is tier]
                self.stop(*names)
        finally:
            # Also after a second Ctrl-C: then without any further patience.
            end_stack(self.stack_id, grace_s=0.0)

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_S):
            with self._lock:
                now = time.monotonic()
                changed = [child.look(now) for child in self._children.values()]
            if any(changed):
                self._on_change()
