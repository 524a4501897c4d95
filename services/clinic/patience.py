"""Trying again while a neighbour, or the database, fails for a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.errors import BoundaryError

T = TypeVar("T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


async def patiently(
    work: Callable[[], Awaitable[T]],
    patience_s: float,
    on_wait: Callable[[BoundaryError], None] | None = None,
) -> T:
    """What `work` returns, begun again for `patience_s` seconds while it fails transiently.

    `on_wait` is told of every failure that is waited out. Raises the last one, and at once what is
    not transient.
    """
    give_up_at = time.monotonic() + patience_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await work()
        except BoundaryError as error:
            if not error.is_transient or time.monotonic() + pause_s > give_up_at:
                raise
            if on_wait is not None:
                on_wait(error)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
