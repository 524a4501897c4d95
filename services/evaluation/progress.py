"""Progress of an evaluation, with the running accuracy."""

from types import TracebackType
from typing import Self

from services.evaluation.records import EvaluationRecord
from shared.progress import progress


class EvaluationProgress:
    """Counts problems and how many were answered right."""

    def __init__(self, title: str, done: list[EvaluationRecord], total: int) -> None:
        self._num_done = len(done)
        self._num_right = sum(r.accuracy > 0 for r in done)
        self._bar = progress(title=title, unit="problem", total=total, initial=len(done))

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def add(self, record: EvaluationRecord) -> None:
        """One more problem is finished."""
        self._num_done += 1
        self._num_right += record.accuracy > 0
        self._bar.set_postfix(accuracy=f"{self._num_right / self._num_done:.0%}", refresh=False)
        self._bar.update()
