"""Replicas of a service: which of them a request goes to, and who stands in when one is away.

A URL setting names the replicas of a service: base URLs separated by commas. One of the form
`dns+http://name:port` stands for a replica per address that the name has at the moment, looked up
again every few seconds; that is what a headless Kubernetes service offers, whose name resolves to
the addresses of its ready pods. A plain `http://name:port` is one replica, however many addresses
the name has.

Requests with a key in common (a group's id, an image's hash) go to one replica, because that is
where their prefix, or their image, is cached: by rendezvous hashing, so that every process finds
the same one without asking anybody, and a replica that joins or leaves moves only the keys that
it gains or loses. Requests without a key take turns. A replica that failed rests for `REST_S`:
until then it comes last.
"""

import asyncio
import hashlib
import itertools
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

REST_S = 5.0
"""A replica that did not answer is tried last for so long."""
RESOLVE_EVERY_S = 5.0
"""Age at which the addresses of a name are looked up again."""
_DNS = "dns+"

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host name, port) → its addresses now. Raises `OSError` if the name cannot be resolved."""


def rendezvous_order(key: str, replicas: Sequence[str]) -> list[str]:
    """The replicas, the key's favourite first: in descending order of hash(replica, key).

    Highest random weight hashing (Thaler and Ravishankar, 1998). It depends on the set of replicas
    only, never on their order. Of N replicas each is the favourite of 1/N of all keys; without its
    favourite a key falls to its second, so the keys of one that left spread evenly over the others.
    """

    def weight(replica: str) -> bytes:
        return hashlib.sha256(f"{replica}\0{key}".encode()).digest()

    return sorted(replicas, key=weight, reverse=True)


def split_urls(urls: str) -> list[str]:
    """The base URLs of a setting. Raises `ValueError` that names the one that is none."""
    found = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
    if not found:
        raise ValueError("no URL; give one, or several separated by commas")
    for url in found:
        if not _is_base_url(url):
            raise ValueError(
                f"{url!r} is no base URL: http://…, https://… or {_DNS}http://name:port"
            )
        parts = urlsplit(url)
        if url.startswith(_DNS) and (parts.port is None or parts.path):
            raise ValueError(f"{url!r}: {_DNS}http:// takes a name and a port, and nothing else")
    if len(set(found)) < len(found):
        raise ValueError("the same URL twice")
    return found


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_port = parts.port is None or parts.port > 0  # raises for one that is no number
    except ValueError:
        return False
    return is_port and parts.scheme in ("http", "https", f"{_DNS}http") and bool(parts.hostname)


def _checked(urls: str) -> str:
    split_urls(urls)
    return urls


ServiceUrls = Annotated[str, AfterValidator(_checked)]
"""A setting that names the replicas of a service."""


async def resolve_addresses(host: str, port: int) -> Sequence[str]:
    """All addresses of a name, by the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = sorted({str(address[4][0]) for address in found})
    return [f"[{address}]" if ":" in address else address for address in addresses]


class _Name:
    """A `dns+http://` URL and the replicas behind it when it was last looked up."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port
        self.replicas: list[str] = []
        self.looked_up_at = -RESOLVE_EVERY_S

    async def look_up(self, resolve: Resolve, now: float) -> None:
        """Refresh what is too old; a name that no longer resolves keeps its last addresses."""
        if self.replicas and now - self.looked_up_at < RESOLVE_EVERY_S:
            return
        self.looked_up_at = now
        try:
            addresses = await resolve(self.host, self.port)
        except OSError:
            if not self.replicas:
                raise
            return
        self.replicas = [f"http://{address}:{self.port}" for address in addresses]


class Replicas:
    """The replicas behind one URL setting, and which of them failed lately."""

    def __init__(
        self,
        urls: str,
        *,
        resolve: Resolve = resolve_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `ValueError` if a URL is none."""
        split = split_urls(urls)
        self._fixed = [url for url in split if not url.startswith(_DNS)]
        self._names = [_Name(url) for url in split if url.startswith(_DNS)]
        self._resolve = resolve
        self._clock = clock
        self._rests_until: dict[str, float] = {}
        self._turn = itertools.count()

    @property
    def has_tls(self) -> bool:
        """Whether a certificate must be checked."""
        return any(url.startswith("https:") for url in self._fixed)

    async def order(self, key: str | None, home: str | None = None) -> list[str]:
        """All replicas in the order in which to try them; those that rest come last.

        By turns without a key; with one, `home` first (where the key was answered before), then by
        rendezvous. Raises `OSError` if a name has never been resolved.
        """
        now = self._clock()
        for name in self._names:
            await name.look_up(self._resolve, now)
        replicas = [*self._fixed, *(url for name in self._names for url in name.replicas)]
        if len(replicas) == 1:
            return replicas
        if key is None:
            start = next(self._turn) % max(1, len(replicas))
            ordered = replicas[start:] + replicas[:start]
        else:
            ordered = rendezvous_order(key, replicas)
            ordered.sort(key=lambda url: url != home)
        return sorted(ordered, key=lambda url: self._rests_until.get(url, now) > now)

    def failed(self, url: str) -> None:
        """It did not answer, or said that it is not ready."""
        self._rests_until[url] = self._clock() + REST_S
