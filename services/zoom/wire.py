"""HTTP details: bounded bodies, problem documents of bad boxes, validators, inlined schemas."""

from http import HTTPStatus
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from shared.errors import ApiProblem
from shared.geometry import BadBox

M = TypeVar("M", bound=BaseModel)

IMMUTABLE = "public, max-age=31536000, immutable"
"""A blob never changes under its name."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused with 413 as soon as it is known to be over the limit."""
    too_large = ApiProblem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Request too large",
        f"the body is over the limit of {max_bytes} bytes",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def parse_body(body: bytes, model: type[M]) -> M:
    """The body as a model. Raises the error that FastAPI would raise for it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *problem["loc"])}
            for problem in error.errors(include_url=False)
        ]
        raise RequestValidationError(problems) from error


def model_response(model: BaseModel) -> Response:
    """A model as a JSON response, without FastAPI validating it once more."""
    return Response(model.__pydantic_serializer__.to_json(model), media_type="application/json")


def bad_box_response(error: BadBox) -> JSONResponse:
    """422 with the member `reason`, by which a client tells a bad box from a bad request."""
    return JSONResponse(
        {
            "type": "about:blank",
            "title": "Box cannot be cropped",
            "status": 422,
            "detail": str(error),
            "reason": error.reason.value,
        },
        status_code=422,
        media_type="application/problem+json",
    )


def is_unmodified(request: Request, name: str) -> bool:
    """Whether `If-None-Match` names the blob (RFC 9110: weak comparison)."""
    header = request.headers.get("if-none-match", "")
    given = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in given or f'"{name}"' in given


def blob_headers(name: str) -> dict[str, str]:
    """Strong validator and endless freshness of a content-addressed blob."""
    return {"etag": f'"{name}"', "cache-control": IMMUTABLE}


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a model without references, for a route that reads its own body."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: object) -> object:
        if isinstance(node, dict):
            members = cast(dict[str, object], node)
            if "$ref" in members:
                return inlined(definitions[str(members["$ref"]).rsplit("/", 1)[-1]])
            return {key: inlined(value) for key, value in members.items()}
        if isinstance(node, list):
            return [inlined(value) for value in cast(list[object], node)]
        return node

    return cast(dict[str, Any], inlined(schema))
