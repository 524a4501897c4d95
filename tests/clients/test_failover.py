"""Several replicas behind one client, over real sockets: who is asked, and who stands in."""

from collections.abc import Callable

import httpx
import pytest

from shared.api.zoom import WireImageSize
from shared.clients.http import HttpBoundary
from shared.clients.ready import some_replica_answers
from shared.clients.replicas import REST_S, Replicas, rendezvous_order
from shared.errors import BoundaryError, CcaError, PolicyError
from tests.clients.test_http import BUSY, OK, QUICK, SIZE, raw_server, reply
from tests.clients.test_replicas import Clock


async def ok(_: int, __: bytes) -> bytes:
    return OK


async def busy(_: int, __: bytes) -> bytes:
    return BUSY


async def hang_up(_: int, __: bytes) -> None:
    return None


def favoured_by(key_of: str, urls: list[str]) -> str:
    """A key whose favourite replica is `key_of`."""
    return next(k for k in map(str, range(1000)) if rendezvous_order(k, urls)[0] == key_of)


async def test_without_a_key_replicas_take_turns() -> None:
    async with raw_server(ok) as (first, first_heads), raw_server(ok) as (second, second_heads):
        http = HttpBoundary(f"{first},{second}", CcaError, retries=QUICK)
        for _ in range(6):
            await http.post("/v1/x", SIZE, WireImageSize)
        assert (len(first_heads), len(second_heads)) == (3, 3)
        await http.aclose()


async def test_a_key_stays_on_one_replica() -> None:
    async with raw_server(ok) as (first, first_heads), raw_server(ok) as (second, second_heads):
        http = HttpBoundary(f"{first},{second}", PolicyError, retries=QUICK)
        bound = http.of(favoured_by(second, [first, second]))
        for _ in range(6):
            await bound.post("/v1/x", SIZE, WireImageSize)
        assert (len(first_heads), len(second_heads)) == (0, 6)
        await http.aclose()


@pytest.mark.parametrize("failing", [busy, hang_up])
async def test_the_next_replica_answers_for_one_that_fails_and_keeps_the_key(
    failing: Callable[..., object],
) -> None:
    async with (
        raw_server(failing) as (bad, bad_heads),
        raw_server(ok) as (good, good_heads),
    ):
        http = HttpBoundary(f"{bad},{good}", PolicyError, retries=QUICK)
        bound = http.of(favoured_by(bad, [bad, good]))
        for _ in range(4):
            assert await bound.post("/v1/x", SIZE, WireImageSize) == SIZE
        assert (len(bad_heads), len(good_heads)) == (1, 4)
        await http.aclose()


async def test_a_replica_that_failed_is_left_alone_for_a_while() -> None:
    async with raw_server(busy) as (bad, bad_heads), raw_server(ok) as (good, good_heads):
        clock = Clock()
        http = HttpBoundary(Replicas(f"{bad},{good}", clock=clock), CcaError, retries=QUICK)
        for _ in range(6):
            await http.post("/v1/x", SIZE, WireImageSize)
        assert (len(bad_heads), len(good_heads)) == (1, 6)
        clock.now += REST_S
        for _ in range(2):
            await http.post("/v1/x", SIZE, WireImageSize)
        assert (len(bad_heads), len(good_heads)) == (2, 8)
        await http.aclose()


async def test_a_key_does_not_move_back_when_its_first_replica_returns() -> None:
    async def once_busy(number: int, _: bytes) -> bytes:
        return BUSY if number == 0 else OK

    async with raw_server(once_busy) as (first, heads), raw_server(ok) as (second, second_heads):
        clock = Clock()
        http = HttpBoundary(Replicas(f"{first},{second}", clock=clock), PolicyError)
        key = favoured_by(first, [first, second])
        bound = http.of(key)
        for _ in range(3):
            await bound.post("/v1/x", SIZE, WireImageSize)
            clock.now += REST_S
        assert (len(heads), len(second_heads)) == (1, 3)
        await http.of(key).post("/v1/x", SIZE, WireImageSize)
        assert (len(heads), len(second_heads)) == (2, 3)
        await http.aclose()


async def test_a_replica_nobody_listens_for_costs_no_request(free_port: Callable[[], int]) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with raw_server(ok) as (good, good_heads):
        http = HttpBoundary(f"{dead},{good}", CcaError, retries=QUICK)
        for _ in range(4):
            await http.post("/v1/x", SIZE, WireImageSize)
        assert len(good_heads) == 4
        await http.aclose()


async def test_with_all_replicas_away_it_asks_all_of_them_again_and_then_says_why() -> None:
    async with raw_server(busy) as (first, first_heads), raw_server(busy) as (second, heads):
        http = HttpBoundary(f"{first},{second}", PolicyError, retries=QUICK)
        with pytest.raises(PolicyError, match="503 Not ready: warming up") as caught:
            await http.post("/v1/x", SIZE, WireImageSize)
        assert caught.value.is_transient
        assert (len(first_heads), len(heads)) == (QUICK.max_attempts, QUICK.max_attempts)
        await http.aclose()


async def test_a_refusal_is_an_answer_and_no_other_replica_is_asked() -> None:
    async def refuse(_: int, __: bytes) -> bytes:
        return reply("422 Unprocessable", b'{"title": "T", "detail": "why"}')

    async with raw_server(refuse) as (first, first_heads), raw_server(ok) as (second, heads):
        http = HttpBoundary(f"{first},{second}", PolicyError, retries=QUICK)
        with pytest.raises(PolicyError, match="T: why"):
            await http.of(favoured_by(first, [first, second])).post("/v1/x", SIZE, WireImageSize)
        assert (len(first_heads), len(heads)) == (1, 0)
        await http.aclose()


async def test_a_name_that_does_not_resolve_is_a_transient_error() -> None:
    http = HttpBoundary("dns+http://replicas.invalid:80", PolicyError, retries=QUICK)
    with pytest.raises(PolicyError, match="no address for its name") as caught:
        await http.get("/v1/x", WireImageSize)
    assert caught.value.is_transient
    await http.aclose()


async def test_a_name_leads_to_whoever_listens_at_its_addresses() -> None:
    async with raw_server(ok) as (url, heads):
        http = HttpBoundary(f"dns+{url}", PolicyError, retries=QUICK)
        assert await http.get("/v1/x", WireImageSize) == SIZE
        assert len(heads) == 1
        await http.aclose()


async def test_a_dependency_is_ready_if_one_replica_answers(free_port: Callable[[], int]) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with raw_server(ok) as (good, _):
        await some_replica_answers(f"{dead},{good}", "/health")()
        async with httpx.AsyncClient() as client:
            await some_replica_answers(f"{dead},{good}", "/health", client)()
    with pytest.raises(BoundaryError, match="did not answer"):
        await some_replica_answers(dead, "/health")()
