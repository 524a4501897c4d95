"""A swap that fails, on an engine that stands in for vLLM: what is resumed, and what never is."""

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.policy.metrics import PolicyMetrics
from services.policy.offers import EngineStuck, NoOffers, Seat
from services.policy.weights import ServedWeights, WeightsFollower
from shared.errors import WeightsError
from shared.transfer import TensorLayout, TransferStart
from shared.weights import DEFAULT_MANIFEST

OLD = ServedWeights("run", 1, "old", DEFAULT_MANIFEST, "a" * 64)
NEW = ServedWeights("run", 2, "new", DEFAULT_MANIFEST, "b" * 64)
SEAT = Seat(
    TransferStart(
        offer_id="o",
        backend="gloo",
        host="127.0.0.1",
        port=1,
        world_size=2,
        first_rank_by_receiver={},
        join_s=1.0,
        timeout_s=1.0,
    ),
    first_rank=1,
)


class Recorded:
    """An engine that notes what it is told, and cannot load some folders."""

    def __init__(self, *unloadable: str, receive_fails: Exception | None = None) -> None:
        self.told: list[str] = []
        self._unloadable = unloadable
        self._receive_fails = receive_fails

    async def pause(self) -> None:
        self.told.append("pause")

    async def load(self, folder: str) -> None:
        self.told.append(f"load {folder}")
        if folder in self._unloadable:
            raise RuntimeError(f"{folder} does not load")

    async def receive(self, seat: Seat, layout: list[TensorLayout]) -> None:
        self.told.append(f"receive {len(layout)} tensors as {seat.first_rank}")
        if self._receive_fails is not None:
            raise self._receive_fails

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


async def test_what_is_received_is_not_read(metrics: PolicyMetrics) -> None:
    engine = Recorded("new")
    following = follower(engine, metrics)
    await following.swap(NEW, SEAT)
    assert engine.told == ["pause", "receive 0 tensors as 1", "label 2", "resume"]
    assert following.serving is NEW


async def test_a_folder_that_does_not_verify_is_not_loaded_in_place_of_a_transfer(
    metrics: PolicyMetrics,
) -> None:
    engine = Recorded(receive_fails=RuntimeError("broke off"))
    following = follower(engine, metrics)
    with pytest.raises(WeightsError, match="not a published version"):
        await following.swap(NEW, SEAT)
    assert engine.told == ["pause", "receive 0 tensors as 1", "load old", "label 1", "resume"]
    assert following.serving is OLD


async def test_an_engine_that_hangs_in_a_transfer_is_asked_nothing_more(
    metrics: PolicyMetrics,
) -> None:
    engine = Recorded(receive_fails=EngineStuck("hangs"))
    following = follower(engine, metrics)
    with pytest.raises(EngineStuck):
        await following.swap(NEW, SEAT)
    assert engine.told == ["pause", "receive 0 tensors as 1", "shutdown"]
