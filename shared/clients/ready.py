"""A ready check for the processes that depend on another service."""

import asyncio

import httpx

from shared.clients.http import HttpBoundary, Retries
from shared.errors import BoundaryError
from shared.service.app import ReadyCheck

_TIMEOUT_S = 5.0


def some_replica_answers(
    urls: str, path: str, client: httpx.AsyncClient | None = None
) -> ReadyCheck:
    """A check that GET `path` is answered by at least one replica."""

    async def check() -> None:
        once = Retries(max_attempts=1)
        boundary = HttpBoundary(urls, BoundaryError, client, retries=once)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await boundary.send("GET", path)
        finally:
            await boundary.aclose()

    return check
