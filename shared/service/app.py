"""The common shell of an HTTP service: probes, metrics, request ids, problem documents.

Every service builds its app with `create_service_app`, so `/health` (alive), `/ready`
(dependencies answer), `/metrics` and the error format are the same everywhere. Nothing here is
global: each app has a metrics registry of its own, so tests may build as many as they like.
"""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import ApiProblem, BoundaryError
from shared.service.logs import REQUEST_ID_HEADER, new_request_id, request_id

logger = logging.getLogger(__name__)

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
            route = getattr(scope.get("route"), "path", "unmatched")
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)
            request_id.reset(token)


def problem_response(status: int, title: str, detail: str) -> JSONResponse:
    """An RFC 9457 problem document."""
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status_code=status,
        media_type="application/problem+json",
    )


def describe_validation(error: RequestValidationError) -> str:
    """`body.limits.min_pixels: Input should be …; …`: what was wrong, never the input itself."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:8]
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Every error leaves the service as a problem document."""

    async def on_problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiProblem)
        return problem_response(error.status, error.title, error.detail)

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(422, "Request does not validate", describe_validation(error))

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = HTTPStatus(error.status_code).phrase
        response = problem_response(error.status_code, title, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    async def on_boundary(_: Request, error: Exception) -> Response:
        assert isinstance(error, BoundaryError)
        logger.warning("a dependency failed: %s", error)
        return problem_response(503, "A dependency failed", str(error))

    async def on_bug(request: Request, error: Exception) -> Response:
        logger.exception("unhandled error on %s", request.url.path, exc_info=error)
        return problem_response(500, "Internal error", "the error was logged under the request id")

    app.add_exception_handler(ApiProblem, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(BoundaryError, on_boundary)
    app.add_exception_handler(Exception, on_bug)


def add_probes(
    app: FastAPI, registry: CollectorRegistry, ready_checks: Mapping[str, ReadyCheck]
) -> None:
    """`/health`, `/ready` and `/metrics`."""

    @app.get("/health", tags=["probes"], summary="The process is alive")
    async def health() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"status": "alive"}

    @app.get("/ready", tags=["probes"], summary="The dependencies answer")
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
    )
    app.state.registry = registry
    app.add_middleware(RequestContext, registry=registry, service=service)
    add_problem_handlers(app)
    add_probes(app, registry, ready_checks or {})
    return app
