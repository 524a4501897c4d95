"""JSON over HTTP to another service: replicas, bounded retries, problems become exceptions.

Invariant: whatever goes wrong on the way to a service leaves here as that service's
`BoundaryError`, with `is_transient` saying whether asking again may help. Retried are refused or
broken connections and 503 (the service says it is not ready), a bounded number of times; every
request of this system may be repeated without harm. An attempt asks one replica after the other
(`replicas` says in which order), and only when none of them answers is there a pause and another
attempt. A read that timed out is not retried: the service may still be working on it. Who creates
the `httpx.AsyncClient` closes it.

Kept cheap because a rollout makes thousands of calls on a shared core: URLs are parsed once,
bodies go from and to pydantic as bytes, no environment or redirect is looked at, and connections
are aiohttp's (httpx's own pool looks at every open connection twice per request, which with 64 of
them cost 8 ms of processor time a call against 0.3).
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Self, TypeVar, cast

import aiohttp
import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, ValidationError

from shared.clients.replicas import Replicas
from shared.errors import BoundaryError
from shared.service.logs import REQUEST_ID_HEADER, request_id

M = TypeVar("M", bound=BaseModel)

DEFAULT_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_POOL = httpx.Limits(max_connections=256, keepalive_expiry=30.0)
_JSON = {"content-type": "application/json"}
TRANSIENT_STATUSES = frozenset({408, 429, 502, 503, 504})
_BROKEN_CONNECTION = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)


class Retries(msgspec.Struct, frozen=True):
    """How often, and after which pauses, a request is sent again."""

    max_attempts: int = 4
    """Rounds over the replicas in all, the first included."""
    first_pause_s: float = 0.1
    factor: float = 3.0
    """Each pause is this many times the one before."""
    longest_pause_s: float = 5.0
    """Also the most that a `Retry-After` header is heeded."""

    def pause_s(self, attempt: int, retry_after: str | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 0)."""
        pause_s = self.first_pause_s * self.factor**attempt
        if retry_after is not None and retry_after.isdecimal():
            pause_s = max(pause_s, float(retry_after))
        return min(pause_s, self.longest_pause_s)


class Problem(msgspec.Struct, frozen=True):
    """The members of a problem document (RFC 9457) that callers look at."""

    title: str
    detail: str
    reason: str | None = None
    """Our extension member: a machine-readable reason, where the service gives one."""


