"""Request and response bodies of routes that read their own: bounded, parsed and written once.

FastAPI reads a body of any size and validates a response a second time; where that matters a
route takes the `Request` and uses these.
"""

from http import HTTPStatus
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from shared.errors import ApiProblem

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises `ApiProblem` 413 as soon as it is known to be over the limit."""
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
    """A model as a JSON response."""
    return Response(model.__pydantic_serializer__.to_json(model), media_type="application/json")


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its own body; the schema is free of references."""
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

    content = {"application/json": {"schema": inlined(schema)}}
    return {"requestBody": {"required": True, "content": content}}
