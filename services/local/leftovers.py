"""Finding every process of a stack, also the grandchildren that left their process group.

Each child is started with `MEDVR_STACK=<stack id>` in its environment, which all its descendants
inherit; `SPT_NOENV` keeps libraries that rename processes from overwriting it. So the processes
of a stack can be told from all others by reading /proc, even after their supervisor was killed.
"""

import os
import signal
import time
from pathlib import Path

STACK_VARIABLE = "MEDVR_STACK"
_POLL_S = 0.05


def stack_environment(stack_id: str) -> dict[str, str]:
    """The environment that marks a child and its descendants."""
    return {STACK_VARIABLE: stack_id, "SPT_NOENV": "1"}


def _is_zombie(folder: Path) -> bool:
    return folder.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"


def stack_processes(stack_id: str) -> list[int]:
    """Ids of the live processes that carry the mark of this stack, this process excluded."""
    mark = f"{STACK_VARIABLE}={stack_id}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = folder.joinpath("environ").read_bytes().split(b"\0")
            if mark in variables and not _is_zombie(folder):
                found.append(int(folder.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # ended while we looked, or not ours to read
    return sorted(found)


def signal_processes(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # ended by itself


def end_stack(stack_id: str, grace_s: float) -> int:
    """End whatever is left of a stack: SIGTERM, then SIGKILL after the grace; how many there were.

    For a stack whose supervisor is gone; a living supervisor stops its children in order.
    """
    pids = stack_processes(stack_id)
    signal_processes(pids, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while stack_processes(stack_id) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    while left := stack_processes(stack_id):
        signal_processes(left, signal.SIGKILL)
        time.sleep(_POLL_S)
    return len(pids)
