"""Client of the policy servers: tokens in, tokens out.

Requests that share a prefix belong on one replica, where it is cached: `of_group` binds a client
to the replica of a group. Every call may be repeated without harm (a server keeps no state but
caches), so refused connections and 503 are retried; a turn that is under way when its connection
breaks is sampled again, by the next replica if there is one, with the same seed if it has one.
"""

import copy
from collections.abc import AsyncGenerator
from typing import Annotated, Self

import httpx
import msgspec
from pydantic import Field, TypeAdapter, ValidationError

from shared.api.policy import (
    EntropyRequest,
    EntropyResponse,
    GenerateDelta,
    GenerateRequest,
    GenerateResponse,
    PolicyDescription,
    TokenizeRequest,
    TokenizeResponse,
)
from shared.clients.http import HttpBoundary, Retries
from shared.errors import PolicyError

GENERATE_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""A turn waits for its place in the batch, and for weight swaps."""

_Line = TypeAdapter[GenerateDelta | GenerateResponse](
    Annotated[GenerateDelta | GenerateResponse, Field(discriminator="kind")]
)


class _ErrorLine(msgspec.Struct, frozen=True, tag="error", tag_field="kind"):
    """Last line of a stream that failed after it began: a problem document with a kind."""

    title: str
    status: int
    detail: str


class PolicyClient:
    """Typed calls to a policy server; every method raises `PolicyError` when it fails."""

    def __init__(
        self,
        urls: str,
        client: httpx.AsyncClient | None = None,
        *,
        retries: Retries | None = None,
    ) -> None:
        self._http = HttpBoundary(
            urls, PolicyError, client, retries=retries, timeout=GENERATE_TIMEOUT
        )

    async def aclose(self) -> None:
        """Close the connections this client opened."""
        await self._http.aclose()

    def of_group(self, group_id: str) -> Self:
        """This client, with all requests going to the replica of this group while it answers."""
        bound = copy.copy(self)
        bound._http = self._http.of(group_id)
        return bound

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Continue the segments by one turn."""
        return await self._http.post("/medvr/v1/generate", request, GenerateResponse)

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[GenerateDelta | GenerateResponse, None]:
        """The same turn as it is sampled: deltas, and the whole turn as the last element."""
        streamed = request.model_copy(update={"stream": True})
        is_done = False
        async with self._http.stream_lines("/medvr/v1/generate", streamed) as lines:
            async for line in lines:
                element = self._parse(line)
                is_done = isinstance(element, GenerateResponse)
                yield element
        if not is_done:
            raise self._http.error("the stream ended before its turn", is_transient=True)

    def _parse(self, line: str) -> GenerateDelta | GenerateResponse:
        try:
            return _Line.validate_json(line)
        except ValidationError as error:
            try:
                failed = msgspec.json.decode(line, type=_ErrorLine)
            except msgspec.MsgspecError:
                message = "a line of the stream is neither delta nor turn"
                raise self._http.error(message, is_transient=False) from error
            raise self._http.error(
                f"{failed.status} {failed.title}: {failed.detail}",
                is_transient=failed.status == 503,
                status=failed.status,
            ) from error

    async def entropy(self, request: EntropyRequest) -> EntropyResponse:
        """Score a given continuation under the policy."""
        return await self._http.post("/medvr/v1/entropy", request, EntropyResponse)

    async def count_tokens(self, text: str) -> int:
        """How many tokens a text is; special tokens are recognised, none is added."""
        request = TokenizeRequest(prompt=text)
        return (await self._http.post("/tokenize", request, TokenizeResponse)).count

    async def describe(self) -> PolicyDescription:
        """What is served, and what a caller must know to use it."""
        return await self._http.get("/medvr/v1/policy", PolicyDescription)
