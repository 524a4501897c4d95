"""Two ways of doing the same thing, measured in turns.

The machine is shared and its speed drifts, so nothing is compared across time: every repetition
runs both, in changing order, and only the ratios of neighbours count. The median of them is
reported with the quartiles.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shared.progress import progress


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def as_list(self) -> list[float]:
        """[median, low, high]."""
        return [self.median, self.low, self.high]


@dataclass(frozen=True)
class Pairs:
    """What each side took, repetition by repetition."""

    first: list[float]
    second: list[float]

    def ratio(self) -> Spread:
        """first / second of each repetition."""
        return Spread.of([a / b for a, b in zip(self.first, self.second, strict=True)])

    def times(self) -> tuple[Spread, Spread]:
        """Of the two sides apart."""
        return Spread.of(self.first), Spread.of(self.second)


async def measure_pairs(
    first: Callable[[int], Awaitable[float]],
    second: Callable[[int], Awaitable[float]],
    *,
    repeats: int,
    title: str,
) -> Pairs:
    """Both sides `repeats` times, in changing order; each returns what it measured.

    They are given the number of the repetition, so that both can do the same work.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in progress(range(repeats), title=title, unit="pair"):
        sides = (0, 1) if repeat % 2 == 0 else (1, 0)
        for side in sides:
            taken[side].append(await (first, second)[side](repeat))
    return Pairs(*taken)


def measure_calls(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    repeats: int,
    title: str,
    second_calls: int = 1,
) -> Pairs:
    """The same for calls of this thread; `second_calls` of the second in a row, and their mean.

    They are timed by the thread's processor time: what others do on the machine is not in it.
    """

    def timed(call: Callable[[], object], calls: int) -> Callable[[int], Awaitable[float]]:
        async def run(_: int) -> float:
            started = time.thread_time()
            for _ in range(calls):
                call()
            return (time.thread_time() - started) / calls

        return run

    sides = timed(first, 1), timed(second, second_calls)
    return asyncio.run(measure_pairs(*sides, repeats=repeats, title=title))
