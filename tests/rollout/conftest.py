from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rollout.stage import Stage, set_stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(tmp_path / "blobs") as made:
        yield made
