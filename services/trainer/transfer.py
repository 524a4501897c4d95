# pyright: basic
"""Sending a published version to the replicas that can receive it, before they read its folder.

`offer` returns when all who answered have the version, or when it is off: nobody can receive, too
few answered in time, something broke. It raises nothing and takes a bounded time, because the
folder is durable by then and the channel key points at it: who was not reached loads that. Only
rank 0 of a distributed trainer calls it; the others wait for it in their next collective.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import redis
import torch
from safetensors import safe_open
from torch import Tensor

from services.trainer.settings import TrainerSettings
from shared.errors import WeightsError
from shared.transfer import (
    OPENED,
    TensorLayout,
    TransferAnswer,
    TransferBackend,
    TransferOffer,
    TransferStart,
    answers_key,
    checkpoint_layout,
    decode_answer,
    encode_message,
    offers_channel,
)
from shared.transfer_group import TransferGroup, open_store
from shared.weights import ChannelPointer, channel_key, encode_pointer

logger = logging.getLogger(__name__)

JOIN_S = 15.0
"""From the start to the last replica: the step that its engine is in must end first."""
_GRACE_S = 5.0
"""For what a group's own limits do not reach, NCCL's connecting above all."""
_POLL_S = 0.01


class WeightTransfer(Protocol):
    """How the bytes of a version get into running replicas besides its folder."""

    def offer(self, pointer: ChannelPointer, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Send a durable version to whoever takes it; see `GroupTransfer`."""
        ...


class FilesOnly:
    """Replicas read the folder."""

    def offer(self, pointer: ChannelPointer, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing."""


class GroupTransfer:
    """Sends by a process group of this trainer and the replicas that answered."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        channel: str,
        backend: TransferBackend,
        device: torch.device,
        answer_s: float,
        timeout_s: float,
        join_s: float = JOIN_S,
    ) -> None:
        self._client = client
        self._channel = channel
        self._offers = offers_channel(channel, backend)
        self._backend: TransferBackend = backend
        self._device = device
        self._answer_s = answer_s
        self._timeout_s = timeout_s
        self._join_s = join_s
        self._is_stuck = False

    def offer(self, pointer: ChannelPointer, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Announce the version, and send it to those who answer within `answer_s`.

        `tensors` are all of the published checkpoint, whole, under its names, in its types and in
        the order of `checkpoint_layout`; they may lie anywhere and are taken one at a time.
        """
        if self._is_stuck:
            return
        started = time.perf_counter()
        try:
            layout = checkpoint_layout(Path(pointer.path))
            offer = TransferOffer(
                offer_id=secrets.token_hex(8), pointer=pointer, answer_s=self._answer_s
            )
            answers = self._ask(offer)
            if not answers:
                return
            self._within_limits(offer, answers, layout, tensors)
        except Exception as error:  # noqa: BLE001 - whatever it was, the folder is there
            logger.warning("version %d goes by its folder: %s", pointer.version, error)
        else:
            seconds = time.perf_counter() - started
            logger.info("sent version %d in %.3f s", pointer.version, seconds)

    def _ask(self, offer: TransferOffer) -> list[TransferAnswer]:
        """Announce and offer; the answers of those who listen, or of those in time."""
        key = answers_key(offer.offer_id)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.rpush(key, OPENED)
            pipe.expire(key, int(self._answer_s) + 60)  # if this process is killed
            pipe.set(channel_key(self._channel), encode_pointer(offer.pointer))
            pipe.publish(self._offers, encode_message(offer))
            num_listening: int = pipe.execute()[-1]
        deadline = time.monotonic() + self._answer_s
        while self._num_answers(key) < num_listening and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.lrange(key, 1, -1)
            pipe.delete(key)
            answers = [decode_answer(value) for value in pipe.execute()[0]]
        if num_listening:
            logger.info("%d of %d replicas take the offer", len(answers), num_listening)
        return answers

    def _num_answers(self, key: str) -> int:
        return int(self._client.llen(key)) - 1  # pyright: ignore[reportArgumentType]

    def _within_limits(
        self,
        offer: TransferOffer,
        answers: list[TransferAnswer],
        layout: list[TensorLayout],
        tensors: Iterable[tuple[str, Tensor]],
    ) -> None:
        """Send on a thread that is given up if it does not come back: training goes on.

        Such a thread is stuck inside NCCL, so nothing is offered any more by this process.
        """
        failures: list[str] = []
        """Words, not exceptions: those hold the frames, and with them the group's connections."""

        def send() -> None:
            try:
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)  # threads have their own
                self._send(offer, answers, layout, tensors)
            except Exception as error:  # noqa: BLE001 - told by the thread that waits
                failures.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=send, name="transfer", daemon=True)
        thread.start()
        thread.join(self._join_s + self._timeout_s + _GRACE_S)
        if thread.is_alive():
            self._is_stuck = True
            raise TimeoutError("the transfer is stuck; from now on versions go by their folders")
        if failures:
            raise WeightsError(failures[0])

    def _send(
        self,
        offer: TransferOffer,
        answers: list[TransferAnswer],
        layout: list[TensorLayout],
        tensors: Iterable[tuple[str, Tensor]],
    ) -> None:
        host = _own_address(self._client)
        store = open_store(host, self._timeout_s)
        first_rank_by_receiver, world_size = _seat(answers)
        start = TransferStart(
            offer_id=offer.offer_id,
            backend=self._backend,
            host=host,
            port=store.port,
            world_size=world_size,
            first_rank_by_receiver=first_rank_by_receiver,
            join_s=self._join_s,
            timeout_s=self._timeout_s,
        )
        self._client.publish(self._offers, encode_message(start))
        group = TransferGroup(store, 0, start)
        try:
            for tensor in _as_laid_out(layout, tensors):
                group.broadcast(tensor.detach().to(self._device).contiguous())
            group.finish()
        finally:
            group.close()


