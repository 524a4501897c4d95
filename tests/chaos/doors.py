"""Doors: pass-through proxies in front of policy servers that note which groups came by.

A rollout worker gives all requests of a group one request id, so the ids that a door has seen are
the groups that its server was asked about. A door whose server is not there says 503, like a
server that is not ready.
"""

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from shared.service.logs import REQUEST_ID_HEADER
from shared.service.problems import problem_response

_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


@dataclass
class Door:
    """One proxy."""

    server_url: str
    url: str = ""
    groups: set[str] = field(default_factory=set)
    """Request ids of the turns that its server answered."""

    def app(self) -> FastAPI:
        """A fresh app, to be served once."""
        client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False)

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with client:
                yield

        app = FastAPI(lifespan=lifespan)

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def forward(path: str, request: Request) -> Response:
            identity = request.headers.get(REQUEST_ID_HEADER, "")
            try:
                answer = await client.request(
                    request.method,
                    f"{self.server_url}/{path}",
                    content=await request.body(),
                    headers={REQUEST_ID_HEADER: identity, "content-type": "application/json"},
                )
            except httpx.TransportError as error:
                return problem_response(503, "Not ready", f"the server is away: {error}")
            if path.endswith("/generate") and answer.status_code == 200:
                self.groups.add(identity)
            return Response(
                answer.content, answer.status_code, media_type=answer.headers.get("content-type")
            )

        return app


@contextlib.contextmanager
def standing(door: Door, port: int) -> Iterator[Door]:
    """A door that is open at this port."""
    config = uvicorn.Config(
        door.app(), host="127.0.0.1", port=port, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="door", daemon=True)
    thread.start()
    door.url = f"http://127.0.0.1:{port}"
    try:
        while not server.started:
            assert thread.is_alive(), "the door did not open"
            time.sleep(0.02)
        yield door
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def groups_of(doors: Sequence[Door]) -> tuple[set[str], set[str]]:
    """Groups seen at any door, and those seen at more than one."""
    seen: set[str] = set()
    twice: set[str] = set()
    for door in doors:
        twice |= seen & door.groups
        seen |= door.groups
    return seen, twice
