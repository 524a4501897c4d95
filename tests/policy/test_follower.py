"""A swap that fails, on an engine that stands in for vLLM: what is resumed, and what never is."""

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.policy.metrics import PolicyMetrics
from services.policy.offers import NoOffers
from services.policy.weights import ServedWeights, WeightsFollower
from shared.weights import DEFAULT_MANIFEST

OLD = ServedWeights("run", 1, "old", DEFAULT_MANIFEST)
NEW = ServedWeights("run", 2, "new", DEFAULT_MANIFEST)


class Recorded:
    """An engine that notes what it is told, and cannot load some folders."""

    def __init__(self, *unloadable: str) -> None:
        self.told: list[str] = []
        self._unloadable = unloadable

    async def pause(self) -> None:
        self.told.append("pause")

    async def load(self, folder: str) -> None:
        self.told.append(f"load {folder}")
        if folder in self._unloadable:
            raise RuntimeError(f"{folder} does not load")

    async def label_weights(self, version: int) -> None:
        self.told.append(f"label {version}")

    async def resume(self) -> None:
        self.told.append("resume")

    def shutdown(self) -> None:
        self.told.append("shutdown")


@pytest.fixture(scope="module")
def metrics() -> PolicyMetrics:
    return PolicyMetrics(CollectorRegistry())


def follower(engine: Recorded, metrics: PolicyMetrics) -> WeightsFollower:
    return WeightsFollower(
        cast(Any, engine),
        OLD,
        metrics,
        channel="c",
        redis_url="redis://",
        poll_interval_s=1.0,
        offers=NoOffers(),
    )


async def test_a_swap_that_fails_serves_the_old_weights_on(metrics: PolicyMetrics) -> None:
    engine = Recorded("new")
    following = follower(engine, metrics)
    with pytest.raises(RuntimeError, match="new does not load"):
        await following.swap(NEW)
    assert engine.told == ["pause", "load new", "load old", "label 1", "resume"]
    assert following.serving is OLD


async def test_an_engine_of_mixed_weights_is_shut_down_and_never_resumed(
    metrics: PolicyMetrics,
) -> None:
    engine = Recorded("new", "old")
    following = follower(engine, metrics)
    following.is_caught_up = True
    with pytest.raises(RuntimeError, match="old does not load"):
        await following.swap(NEW)
    assert engine.told == ["pause", "load new", "load old", "shutdown"]
    assert not following.is_caught_up
    await following.run()
    assert engine.told[-1] == "shutdown", "it follows no further"
