"""Problems for benchmarks: brain phantoms, taken in by the running zoom service."""

from shared.clients.zoom import ZoomClient
from shared.problem import Problem

SEED = 7
"""Of no set that is trained on or evaluated."""


async def ingest_problems(zoom: ZoomClient, num_problems: int) -> list[Problem]:
    """So many phantoms, in order. Raises `ZoomError`."""
    from services.problems.ingest import ingest_phantoms
    from services.problems.phantoms import render_phantoms

    phantoms = render_phantoms("brain", SEED, num_problems)
    problems, _ = await ingest_phantoms(phantoms, zoom, lambda _: None)
    return problems
