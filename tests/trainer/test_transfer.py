"""The trainer's end of sending a version: whom it asks, how long, and what it leaves behind.

What a replica makes of it, and the bytes, are tested in tests/policy/test_transfer.py.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import torch

from services.trainer.settings import TrainerSettings
from services.trainer.transfer import (
    FilesOnly,
    GroupTransfer,
    choose_transfer,
    published_tensors,
)
from shared.errors import WeightsError
from shared.transfer import (
    TransferOffer,
    answers_key,
    checkpoint_layout,
    decode_message,
    offers_channel,
)
from shared.weights import ChannelPointer, channel_key, decode_pointer
from tests.trainer.runs import run_settings

MakeSettings = Callable[..., TrainerSettings]


@pytest.fixture
def make_settings(tmp_path: Path, checkpoint: Path, blob_url: str, valkey_url: str) -> MakeSettings:
    def make(**others: object) -> TrainerSettings:
        given = {"checkpoint": checkpoint, "blob_url": blob_url, "redis_url": valkey_url}
        return run_settings(tmp_path, **given, **others)

    return make


@pytest.fixture
def pointer(checkpoint: Path) -> ChannelPointer:
    return ChannelPointer(run="run", version=3, path=str(checkpoint))


def transfer_of(valkey: redis.Redis, answer_s: float) -> GroupTransfer:
    return GroupTransfer(
        valkey,
        channel="c",
        backend="gloo",
        device=torch.device("cpu"),
        answer_s=answer_s,
        timeout_s=5.0,
    )


def test_without_cuda_versions_are_files_and_nccl_is_refused(
    make_settings: MakeSettings, valkey: redis.Redis
) -> None:
    assert isinstance(choose_transfer(make_settings(), valkey), FilesOnly)
    with pytest.raises(WeightsError, match="nccl needs CUDA; the trainer's device is cpu"):
        choose_transfer(make_settings(weight_transfer="nccl"), valkey)
    assert isinstance(choose_transfer(make_settings(weight_transfer="gloo"), valkey), GroupTransfer)


def test_where_nobody_listens_it_announces_and_goes_on_at_once(
    valkey: redis.Redis, pointer: ChannelPointer
) -> None:
    started = time.monotonic()
    transfer_of(valkey, answer_s=30.0).offer(pointer, published_tensors(Path(pointer.path)))
    assert time.monotonic() - started < 5
    value = valkey.get(channel_key("c"))
    assert isinstance(value, bytes)
    assert decode_pointer(value) == pointer
    assert valkey.keys() == [channel_key("c").encode()]


def test_who_listens_and_does_not_answer_is_waited_for_no_longer_than_said(
    valkey: redis.Redis, pointer: ChannelPointer
) -> None:
    with valkey.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(offers_channel("c", "gloo"))
        listener.get_message(timeout=1.0)
        started = time.monotonic()
        transfer_of(valkey, answer_s=0.5).offer(pointer, published_tensors(Path(pointer.path)))
        assert 0.5 <= time.monotonic() - started < 5
        message = listener.get_message(timeout=1.0)
        assert message is not None
        offer = decode_message(message["data"])
        assert isinstance(offer, TransferOffer)
        assert offer.pointer == pointer
        assert valkey.rpushx(answers_key(offer.offer_id), b"late") == 0


def test_tensors_are_sent_as_the_files_are_laid_out(checkpoint: Path) -> None:
    layout = checkpoint_layout(checkpoint)
    assert [tuple(t.shape) for _, t in published_tensors(checkpoint)] == [x.shape for x in layout]
    assert [name for name, _ in published_tensors(checkpoint)] == [x.name for x in layout]
    assert {x.dtype for x in layout} == {"float32"}
