"""MedVR's routes beside vLLM's own: an app mounted at `/medvr`, and `/ready`.

An app of its own, so that every error below `/medvr` is a problem document, whoever raised it;
vLLM's routes keep OpenAI's format. Its document is `/medvr/openapi.json`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from services.policy.service import PolicyService
from shared.api.policy import (
    EntropyRequest,
    EntropyResponse,
    GenerateDelta,
    GenerateRequest,
    GenerateResponse,
    PolicyDescription,
)
from shared.errors import ApiProblem
from shared.service.bodies import json_body, model_response, parse_body, read_body
from shared.service.logs import request_id
from shared.service.problems import OTHER_PROBLEMS, add_problem_handlers, problem_of

T = TypeVar("T")

PREFIX = "/medvr"
_MAX_BODY_BYTES = 8 * 2**20
_CLOSED = 499
"""nginx's status for a caller that went away; nobody reads it."""


async def _unless_closed(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Finish `work`, or cancel it when the caller goes away (then None)."""
    task = asyncio.create_task(work)

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(closed())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()


async def _ndjson(
    lines: AsyncGenerator[GenerateDelta | GenerateResponse, None],
) -> AsyncIterator[bytes]:
    """One JSON object a line; an error after the first byte is a last line of kind `error`."""
    try:
        async for line in lines:
            yield line.model_dump_json().encode() + b"\n"
    except Exception as error:  # noqa: BLE001 - the status is sent, so the stream says it
        problem = msgspec.json.decode(bytes(problem_of(error).body))
        yield msgspec.json.encode({"kind": "error", **problem}) + b"\n"
    finally:
        await lines.aclose()


class PolicyRoutes:
    """Handlers of MedVR's routes; the service is in `app.state.medvr` once the engine runs."""

    def __init__(self, app: FastAPI) -> None:
        self._state = app.state

    @property
    def _service(self) -> PolicyService:
        return self._state.medvr

    async def generate(self, http: Request) -> Response:
        """Continue the segments by one turn."""
        body = parse_body(await read_body(http, _MAX_BODY_BYTES), GenerateRequest)
        self._service.require_ready()
        generator = self._service.generator
        prompt = await generator.prepare(body)
        identity = request_id.get()
        if body.stream:
            lines = generator.stream(body, prompt, identity)
            return StreamingResponse(_ndjson(lines), media_type="application/x-ndjson")
        turn = await _unless_closed(http, generator.generate(body, prompt, identity))
        return Response(status_code=_CLOSED) if turn is None else model_response(turn)

    async def entropy(self, http: Request) -> Response:
        """Score a given continuation."""
        body = parse_body(await read_body(http, _MAX_BODY_BYTES), EntropyRequest)
        self._service.require_ready()
        score = self._service.scorer.score(body, request_id.get())
        scored = await _unless_closed(http, score)
        return Response(status_code=_CLOSED) if scored is None else model_response(scored)

    async def policy(self) -> PolicyDescription:
        """What is served, and what a caller must know to use it."""
        return self._service.describe()

    async def ready(self) -> Response:
        """Warm, and caught up with the weights channel."""
        try:
            self._service.require_ready()
        except ApiProblem as problem:
            failures = {"policy": problem.detail}
            return JSONResponse({"status": "not ready", "failures": failures}, status_code=503)
        return JSONResponse({"status": "ready"})


def add_routes(app: FastAPI) -> None:
    """Add MedVR's routes to vLLM's app."""
    routes = PolicyRoutes(app)
    api = FastAPI(
        title="MedVR policy",
        description="Tokens in, tokens out, exact entropies. Research use only.",
        responses=OTHER_PROBLEMS,
        docs_url=None,
        redoc_url=None,
    )
    add_problem_handlers(api)
    turn: dict[str, Any] = {"application/json": {}, "application/x-ndjson": {}}
    api.post(
        "/v1/generate",
        summary="Continue a prompt by one turn",
        responses={200: {"model": GenerateResponse, "content": turn}},
        openapi_extra=json_body(GenerateRequest),
    )(routes.generate)
    api.post(
        "/v1/entropy",
        summary="Score a given continuation",
        responses={200: {"model": EntropyResponse}},
        openapi_extra=json_body(EntropyRequest),
    )(routes.entropy)
    api.get("/v1/policy", summary="What is served")(routes.policy)
    app.mount(PREFIX, api)
    app.add_api_route("/ready", routes.ready, methods=["GET"], tags=["medvr"])
