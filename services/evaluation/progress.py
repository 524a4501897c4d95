"""Progress of an evaluation: a live bar on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from services.evaluation.records import EvaluationRecord

_LINE_EVERY_S = 5.0


class EvaluationProgress:
    """Counts problems and shows the running accuracy; never silent for long."""

    def __init__(self, title: str, done: list[EvaluationRecord], total: int) -> None:
        self._title = title
        self._total = total
        self._num_done = len(done)
        self._num_right = sum(r.accuracy > 0 for r in done)
        self._said_at = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("accuracy {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            title, total=total, completed=self._num_done, accuracy=self._accuracy()
        )

    def _accuracy(self) -> str:
        return f"{self._num_right / self._num_done:.0%}" if self._num_done else "-"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._say()

    def add(self, record: EvaluationRecord) -> None:
        """One more problem is finished."""
        self._num_done += 1
        self._num_right += record.accuracy > 0
        self._bar.update(self._task, completed=self._num_done, accuracy=self._accuracy())
        if not self._console.is_terminal and time.monotonic() - self._said_at > _LINE_EVERY_S:
            self._say()

    def _say(self) -> None:
        self._said_at = time.monotonic()
        self._console.print(
            f"{self._title}: {self._num_done}/{self._total}, accuracy {self._accuracy()}",
            highlight=False,
        )
