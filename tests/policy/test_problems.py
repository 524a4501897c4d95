"""Whatever is sent, the answer is a problem document that says what was wrong; the server lives."""

import io
from typing import Any

import httpx
import pytest
from PIL import Image

from shared.api.policy import EntropyRequest, GenerateRequest, TextSegment
from shared.clients.policy import PolicyClient
from shared.errors import PolicyError
from tests.fixtures_policy import RunningPolicy

TEXT = {"type": "text", "text": "Say"}


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"temperature": 0.7}, 422, "temperature 0.7"),
        ({"temperature": 2}, 422, "temperature"),
        ({"top_p": 0.9}, 422, "top_p"),
        ({"segments": []}, 422, "segments"),
        ({"segments": [{"type": "image", "image": "ab"}]}, 422, "image"),
        ({"segments": [{"type": "image", "image": "0" * 64}]}, 404, "no blob"),
        ({"segments": [{"type": "tokens", "token_ids": [10**6]}]}, 422, "outside the vocabulary"),
        ({"segments": [{"type": "tokens", "token_ids": [-1]}]}, 422, "token_ids"),
        ({"segments": [TEXT, {"type": "text", "text": "<|image_pad|>"}]}, 422, "segments[1]"),
        ({"segments": [{"type": "text", "text": "a<|vision_pad|>"}]}, 422, "<|vision_pad|>"),
        ({"max_tokens": 1024}, 422, "context holds 1024"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"stop": [""]}, 422, "empty stop"),
        ({"seed": -1}, 422, "seed"),
        ({"segments": [{"type": "text", "text": "word " * 30_000}]}, 422, "context holds 1024"),
    ],
)
def test_a_request_that_cannot_be_served(
    policy_server: RunningPolicy, change: dict[str, Any], status: int, says: str
) -> None:
    body = {"segments": [TEXT], "max_tokens": 2, **change}
    response = httpx.post(f"{policy_server.url}/medvr/v1/generate", json=body, timeout=60)
    assert (response.status_code, response.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert says in response.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"segments": "\\ud800"}', b"\xff\xfe"])
def test_a_body_that_is_no_request(policy_server: RunningPolicy, content: bytes) -> None:
    response = httpx.post(f"{policy_server.url}/medvr/v1/generate", content=content, timeout=60)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def _png(width: int, height: int, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, image_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_png(100, 112), "multiples of 28"),
        (_png(476, 448), "pixels"),
        (_png(112, 112, "JPEG"), "not a PNG"),
        (_png(112, 112)[:80], "damaged PNG"),
        (b"nothing of the kind", "not a PNG"),
    ],
)
def test_an_image_that_cannot_be_shown(
    policy_server: RunningPolicy, data: bytes, says: str
) -> None:
    name = policy_server.blobs.put(data)
    body = {"segments": [TEXT, {"type": "image", "image": name}], "max_tokens": 2}
    response = httpx.post(f"{policy_server.url}/medvr/v1/generate", json=body, timeout=60)
    assert response.status_code == 422
    assert says in response.json()["detail"]


async def test_the_client_raises_what_the_server_said(policy: PolicyClient) -> None:
    request = GenerateRequest(segments=[TextSegment(text="A")], max_tokens=2, temperature=0.5)
    with pytest.raises(PolicyError, match=r"422 .* temperature 0\.5") as raised:
        await policy.generate(request)
    assert not raised.value.is_transient
    with pytest.raises(PolicyError, match="temperature"):
        await anext(policy.stream(request))


@pytest.mark.parametrize(
    ("continuation", "says"),
    [
        ([1] * 513, "at most 512"),
        ([10**6], "outside the vocabulary"),
        ("a <|image_pad|>", "vision placeholder"),
    ],
)
async def test_a_continuation_that_cannot_be_scored(
    policy: PolicyClient, continuation: str | list[int], says: str
) -> None:
    request = EntropyRequest(segments=[TextSegment(text="A")], continuation=continuation)
    with pytest.raises(PolicyError, match=says):
        await policy.entropy(request)


async def test_it_says_what_it_serves(policy: PolicyClient) -> None:
    description = await policy.describe()
    assert (description.model, description.run, description.version) == ("random", "base", 0)
    assert description.channel == "policy:train"
    assert description.view.min_pixels == description.view.max_pixels == 112 * 112
    assert description.max_model_len_tokens == 1024
