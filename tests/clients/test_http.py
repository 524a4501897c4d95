"""The HTTP boundary against real servers that fail in the ways servers fail."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from shared.api.zoom import ImageFacts, WireImageSize
from shared.clients.http import HttpBoundary, Problem, Retries, read_problem
from shared.errors import CcaError, ZoomError
from shared.service.logs import request_id

QUICK = Retries(max_attempts=3, first_pause_s=0.01, factor=1.0)
SIZE = WireImageSize(width_px=3, height_px=4)

Script = Callable[[int, bytes], Awaitable[bytes | None]]
"""(number of the request, its head) → raw response, or None to hang up."""


@asynccontextmanager
async def raw_server(script: Script) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A TCP server that answers each connection as the script says; yields URL and heads seen."""
    heads: list[bytes] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
             if line.startswith(b"content-length:")), 0,
        )  # fmt: skip
        await reader.readexactly(length)
        heads.append(head)
        answer = await script(len(heads) - 1, head)
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", heads
        await asyncio.gather(*serving)


def reply(status: str, body: bytes = b"", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n"
    return head.encode() + body


OK = reply("200 OK", b'{"width_px": 3, "height_px": 4}')
BUSY = reply("503 Service Unavailable", b'{"title": "Not ready", "detail": "warming up"}')


async def test_a_service_that_is_not_ready_is_asked_again() -> None:
    async def script(number: int, _: bytes) -> bytes:
        return OK if number == 2 else BUSY

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError, retries=QUICK)
        assert await http.post("/v1/x", SIZE, WireImageSize) == SIZE
        assert len(heads) == 3
        await http.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"NOT HTTP\r\n\r\n",
        b"HTTP/1.1 two hundred OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
        b"",
        None,
    ],
)
async def test_an_answer_that_is_no_http_is_that_services_transient_error(
    answer: bytes | None,
) -> None:
    async def script(_: int, __: bytes) -> bytes | None:
        return answer

    async with raw_server(script) as (url, _):
        http = HttpBoundary(url, CcaError, retries=QUICK)
        with pytest.raises(CcaError, match="did not answer") as caught:
            await http.get("/v1/x", WireImageSize)
        assert caught.value.is_transient
        await http.aclose()


async def test_asking_again_has_an_end_and_says_what_the_service_said() -> None:
    async def script(_: int, __: bytes) -> bytes:
        return BUSY

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, CcaError, retries=QUICK)
        with pytest.raises(CcaError, match="cca: 503 Not ready: warming up") as caught:
            await http.post("/v1/x", SIZE, WireImageSize)
        assert caught.value.is_transient
        assert len(heads) == 3
        await http.aclose()


async def test_a_connection_that_breaks_before_the_answer_is_tried_again() -> None:
    async def script(number: int, _: bytes) -> bytes | None:
        return OK if number == 1 else None

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError, retries=QUICK)
        assert await http.get("/v1/x", WireImageSize) == SIZE
        assert len(heads) == 2
        await http.aclose()


async def test_nobody_listening_is_a_transient_error_that_names_the_place(
    free_port: Callable[[], int],
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    http = HttpBoundary(url, ZoomError, retries=QUICK)
    with pytest.raises(ZoomError, match=f"{url} did not answer") as caught:
        await http.get("/v1/x", WireImageSize)
    assert caught.value.is_transient
    await http.aclose()


async def test_a_slow_answer_is_not_asked_for_twice() -> None:
    async def script(_: int, __: bytes) -> bytes:
        await asyncio.sleep(0.5)
        return OK

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError, retries=QUICK, timeout=httpx.Timeout(0.1))
        with pytest.raises(ZoomError, match="Timeout on reading") as caught:
            await http.get("/v1/x", WireImageSize)
        assert caught.value.is_transient
        assert len(heads) == 1
        await http.aclose()


@pytest.mark.parametrize(
    ("status", "is_transient"),
    [("404 Not Found", False), ("422 Unprocessable", False), ("500 Error", False),
     ("429 Too Many Requests", True), ("502 Bad Gateway", True)],
)  # fmt: skip
async def test_other_errors_are_raised_at_once(status: str, is_transient: bool) -> None:
    async def script(_: int, __: bytes) -> bytes:
        return reply(status, b'{"title": "T", "detail": "why"}')

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError, retries=QUICK)
        with pytest.raises(ZoomError, match="T: why") as caught:
            await http.get("/v1/x", WireImageSize)
        assert caught.value.is_transient is is_transient
        assert len(heads) == 1
        await http.aclose()


async def test_the_request_id_is_passed_on() -> None:
    async def script(_: int, __: bytes) -> bytes:
        return OK

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError)
        token = request_id.set("abc-123")
        await http.get("/v1/x", WireImageSize)
        request_id.reset(token)
        await http.get("/v1/x", WireImageSize)
        assert b"x-request-id: abc-123\r\n" in heads[0].lower()
        assert b"x-request-id" not in heads[1].lower()
        await http.aclose()


async def test_a_response_of_another_shape_names_the_fields_and_not_the_values() -> None:
    async def script(_: int, __: bytes) -> bytes:
        return reply("200 OK", b'{"image": "secret", "width_px": "wide"}')

    async with raw_server(script) as (url, _):
        http = HttpBoundary(url, ZoomError)
        with pytest.raises(ZoomError, match=r"no ImageFacts \(image: .*width_px: ") as caught:
            await http.get("/v1/x", ImageFacts)
        assert not caught.value.is_transient
        assert "secret" not in str(caught.value)
        await http.aclose()


async def collect(http: HttpBoundary, lines: list[str]) -> None:
    async with http.stream_lines("/v1/x", SIZE) as stream:
        async for line in stream:
            lines.append(line)


async def test_lines_arrive_as_they_are_sent_and_a_broken_stream_is_an_error() -> None:
    async def script(number: int, _: bytes) -> bytes | None:
        if number == 0:
            return None
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
        return head + b'{"n": 1}\n\n{"n": 2}\n'  # and then hangs up before the 100 bytes

    async with raw_server(script) as (url, heads):
        http = HttpBoundary(url, ZoomError, retries=QUICK)
        lines: list[str] = []
        with pytest.raises(ZoomError, match="did not answer") as caught:
            await collect(http, lines)
        assert lines == ['{"n": 1}', '{"n": 2}']
        assert caught.value.is_transient
        assert len(heads) == 2
        await http.aclose()


def test_pauses_grow_heed_retry_after_and_are_bounded() -> None:
    retries = Retries(first_pause_s=0.1, factor=3.0, longest_pause_s=2.0)
    assert [round(retries.pause_s(n), 6) for n in range(4)] == [0.1, 0.3, 0.9, 2.0]
    assert retries.pause_s(0, "1") == 1.0
    assert retries.pause_s(0, "60") == 2.0
    assert retries.pause_s(0, "Wed, 21 Oct 2026 07:28:00 GMT") == 0.1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"{}"])
def test_an_error_that_is_no_problem_document_is_told_by_its_status(body: bytes) -> None:
    problem = read_problem(httpx.Response(418, content=body))
    assert problem == Problem(title="HTTP 418", detail="I'm a teapot")
