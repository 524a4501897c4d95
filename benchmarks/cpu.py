"""Processor time of processes and all they started.

What a shared machine adds to the clock on the wall is not in it, so shares of it can be compared
where seconds cannot.
"""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def cpu_seconds(pid: int) -> float:
    """Of a process and its living descendants, and of those of them that were waited for."""
    return own_cpu_seconds(pid) + descendants_cpu_seconds(pid)


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """The sum over several."""
    return sum(map(cpu_seconds, pids))


def own_cpu_seconds(pid: int) -> float:
    """Of a process and those of its children that were waited for; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def descendants_cpu_seconds(pid: int) -> float:
    """Of a process's living descendants."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return sum(own_cpu_seconds(child.pid) for child in children)
    return 0.0


def machine_busy_seconds() -> float:
    """Of all processors since the machine started, whoever used them."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def num_processors() -> int:
    """That this process may use."""
    return len(psutil.Process().cpu_affinity())
