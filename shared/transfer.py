"""Offering a published version over the network: what is said before the first byte flows.

The folder stays the truth (docs/decisions/0010): whoever takes no part, or in whose transfer
anything fails, loads it. All of this is told through Redis, beside the channel key:

    trainer                                      replica that can receive
    MULTI {opens a list of answers,
           sets the channel key,
           publishes the offer}        ──►       checks the folder, all but its weights
                                       ◄──       RPUSHX its answer to that list
    takes the list away; a later answer
    finds none, and is not counted
    publishes the start: who is in     ──►       pauses its engine, joins, receives, resumes

Publishing says how many listen, so nobody waits where nobody can receive. The tensors flow in the
order of the folder's own headers (`checkpoint_layout`), which both sides read.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from shared.checkpoint import read_tensors
from shared.errors import WeightsError
from shared.weights import ChannelPointer

TransferBackend = Literal["nccl", "gloo"]
"""Who carries the bytes: NCCL between GPUs, Gloo between CPUs."""
TransferChoice = Literal["auto", "nccl", "gloo", "files"]
"""A setting of both sides; `auto` is NCCL where there is CUDA, else files."""

OPENED = b"opened"
"""First element of a list of answers: RPUSHX answers only to a list that is there."""

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class TransferOffer(msgspec.Struct, frozen=True, kw_only=True, tag="offer"):
    """A version that its trainer would send; the channel key points at it already."""

    offer_id: str
    pointer: ChannelPointer
    answer_s: float
    """Answers are taken no longer than this; the start follows."""


class TransferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A replica takes part: it will join when it is told to start."""

    receiver: str
    num_ranks: int
    """Its processes that hold weights: the GPUs that share the model."""


class TransferStart(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Who is in the group, and where it meets."""

    offer_id: str
    backend: TransferBackend
    host: str
    port: int
    """Of the trainer's store, which holds a few counters and addresses for this one transfer."""
    world_size: int
    """Processes in the group; the trainer is rank 0."""
    first_rank_by_receiver: dict[str, int]
    join_s: float
    """Within this time all have joined, or it is off."""
    timeout_s: float
    """Within this time all have everything, or it is off."""


class TensorLayout(NamedTuple):
    """One tensor of a checkpoint, as it is sent."""

    name: str
    dtype: str
    """torch's name of it: float32, bfloat16, float16."""
    shape: tuple[int, ...]


def checkpoint_layout(folder: Path) -> list[TensorLayout]:
    """All tensors of a checkpoint in the order in which they are sent: by file, then by name.

    Raises `WeightsError` for a type that is not sent.
    """
    layout: list[TensorLayout] = []
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(read_tensors(path).items()):
            if tensor["dtype"] not in _DTYPES:
                raise WeightsError(f"{path}: {name} is {tensor['dtype']}, which is not transferred")
            layout.append(TensorLayout(name, _DTYPES[tensor["dtype"]], tuple(tensor["shape"])))
    return layout


def offers_channel(channel: str, backend: TransferBackend) -> str:
    """Where offers and starts are published for those who can receive by this backend."""
    return f"medvr:weights:{channel}:offers:{backend}"


def answers_key(offer_id: str) -> str:
    """The list of an offer's answers, there while it is open."""
    return f"medvr:weights:offer:{offer_id}"


def encode_message(message: TransferOffer | TransferStart | TransferAnswer) -> bytes:
    """What is published or answered."""
    return msgspec.json.encode(message)


def decode_message(value: bytes) -> TransferOffer | TransferStart:
    """Raises `WeightsError` if something else was published."""
    try:
        return msgspec.json.decode(value, type=TransferOffer | TransferStart)
    except msgspec.MsgspecError as error:
        raise WeightsError(f"offers: {error}") from error


def decode_answer(value: bytes) -> TransferAnswer:
    """Raises `WeightsError` if something else was answered."""
    try:
        return msgspec.json.decode(value, type=TransferAnswer)
    except msgspec.MsgspecError as error:
        raise WeightsError(f"answers to an offer: {error}") from error