def choose_transfer(settings: TrainerSettings, client: "redis.Redis") -> WeightTransfer:
    """What `weight_transfer` comes to on this machine. Raises `WeightsError` if it cannot be."""
    device = torch.device(settings.device)
    has_cuda = device.type == "cuda" and torch.cuda.is_available()
    if has_cuda and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    choice = settings.weight_transfer
    if choice == "auto":
        choice = "nccl" if has_cuda else "files"
    if choice == "files":
        return FilesOnly()
    if choice == "nccl" and not has_cuda:
        raise WeightsError(
            f"weight_transfer nccl needs CUDA; the trainer's device is {settings.device}"
        )
    return GroupTransfer(
        client,
        channel=settings.weights_channel,
        backend=choice,
        device=device if choice == "nccl" else torch.device("cpu"),
        answer_s=settings.transfer_answer_s,
        timeout_s=settings.transfer_timeout_s,
    )


def published_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a published version as its files hold them, one at a time, in layout order."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _as_laid_out(
    layout: list[TensorLayout], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[Tensor]:
    """The tensors, each checked against what the receivers expect next. Raises `WeightsError`."""
    expected = iter(layout)
    for name, tensor in tensors:
        found = TensorLayout(name, str(tensor.dtype).split(".")[-1], tuple(tensor.shape))
        if found != (wanted := next(expected, None)):
            raise WeightsError(f"{found} is to be sent where the folder has {wanted}")
        yield tensor
    if (wanted := next(expected, None)) is not None:
        raise WeightsError(f"nothing is to be sent where the folder has {wanted}")


def _seat(answers: list[TransferAnswer]) -> tuple[dict[str, int], int]:
    """The first rank of each receiver, after the trainer's 0, and the size of the group."""
    first_rank_by_receiver: dict[str, int] = {}
    next_rank = 1
    for answer in answers:
        first_rank_by_receiver[answer.receiver] = next_rank
        next_rank += answer.num_ranks
    return first_rank_by_receiver, next_rank


def _own_address(client: "redis.Redis") -> str:
    """This machine's address on the network in which replicas and trainer find Redis."""
    options = client.connection_pool.connection_kwargs
    if "host" not in options:  # a Unix socket: all are on this machine
        return "127.0.0.1"
    with socket.create_connection((options["host"], options.get("port", 6379)), 10) as probe:
        return str(probe.getsockname()[0])
