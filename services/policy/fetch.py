"""Entropies from the worker to the response, many requests at a time.

The engine answers a call between two of its steps. While one call is under way further wishes
wait, and the next call carries all of them: the number of calls follows the number of steps,
never the number of requests or tokens.
"""

import asyncio
from collections.abc import Awaitable, Callable

Wanted = tuple[str, int, bool]
"""Key of a request, first position wanted, whether its record may be dropped."""
Taken = tuple[list[float], list[float]]
"""Entropies and log-probabilities of the chosen tokens from that position on; nats."""


class EntropyFetcher:
    """Coalesces concurrent fetches."""

    def __init__(self, take: Callable[[list[Wanted]], Awaitable[list[Taken]]]) -> None:
        self._take = take
        self._waiting: list[tuple[Wanted, asyncio.Future[Taken]]] = []
        self._task: asyncio.Task[None] | None = None

    async def fetch(self, key: str, start: int, *, final: bool) -> Taken:
        """What the worker recorded for a request from position `start` on."""
        return await self._enqueue((key, start, final))

    def discard(self, key: str) -> None:
        """Drop the record of a request whose caller went away."""
        self._enqueue((key, 0, True)).add_done_callback(_swallow)

    def _enqueue(self, wanted: Wanted) -> asyncio.Future[Taken]:
        future: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._take([wanted for wanted, _ in batch])
            except Exception as error:  # noqa: BLE001 - handed to everyone who waits
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _swallow(future: asyncio.Future[Taken]) -> None:
    if not future.cancelled():
        future.exception()
