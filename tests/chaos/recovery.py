"""How long each process took to recover: from the blow to ready, and to its first own work.

*Ready* is what the supervisor's user sees: the process was started again and its probe says yes
(for those whose /ready asks their neighbours, that includes the neighbours). *Working* is the
next rise, after that, of a figure that only its work moves: tokens sampled, crops rendered, groups
scored, and so on. Times are as exact as the watcher's period, a fraction of a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from services.local.tables import rich_table
from tests.chaos.schedule import Target

IsReady = Callable[[Target], bool]
Work = Callable[[Target], float | None]
"""A figure that rises with the work of a target; None while it cannot be read."""


class RecoveryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the report."""

    target: str
    at_s: float
    """When the blow fell, since the training began."""
    at_step: int
    ready_s: float | None
    """From the blow until it was ready again; None if it never was."""
    working_s: float | None
    """From the blow until its own work went on; None if the run ended before."""
    also_down: list[str]
    """What else was not ready when the blow fell or before this was ready again."""


@dataclass
class Recovery:
    """A blow and what was seen of its healing."""

    target: Target
    at_s: float
    at_step: int
    struck_at: float = field(default_factory=time.monotonic)
    ready_s: float | None = None
    working_s: float | None = None
    also_down: set[str] = field(default_factory=set)
    baseline: float | None = None

    def row(self) -> RecoveryRow:
        return RecoveryRow(
            target=self.target.value,
            at_s=round(self.at_s, 1),
            at_step=self.at_step,
            ready_s=None if self.ready_s is None else round(self.ready_s, 1),
            working_s=None if self.working_s is None else round(self.working_s, 1),
            also_down=sorted(self.also_down),
        )


class RecoveryWatch:
    """All blows of a run."""

    def __init__(self, is_ready: IsReady, work: Work) -> None:
        self.recoveries: list[Recovery] = []
        self._is_ready = is_ready
        self._work = work

    def begin(
        self, target: Target, at_s: float, at_step: int, baseline: float | None = None
    ) -> None:
        """The blow fell now; without a baseline its work counts from when it is ready."""
        self.recoveries.append(Recovery(target, at_s, at_step, baseline=baseline))

    def is_recovering(self, target: Target) -> bool:
        """Whether it has not worked again since its last blow."""
        return any(r.target is target and r.working_s is None for r in self.recoveries)

    def num_down(self) -> int:
        """Blows after which something is not ready yet."""
        return sum(r.ready_s is None for r in self.recoveries)

    def look(self) -> None:
        """Note who is ready again, and who works again."""
        down = {r.target.value for r in self.recoveries if r.ready_s is None}
        for recovery in self.recoveries:
            if recovery.working_s is None:
                self._look_at(recovery, down - {recovery.target.value})

    def _look_at(self, recovery: Recovery, others_down: set[str]) -> None:
        elapsed_s = time.monotonic() - recovery.struck_at
        if recovery.ready_s is None:
            recovery.also_down |= others_down
            if self._is_ready(recovery.target):
                recovery.ready_s = elapsed_s
                if recovery.baseline is None:
                    recovery.baseline = self._work(recovery.target)
            return
        work = self._work(recovery.target)
        if recovery.baseline is None:
            recovery.baseline = work
        elif work is not None and work > recovery.baseline:
            recovery.working_s = elapsed_s

    def rows(self) -> list[RecoveryRow]:
        """The report, in the order of the blows."""
        return [recovery.row() for recovery in self.recoveries]


def table_of(rows: list[RecoveryRow], title: str) -> object:
    """The report for people."""

    def seconds(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f} s"

    heading = ["struck", "at", "step", "ready after", "working after", "meanwhile down"]
    lines = [
        [
            row.target,
            f"{row.at_s:.1f} s",
            str(row.at_step),
            seconds(row.ready_s),
            seconds(row.working_s),
            ", ".join(row.also_down) or "–",
        ]
        for row in rows
    ]
    return rich_table([heading, *lines], title)
