"""Problem documents (RFC 9457): how every error leaves a service, and how that is documented.

A detail names the fault and what is accepted, never the input itself: at most a short piece of
it, because a message is for reading.
"""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from shared.errors import ApiProblem, BoundaryError
from shared.service.logs import places_of

logger = logging.getLogger(__name__)

_MAX_NAME_CHARS = 64
_MAX_PROBLEMS = 8

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}

OTHER_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Whatever goes wrong.",
        "content": {
            "application/problem+json": {
                "schema": PROBLEM_SCHEMA,
                "example": {
                    "type": "about:blank",
                    "title": "Internal error",
                    "status": 500,
                    "detail": "the error was logged under the request id",
                },
            }
        },
    }
}
"""`responses` of every route; it also keeps FastAPI from documenting its own error format."""


def problem_response(status: int, title: str, detail: str) -> JSONResponse:
    """An RFC 9457 problem document."""
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status_code=status,
        media_type="application/problem+json",
    )


def shortened(name: str) -> str:
    """A name out of a request, fit for a message."""
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}…"


def describe_validation(error: RequestValidationError) -> str:
    """`body.limits.min_pixels: Input should be …; …`: what was wrong, never the input itself."""
    errors = error.errors()
    described = [
        f"{'.'.join(shortened(str(part)) for part in e['loc'])}: {e['msg']}"
        for e in errors[:_MAX_PROBLEMS]
    ]
    if len(errors) > _MAX_PROBLEMS:
        described.append(f"and {len(errors) - _MAX_PROBLEMS} more")
    return "; ".join(described)


def describe_http(request: Request, error: HTTPException) -> str:
    """What Starlette says in one word, in a sentence: which route, and what it takes."""
    phrase = HTTPStatus(error.status_code).phrase
    if error.detail != phrase:
        return str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        listed = f"{request.scope.get('root_path', '')}/openapi.json"
        return f"nothing is served at {shortened(request.url.path)}; {listed} lists the routes"
    allowed = Headers(error.headers or {}).get("allow")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and allowed:
        return f"{shortened(request.method)} is not accepted here; {allowed} is"
    return phrase


def problem_of(error: Exception) -> JSONResponse:
    """The problem document of an error that no handler was registered for, or of an `ApiProblem`.

    For answers that have begun: a handler comes too late for those.
    """
    if isinstance(error, ApiProblem):
        return problem_response(error.status, error.title, error.detail)
    logger.error("unhandled error", extra={"exception": places_of(error)})
    return problem_response(500, "Internal error", "the error was logged under the request id")


def add_problem_handlers(app: FastAPI) -> None:
    """Every error leaves the service as a problem document."""

    async def on_error(_: Request, error: Exception) -> Response:
        return problem_of(error)

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(422, "Request does not validate", describe_validation(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title, detail = HTTPStatus(error.status_code).phrase, describe_http(request, error)
        response = problem_response(error.status_code, title, detail)
        response.headers.update(error.headers or {})
        return response

    async def on_boundary(_: Request, error: Exception) -> Response:
        assert isinstance(error, BoundaryError)
        logger.warning("a dependency failed: %s", error)
        return problem_response(503, "A dependency failed", str(error))

    app.add_exception_handler(ApiProblem, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(BoundaryError, on_boundary)
    app.add_exception_handler(Exception, on_error)
