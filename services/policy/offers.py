"""Hearing a trainer's offers to send a version, and answering them (shared/transfer.py).

An offer only wakes the follower up and is kept; what is served is decided by the channel key. So
an offer that is lost, late or for another version costs nothing: the folder is read instead.
"""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.policy.settings import PolicySettings
from services.policy.version import is_cpu_build
from shared.errors import MedvrError, WeightsError
from shared.transfer import (
    TransferAnswer,
    TransferBackend,
    TransferOffer,
    TransferStart,
    answers_key,
    decode_message,
    encode_message,
    offers_channel,
)
from shared.weights import ChannelPointer

logger = logging.getLogger(__name__)

_SAME_MOMENT_S = 0.1
"""Key and offer are set in one transaction, but are read over two connections."""
_START_S = 5.0
"""From the last moment of answers to the start."""


class EngineStuck(MedvrError):
    """A worker hangs in a transfer, in a call that cannot be taken back; a fresh engine helps."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A replica's place in a transfer that has started."""

    start: TransferStart
    first_rank: int
    """Of its workers."""


class Offers(Protocol):
    """What a follower asks about offers."""

    async def listen(self, wait_s: float) -> None:
        """Wait so long, or until an offer comes."""
        ...

    async def offer_of(self, pointer: ChannelPointer) -> TransferOffer | None:
        """The offer to send this version, if there is one."""
        ...

    async def accept(self, offer: TransferOffer) -> Seat | None:
        """Take part; None if it is too late, or the trainer does not start."""
        ...


class NoOffers:
    """A replica that reads folders."""

    async def listen(self, wait_s: float) -> None:
        """Wait so long."""
        await asyncio.sleep(wait_s)

    async def offer_of(self, pointer: ChannelPointer) -> TransferOffer | None:
        """None."""
        del pointer

    async def accept(self, offer: TransferOffer) -> Seat | None:
        """None."""
        del offer


class ChannelOffers:
    """The offers of one channel, for as long as this object lives."""

    def __init__(
        self, redis_url: str, channel: str, backend: TransferBackend, num_ranks: int
    ) -> None:
        self._redis = Redis.from_url(redis_url)
        self._messages = self._redis.pubsub(ignore_subscribe_messages=True)
        self._channel = offers_channel(channel, backend)
        self._receiver = secrets.token_hex(8)
        self._num_ranks = num_ranks
        self._offer: TransferOffer | None = None
        self._is_subscribed = False

    async def listen(self, wait_s: float) -> None:
        """Wait so long, or until an offer comes. A Redis that is away is waited for."""
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            message = await self._next_message(left_s)
            if isinstance(message, TransferOffer):
                self._offer = message
                return

    async def offer_of(self, pointer: ChannelPointer) -> TransferOffer | None:
        """The newest offer, if it is of this version."""
        if self._offer is None or self._offer.pointer != pointer:
            await self.listen(_SAME_MOMENT_S)
        offer, self._offer = self._offer, None
        return offer if offer is not None and offer.pointer == pointer else None

    async def accept(self, offer: TransferOffer) -> Seat | None:
        """Answer, and wait for the start."""
        answer = TransferAnswer(receiver=self._receiver, num_ranks=self._num_ranks)
        try:
            command = ("RPUSHX", answers_key(offer.offer_id), encode_message(answer))
            if not await self._redis.execute_command(*command):
                return None
        except RedisError as error:
            logger.warning("cannot answer an offer: %s", error)
            return None
        deadline = time.monotonic() + offer.answer_s + _START_S
        while (left_s := deadline - time.monotonic()) > 0:
            message = await self._next_message(left_s)
            if isinstance(message, TransferStart) and message.offer_id == offer.offer_id:
                first_rank = message.first_rank_by_receiver.get(self._receiver)
                return None if first_rank is None else Seat(message, first_rank)
        logger.warning("the trainer offered version %d and did not start", offer.pointer.version)
        return None

    async def aclose(self) -> None:
        """Stop listening."""
        await self._messages.aclose()
        await self._redis.aclose()

    async def _next_message(self, wait_s: float) -> TransferOffer | TransferStart | None:
        """The next message, or None after `wait_s` or less."""
        try:
            if not self._is_subscribed:
                await self._messages.subscribe(self._channel)
                self._is_subscribed = True
            message = await self._messages.get_message(timeout=wait_s)
            return None if message is None else decode_message(cast(bytes, message["data"]))
        except (RedisError, WeightsError) as error:
            logger.warning("cannot hear offers: %s", error)
            await asyncio.sleep(wait_s)
            return None


def transfer_backend(settings: PolicySettings) -> TransferBackend | None:
    """What `weight_transfer` comes to with this build of vLLM; None for files only."""
    choice = settings.weight_transfer
    if choice == "auto":
        choice = "files" if is_cpu_build() else "nccl"
    return None if choice == "files" or settings.channel == "none" else choice


def choose_offers(settings: PolicySettings) -> Offers:
    """What this replica hears of offers."""
    backend = transfer_backend(settings)
    if backend is None:
        return NoOffers()
    return ChannelOffers(
        settings.redis_url, settings.channel, backend, settings.tensor_parallel_size
    )
