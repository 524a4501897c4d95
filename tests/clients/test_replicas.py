"""Which replica a request goes to: pure, and with a clock and a resolver as arguments."""

from collections import Counter
from collections.abc import Sequence

import pytest

from shared.clients.replicas import (
    RESOLVE_EVERY_S,
    REST_S,
    Replicas,
    rendezvous_order,
    resolve_addresses,
    split_urls,
)

FOUR = [f"http://10.0.0.{n}:8100" for n in range(1, 5)]
KEYS = [f"run:{n // 500}:problem-{n % 500}" for n in range(4000)]


def favourites(replicas: Sequence[str]) -> dict[str, str]:
    return {key: rendezvous_order(key, replicas)[0] for key in KEYS}


def test_the_order_is_of_the_replicas_and_not_of_their_listing() -> None:
    for key in KEYS[:50]:
        assert sorted(rendezvous_order(key, FOUR)) == FOUR
        assert rendezvous_order(key, FOUR) == rendezvous_order(key, FOUR[::-1])


def test_every_replica_is_the_favourite_of_its_share_of_keys() -> None:
    counts = Counter(favourites(FOUR).values())
    # Binomial: 1000 expected, standard deviation 27; five of them.
    assert all(863 < counts[replica] < 1137 for replica in FOUR)


def test_a_replica_that_leaves_moves_its_own_keys_only_and_evenly() -> None:
    before, after = favourites(FOUR), favourites(FOUR[:3])
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {before[key] for key in moved} == {FOUR[3]}
    assert len(moved) == Counter(before.values())[FOUR[3]]
    counts = Counter(after[key] for key in moved)
    assert all(counts[replica] > len(moved) / 3 * 0.8 for replica in FOUR[:3])


def test_a_replica_that_joins_takes_keys_and_moves_no_others() -> None:
    before, after = favourites(FOUR[:3]), favourites(FOUR)
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {FOUR[3]}
    assert 863 < len(moved) < 1137


def test_without_its_favourite_a_key_goes_to_its_second() -> None:
    for key in KEYS[:50]:
        first, *others = rendezvous_order(key, FOUR)
        assert rendezvous_order(key, [r for r in FOUR if r != first]) == others


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_requests_without_a_key_take_turns() -> None:
    replicas = Replicas(",".join(FOUR[:3]))
    firsts = [(await replicas.order(None))[0] for _ in range(6)]
    assert firsts == FOUR[:3] * 2


async def test_a_replica_that_failed_comes_last_until_it_has_rested() -> None:
    clock = Clock()
    replicas = Replicas(",".join(FOUR), clock=clock)
    first, *others = await replicas.order("key")
    replicas.failed(first)
    assert await replicas.order("key") == [*others, first]
    clock.now += REST_S
    assert await replicas.order("key") == [first, *others]


async def test_a_key_stays_where_it_was_answered_unless_that_replica_fails() -> None:
    replicas = Replicas(",".join(FOUR))
    order = await replicas.order("key")
    second = order[1]
    at_home = [second, *(r for r in order if r != second)]
    assert await replicas.order("key", home=second) == at_home
    replicas.failed(second)
    assert await replicas.order("key", home=second) == [r for r in order if r != second] + [second]
    assert await replicas.order("key", home="http://gone:1") == [
        r for r in order if r != second
    ] + [second]


class Names:
    """A resolver whose answers change, and fail."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        if not self.addresses:
            raise OSError("no such name")
        return self.addresses


async def test_a_name_stands_for_all_its_addresses_and_is_looked_up_again() -> None:
    clock, names = Clock(), Names("10.0.0.1", "10.0.0.2")
    replicas = Replicas("dns+http://policy.medvr.svc:8100", resolve=names, clock=clock)
    assert sorted(await replicas.order("key")) == FOUR[:2]
    names.addresses.append("10.0.0.3")
    assert sorted(await replicas.order("key")) == FOUR[:2]
    clock.now += RESOLVE_EVERY_S
    assert sorted(await replicas.order("key")) == FOUR[:3]
    assert names.asked == [("policy.medvr.svc", 8100)] * 2


async def test_a_name_that_no_longer_resolves_keeps_its_last_addresses() -> None:
    clock, names = Clock(), Names("10.0.0.1")
    replicas = Replicas("dns+http://policy:8100", resolve=names, clock=clock)
    await replicas.order("key")
    names.addresses.clear()
    clock.now += RESOLVE_EVERY_S
    assert await replicas.order("key") == FOUR[:1]


async def test_a_name_that_never_resolved_is_asked_again_each_time() -> None:
    names = Names()
    replicas = Replicas("dns+http://policy:8100", resolve=names, clock=Clock())
    with pytest.raises(OSError, match="no such name"):
        await replicas.order("key")
    names.addresses.append("10.0.0.1")
    assert await replicas.order("key") == FOUR[:1]


async def test_the_system_resolver_gives_addresses_fit_for_a_url() -> None:
    assert "127.0.0.1" in await resolve_addresses("127.0.0.1", 80)
    assert list(await resolve_addresses("::1", 80)) == ["[::1]"]


def test_urls_are_split_and_trimmed() -> None:
    urls = " http://a:1/ , https://b/base,dns+http://c:3 "
    assert split_urls(urls) == ["http://a:1", "https://b/base", "dns+http://c:3"]
    assert Replicas(urls).has_tls
    assert not Replicas("http://a:1").has_tls


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ("", "no URL"),
        (" , ", "no URL"),
        ("localhost:8100", "'localhost:8100' is no base URL"),
        ("http://a:1,ftp://b", "'ftp://b' is no base URL"),
        ("http://", "is no base URL"),
        ("http://a:1,http://a:1/", "twice"),
        ("dns+http://a", "a name and a port"),
        ("dns+http://a:1/base", "a name and a port"),
        ("http://a:port", "is no base URL"),
    ],
)
def test_what_is_no_url_is_refused_by_name(urls: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split_urls(urls)