def read_problem(response: httpx.Response) -> Problem:
    """The problem document of an error response; what can be said if it is none."""
    try:
        document: object = json.loads(response.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return Problem(title=f"HTTP {response.status_code}", detail=response.reason_phrase)
    members = cast(dict[str, object], document)
    reason = members.get("reason")
    return Problem(
        title=str(members.get("title", f"HTTP {response.status_code}")),
        detail=str(members.get("detail", response.reason_phrase)),
        reason=None if reason is None else str(reason),
    )


def misfit_of(error: ValidationError) -> str:
    """Which members of a response do not fit, and how; never what they hold."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
        for e in error.errors(include_input=False, include_url=False)[:4]
    )


class HttpBoundary:
    """One service behind the URLs of its replicas; failures are raised as `error_type`."""

    def __init__(
        self,
        urls: str | Replicas,
        error_type: type[BoundaryError],
        client: httpx.AsyncClient | None = None,
        *,
        retries: Retries | None = None,
        timeout: httpx.Timeout = DEFAULT_TIMEOUT,
    ) -> None:
        self._replicas = Replicas(urls) if isinstance(urls, str) else urls
        self._key: str | None = None
        self._home: str | None = None
        """Replica that answered a request of this key last."""
        self._error_type = error_type
        self._retries = retries or Retries()
        self._owns_client = client is None
        self._client = client or open_client(timeout, has_tls=self._replicas.has_tls)
        self._urls: dict[str, httpx.URL] = {}

    def of(self, key: str) -> Self:
        """This boundary, with all requests going to the replica that is the key's.

        They stay where one was answered, also when another replica joins. Shares the connections,
        which only the original closes.
        """
        bound = copy.copy(self)
        bound._key, bound._home, bound._owns_client = key, None, False
        return bound

    async def aclose(self) -> None:
        """Close the connections, if this boundary opened them."""
        if self._owns_client:
            await self._client.aclose()

    async def post(self, path: str, body: BaseModel, response_type: type[M]) -> M:
        """POST a model, receive a model. Raises the service's `BoundaryError`."""
        response = await self.send("POST", path, content=encode(body), headers=_JSON)
        return self.decode(response, response_type)

    async def get(self, path: str, response_type: type[M]) -> M:
        """GET a model. Raises the service's `BoundaryError`."""
        return self.decode(await self.send("GET", path), response_type)

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
    ) -> httpx.Response:
        """A read response of status < 400, or one in `accept`; else raises `BoundaryError`."""
        async with self._opened(method, path, content, headers, accept) as response:
            await self._read(response)
            return response

    @asynccontextmanager
    async def stream_lines(
        self, path: str, body: BaseModel
    ) -> AsyncGenerator[AsyncIterator[str], None]:
        """POST a model and iterate over the lines of the response as they arrive.

        Retried only until the response begins; a stream that breaks off is a transient error.
        """
        async with self._opened("POST", path, encode(body), _JSON, ()) as response:
            yield self._lines(response)

    def decode(self, response: httpx.Response, response_type: type[M]) -> M:
        """The body as a model; raises `BoundaryError` if it is not one."""
        return self.decode_bytes(response.content, response_type)

    def decode_bytes(self, body: bytes | str, response_type: type[M]) -> M:
        """JSON as a model; raises `BoundaryError` naming the fields that do not fit."""
        try:
            return response_type.model_validate_json(body)
        except ValidationError as error:
            message = f"response is no {response_type.__name__} ({misfit_of(error)})"
            raise self.error(message, is_transient=False) from error

    def error(
        self, message: str, *, is_transient: bool, status: int | None = None
    ) -> BoundaryError:
        """This service's exception."""
        return self._error_type(message, is_transient=is_transient, status=status)

    def error_of(self, response: httpx.Response) -> BoundaryError:
        """The exception that says what a read error response says."""
        problem = read_problem(response)
        status = response.status_code
        return self.error(
            f"{status} {problem.title}: {problem.detail}",
            is_transient=status in TRANSIENT_STATUSES,
            status=status,
        )

    def _url(self, replica: str, path: str) -> httpx.URL:
        where = replica + path
        url = self._urls.get(where)
        if url is None:
            url = httpx.URL(where)
            if len(self._urls) < 64:  # routes, not the many paths that carry a hash
                self._urls[where] = url
        return url

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        accept: Collection[int],
    ) -> AsyncGenerator[httpx.Response, None]:
        """An unread response of status < 400, or in `accept`; closed on leaving."""
        response = await self._attempt(method, path, content, headers)
        try:
            if response.status_code >= 400 and response.status_code not in accept:
                await self._read(response)
                raise self.error_of(response)
            yield response
        finally:
            await response.aclose()

    async def _attempt(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        """Ask until a response begins that is not 503, or the attempts are used up."""
        sent_headers = dict(headers or {})
        if request_id.get():
            sent_headers[REQUEST_ID_HEADER] = request_id.get()
        for attempt in range(self._retries.max_attempts):
            is_last = attempt + 1 == self._retries.max_attempts
            answer = await self._ask_replicas(method, path, content, sent_headers)
            retry_after = None
            if isinstance(answer, httpx.Response):
                if answer.status_code != 503 or is_last:
                    return answer
                retry_after = answer.headers.get("retry-after")
            elif is_last:
                raise answer
            await asyncio.sleep(self._retries.pause_s(attempt, retry_after))
        raise AssertionError("max_attempts must be at least 1")

    async def _ask_replicas(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> httpx.Response | BoundaryError:
        """The first response that is not 503; else what the last replica said, or why it did not.

        Raises `BoundaryError` if one did not answer in time: it may still be working on it.
        """
        answer: httpx.Response | BoundaryError = self.error("it has no replica", is_transient=True)
        for replica in await self._replicas_in_order():
            url = self._url(replica, path)
            request = self._client.build_request(method, url, content=content, headers=headers)
            try:
                answer = await self._client.send(request, stream=True)
                if answer.status_code != 503:
                    self._home = replica
                    return answer
                await answer.aread()
            except _BROKEN_CONNECTION as error:
                answer = self._unreachable(replica, error)
            except httpx.TransportError as error:
                self._replicas.failed(replica)
                raise self._unreachable(replica, error) from error
            self._replicas.failed(replica)
        return answer

    async def _replicas_in_order(self) -> list[str]:
        try:
            return await self._replicas.order(self._key, self._home)
        except OSError as error:
            raise self.error(f"no address for its name: {error}", is_transient=True) from error

    async def _read(self, response: httpx.Response) -> None:
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise self._unreachable(str(response.url), error) from error

    async def _lines(self, response: httpx.Response) -> AsyncIterator[str]:
        try:
            async for line in response.aiter_lines():
                if line:
                    yield line
        except httpx.TransportError as error:
            raise self._unreachable(str(response.url), error) from error

    def _unreachable(self, url: str, error: httpx.TransportError) -> BoundaryError:
        what = type(error.__cause__ or error).__name__  # aiohttp's is the nearer word
        return self.error(f"{url} did not answer ({what}: {error})", is_transient=True)


def open_client(timeout: httpx.Timeout, *, has_tls: bool = True) -> httpx.AsyncClient:
    """A pool of connections; whoever opens it closes it.

    Loading the certificate store takes 20 ms, so it is left out where no URL has TLS.
    """
    transport = _Connections(verify=has_tls, trust_env=False, limits=_POOL)
    return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)


class _Connections(AiohttpTransport):
    """aiohttp's connections; what httpx has no word for is a protocol error."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises `httpx.TransportError`."""
        try:
            return await super().handle_async_request(request)
        except aiohttp.ClientError as error:
            raise httpx.RemoteProtocolError(str(error)) from error


def encode(body: BaseModel) -> bytes:
    """A model as JSON bytes."""
    return body.__pydantic_serializer__.to_json(body)
