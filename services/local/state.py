"""What is running, on disk: `.medvr/state.json`, and the lock that says whether it is true.

The supervisor holds `.medvr/stack.lock` for as long as it lives (the kernel releases it, also
after a SIGKILL) and rewrites `state.json` at every change. A state whose lock is free is what a
dead supervisor left behind: its processes are found by their mark (`leftovers`).
"""

import fcntl
import os
import signal
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from services.local.leftovers import end_stack
from services.local.spec import Probe
from services.local.supervisor import ChildState
from shared.errors import MedvrError

_POLL_S = 0.1


class StackError(MedvrError):
    """The stack cannot do what was asked; the message says why and what would help."""


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """One child, as last written."""

    name: str
    state: ChildState
    pid: int
    port: int | None
    probe: Probe
    num_restarts: int
    started_at: float
    """Unix time of its last start."""
    log: str


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """`state.json`."""

    stack_id: str
    command: str
    """`up` or `demo`."""
    supervisor_pid: int
    started_at: float
    """Unix time."""
    url: str
    """Of the clinic."""
    redis_url: str
    policy_url: str
    run: str | None = None
    """Training run in progress."""
    processes: list[ProcessState] = []


class StackFolder:
    """The folder of a stack (`.medvr`) and the files in it that say what runs."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._state_path = self.root / "state.json"
        self._lock_path = self.root / "stack.lock"
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    def read(self) -> StackState | None:
        """The last state written; None if there never was a stack. Raises `StackError`."""
        if not self._state_path.is_file():
            return None
        try:
            return msgspec.json.decode(self._state_path.read_bytes(), type=StackState)
        except msgspec.MsgspecError as error:
            raise StackError(
                f"{self._state_path} is not a stack's state ({error}); remove it"
            ) from error

    def write(self, state: StackState) -> None:
        """Replace the state, whole or not at all."""
        # The watcher and the main thread may both write: each its own temporary file.
        temporary = self._state_path.with_suffix(f".{uuid.uuid4().hex}.part")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        temporary.replace(self._state_path)

    def remove_state(self) -> None:
        """Nothing runs any more."""
        self._state_path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a supervisor lives."""
        if not self._lock_path.is_file():
            return False
        descriptor = os.open(self._lock_path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def __enter__(self) -> Self:
        """Take the lock, and end what a dead supervisor left. Raises `StackError` if held."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StackError(f"{self.root} cannot be a folder: a file is in the way") from None
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            state = self.read()
            who = f" (process {state.supervisor_pid}, {state.url})" if state else ""
            raise StackError(
                f"a stack is already running in {self.root}{who}; "
                "`make status` shows it, `make down` stops it"
            ) from None
        self._lock = lock
        self.end_leftovers()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lock is not None
        os.close(self._lock)
        self._lock = None

    def end_leftovers(self) -> int:
        """End the processes of a stack whose supervisor is dead; how many there were."""
        state = self.read()
        if state is None:
            return 0
        num_ended = end_stack(state.stack_id, grace_s=10.0)
        self.remove_state()
        return num_ended


def stop_stack(folder: StackFolder, timeout_s: float) -> str:
    """Stop the stack of a folder from outside and wait until it is gone; says what it did.

    Raises `StackError` if the supervisor does not stop in time.
    """
    state = folder.read()
    if state is None:
        return f"nothing is running in {folder.root}"
    if not folder.is_held():
        num_ended = folder.end_leftovers()
        return f"the supervisor was gone already; ended {num_ended} processes it had left"
    os.kill(state.supervisor_pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while folder.is_held():
        if time.monotonic() > deadline:
            raise StackError(
                f"process {state.supervisor_pid} did not stop within {timeout_s:.0f} s"
            )
        time.sleep(_POLL_S)
    return f"stopped the stack in {folder.root}"
