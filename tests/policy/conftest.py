"""Fixtures of the policy tests: a client of the session's server, its oracle, images."""

import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from shared.api.policy import ImageSegment, Segment, TextSegment
from shared.clients.policy import PolicyClient
from tests.fixtures_policy import RunningPolicy

if TYPE_CHECKING:
    from tests.policy.reference import Reference


@dataclass(frozen=True)
class StoredImage:
    """An image in the server's blob store."""

    name: str
    pixels: Image.Image
    png: bytes


MakeImage = Callable[..., StoredImage]


@pytest.fixture
async def policy(policy_server: RunningPolicy) -> AsyncIterator[PolicyClient]:
    """A client of the session's server."""
    client = PolicyClient(policy_server.url)
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def references(random_checkpoints: tuple[Path, Path]) -> "tuple[Reference, Reference]":
    """Both random checkpoints in transformers."""
    from tests.policy.reference import Reference

    return Reference(random_checkpoints[0]), Reference(random_checkpoints[1])


@pytest.fixture(scope="session")
def make_image(policy_server: RunningPolicy) -> MakeImage:
    """Stores a random image: `make_image(seed, width=112, height=112)`."""
    return images_of(policy_server)


def images_of(server: RunningPolicy) -> MakeImage:
    """`make_image` for another server."""

    def make(seed: int, width: int = 112, height: int = 112) -> StoredImage:
        shape = (height, width, 3)
        array = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
        pixels, file = Image.fromarray(array), io.BytesIO()
        pixels.save(file, "PNG")
        return StoredImage(server.blobs.put(file.getvalue()), pixels, file.getvalue())

    return make


def first_turn(image: StoredImage, question: str = "Which kind is it?") -> list[Segment]:
    """Segments of a first turn."""
    return [
        TextSegment(text="<|im_start|>system\nLook closely.<|im_end|>\n<|im_start|>user\n"),
        ImageSegment(image=image.name),
        TextSegment(text=f" {question}<|im_end|>\n<|im_start|>assistant\n"),
    ]


def flat(segment_token_ids: list[list[int]]) -> list[int]:
    """All ids of a prompt."""
    return [token_id for ids in segment_token_ids for token_id in ids]
