"""Waiting until processes are ready, with a display that is never silent.

vLLM takes the better part of a minute to start on two cores; the display shows each process's
state, how long it has been at it and the last line it logged.
"""

import json
import socket
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.local.ports import LOOPBACK
from services.local.spec import Probe, ProcessSpec, Restart
from services.local.state import StackError
from services.local.supervisor import ChildReport, ChildState, Supervisor

_POLL_S = 0.4
_LINE_EVERY_S = 5.0
_MOST_CRASHES = 3
"""A process that crashed so often before it was ever ready will not become so."""
_PROBE_TIMEOUT_S = 2.0


def is_ready(probe: Probe, port: int | None) -> bool:
    """Ask a process once; False if it does not answer, or says no."""
    if probe is Probe.NONE or port is None:
        return True
    try:
        return _ping(port) if probe is Probe.VALKEY else _get_ready(port)
    except (OSError, HTTPException):
        return False


def _ping(port: int) -> bool:
    with socket.create_connection((LOOPBACK, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        return connection.recv(64).startswith(b"+PONG")  # -LOADING while it reads its file


def _get_ready(port: int) -> bool:
    connection = HTTPConnection(LOOPBACK, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def log_tail(path: Path, num_lines: int, start: int = 0) -> list[str]:
    """The last lines of a log, read from its end; none of what is before byte `start`."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-num_lines:]


def last_message(path: Path, start: int = 0) -> str:
    """What a process last said: the message of a JSON line, or the line itself."""
    lines = log_tail(path, 1, start)
    if not lines:
        return ""
    try:
        line = json.loads(lines[0])
    except ValueError:
        return lines[0].strip()
    said = str(line.get("message", lines[0])) if isinstance(line, dict) else lines[0]
    return " ".join(said.split())


def one_line(said: str) -> Text:
    """A log line as a cell: cut where the terminal ends; its brackets are no markup."""
    return Text(said, no_wrap=True, overflow="ellipsis")


def _seconds(child: ChildReport) -> str:
    return f"{child.uptime_s:.0f} s"


class _Waiting:
    """The processes waited for, and which of them are ready."""

    def __init__(self, supervisor: Supervisor, specs: Sequence[ProcessSpec]) -> None:
        self._supervisor = supervisor
        self._specs = specs
        self._ready_after: dict[str, str] = {}

    def look(self) -> bool:
        """Probe the ones not ready yet; whether all are. Raises `StackError` on a hopeless one."""
        for spec in self._specs:
            if spec.name in self._ready_after:
                continue
            child = self._supervisor.child(spec.name)
            if child.state is ChildState.FINISHED and spec.restart is Restart.ON_FAILURE:
                self._ready_after[spec.name] = "done"  # a resumed job that had nothing left to do
                continue
            self._give_up_if_hopeless(child)
            if child.state is ChildState.RUNNING and is_ready(spec.probe, spec.port):
                self._ready_after[spec.name] = _seconds(child)
        return len(self._ready_after) == len(self._specs)

    def _give_up_if_hopeless(self, child: ChildReport) -> None:
        ended = child.state in (ChildState.FAILED, ChildState.FINISHED, ChildState.STOPPED)
        if ended or child.num_restarts >= _MOST_CRASHES:
            tail = "\n".join(f"    {line}" for line in log_tail(child.log, 20))
            raise StackError(
                f"{child.name} does not start (it {child.end}); the end of {child.log}:\n{tail}"
            )

    def table(self) -> Table:
        table = Table(box=None, padding=(0, 2))
        for title in ("process", "state", "for"):
            table.add_column(title, no_wrap=True)
        table.add_column("last said")  # the one that gives way on a narrow terminal
        for spec in self._specs:
            child = self._supervisor.child(spec.name)
            after = self._ready_after.get(spec.name)
            state = "[green]ready" if after else f"[yellow]{self._state(child)}"
            said = "" if after else last_message(child.log, child.log_start)
            table.add_row(spec.name, state, after or _seconds(child), one_line(said))
        return table

    def line(self) -> str:
        """The same in one line, for where there is no terminal."""
        missing = [s.name for s in self._specs if s.name not in self._ready_after]
        return f"ready {len(self._ready_after)}/{len(self._specs)}, waiting for " + ", ".join(
            f"{name} ({_seconds(self._supervisor.child(name))})" for name in missing
        )

    @staticmethod
    def _state(child: ChildReport) -> str:
        crashed = f", crashed {child.num_restarts}×" if child.num_restarts else ""
        return ("starting" if child.state is ChildState.RUNNING else "crashed") + crashed


def wait_until_ready(
    supervisor: Supervisor, specs: Sequence[ProcessSpec], console: Console, timeout_s: float
) -> None:
    """Return when all are ready.

    Raises `StackError` with the end of the log if one ends or keeps crashing, or is not ready in
    time.
    """
    waiting = _Waiting(supervisor, specs)
    deadline = time.monotonic() + timeout_s
    said_at = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not waiting.look():
            if time.monotonic() > deadline:
                raise StackError(f"not ready within {timeout_s:.0f} s: {waiting.line()}")
            if console.is_terminal:
                live.update(waiting.table(), refresh=True)
            elif time.monotonic() - said_at > _LINE_EVERY_S:
                said_at = time.monotonic()
                console.print(waiting.line(), highlight=False, soft_wrap=True)
            time.sleep(_POLL_S)
    if console.is_terminal:
        console.print(waiting.table())
