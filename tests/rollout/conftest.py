from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.rollout.company import Company, gather_company
from tests.rollout.stage import Stage, set_stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(tmp_path / "blobs") as made:
        yield made


@pytest.fixture
def company(tmp_path: Path, valkey_url: str, free_port: Callable[[], int]) -> Iterator[Company]:
    with gather_company(tmp_path, valkey_url, free_port) as made:
        made.stream.open({}, 0)
        yield made
