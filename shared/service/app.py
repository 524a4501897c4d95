"""The common shell of an HTTP service: probes, metrics, request ids, problem documents.

Every service builds its app with `create_service_app`, so `/health` (alive), `/ready`
(dependencies answer), `/metrics` and the error format are the same everywhere. Nothing here is
global: each app has a metrics registry of its own, so tests may build as many as they like.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.service.logs import REQUEST_ID_HEADER, new_request_id, request_id
from shared.service.problems import OTHER_PROBLEMS, add_problem_handlers

ReadyCheck = Callable[[], Awaitable[None]]
"""Returns when the dependency answers, raises when it does not."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class RequestContext:
    """Pure ASGI middleware: sets the request id and counts requests by route and status."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, service: str) -> None:
        self._app = app
        self._requests = Counter(
            f"medvr_{service}_requests",
            "HTTP requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"medvr_{service}_request_seconds",
            "Time to the end of the response, by route.",
            ["route"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(REQUEST_ID_HEADER.encode(), b"").decode("latin-1")
        identity = given if given.isprintable() and 0 < len(given) <= 128 else new_request_id()
        token = request_id.set(identity)
        status = 500
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                headers.append((REQUEST_ID_HEADER.encode(), identity.encode("latin-1")))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            path = getattr(scope.get("route"), "path", None)
            route = "unmatched" if path is None else f"{scope.get('root_path', '')}{path}"
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)
            request_id.reset(token)


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "Not ready; `failures` says what does not answer.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["status", "failures"],
                    "properties": {
                        "status": {"type": "string", "const": "not ready"},
                        "failures": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                        },
                    },
                }
            }
        },
    }
}


def add_probes(
    app: FastAPI, registry: CollectorRegistry, ready_checks: Mapping[str, ReadyCheck]
) -> None:
    """`/health`, `/ready` and `/metrics`."""

    @app.get("/health", tags=["probes"], summary="The process is alive")
    async def health() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"status": "alive"}

    @app.get("/ready", tags=["probes"], summary="The dependencies answer", responses=_NOT_READY)
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        failures: dict[str, str] = {}
        for name, check in ready_checks.items():
            try:
                await check()
            except Exception as error:  # noqa: BLE001 - a probe reports whatever went wrong
                failures[name] = str(error) or type(error).__name__
        body: dict[str, Any] = {"status": "not ready" if failures else "ready"}
        if failures:
            body["failures"] = failures
        return JSONResponse(body, status_code=503 if failures else 200)

    @app.get("/metrics", tags=["probes"], include_in_schema=False)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def create_service_app(
    service: str,
    *,
    description: str,
    registry: CollectorRegistry | None = None,
    lifespan: Lifespan | None = None,
    ready_checks: Mapping[str, ReadyCheck] | None = None,
    interactive_docs: bool = True,
) -> FastAPI:
    """A FastAPI app with everything but the routes; `app.state.registry` holds its metrics.

    `interactive_docs` adds FastAPI's `/docs` and `/redoc`, which load scripts from elsewhere;
    `/openapi.json` is always served.
    """

    @asynccontextmanager
    async def nothing(_: FastAPI) -> AsyncGenerator[None]:
        yield

    registry = registry or CollectorRegistry()
    app = FastAPI(
        title=f"MedVR {service}",
        description=description,
        lifespan=lifespan or nothing,
        docs_url="/docs" if interactive_docs else None,
        redoc_url="/redoc" if interactive_docs else None,
        responses=OTHER_PROBLEMS,
    )
    app.state.registry = registry
    app.add_middleware(RequestContext, registry=registry, service=service)
    add_problem_handlers(app)
    add_probes(app, registry, ready_checks or {})
    return app
