"""The wire in front of the policy: what passes is unchanged, and how long a turn took is known."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request

from benchmarks.policy_wire import covered_s, policy_wire
from tests.clinic.conftest import served

NAP_S = 0.05


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that takes its time over a turn."""
    app = FastAPI()

    @app.post("/medvr/v1/generate")
    async def generate(request: Request) -> dict[str, int]:
        body = await request.body()
        time.sleep(NAP_S)
        return {"length": len(body)}

    @app.get("/medvr/v1/policy")
    def describe() -> dict[str, str]:
        return {"model": "none"}

    with served(app) as url:
        yield int(url.rpartition(":")[2])


def test_turns_are_timed_and_nothing_else(port: int):
    with policy_wire(port) as wire, httpx.Client(trust_env=False) as client:
        url = f"http://127.0.0.1:{wire.port}/medvr/v1"
        began = time.perf_counter()
        described = client.get(f"{url}/policy").json()
        lengths = [client.post(f"{url}/generate", content=b"x" * n).json() for n in (3, 300_000)]
        ended = time.perf_counter()
        turns = wire.taken()
        again = wire.taken()

    assert described == {"model": "none"}
    assert lengths == [{"length": 3}, {"length": 300_000}]
    assert [end - begin > NAP_S for begin, end in turns] == [True, True]
    assert began < turns[0][0] < turns[0][1] < turns[1][0] < turns[1][1] < ended
    assert again == []


def test_turns_on_several_connections_are_told_apart(port: int):
    def ask(url: str) -> None:
        with httpx.Client(trust_env=False) as client:
            client.post(url, content=b"x")

    with policy_wire(port) as wire:
        url = f"http://127.0.0.1:{wire.port}/medvr/v1/generate"
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        turns = wire.taken()

    assert len(turns) == 3
    assert all(end - begin > NAP_S for begin, end in turns)


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [
        ([], 0),
        ([(1, 2), (4, 7)], 4),
        ([(4, 7), (1, 5)], 6),
        ([(1, 9), (2, 3), (8, 10)], 9),
        ([(1, 2), (2, 3)], 2),
    ],
)
def test_time_that_several_turns_share_counts_once(
    intervals: list[tuple[float, float]], seconds: float
):
    assert covered_s(intervals) == seconds
