"""Routes beside vLLM's own. Errors are problem documents; vLLM's routes keep OpenAI's format."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError

from services.policy.service import PolicyService
from services.policy.vllm_adapter import EngineDead
from shared.api.policy import (
    EntropyRequest,
    EntropyResponse,
    GenerateDelta,
    GenerateRequest,
    GenerateResponse,
    PolicyDescription,
)
from shared.errors import ApiProblem
from shared.service.app import problem_response
from shared.service.logs import request_id

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_MAX_BODY_BYTES = 8 * 2**20
_CLOSED = 499
"""nginx's status for a caller that went away; nobody reads it."""


async def _body(request: Request, model: type[M]) -> M:
    """The validated body; `_answer` turns what does not validate into a problem."""
    if int(request.headers.get("content-length") or 0) > _MAX_BODY_BYTES:
        raise ApiProblem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "Request too large",
            f"at most {_MAX_BODY_BYTES} bytes",
        )
    return model.model_validate_json(await request.body())


def _describe(error: ValidationError) -> str:
    """`max_tokens: Input should be …; …`: what was wrong, never the input itself."""
    parts = (
        f"{'.'.join(str(part) for part in e['loc']) or 'body'}: {e['msg']}"
        for e in error.errors(include_input=False, include_url=False)[:8]
    )
    return "; ".join(parts)


def _problem(error: Exception) -> JSONResponse:
    if isinstance(error, ApiProblem):
        return problem_response(error.status, error.title, error.detail)
    if isinstance(error, ValidationError):
        return problem_response(422, "Request does not validate", _describe(error))
    if isinstance(error, EngineDead):
        return problem_response(503, "Engine failed", "the engine has ended; a new one starts")
    logger.exception("unhandled error", exc_info=error)
    return problem_response(500, "Internal error", "the error was logged under the request id")


async def _answer(handle: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await handle()
    except Exception as error:  # noqa: BLE001 - every error leaves as a problem document
        return _problem(error)


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


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
        problem = msgspec.json.decode(bytes(_problem(error).body))
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

        async def handle() -> Response:
            body = await _body(http, GenerateRequest)
            self._service.require_ready()
            generator = self._service.generator
            prompt = await generator.prepare(body)
            identity = request_id.get()
            if body.stream:
                lines = generator.stream(body, prompt, identity)
                return StreamingResponse(_ndjson(lines), media_type="application/x-ndjson")
            turn = await _unless_closed(http, generator.generate(body, prompt, identity))
            return Response(status_code=_CLOSED) if turn is None else _json(turn)

        return await _answer(handle)

    async def entropy(self, http: Request) -> Response:
        """Score a given continuation."""

        async def handle() -> Response:
            body = await _body(http, EntropyRequest)
            self._service.require_ready()
            score = self._service.scorer.score(body, request_id.get())
            scored = await _unless_closed(http, score)
            return Response(status_code=_CLOSED) if scored is None else _json(scored)

        return await _answer(handle)

    async def policy(self) -> Response:
        """What is served, and what a caller must know to use it."""
        return _json(self._service.describe())

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

    def add(path: str, method: str, handler: Callable[..., Any], **documented: Any) -> None:
        app.add_api_route(path, handler, methods=[method], tags=["medvr"], **documented)

    generate = _documented(GenerateRequest, GenerateResponse)
    add("/medvr/v1/generate", "POST", routes.generate, **generate)
    entropy = _documented(EntropyRequest, EntropyResponse)
    add("/medvr/v1/entropy", "POST", routes.entropy, **entropy)
    add("/medvr/v1/policy", "GET", routes.policy, responses={200: {"model": PolicyDescription}})
    add("/ready", "GET", routes.ready)


def _documented(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a route that validates its own body (FastAPI's way costs twice the time)."""
    schema = body.model_json_schema()
    return {
        "responses": {200: {"model": answer}},
        "openapi_extra": {
            "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}
        },
    }
