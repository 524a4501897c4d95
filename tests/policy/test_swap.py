"""Weight swaps under load: nothing is dropped, nothing is stale, nothing is half."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
import safetensors.torch

from shared.api.policy import GenerateRequest, GenerateResponse
from shared.clients.policy import PolicyClient
from shared.weights import ChannelPointer, channel_key, encode_pointer, publish_version
from tests.fixtures_policy import RunningPolicy
from tests.policy.conftest import MakeImage, StoredImage, first_turn, flat
from tests.policy.reference import Reference

RUN = "swap-test"
Publish = Callable[[Path, int], ChannelPointer]


@pytest.fixture
def publish(policy_server: RunningPolicy, tmp_path: Path) -> Publish:
    """Publish a checkpoint as a version of `swap-test` and point the channel at it."""

    def run(checkpoint: Path, version: int) -> ChannelPointer:
        staging = tmp_path / f"staging-{version}"
        shutil.copytree(checkpoint, staging)
        pointer = publish_version(staging, tmp_path / "weights", RUN, version)
        _point(policy_server, pointer)
        return pointer

    return run


def _point(server: RunningPolicy, pointer: ChannelPointer) -> None:
    assert server.redis_url is not None
    with redis.Redis.from_url(server.redis_url) as client:
        client.set(channel_key("policy:train"), encode_pointer(pointer))


def _metric(server: RunningPolicy, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await is_true():
            await asyncio.sleep(0.05)


async def _until_served(policy: PolicyClient, version: int) -> None:
    async def is_served() -> bool:
        return (await policy.describe()).version == version

    await until(is_served)


def check_against(
    turn: GenerateResponse, image: StoredImage, by_version: dict[int, Reference]
) -> None:
    """Every token's log-probability and entropy is that of the version its span names."""
    logprobs, entropies = np.array(turn.sampled_logprobs), np.array(turn.entropies_nats)
    assert sum(span.num_tokens for span in turn.version_spans) == len(turn.token_ids)
    start = 0
    for span in turn.version_spans:
        end = start + span.num_tokens
        expected = by_version[span.version].continuation(
            flat(turn.segment_token_ids), [image.pixels], turn.token_ids
        )
        assert np.abs(logprobs[start:end] - expected[0][start:end]).mean() < 1e-3
        assert np.abs(entropies[start:end] - expected[1][start:end]).max() < 1e-4
        start = end


async def test_a_swap_under_load_drops_nothing_and_leaves_nothing_stale(
    policy: PolicyClient,
    policy_server: RunningPolicy,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
) -> None:
    images = [make_image(seed) for seed in range(40, 44)]
    known = GenerateRequest(segments=first_turn(images[0]), max_tokens=24, temperature=0.0)
    before = await policy.generate(known)

    shared = "Which kind of thing is it that is shown in this picture? " * 8
    """Most turns find their image in the prefix cache, and have to do without it after the swap."""

    async def turn(index: int) -> GenerateResponse:
        segments = first_turn(images[index % 4], f"{shared}Question {index}?")
        return await policy.generate(
            GenerateRequest(segments=segments, max_tokens=400, seed=index, temperature=1.0)
        )

    load = [asyncio.create_task(turn(index)) for index in range(24)]
    await until(lambda: running(policy_server, at_least=12))
    publish(random_checkpoints[1], 1)
    turns = await asyncio.gather(*load)
    await _until_served(policy, 1)

    by_version = {0: references[0], 1: references[1]}
    crossed = [t for t in turns if len(t.version_spans) == 2]
    assert crossed
    for index, answered in enumerate(turns):
        check_against(answered, images[index % 4], by_version)
    after = await policy.generate(known)
    assert [span.version for span in after.version_spans] == [1]
    assert after.token_ids != before.token_ids
    check_against(after, images[0], by_version)
    description = await policy.describe()
    assert (description.run, description.version) == (RUN, 1)
    assert _metric(policy_server, "medvr_policy_weights_version") == 1


async def running(server: RunningPolicy, at_least: int) -> bool:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{server.url}/metrics")).text
    lines = [x for x in text.splitlines() if x.startswith("vllm:num_requests_running")]
    return sum(float(line.split()[-1]) for line in lines) >= at_least


async def test_a_corrupt_version_leaves_the_old_one_serving(
    policy: PolicyClient,
    policy_server: RunningPolicy,
    random_checkpoints: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    serving = await policy.describe()
    refused = _metric(policy_server, 'medvr_policy_swaps_total{outcome="refused"}')
    staging = tmp_path / "staging"
    shutil.copytree(random_checkpoints[0], staging)
    pointer = publish_version(staging, tmp_path / "weights", RUN, 2)
    weights = Path(pointer.path) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    _point(policy_server, pointer)

    async def is_refused() -> bool:
        return _metric(policy_server, 'medvr_policy_swaps_total{outcome="refused"}') > refused

    await until(is_refused)
    assert await policy.describe() == serving
    assert httpx.get(f"{policy_server.url}/ready").status_code == 200


async def test_a_version_that_fails_to_load_is_taken_back(
    policy: PolicyClient,
    policy_server: RunningPolicy,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
    tmp_path: Path,
) -> None:
    """Right hashes and shapes, but a tensor vLLM does not know: it fails in the middle."""
    serving = await policy.describe()
    restored = _metric(policy_server, 'medvr_policy_swaps_total{outcome="restored"}')
    broken = tmp_path / "broken"
    shutil.copytree(random_checkpoints[1], broken)
    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[f"{name}.unknown"] = tensors.pop(name)
    safetensors.torch.save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    publish(broken, 3)

    async def is_restored() -> bool:
        return _metric(policy_server, 'medvr_policy_swaps_total{outcome="restored"}') > restored

    await until(is_restored)
    assert await policy.describe() == serving
    image = make_image(45)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=16))
    by_version = {0: references[0], 1: references[1]}
    check_against(turn, image, by_version)


async def test_versions_may_go_back(
    policy: PolicyClient,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
) -> None:
    """A promotion may be taken back: the channel decides, not the number."""
    publish(random_checkpoints[0], 0)
    await _until_served(policy, 0)
    image = make_image(40)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=16))
    check_against(turn, image, {0: references[0]})
