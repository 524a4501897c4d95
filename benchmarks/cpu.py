"""Processor time of processes and all they started, from /proc.

What a shared machine adds to the clock on the wall is not in it, so shares of it can be compared
where seconds cannot.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 14
"""Fields after the command name in /proc/<pid>/stat: parent, and user, system, children's times."""


def cpu_seconds(pid: int) -> float:
    """Of a process, its living descendants and those of them that were waited for."""
    return cpu_seconds_of([pid])[pid]


def cpu_seconds_of(pids: Iterable[int]) -> dict[int, float]:
    """The same for several, from one look at /proc; 0 for one that is gone."""
    seconds: dict[int, float] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat.rpartition(")")[2].split()
        pid = int(entry.name)
        children[int(fields[_PPID])].append(pid)
        seconds[pid] = sum(map(int, fields[_UTIME : _CSTIME + 1])) / _TICKS_PER_S

    def total(pid: int) -> float:
        return seconds.get(pid, 0.0) + sum(map(total, children[pid]))

    return {pid: total(pid) for pid in pids}
